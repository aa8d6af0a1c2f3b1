"""The scaling law through finished runs, and the compute that it needs for a loss. Needs numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..equation.law import FLOPS_PER_PARAMETER

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


class Gain(NamedTuple):
    """Compute that the law needs for a loss over the compute that a run spent, and its 90 %."""

    factor: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedLaw:
    """Draws of ln T = level + e_N·p(alpha, u) + e_D·p(beta, v) from the posterior of runs.

    p(x, u) = (exp(-x·u) - 1)/x, u = ln(N / parameters), v = ln(D / tokens).
    """

    elasticities: Array
    """e_N and e_D of each draw [draws, 2]."""
    exponents: Array
    """alpha and beta of each draw [draws, 2]."""
    level: Array
    """ln T at the reference, of each draw [draws]."""
    parameters: float
    """Reference N."""
    tokens: float
    """Reference D."""
    compute: tuple[float, float]
    """Least and most compute of the runs, 6·N·D FLOP."""

    def gain(self, ln_T: float, flops: float) -> Gain:
        """Return the compute-equivalent gain of a run over the runs that the law was fitted to.

        That is the least compute with which the law reaches the run's perplexity, at the best N
        and D for it, over the compute that the run spent: 1.5 means that the runs of the law would
        have needed 1.5 times as much. At the optimum both terms of the law have one slope
        y = e_N·exp(-alpha·u) = e_D·exp(-beta·v), so ln T = level - e_N/alpha - e_D/beta
        + y·(1/alpha + 1/beta) gives y, and 6·N·D follows.

        Args:
            ln_T: held-out loss of the run, nats a token, on the set of the law's runs.
            flops: that it spent, FLOP.

        Returns:
            The median of the draws with their central 90 %.

        Raises:
            ValueError: if the law would need more or less compute than its runs had: it does not
                cover the run.

        References:
            Davidson et al. 2023, https://arxiv.org/abs/2312.07413, for the measure.
        """
        import numpy as np

        e, x = np.maximum(self.elasticities, 1e-12), self.exponents
        floor = self.level - (e / x).sum(axis=1)
        slope = (ln_T - floor) / (1 / x).sum(axis=1)
        with np.errstate(divide="ignore", over="ignore"):
            # A loss below the floor of a draw is out of its reach at any compute.
            grown = np.log(e / np.maximum(slope, 0.0)[:, None]) / x
            needed = np.exp(grown.sum(axis=1)) * self.parameters * self.tokens * FLOPS_PER_PARAMETER
        low, middle, high = np.quantile(needed, (0.05, 0.5, 0.95), method="nearest").tolist()
        least, most = self.compute
        if not least <= middle <= most:
            raise ValueError(
                f"expected a perplexity that the law's runs cover, {least:.2g} to {most:.2g} FLOP, "
                f"got {math.exp(min(ln_T, 700.0)):.4g}, for which the law needs {middle:.2g} FLOP. "
                "Calibrate on larger or smaller runs."
            )
        return Gain(middle / flops, low / flops, high / flops)
