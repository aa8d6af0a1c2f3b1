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

from .formula import FLOPS_PER_PARAMETER, PLANNED_MFU, Factor, Formula

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# loss = E + A / N^alpha + B / D^beta, Besiroglu et al. 2024, https://arxiv.org/abs/2404.10102
_A, _ALPHA = 482.01, 0.3478
_B, _BETA = 2085.43, 0.3658

PRIOR_SD = 0.25
"""Relative standard deviation of an elasticity (and of a curvature) about the law."""

NOISE_PRIOR = (0.04, 3)
"""Scatter about the fit in nats, and the number of runs that this guess is worth. Seeds differ by
0.002 nats; learning rates that were not tuned at each size and the law that is not quadratic in
ln N and ln D make it tens of times that."""

ENOUGH_RUNS = 10
"""With fewer the law alone is about as good."""


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
    """Standard deviation of the runs about the fit, in nats."""
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
            H=Factor("capacity_flops", FLOPS_PER_PARAMETER * N * D / PLANNED_MFU, self.w_H),
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

    With u = ln(N / N_ref), v = ln(D / D_ref) and ln T the loss in nats, fits ::

        ln T = a - e_N · u - e_D · v + k_N · u² + k_D · v²

    to the best run of each (N, D), each coefficient drawn to what the Chinchilla law says at the
    reference, e_N = alpha·A/N^alpha, k_N = alpha·e_N/2 and likewise for D, with a standard
    deviation of 25 % (``a`` is free: it depends on text and tokenizer). Device time goes as N · D,
    so the runs tell two rates and not three weights::

        w_A + w_H = e_N      w_D + w_H = e_D      w_H = share · min(e_N, e_D)

    The 90 % intervals are those of the same fit to runs drawn anew with replacement, with the means
    of the prior drawn anew too and the noise of the drawn runs added.
    They err on the wide side where runs lie close to the fit: 94 % where they scatter by 0.1 nats,
    as public runs do, 99 % at 0.03.

    Args:
        parameters: N of each finished run.
        tokens: D of each finished run, its training tokens.
        loss: held-out loss of each in nats a token, at the end of its own schedule. Points inside
            a run whose learning rate was still to decay mislead: leave them out.
        share: how much of the smaller elasticity machine time takes from D and A, 0 to 1.
        reference_parameters: N at which the weights shall hold. Default: the geometric mean of
            the runs', where they know most.
        reference_tokens: likewise for D.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: for sequences of different length or empty, values that are not finite and > 0,
            a share outside of 0 to 1.
        ModuleNotFoundError: without numpy.

    References:
        Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556, the law; Besiroglu et al. 2024,
        https://arxiv.org/abs/2404.10102, its constants.
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
    X = np.stack([np.ones_like(u), -u, -v, u**2, v**2], axis=1)

    prior = _law(N_ref, D_ref)
    rng = np.random.default_rng(seed)
    ones = np.ones((1, len(y)))
    scatter = _scatter(X, y, prior)
    best = _fit(X, ones * y, ones, prior[None], prior, scatter)[0]

    times_drawn = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), size=resamples).astype(float)
    means = prior * (1 + PRIOR_SD * rng.standard_normal((resamples, 5)))
    noisy = y + scatter * rng.standard_normal((resamples, len(y)))
    drawn = _fit(X, noisy, times_drawn, means, prior, scatter)

    e_N, e_D = np.maximum(best[1:3], 0)
    names = ("w_D", "w_A", "w_H", "e_N", "e_D")
    draws = _weights(np.maximum(drawn[:, 1], 0), np.maximum(drawn[:, 2], 0), share)
    intervals: dict[str, Any] = {
        f"{name}_interval": Interval(low=float(low), high=float(high))
        for name, (low, high) in zip(
            names, (np.quantile(d, (0.05, 0.95)) for d in draws), strict=True
        )
    }
    values: dict[str, Any] = dict(zip(names, map(float, _weights(e_N, e_D, share)), strict=True))
    return Calibration(
        **values,
        **intervals,
        parameters=N_ref,
        tokens=D_ref,
        runs=len(y),
        scatter=scatter,
        share=float(share),
        warnings=_warnings(u, v, best),
    )


