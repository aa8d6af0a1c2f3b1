"""The best finished run of each size and length, checked. Needs numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def best_of_each(
    parameters: Sequence[float], tokens: Sequence[float], loss: Sequence[float]
) -> tuple[Array, Array, Array]:
    """Return N, D and the lowest loss of each distinct (N, D).

    Raises:
        ValueError: for sequences of different length or empty, or values not finite and > 0.
    """
    import numpy as np

    columns: dict[str, Array] = {}
    for name, values in (("parameters", parameters), ("tokens", tokens), ("loss", loss)):
        try:
            column = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: expected one number a run, got {error}.") from error
        if column.ndim != 1 or not len(column):
            raise ValueError(
                f"{name}: expected one number a run for at least one run, got an array of shape "
                f"{column.shape}."
            )
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise ValueError(
                f"{name}: expected finite numbers > 0, got {column[bad[0]]!r} for run {bad[0]}. "
                "Leave out runs that diverged."
            )
        columns[name] = column
    if len({len(c) for c in columns.values()}) != 1:
        lengths = ", ".join(f"{len(c)} {name}" for name, c in columns.items())
        raise ValueError(f"expected parameters, tokens and loss of the same runs, got {lengths}.")
    best: dict[tuple[float, float], float] = {}
    for n, d, y in zip(*(c.tolist() for c in columns.values()), strict=True):
        best[n, d] = min(y, best.get((n, d), math.inf))
    N, D = np.array(list(best)).T
    return N, D, np.array(list(best.values()))
