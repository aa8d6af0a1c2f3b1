"""What a calibration found: weights for the formula, and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..equation.factor import Factor
from ..equation.formula import Formula
from ..equation.law import planned_capacity_flops
from .fitted_law import FittedLaw


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a number lies with 90 % probability."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Weights for the formula, and how sure they are. All are elasticities, without unit.

    "1 % more parameters lowered perplexity by ``e_N`` %, 1 % more tokens by ``e_D`` %."
    """

    w_D: float
    w_A: float
    w_H: float
    w_D_interval: Interval
    w_A_interval: Interval
    w_H_interval: Interval
    e_N: float
    """-d ln T / d ln N at the reference."""
    e_D: float
    """-d ln T / d ln D at the reference."""
    e_N_interval: Interval
    e_D_interval: Interval
    parameters: float
    """The reference N at which these hold."""
    tokens: float
    """The reference D at which these hold."""
    runs: int
    """Number of distinct (N, D)."""
    scatter: float
    """Standard deviation of the runs about the law, in nats."""
    share: float
    """How much of the smaller elasticity machine time takes from D and A, 0..1."""
    warnings: tuple[str, ...] = ()
    """What a reader must know before trusting the weights, in sentences."""
    unknown: tuple[str, ...] = ()
    """What the runs cannot tell and the weights would only take from elsewhere, with what would
    tell it, in sentences; there is a formula only where this is empty."""
    law: FittedLaw | None = field(default=None, repr=False, compare=False)
    """The law through the runs, for :meth:`FittedLaw.gain`."""

    def formula(self, *, parameters: float | None = None, tokens: float | None = None) -> Formula:
        """Return the formula with these weights; at its reference L is the perplexity.

        Args:
            parameters: reference model size. Default: where the weights were measured.
            tokens: reference training tokens. Default: where the weights were measured.

        Raises:
            ValueError: if the runs cannot tell the weights, see ``unknown``.
        """
        if self.unknown:
            raise ValueError(f"expected runs that tell the weights. {' '.join(self.unknown)}")
        N = self.parameters if parameters is None else parameters
        D = self.tokens if tokens is None else tokens
        return Formula(
            D=Factor("tokens", D, self.w_D),
            A=Factor("trainable_parameters", N, self.w_A),
            H=Factor("capacity_flops", planned_capacity_flops(N, D), self.w_H),
            origin=f"calibrated on {self.runs} finished runs",
        )
