"""The scaling law of perplexity in parameters and tokens, and the compute that training takes."""

from __future__ import annotations

import math

# loss = E + A / N^alpha + B / D^beta for N parameters and D tokens: the constants that Besiroglu et
# al. 2024 (https://arxiv.org/abs/2404.10102) fitted to the runs of Hoffmann et al. 2022.
LAW_A, LAW_B, LAW_ALPHA, LAW_BETA = 482.01, 2085.43, 0.3478, 0.3658

FLOPS_PER_PARAMETER = 6
"""Training FLOP per parameter and token: 2 forward, 4 backward (Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, section 2.1)."""

PLANNED_MFU = 0.4
"""Utilisation at which the default formula's machine time charges nothing. Large runs report 0.3 to
0.5 (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, table 3)."""

SMALLEST_MODEL = 1e7
"""Parameters below which :func:`frontier_elasticity` stays constant."""


def compute_optimal_tokens(parameters: float, served: float = 0.0) -> float:
    """Return the training tokens D* of the lowest loss for the compute of training and serving.

    D* solves beta·B·D^-beta·(1 + S/(3·D)) = alpha·A·N^-alpha, the optimum of the scaling law
    loss = E + A/N^alpha + B/D^beta (constants of Besiroglu et al. 2024) at fixed 6·N·D + 2·N·S.

    Args:
        parameters: N.
        served: S, the tokens that the model reads and writes after training.

    >>> f"{compute_optimal_tokens(1e9):.1e}"
    '2.3e+10'
    """
    ratio = LAW_BETA * LAW_B / (LAW_ALPHA * LAW_A)
    alone = float((ratio * max(parameters, 1) ** LAW_ALPHA) ** (1 / LAW_BETA))
    low = alone
    high = float(alone * serving_share(alone, served) ** (1 / LAW_BETA))
    while high > low * (1 + 1e-13):  # the more tokens, the less serving weighs: one crossing
        middle = math.sqrt(low * high)
        if middle < alone * serving_share(middle, served) ** (1 / LAW_BETA):
            low = middle
        else:
            high = middle
    return high


def serving_share(tokens: float, served: float) -> float:
    """Return 1 + S/(3·D), the compute of training and serving over that of training.

    Training takes 6 FLOP per parameter and token, serving 2 (Kaplan et al. 2020).
    """
    return 1 + served / (FLOPS_PER_PARAMETER / 2 * tokens)


def frontier_elasticity(parameters: float) -> float:
    """Return e(N) = alpha·A·N^-alpha, the elasticity of perplexity on the compute-optimal frontier.

    N counts as :data:`SMALLEST_MODEL` at least.

    >>> round(frontier_elasticity(1e9), 3)
    0.124
    """
    return float(LAW_ALPHA * LAW_A * max(parameters, SMALLEST_MODEL) ** -LAW_ALPHA)


def planned_capacity_flops(parameters: float, tokens: float) -> float:
    """Return the capacity in FLOP that training occupies at the planned utilisation."""
    return FLOPS_PER_PARAMETER * parameters * tokens / PLANNED_MFU
