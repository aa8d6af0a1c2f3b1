"""Weights of the formula from your own finished runs. Needs numpy (extra ``calibrate``).

:func:`calibrate` measures how much perplexity more parameters and more tokens bought, and returns a
:class:`Calibration`: the weights with which L exchanges perplexity for cost at that rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .calibration import Calibration, Interval
from .calibration_warnings import unknown_of, warnings_of
from .distinct_runs import best_of_each
from .fitted_law import FittedLaw
from .posterior import elasticities_of_the_law, posterior

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


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
    """Measure the rate at which finished runs exchanged perplexity for N and D.

    With u = ln(N / N_ref), v = ln(D / D_ref) and ln T the loss in nats, the Chinchilla law is ::

        ln T = a + (e_N / alpha) · exp(-alpha · u) + (e_D / beta) · exp(-beta · v)

    It is fitted to the best run of each (N, D) by Bayes' rule. Prior: e_N and e_D normal about the
    law's own, alpha·A/N^alpha and beta·B/D^beta, with a standard deviation of 25 % and a
    correlation of 0.5; alpha, beta and the runs' scatter log-normal; ``a`` free, as it depends on
    text and tokenizer. The runs scatter by Student's t, so one that went wrong hardly counts.
    Device time grows as N · D, so the runs determine two rates and not three weights::

        w_A + w_H = e_N      w_D + w_H = e_D      w_H = share · min(e_N, e_D)

    The values are posterior means and the intervals are the posterior's central 90 %. In simulated
    worlds that differ as published laws do, the intervals hold the truth in 90 to 92 % of cases
    from 2 runs to 40: 94 to 97 % if the runs scatter by 0.005 nats, 86 to 89 % if by 0.1. In one
    given world they may do better or worse: with few runs the prior decides, and the intervals
    nearly always hold if the law is right, and seldom if it is off by much more than 25 %.

    Args:
        parameters: N of each finished run.
        tokens: D of each finished run, its training tokens.
        loss: held-out loss of each in nats a token, at the end of its own schedule. Leave
            out points inside a run whose learning rate was still to decay: they mislead.
        share: how much of the smaller elasticity machine time takes from D and A, 0 to 1.
        reference_parameters: N at which the weights hold. Default: the geometric mean of the
            runs', where the runs determine most.
        reference_tokens: likewise for D.
        resamples: draws from the posterior, which give the intervals.
        seed: seed of the draws.

    Raises:
        ValueError: for sequences of different length or empty, values that are not finite and > 0,
            a share outside 0 to 1.
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
    N, D, y = best_of_each(parameters, tokens, loss)
    N_ref = _reference(reference_parameters, N, "reference_parameters")
    D_ref = _reference(reference_tokens, D, "reference_tokens")
    u, v = np.log(N / N_ref), np.log(D / D_ref)
    law = elasticities_of_the_law(N_ref, D_ref)
    found = posterior(u, v, y, law, resamples, np.random.default_rng(seed))

    names = ("w_D", "w_A", "w_H", "e_N", "e_D")
    values: dict[str, Any] = dict(zip(names, map(float, _weights(found.mean, share)), strict=True))
    intervals: dict[str, Any] = {
        f"{name}_interval": Interval(low=float(low), high=float(high))
        for name, (low, high) in zip(
            names, (np.quantile(d, (0.05, 0.95)) for d in _weights(found.drawn, share)), strict=True
        )
    }
    return Calibration(
        **values,
        **intervals,
        parameters=N_ref,
        tokens=D_ref,
        runs=len(y),
        scatter=found.scatter,
        share=float(share),
        warnings=warnings_of(N, D, N_ref, D_ref, found.mean),
        unknown=unknown_of(N, D, N_ref, D_ref),
        law=FittedLaw(
            elasticities=found.drawn,
            exponents=found.exponents,
            level=found.level,
            parameters=N_ref,
            tokens=D_ref,
            compute=(float(6 * (N * D).min()), float(6 * (N * D).max())),
        ),
    )


def _weights(elasticities: Array, share: float) -> tuple[Any, Any, Any, Any, Any]:
    """Return w_D, w_A, w_H, e_N and e_D from e_N and e_D [..., 2]; a negative one counts as 0."""
    import numpy as np

    e_N, e_D = np.moveaxis(np.maximum(elasticities, 0), -1, 0)
    w_H = share * np.minimum(e_N, e_D)
    return e_D - w_H, e_N - w_H, w_H, e_N, e_D


def _reference(given: float | None, values: Array, name: str) -> float:
    """Return the given reference, else the geometric mean of the runs'."""
    import numpy as np

    if given is None:
        return float(np.exp(np.log(values).mean()))
    if not 0 < given < math.inf:
        raise ValueError(f"{name}: expected a finite number > 0, got {given!r}.")
    return float(given)
