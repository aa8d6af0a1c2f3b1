"""What the newest validations show: their noise, and whether the loss falls faster than before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .noise import scatter_of_differences, third_differences

NOISE_WINDOW = 20
"""How many third differences of ln T the noise is estimated from: enough for a steady median, few
enough to follow a curve whose noise shrinks while the learning rate decays."""

REMEMBERED = NOISE_WINDOW + 3
"""Values of ln T that so many third differences are made of."""

_ROUNDING = 1e-9  # nats


def scatter(ln_T: Sequence[float]) -> tuple[float, int]:
    """Return the standard deviation of one validation, and how many differences told it.

    >>> scatter([16.0, 9.0, 4.0, 1.0, 0.0])  # a parabola, without noise
    (0.0, 2)
    """
    third = third_differences(ln_T[-REMEMBERED:])
    return (scatter_of_differences(third) if third else 0.0), len(third)


def falls_faster(ln_T: Sequence[float], validations: int, noise: float) -> bool:
    """Whether the loss fell faster over the newer half of the last validations than before.

    By more than one standard deviation of the difference of the halves, √6 noise. Losses fall ever
    slower, and what the past bought bounds what the rest can buy. Where a curve does otherwise, as
    in a warm-up or in a decay of the learning rate, its past says nothing about the rest.

    Args:
        ln_T: newest last.
        validations: the last ones to look at.
        noise: standard deviation of one of them.
    """
    half = min(validations, NOISE_WINDOW, len(ln_T) - 1) // 2
    if half < 1:
        return False
    newer = ln_T[-1 - half] - ln_T[-1]
    older = ln_T[-1 - 2 * half] - ln_T[-1 - half]
    return newer > max(older, 0.0) + math.sqrt(6) * noise + _ROUNDING
