"""What a reader must know before trusting calibrated weights. Needs numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ENOUGH_RUNS = 10
"""From about here the intervals of the sets were within 15 % of the weight."""

LAW_HOLDS = (1.0, 1000.0)
"""Tokens a parameter. Of the runs with fewer a third, and with more two thirds, lie 4 to 90 times
the scatter above the law that fits the others; of the others 3 % do."""

LAW_MEASURED = {"parameters": (5.7e7, 1.6e10), "tokens": (2.5e8, 3.2e11)}
"""Range of the runs to which Besiroglu et al. fitted it."""


def warnings_of(N: Array, D: Array, N_ref: float, D_ref: float, best: Array) -> tuple[str, ...]:
    import numpy as np

    said = []
    if len(N) < ENOUGH_RUNS:
        said.append(
            f"Only {len(N)} distinct runs: with fewer than {ENOUGH_RUNS} the weights are in good "
            "part those of the Chinchilla law."
        )
    u, v = np.log(N / N_ref), np.log(D / D_ref)
    for x, reference, name, e in ((u, N_ref, "parameters", "e_N"), (v, D_ref, "tokens", "e_D")):
        if np.ptp(x) < math.log(2):
            said.append(
                f"The runs' number of {name} varies by less than a factor of 2: {e} comes from "
                "the Chinchilla law rather than from them."
            )
        if x.min() > 1e-9 or x.max() < -1e-9:  # the exponential of a logarithm is rounded
            said.append(
                f"The reference lies outside of the runs' number of {name}: {e} is extrapolated."
            )
        low, high = LAW_MEASURED[name]
        if not low <= reference <= high:
            said.append(
                f"The Chinchilla law was measured on {low:.2g} to {high:.2g} {name} and the "
                f"reference is {reference:.2g}: what {e} takes from the law is extrapolated."
            )
    together = np.linalg.svd(np.stack([u - u.mean(), v - v.mean()]), compute_uv=False)
    if len(u) > 1 and np.ptp(u) >= math.log(2) <= np.ptp(v) and together[1] < 0.1 * together[0]:
        said.append(
            "Parameters and tokens grew together in these runs: how the gain is divided between "
            "e_N and e_D comes from the Chinchilla law."
        )
    low, high = LAW_HOLDS
    beyond = int(((D / N < low) | (D / N > high)).sum())
    if beyond:
        said.append(
            f"{beyond} of {len(N)} runs had fewer than {low:g} or more than {high:g} tokens a "
            "parameter, where the Chinchilla law promises too much: leave them out if others "
            "remain."
        )
    for name, e in zip(("e_N", "e_D"), best.tolist(), strict=True):
        if e <= 0:
            said.append(
                f"{name} came out as {e:.3g}, more of it made the runs no better: taken as 0. Was "
                "each run evaluated at the end of its own schedule?"
            )
    return tuple(said)