def _weights(e_N: Any, e_D: Any, share: float) -> tuple[Any, Any, Any, Any, Any]:
    import numpy as np

    w_H = share * np.minimum(e_N, e_D)
    return e_D - w_H, e_N - w_H, w_H, e_N, e_D


def _law(N: float, D: float) -> Array:
    """a (free, so 0), e_N, e_D, k_N and k_D of the Chinchilla law at N and D."""
    import numpy as np

    e_N, e_D = _ALPHA * _A * N**-_ALPHA, _BETA * _B * D**-_BETA
    return np.array([0.0, e_N, e_D, _ALPHA * e_N / 2, _BETA * e_D / 2])


def _fit(X: Array, y: Array, weight: Array, mean: Array, law: Array, scatter: float) -> Array:
    """Most probable coefficients [B, 5] for B data sets: y and weight [B, runs], mean [B, 5]."""
    import numpy as np

    precision = np.zeros(5)
    precision[1:] = (scatter / (PRIOR_SD * law[1:])) ** 2
    gram = np.einsum("br,ri,rj->bij", weight, X, X) + np.diag(precision)
    right = np.einsum("br,ri,br->bi", weight, X, y) + precision * mean
    return np.linalg.solve(gram, right[..., None])[..., 0]


def _scatter(X: Array, y: Array, law: Array) -> float:
    """Standard deviation about the fit [nats], which itself depends on it: three rounds settle."""
    import numpy as np

    guess, worth = NOISE_PRIOR
    ones = np.ones((1, len(y)))
    scatter = guess
    for _ in range(3):
        best = _fit(X, ones * y, ones, law[None], law, scatter)[0]
        # Coefficients that the runs determine, between 1 (the level) and 5.
        precision = np.zeros(5)
        precision[1:] = (scatter / (PRIOR_SD * law[1:])) ** 2
        gram = X.T @ X
        determined = float(np.trace(np.linalg.solve(gram + np.diag(precision), gram)))
        free = max(len(y) - determined, 0.0)
        squares = float(((y - X @ best) ** 2).sum())
        scatter = math.sqrt((squares + worth * guess**2) / (free + worth))
    return scatter


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


def _warnings(u: Array, v: Array, best: Array) -> tuple[str, ...]:
    import numpy as np

    said = []
    if len(u) < ENOUGH_RUNS:
        said.append(
            f"Only {len(u)} distinct runs: with fewer than {ENOUGH_RUNS} the Chinchilla law alone "
            "is about as good."
        )
    for x, what, name in ((u, "number of parameters", "e_N"), (v, "number of tokens", "e_D")):
        if np.ptp(x) < math.log(2):
            said.append(
                f"The runs' {what} varies by less than a factor of 2: {name} comes from the "
                "Chinchilla law rather than from them."
            )
        if x.min() > 0 or x.max() < 0:
            said.append(f"The reference lies outside of the runs' {what}: {name} is extrapolated.")
    together = np.linalg.svd(np.stack([u - u.mean(), v - v.mean()]), compute_uv=False)
    if len(u) > 1 and np.ptp(u) >= math.log(2) <= np.ptp(v) and together[1] < 0.1 * together[0]:
        said.append(
            "Parameters and tokens grew together in these runs: how the gain is divided between "
            "e_N and e_D comes from the Chinchilla law."
        )
    for name, e in (("e_N", best[1]), ("e_D", best[2])):
        if e <= 0:
            said.append(
                f"{name} came out as {e:.3g}, more of it made the runs no better: taken as 0. Was "
                "each run evaluated at the end of its own schedule?"
            )
    return tuple(said)
