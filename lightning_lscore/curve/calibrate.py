"""Weights of the formula from one's own finished runs. Needs numpy (extra ``calibrate``).

:func:`calibrate` measures how much perplexity more parameters and more tokens have bought, and
returns a :class:`Calibration`: what the factors must weigh so that L exchanges perplexity for cost
at that rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..equation.factor import Factor
from ..equation.formula import Formula
from ..equation.law import LAW_A, LAW_ALPHA, LAW_B, LAW_BETA, planned_capacity_flops

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# The prior: how the law fits 14 public sets of finished runs from six sources (Gadre et al. 2024 on
# five texts, the OLMo ladder on three, Chinchilla, Llama 3, Marin on three, Li et al. 2025 on one).

PRIOR_SD = 0.25
"""Relative standard deviation of an elasticity about the law's; in the sets 0.23 and 0.21."""

PRIOR_CORRELATION = 0.5
"""Of the two elasticities' deviations, as in the sets: harder text raises both."""

EXPONENT_SPREAD = 0.45
"""Standard deviation of ln alpha and of ln beta about the law's; in the sets 0.43 and 0.44."""

NOISE = (0.05, 1.0)
"""Median of the runs' scatter about the law in nats, and standard deviation of its logarithm.
The sets have 0.025 and 0.8. Twice that, as runs of one model size are off together, which few of
them do not show: at 0.03 the 90 % intervals from 6 of Gadre's runs held 85 %."""

DEGREES = 4
"""Degrees of freedom of Student's t for that scatter. With 4, as Lange et al. 1989 have it, a run
that was not tuned or hardly left its warm-up counts little. By a normal law it tilts the fit, and
the intervals held 77 % at 10 runs."""

ENOUGH_RUNS = 10
"""From about here the intervals of the sets were within 15 % of the weight."""

LAW_HOLDS = (1.0, 1000.0)
"""Tokens a parameter. Of the runs with fewer a third, and with more two thirds, lie 4 to 90 times
the scatter above the law that fits the others; of the others 3 % do."""

LAW_MEASURED = {"parameters": (5.7e7, 1.6e10), "tokens": (2.5e8, 3.2e11)}
"""Range of the runs to which Besiroglu et al. fitted it."""


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
    """- d ln T / d ln N at the reference."""
    e_D: float
    """- d ln T / d ln D at the reference."""
    e_N_interval: Interval
    e_D_interval: Interval
    parameters: float
    """The reference N at which these hold."""
    tokens: float
    """The reference D at which these hold."""
    runs: int
    """Distinct (N, D) that were used."""
    scatter: float
    """Standard deviation of the runs about the law, in nats."""
    share: float
    warnings: tuple[str, ...] = ()
    """What a reader must know before trusting the weights, in sentences."""

    def formula(self, *, parameters: float | None = None, tokens: float | None = None) -> Formula:
        """The formula with these weights, at whose reference L is the perplexity.

        Args:
            parameters: reference model size. Default: where the weights were measured.
            tokens: reference training tokens. Default: where the weights were measured.
        """
        N = self.parameters if parameters is None else parameters
        D = self.tokens if tokens is None else tokens
        return Formula(
            D=Factor("tokens", D, self.w_D),
            A=Factor("trainable_parameters", N, self.w_A),
            H=Factor("capacity_flops", planned_capacity_flops(N, D), self.w_H),
            origin=f"calibrated on {self.runs} finished runs",
        )


