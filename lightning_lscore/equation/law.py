"""The scaling law of perplexity in parameters and tokens, and the compute that training takes."""

from __future__ import annotations

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


def compute_optimal_tokens(parameters: float) -> float:
    """Return the training tokens D* at which more data and more parameters buy equally much.

    D* solves beta·B·D^-beta = alpha·A·N^-alpha, the optimum at fixed compute of the scaling law
    loss = E + A/N^alpha + B/D^beta (constants of Besiroglu et al. 2024).

    >>> f"{compute_optimal_tokens(1e9):.1e}"
    '2.3e+10'
    """
    ratio = LAW_BETA * LAW_B / (LAW_ALPHA * LAW_A)
    return float((ratio * max(parameters, 1) ** LAW_ALPHA) ** (1 / LAW_BETA))


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
