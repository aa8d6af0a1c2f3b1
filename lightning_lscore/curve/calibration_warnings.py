"""What a reader must know before trusting calibrated weights. Needs numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ENOUGH_RUNS = 10
"""With about so many runs the intervals of the public sets were within 15 % of the weight."""

LAW_HOLDS = (1.0, 1000.0)
"""Tokens per parameter. A third of the runs with fewer, and two thirds of those with more, lie 4 to
90 times the scatter above the law that fits the others; 3 % of the others do."""

LAW_MEASURED = {"parameters": (5.7e7, 1.6e10), "tokens": (2.5e8, 3.2e11)}
"""Range of the runs to which Besiroglu et al. fitted it."""


def warnings_of(N: Array, D: Array, N_ref: float, D_ref: float, best: Array) -> tuple[str, ...]:
    """Return what limits the trust in a calibration, in sentences.

    Args:
        N: parameters of each run.
        D: tokens of each run.
        N_ref: the reference N.
        D_ref: the reference D.
        best: e_N and e_D as they came out.
    """
    return (
        *_of_the_count(N),
        *_of_the_reference(N, N_ref, "parameters", "e_N"),
        *_of_the_reference(D, D_ref, "tokens", "e_D"),
        *_of_the_ratio(D / N),
        *_of_the_sign(best),
    )


def unknown_of(N: Array, D: Array, N_ref: float, D_ref: float) -> tuple[str, ...]:
    """Return what the runs cannot tell, so the law would stand in for them, in sentences.

    Args:
        N: parameters of each run.
        D: tokens of each run.
        N_ref: the reference N.
        D_ref: the reference D.
    """
    return (
        *_of_the_range(N, N_ref, "parameters", "e_N"),
        *_of_the_range(D, D_ref, "tokens", "e_D"),
        *_of_growth_together(N / N_ref, D / D_ref),
    )


def _of_the_count(N: Array) -> Iterator[str]:
    if len(N) < ENOUGH_RUNS:
        yield (
            f"Only {len(N)} distinct runs: with fewer than {ENOUGH_RUNS} the weights come mostly "
            "from the Chinchilla law."
        )


def _of_the_reference(amounts: Array, reference: float, name: str, e: str) -> Iterator[str]:
    import numpy as np

    x = np.log(amounts / reference)
    if x.min() > 1e-9 or x.max() < -1e-9:  # the exponential of a logarithm is rounded
        yield f"The reference lies outside the runs' number of {name}: {e} is extrapolated."


def _of_the_range(amounts: Array, reference: float, name: str, e: str) -> Iterator[str]:
    if float(amounts.max()) < 2 * float(amounts.min()):
        yield (
            f"The runs' number of {name} varies by less than a factor of 2: {e} would come from "
            f"the Chinchilla law alone. Add runs with at least 2 times as many {name}, better 10."
        )
    low, high = LAW_MEASURED[name]
    if not low <= reference <= high:
        yield (
            f"The Chinchilla law was measured on {low:.2g} to {high:.2g} {name} and the "
            f"reference is {reference:.2g}: what {e} takes from the law would be extrapolated. "
            f"Add runs, so the geometric mean of their {name} lies in that range."
        )


def _of_growth_together(N: Array, D: Array) -> Iterator[str]:
    import numpy as np

    u, v = np.log(N), np.log(D)
    apart = np.linalg.svd(np.stack([u - u.mean(), v - v.mean()]), compute_uv=False)
    if len(u) > 1 and np.ptp(u) >= math.log(2) <= np.ptp(v) and apart[1] < 0.1 * apart[0]:
        yield (
            "Parameters and tokens grew together in these runs: how the gain is divided between "
            "e_N and e_D would come from the Chinchilla law alone. Add runs of one size on more "
            "tokens, or larger ones on as many."
        )


def _of_the_ratio(tokens_per_parameter: Array) -> Iterator[str]:
    low, high = LAW_HOLDS
    beyond = int(((tokens_per_parameter < low) | (tokens_per_parameter > high)).sum())
    if beyond:
        yield (
            f"{beyond} of {len(tokens_per_parameter)} runs had fewer than {low:g} or more than "
            f"{high:g} tokens a parameter, where the Chinchilla law promises too much: leave "
            "them out if others remain."
        )


def _of_the_sign(best: Array) -> Iterator[str]:
    for name, e in zip(("e_N", "e_D"), best.tolist(), strict=True):
        if e <= 0:
            yield (
                f"{name} came out as {e:.3g}, more of it made the runs no better: taken as 0. Was "
                "each run evaluated at the end of its own schedule?"
            )
