"""What a run has spent: counters that add up over processes, devices and resumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from typing import Any

from ..equation.measurements import Measurements
from ..hardware.totals import Totals


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Training so far, without validation, in plain numbers that any checkpoint can hold."""

    tokens: int = 0
    samples: int = 0
    model_flops: float = 0.0
    """FLOP that the model needed for its tokens."""
    batches: int = 0
    """Micro-batches of one rank."""
    uncounted_batches: int = 0
    """Batches in which no tokens were found."""
    epochs: float = 0.0
    """Passes over the training set; 0 for a set without a length."""
    train_seconds: float = 0.0
    """Wall time, that of the slowest rank."""
    wall_seconds: float = 0.0
    """Wall time, validation included."""
    device_seconds: float = 0.0
    """Wall time times the devices of all ranks."""
    unpriced_seconds: float = 0.0
    """Device time without a price."""
    cost: float = 0.0
    """Of the rest, in the currency of the price."""
    capacity_flops: float = 0.0
    """FLOP that these devices could have computed in that time at their dense peak."""
    unrated_joules: float = 0.0
    """Energy without a carbon intensity."""
    emissions_kg: float = 0.0
    """CO2-equivalent of the rest."""
    devices: Mapping[str, Totals] = field(default_factory=dict)
    """What the samplers saw of each device, by its key."""

    @property
    def hardware(self) -> Totals:
        """What the samplers saw of all devices together."""
        return sum(self.devices.values(), Totals())

    def then(self, later: Spending) -> Spending:
        """This, and after it ``later``."""
        return self._joined(later, lambda name, a, b: a + b)

    @classmethod
    def over_ranks(cls, ranks: Sequence[Spending]) -> Spending:
        """Add up what processes spent at the same time."""
        total = ranks[0]
        for rank in ranks[1:]:
            total = total._joined(rank, lambda n, a, b: max(a, b) if n in _COMMON else a + b)
        return total

    def grown(self, before: Spending, now: Spending, ranks: int) -> Spending:
        """This total of all processes, after one of them went on from ``before`` to ``now``.

        Assumes that the others trained on as many tokens, which saves an exchange. What their
        samplers saw in the meantime is missing, and the coverage shows it.
        """
        once = (*_COMMON, *_OF_ENERGY)
        more = {
            name: (getattr(now, name) - getattr(before, name)) * (1 if name in once else ranks)
            for name in _PLAIN
        }
        nothing = Totals()
        seen = {key: t.since(before.devices.get(key, nothing)) for key, t in now.devices.items()}
        return self.then(Spending(**more, devices=seen))

    def at_least(self, measured: Measurements) -> Spending:
        """This, with at least the time that was measured, and its cost and capacity.

        What the samplers saw of that time is missing, and the coverage shows it.
        """
        found = {
            "train_seconds": 3600 * (measured.train_hours or 0.0),
            "wall_seconds": 3600 * (measured.wall_hours or 0.0),
            "device_seconds": 3600 * (measured.device_hours or 0.0),
            "cost": measured.cost or 0.0,
            "capacity_flops": measured.capacity_flops or 0.0,
        }
        return replace(self, **{k: max(v, getattr(self, k)) for k, v in found.items()})

    def _joined(self, other: Spending, join: Callable[[str, Any, Any], Any]) -> Spending:
        plain = {name: join(name, getattr(self, name), getattr(other, name)) for name in _PLAIN}
        devices = dict(self.devices)
        for key, totals in other.devices.items():
            devices[key] = devices[key] + totals if key in devices else totals
        return Spending(**plain, devices=devices)

    def numbers(self, slots: int) -> list[float]:
        """Return the numbers to exchange, equally many on each process.

        Args:
            slots: the largest number of devices that one process reads.
        """
        seen = [*self.devices.values()] + [Totals()] * (slots - len(self.devices))
        plain = [getattr(self, name) for name in _PLAIN]
        return plain + [value for totals in seen for value in astuple(totals)]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float], devices: Sequence[str]) -> Spending:
        """The inverse of :meth:`numbers`, with the keys of the devices that the process reads."""
        values = iter(numbers)
        plain = _take(cls, {name: next(values) for name in _PLAIN})
        names = [f.name for f in fields(Totals)]
        seen = {key: _take(Totals, {name: next(values) for name in names}) for key in devices}
        return cls(**plain, devices={key: Totals(**totals) for key, totals in seen.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, with a dictionary for each device."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spending:
        """The inverse of :meth:`to_dict`; a missing number is 0.

        Raises:
            ValueError, TypeError, AttributeError, OverflowError: if these are no such numbers.
        """
        seen = {k: _take(Totals, amounts) for k, amounts in values.get("devices", {}).items()}
        plain = _take(cls, values)
        for name, value in [*plain.items(), *(row for one in seen.values() for row in one.items())]:
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
        return cls(**plain, devices={str(key): Totals(**one) for key, one in seen.items()})


# The same on every process, or their maximum.
_COMMON = (
    "batches",
    "uncounted_batches",
    "epochs",
    "train_seconds",
    "wall_seconds",
    "device_seconds",
    "unpriced_seconds",
    "cost",
    "capacity_flops",
)
# Of the devices that the process's sampler reads, like their energy.
_OF_ENERGY = ("unrated_joules", "emissions_kg")
_PLAIN = tuple(f.name for f in fields(Spending) if f.name != "devices")


def _take(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {f.name: int if f.type == "int" else float for f in fields(cls) if f.name != "devices"}
    return {name: kind(values[name]) for name, kind in kinds.items() if name in values}
