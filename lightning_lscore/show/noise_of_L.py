"""Whether the L of two runs differ by more than noise, and in which of their parts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ..curve.noise import scatter_of_curve, scatter_of_rates, scatter_of_repeats
from ..equation.factor import TRAINING_TIME, Factor
from ..equation.formula import Formula
from ..record.reaching import evaluated_alike, lowest
from ..record.record import Record

SURE = 2.0
"""How many standard deviations two values must lie apart to differ."""


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Standard deviations of what a run measured; None where its record cannot tell."""

    ln_T: float | None
    rate: float | None
    """Relative, of the device time that a token took, over the validations of the run."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of the ln L of one run from that of another."""

    parts: Mapping[str, float]
    """Differences of ln T, ln f(D), ln f(A) and ln f(H), by letter; their sum is that of ln L."""
    noise: float
    """What chance may make of the sum: 2 standard deviations of T and of the machines' time."""
    slower: float | None
    """How many times as long a token of equal work took on the same kind of devices; None where
    the work or the devices differ."""
    speed: float
    """The part of the sum that comes from that."""

    @property
    def ln_L(self) -> float:
        return math.fsum(self.parts.values())

    @property
    def is_tie(self) -> bool:
        """Whether noise, or machine time for the same work, explains the difference."""
        return abs(self.ln_L) <= self.noise or abs(self.ln_L - self.speed) <= self.noise

    @property
    def why(self) -> str:
        """Why it is a tie, in words."""
        if abs(self.ln_L) > self.noise and self.slower is not None:
            return (
                f"by machine time alone, {self.slower:.2f} times as long a token of the same work "
                "on the same kind of device: repeat both on a quiet machine"
            )
        return f"{100 * abs(self.ln_L):.2g} % apart, noise is {100 * self.noise:.2g} %"


def scatter_of_each(
    runs: Mapping[str, Sequence[Record]], T: str, repeats: Sequence[Collection[str]] = ()
) -> dict[str, Scatter]:
    """Return what chance does to each run: from repeated runs if there are any, else its curve."""
    ends = {n: low.ln_T for n, records in runs.items() if (low := lowest(records, T))}
    of_seeds = scatter_of_repeats([[ends[n] for n in group if n in ends] for group in repeats])
    found = {}
    for name, records in runs.items():
        ln_T = of_seeds
        if ln_T is None:
            ln_T = scatter_of_curve([y for _, y in evaluated_alike(records, T)][-20:])
        spent = [r.measurements.device_hours or 0.0 for r in records]
        done = [float(r.measurements.tokens or 0) for r in records]
        found[name] = Scatter(ln_T=ln_T, rate=scatter_of_rates(spent, done))
    return found


def difference_of(
    formula: Formula,
    name_a: str,
    a: Record,
    name_b: str,
    b: Record,
    scatter: Mapping[str, Scatter],
) -> Difference | None:
    """Return by how much ln L of ``b`` lies above that of ``a``; None without both L."""
    parts_a, parts_b = (formula.ln_parts(r.measurements) for r in (a, b))
    parts = {}
    for letter in "TDAH":
        x, y = parts_a[letter], parts_b[letter]
        if x is None or y is None or not math.isfinite(x) or not math.isfinite(y):
            return None
        parts[letter] = y - x
    variance = 0.0
    for name, record in ((name_a, a), (name_b, b)):
        variance += (scatter[name].ln_T or 0.0) ** 2
        variance += ((scatter[name].rate or 0.0) * _price_of_time(formula, record)) ** 2
    slower = _slower(a, b)
    speed = 0.0 if slower is None else _price_of_time(formula, b) * math.log(slower)
    noise = SURE * math.sqrt(variance)
    return Difference(parts=parts, noise=noise, slower=slower, speed=speed)


def _price_of_time(formula: Formula, record: Record) -> float:
    """Return d ln f(H) / d ln time where the run is; 0 where H charges for no time."""
    H = formula.H
    if not isinstance(H, Factor) or H.measure not in (*TRAINING_TIME, "wall_hours", "energy_kwh"):
        return 0.0
    x = (H.priced(record.measurements) or 0.0) / H.reference
    return (H.ln_f(x * (1 + 1e-6)) - H.ln_f(x)) / 1e-6 if x > 0 else 0.0


def _slower(a: Record, b: Record) -> float | None:
    """Return the device time of a token of ``b`` over that of ``a``, if both did equal work."""
    kinds = [sorted((d.name, d.kind, d.dtype) for d in r.devices) for r in (a, b)]
    if kinds[0] != kinds[1] or not kinds[0]:
        return None
    rates = []
    for record in (a, b):
        m = record.measurements
        if not (m.tokens and m.model_flops and m.device_hours and m.trainable_parameters):
            return None
        rates.append((m.model_flops / m.tokens, m.trainable_parameters, m.device_hours / m.tokens))
    (flops_a, trained_a, time_a), (flops_b, trained_b, time_b) = rates
    alike = all(0.99 < y / x < 1.01 for x, y in ((flops_a, flops_b), (trained_a, trained_b)))
    return time_b / time_a if alike else None
