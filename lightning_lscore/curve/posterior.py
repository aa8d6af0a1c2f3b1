"""The elasticities of perplexity in parameters and tokens, by Bayes' rule. Needs numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ..equation.law import LAW_A, LAW_ALPHA, LAW_B, LAW_BETA

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# The prior: how the law fits 14 public sets of finished runs from six sources (Gadre et al. 2024 on
# five texts, the OLMo ladder on three, Chinchilla, Llama 3, Marin on three, Li et al. 2025 on one).

PRIOR_SD = 0.25
"""Relative standard deviation of an elasticity about the law's; in the sets 0.23 and 0.21."""

PRIOR_CORRELATION = 0.5
"""Correlation of the two elasticities' deviations, as in the sets: harder text raises both."""

EXPONENT_SPREAD = 0.45
"""Standard deviation of ln alpha and of ln beta about the law's; in the sets 0.43 and 0.44."""

NOISE = (0.05, 1.0)
"""Median of the runs' scatter about the law in nats, and standard deviation of its logarithm.
The sets have 0.025 and 0.8. The median is doubled because runs of one model size deviate together,
which a few of them cannot show: at 0.03 the 90 % intervals from 6 of Gadre's runs held 85 %."""

DEGREES = 4
"""Degrees of freedom of Student's t for that scatter. With 4, as in Lange et al. 1989, a run that
was not tuned or hardly left its warm-up counts little. Under a normal law it tilts the fit, and the
intervals held 77 % at 10 runs."""


class Posterior(NamedTuple):
    """What runs say of the law ln T = level + e_N·p(alpha, u) + e_D·p(beta, v).

    p(x, u) = (exp(-x·u) - 1)/x, with u = ln(N / N_ref) and v = ln(D / D_ref).
    """

    mean: Array
    """e_N and e_D [2]."""
    drawn: Array
    """Draws of them [draws, 2]."""
    exponents: Array
    """alpha and beta of each draw [draws, 2]."""
    level: Array
    """ln T at the reference, of each draw [draws]."""
    scatter: float
    """Standard deviation of the runs about the law, in nats."""


def elasticities_of_the_law(N: float, D: float) -> Array:
    """Return e_N and e_D of the Chinchilla law at N and D."""
    import numpy as np

    return np.array([LAW_ALPHA * LAW_A * N**-LAW_ALPHA, LAW_BETA * LAW_B * D**-LAW_BETA])


def posterior(
    u: Array, v: Array, y: Array, law: Array, draws: int, rng: np.random.Generator
) -> Posterior:
    """Return what the runs say of the law.

    Given alpha, beta and the scatter, the law is linear in the rest, whose posterior is close to
    normal. A grid over the logarithms of these three is weighted by how well each of its points
    explains the runs. The grid is laid out four times, each time about the last posterior, since
    that of many runs is narrower than a step of the first grid.

    Args:
        u: ln(N / N_ref) of each run.
        v: ln(D / D_ref) of each run.
        y: loss of each run in nats.
        law: e_N and e_D of the law at the reference, the prior's mean.
        draws: number of draws.
        rng: random numbers for the draws.
    """
    import numpy as np

    prior = np.log([LAW_ALPHA, LAW_BETA, NOISE[0]])
    spread_of_prior = np.array([EXPONENT_SPREAD, EXPONENT_SPREAD, NOISE[1]])
    nodes = np.linspace(-3, 3, 7)
    unit = np.stack(np.meshgrid(nodes, nodes, nodes), axis=-1).reshape(-1, 3)
    centre, spread = prior, spread_of_prior
    for _ in range(4):
        grid = centre + spread * unit
        alpha, beta, scatter = np.exp(grid.T[..., None])
        X = np.stack([_power(alpha, u), _power(beta, v)], axis=-1) * law
        # The level is free, so centring loses nothing; it keeps rounding errors small.
        X -= X.mean(axis=1, keepdims=True)
        mode, covariance, evidence = _explain(X, y, scatter)
        evidence -= (((grid - prior) / spread_of_prior) ** 2).sum(axis=1) / 2
        weight = np.exp(evidence - evidence.max())
        weight /= weight.sum()
        centre = weight @ grid
        # At least a third of a step: the grid must not collapse onto one of its points.
        least = spread * (nodes[1] - nodes[0]) / 3
        spread = np.clip(np.sqrt(weight @ (grid - centre) ** 2), least, spread_of_prior)
    chosen = rng.choice(len(weight), size=draws, p=weight)
    noise = np.linalg.cholesky(covariance)[chosen] @ rng.standard_normal((draws, 2, 1))
    typical = math.sqrt(DEGREES / (DEGREES - 2)) * math.exp(centre[2])
    drawn, exponents = (mode[chosen] + noise[..., 0]) * law, np.exp(grid[chosen, :2])
    terms = [_power(exponents[:, i, None], x) * drawn[:, i, None] for i, x in enumerate((u, v))]
    level = np.median(y - sum(terms), axis=1)  # one run that went wrong hardly moves it
    level += rng.standard_normal(draws) * typical / math.sqrt(len(y))
    return Posterior(weight @ mode * law, drawn, exponents, level, typical)


def _power(exponent: Array, x: Array) -> Array:
    """Return a term of the law less its level, (exp(-exponent·x) - 1)/exponent: slope -1 at 0."""
    import numpy as np

    # e^10 elasticities exceed any loss, and their squares leave the equations solvable.
    return np.expm1(np.minimum(-exponent * x, 10)) / exponent


def _explain(X: Array, y: Array, scatter: Array) -> tuple[Array, Array, Array]:
    """Return the most probable e/law [G, 2], its covariance [G, 2, 2] and the log evidence [G].

    The model is y = level + X · e/law + Student's t · scatter, for G pairs of X [G, runs, 2] and
    scatter [G, 1]; solved by iteratively reweighted least squares and Laplace's method.
    """
    import numpy as np

    X = np.concatenate([X, np.ones_like(X[..., :1])], axis=-1)
    prior_mean, precision = np.array([1.0, 1.0, 0.0]), np.zeros((3, 3))
    correlation = np.array([[1, PRIOR_CORRELATION], [PRIOR_CORRELATION, 1]])
    precision[:2, :2] = np.linalg.inv(PRIOR_SD**2 * correlation)
    weight = np.ones(X.shape[:2])
    for _ in range(8):
        weighed = (X * (weight / scatter**2)[..., None]).swapaxes(1, 2)
        right = weighed @ y + precision @ prior_mean
        mode = np.linalg.solve(weighed @ X + precision, right[..., None])[..., 0]
        squares = ((y - (X @ mode[..., None])[..., 0]) / scatter) ** 2
        weight = (DEGREES + 1) / (DEGREES + squares)
    # The expected information of a run: (degrees + 1) / (degrees + 3) of a normal law's.
    information = X.swapaxes(1, 2) @ X / scatter[..., None] ** 2
    information = information * (DEGREES + 1) / (DEGREES + 3) + precision
    off = mode - prior_mean
    evidence = -(DEGREES + 1) / 2 * np.log1p(squares / DEGREES).sum(axis=1)
    evidence -= len(y) * np.log(scatter[:, 0]) + np.linalg.slogdet(information)[1] / 2
    evidence -= ((off @ precision) * off).sum(axis=1) / 2
    covariance: Any = np.linalg.inv(information)[:, :2, :2]
    return mode[:, :2], covariance, evidence
