"""The best L that a run may still reach, or why there is no forecast."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The best L of the run, so far or to come, with 90 % intervals."""

    best_L: float
    """Expected: the lowest L up to the horizon. Never above the best L so far."""
    best_L_low: float
    best_L_high: float
    growth: float
    """Expected spending at that L, as a multiple of what is spent now; <= 1: already passed."""
    growth_low: float
    growth_high: float
    horizon: float
    """How far the forecast looks, as a multiple of what is spent now: to the end of the plan."""


@dataclass(frozen=True, kw_only=True)
class Unpredictable:
    """Why there is no prediction."""

    reason: str
    """A sentence."""
