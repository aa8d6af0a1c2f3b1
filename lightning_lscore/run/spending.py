"""What a run has spent: counters that sum over ranks, devices and resumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from typing import Any

from ..equation.measurements import Measurements
from ..hardware.meter import Totals


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Training so far, without validation. Plain numbers, so that any checkpoint can hold them."""

    tokens: int = 0
    samples: int = 0
    model_flops: float = 0.0
    """FLOP that the model needed for its tokens."""
    batches: int = 0
    """Micro-batches of one rank."""
    uncounted_batches: int = 0
    """Those in which no tokens were found."""
    epochs: float = 0.0
    """Passes over the training set; none of those over a set without a length."""
    train_seconds: float = 0.0
    """Wall time, that of the slowest rank."""
    wall_seconds: float = 0.0
    """The same with validation."""
    device_seconds: float = 0.0
    """Wall time times the devices of all ranks."""
    unpriced_seconds: float = 0.0
    """Those of them that nobody named a price for."""
    cost: float = 0.0
    """Of the others, in the currency of the price."""
    capacity_flops: float = 0.0
    """FLOP that these devices could have computed in that time at their dense peak."""
    unrated_joules: float = 0.0
    """Energy that nobody named a carbon intensity for."""
    emissions_kg: float = 0.0
    """CO2-equivalent of the other energy."""
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
        """What ranks that ran at the same time have spent together."""
        total = ranks[0]
        for rank in ranks[1:]:
            total = total._joined(rank, lambda n, a, b: max(a, b) if n in _COMMON else a + b)
        return total

    def grown(self, before: Spending, now: Spending, ranks: int) -> Spending:
        """This total of all ranks, after one rank went on from ``before`` to ``now``.

        Takes the other ranks to have trained on as many tokens, which saves asking them. What
        their samplers saw in the meantime is left out, so that the coverage shows it.
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
        """This, with no less time than was measured, and no less cost and capacity for it.

        What the samplers saw of that time is left out, so that the coverage shows it.
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
        """For an exchange between ranks: equally many on each of them.

        Args:
            slots: the most devices that any rank reads.
        """
        seen = [*self.devices.values()] + [Totals()] * (slots - len(self.devices))
        plain = [getattr(self, name) for name in _PLAIN]
        return plain + [value for totals in seen for value in astuple(totals)]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float], devices: Sequence[str]) -> Spending:
        """The inverse of :meth:`numbers`, with the keys of the devices that the rank reads."""
        values = iter(numbers)
        plain = _take(cls, {name: next(values) for name in _PLAIN})
        names = [f.name for f in fields(Totals)]
        seen = {key: _take(Totals, {name: next(values) for name in names}) for key in devices}
        return cls(**plain, devices={key: Totals(**totals) for key, totals in seen.items()})

    def to_dict(self) -> dict[str, Any]:
        """Of plain numbers, those of each device in a dictionary of its own."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spending:
        """The inverse of :meth:`to_dict`; what is not there is 0."""
        seen = {k: Totals(**_take(Totals, t)) for k, t in values.get("devices", {}).items()}
        return cls(**_take(cls, values), devices=seen)


# The same on every rank, or the largest of them.
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
# Of the devices that the rank's sampler reads, as their energy is.
_OF_ENERGY = ("unrated_joules", "emissions_kg")
_PLAIN = tuple(f.name for f in fields(Spending) if f.name != "devices")


def _take(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {f.name: int if f.type == "int" else float for f in fields(cls) if f.name != "devices"}
    return {name: kind(values[name]) for name, kind in kinds.items() if name in values}