def calibrate(
    parameters: Sequence[float],
    tokens: Sequence[float],
    loss: Sequence[float],
    *,
    share: float = 0.5,
    reference_parameters: float | None = None,
    reference_tokens: float | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Weights from finished runs: the rate at which they exchanged perplexity for N and D.

    With u = ln(N / N_ref), v = ln(D / D_ref) and ln T the loss in nats, the Chinchilla law is ::

        ln T = a + (e_N / alpha) · exp(-alpha · u) + (e_D / beta) · exp(-beta · v)

    It is fitted to the best run of each (N, D) by Bayes' rule. Prior: e_N and e_D normal about the
    law's own, alpha·A/N^alpha and beta·B/D^beta, with a standard deviation of 25 % and a
    correlation of 0.5; alpha, beta and the runs' scatter log-normal; ``a`` free, as it depends on
    text and tokenizer. The runs scatter by Student's t, so that one that went wrong hardly counts.
    Device time goes as N · D, so the runs tell two rates and not three weights::

        w_A + w_H = e_N      w_D + w_H = e_D      w_H = share · min(e_N, e_D)

    The values are posterior means and the intervals are the posterior's central 90 %. In made-up
    worlds that differ as published laws do they hold the truth in 90 to 92 % of cases from 2 runs
    to 40: 94 to 97 % where the runs scatter by 0.005 nats, 86 to 89 % where by 0.1. In one given
    world they may do better or worse: where few runs leave the word to the prior they nearly always
    hold if the law is right, and seldom if it is off by much more than 25 %.

    Args:
        parameters: N of each finished run.
        tokens: D of each finished run, its training tokens.
        loss: held-out loss of each in nats a token, at the end of its own schedule. Points inside
            a run whose learning rate was still to decay mislead: leave them out.
        share: how much of the smaller elasticity machine time takes from D and A, 0 to 1.
        reference_parameters: N at which the weights shall hold. Default: the geometric mean of
            the runs', where they know most.
        reference_tokens: likewise for D.
        resamples: draws from the posterior, from which the intervals are read.
        seed: of the draws.

    Raises:
        ValueError: for sequences of different length or empty, values that are not finite and > 0,
            a share outside of 0 to 1.
        ModuleNotFoundError: without numpy.

    References:
        Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, the law; Besiroglu et al. 2024,
        https://arxiv.org/abs/2404.10102, its constants; Lange, Little and Taylor 1989, "Robust
        statistical modeling using the t distribution", JASA 84:881; Tierney and Kadane 1986,
        "Accurate approximations for posterior moments and marginal densities", JASA 81:82.
    """
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "calibrate needs numpy: pip install 'lightning-lscore[calibrate]'.", name="numpy"
        ) from error

    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a number from 0 to 1, got {share!r}.")
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 100:
        raise ValueError(f"resamples: expected a whole number >= 100, got {resamples!r}.")
    N, D, y = _best_of_each(parameters, tokens, loss)
    N_ref = _reference(reference_parameters, N, "reference_parameters")
    D_ref = _reference(reference_tokens, D, "reference_tokens")
    u, v = np.log(N / N_ref), np.log(D / D_ref)
    law = _law(N_ref, D_ref)
    best, drawn, scatter = _posterior(u, v, y, law, resamples, np.random.default_rng(seed))

    names = ("w_D", "w_A", "w_H", "e_N", "e_D")
    values: dict[str, Any] = dict(zip(names, map(float, _weights(best, share)), strict=True))
    intervals: dict[str, Any] = {
        f"{name}_interval": Interval(low=float(low), high=float(high))
        for name, (low, high) in zip(
            names, (np.quantile(d, (0.05, 0.95)) for d in _weights(drawn, share)), strict=True
        )
    }
    return Calibration(
        **values,
        **intervals,
        parameters=N_ref,
        tokens=D_ref,
        runs=len(y),
        scatter=scatter,
        share=float(share),
        warnings=_warnings(N, D, N_ref, D_ref, best),
    )


def _weights(elasticities: Array, share: float) -> tuple[Any, Any, Any, Any, Any]:
    """w_D, w_A, w_H, e_N and e_D from e_N and e_D [..., 2]; less than nothing counts as nothing."""
    import numpy as np

    e_N, e_D = np.moveaxis(np.maximum(elasticities, 0), -1, 0)
    w_H = share * np.minimum(e_N, e_D)
    return e_D - w_H, e_N - w_H, w_H, e_N, e_D


def _law(N: float, D: float) -> Array:
    """e_N and e_D of the Chinchilla law at N and D."""
    import numpy as np

    return np.array([LAW_ALPHA * LAW_A * N**-LAW_ALPHA, LAW_BETA * LAW_B * D**-LAW_BETA])


def _posterior(
    u: Array, v: Array, y: Array, law: Array, draws: int, rng: np.random.Generator
) -> tuple[Array, Array, float]:
    """Mean [2] and draws [draws, 2] of e_N and e_D, and the scatter in nats.

    Given alpha, beta and the scatter, the law is linear in the rest, whose posterior is all but
    normal. A grid over the logarithms of these three is weighed by how well each of its points
    explains the runs. It is laid out four times, each time about the posterior of the last: many
    runs leave less of the prior's range than lies between two points of the first.
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
        # The level is free, so nothing is lost by centring, which keeps rounding errors small.
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
    return weight @ mode * law, (mode[chosen] + noise[..., 0]) * law, typical


def _power(exponent: Array, x: Array) -> Array:
    """What remains of a term of the law, (exp(-exponent·x) - 1) / exponent, of slope -1 at 0."""
    import numpy as np

    # e^10 elasticities are beyond all loss, and their squares leave the equations solvable.
    return np.expm1(np.minimum(-exponent * x, 10)) / exponent


def _explain(X: Array, y: Array, scatter: Array) -> tuple[Array, Array, Array]:
    """Most probable e/law [G, 2], covariance [G, 2, 2] and log evidence [G].

    Of y = level + X · e/law + Student's t · scatter for G pairs of X [G, runs, 2] and scatter
    [G, 1], by iteratively reweighted least squares and Laplace's method.
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


def _best_of_each(
    parameters: Sequence[float], tokens: Sequence[float], loss: Sequence[float]
) -> tuple[Array, Array, Array]:
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


def _reference(given: float | None, values: Array, name: str) -> float:
    import numpy as np

    if given is None:
        return float(np.exp(np.log(values).mean()))
    if not 0 < given < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {given!r}.")
    return float(given)


def _warnings(N: Array, D: Array, N_ref: float, D_ref: float, best: Array) -> tuple[str, ...]:
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
