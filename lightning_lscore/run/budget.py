"""A hard cap on what a run spends, and when to look at it next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..equation.measurements import Measurements
from ..equation.measures import GROWING, MEASURES
from ..equation.safe_numbers import as_number, short

CAPPED = tuple(name for name in GROWING if name not in ("steps", "epochs", "wall_hours"))
"""The measures of training that can be capped; Lightning's own ``max_steps``, ``max_epochs`` and
``max_time`` do it for the others."""

PATIENT_HOURS = 30 / 3600
"""Training time after which a measure that still has no value is taken for unavailable."""

_COUNTED = ("tokens", "samples", "model_flops")  # by batches, which are much alike
_SAMPLED = ("energy_kwh", "emissions_kg")  # known up to the last reading of the devices
_PART = 1 / 16  # of what is left, until the next look: a step may become as many times slower
_KEPT = 8  # looks: the dearest step among them is what the next one may cost


class Unavailable(Exception):
    """A measure that is capped cannot be measured; the message says why and what to do."""


class Budget:
    """Say when a run must end, so that it stays within what it may spend.

    Looked at after some of its steps: all processes agree on the spending then, and by it on the
    batch after which they look again, so that no step in between exchanges anything. The gap is a
    sixteenth of what is left at the dearest recent rate, and in the end a single step.

    Args:
        limits: measure -> amount that the run may spend in all, across resumes, > 0.
        lag_hours: how old the readings of the devices may be.

    Raises:
        ValueError: for a measure that cannot be capped, or an amount that is no number > 0.
    """

    def __init__(self, limits: Mapping[str, float], lag_hours: float = 1 / 3600) -> None:
        for name, limit in limits.items():
            if name not in CAPPED:
                raise ValueError(
                    f"budget: expected amounts of {', '.join(CAPPED)}, got {short(name)}. The "
                    "Trainer's max_steps, max_epochs and max_time cap the rest."
                )
            number = as_number(limit)
            if number is None or not 0 < number < math.inf:
                raise ValueError(f"budget: expected {name} > 0, got {short(limit)}.")
        self.limits = {str(name): float(limit) for name, limit in limits.items()}
        self.next_look = 0
        """Batches of a process after which to look again."""
        self._lag_hours = lag_hours
        self._before: dict[str, float] = {}  # amounts at the last look, and its batches
        self._rates: dict[str, list[float]] = {}  # a batch, at the last looks
        self._started = False  # one step and more of this fit

    def begin(self) -> None:
        """Begin another fit; what a batch costs may be another now."""
        self.next_look, self._before, self._started = 0, {}, False

    def look(self, measured: Measurements, batches: int, a_step: int = 1) -> str | None:
        """Return why the run must end now, in words; None: it may take another step.

        Args:
            measured: by all processes, until now.
            batches: of this process so far, the same on all.
            a_step: batches of an optimiser's step.

        Raises:
            Unavailable: if a measure has no value.
        """
        now = {name: amount for name in self.limits if (amount := measured.get(name)) is not None}
        hours = measured.train_hours or 0.0
        for name in self.limits:
            if name not in now and (_is_final(measured, name) or hours > PATIENT_HOURS):
                raise Unavailable(
                    f"budget: expected a run in which {name} is measured, got none "
                    f"({measured.why_missing(name)}). A cap that never holds is none: cap another "
                    f"of {', '.join(CAPPED)}."
                )
        self._learn(now | {"train_hours": hours}, batches)
        left = [self._steps_left(name, now[name], a_step) for name in now]
        steps = min(left, default=0.0) if len(now) == len(self.limits) else 0.0
        self.next_look = batches + a_step * max(1, int(min(steps, 1e9) * _PART))
        over = [name for name, n in zip(now, left, strict=True) if n < 1]
        return self._in_words(over, now) if over else None

    def _learn(self, now: Mapping[str, float], batches: int) -> None:
        before = self._before
        if before and batches > before["batches"]:
            for name in now.keys() & before.keys():
                rate = (now[name] - before[name]) / (batches - before["batches"])
                # The time of a fit's first step has its start in it; its counts are of any step.
                if self._started or name in _COUNTED:
                    self._rates[name] = [*self._rates.get(name, [])[1 - _KEPT :], rate]
            self._started = True
        self._before = {**now, "batches": batches}

    def _steps_left(self, name: str, spent: float, a_step: int) -> float:
        """How many steps what is left pays for; below 1 the next one would pass the limit."""
        left, dearest = self.limits[name] - spent, max(self._rates.get(name, [0.0]))
        if left <= 0:
            return 0.0
        hours = max(self._rates.get("train_hours", [0.0]))
        if name in _SAMPLED and hours > 0:
            left -= dearest * self._lag_hours / hours
        if not dearest > 0:
            return 1.0  # not known yet: look again after the next
        return left / (dearest * a_step)

    def _in_words(self, over: list[str], now: Mapping[str, float]) -> str:
        parts = []
        for name in over:
            unit = MEASURES[name].unit
            parts.append(
                f"{now[name]:.6g} of {self.limits[name]:.6g} {unit} ({name})"
                if unit != name
                else f"{now[name]:,.0f} of {self.limits[name]:,.0f} {name}"
            )
        return f"{' and '.join(parts)} are spent, and the next step would pass the budget."

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers for a checkpoint; the limits are not part of it."""
        return {"rates": {name: list(rates) for name, rates in self._rates.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._rates = {str(k): [float(x) for x in v] for k, v in state["rates"].items()}


def _is_final(measured: Measurements, name: str) -> bool:
    """Whether a measure is missing for good, not only until its first reading."""
    why = measured.why_missing(name)
    return "yet" not in why
