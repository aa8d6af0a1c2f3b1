"""The scaling law of perplexity in parameters and tokens, and what training takes by it."""

from __future__ import annotations

# loss = E + A / N^alpha + B / D^beta for N parameters and D tokens: the constants that Besiroglu et
# al. 2024 (https://arxiv.org/abs/2404.10102) fitted to the runs of Hoffmann et al. 2022.
LAW_A, LAW_B, LAW_ALPHA, LAW_BETA = 482.01, 2085.43, 0.3478, 0.3658

FLOPS_PER_PARAMETER = 6
"""Training FLOP per parameter and token: 2 forward, 4 backward (Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, section 2.1)."""


def compute_optimal_tokens(parameters: float) -> float:
    """Training tokens D* at which more data and more parameters buy equally much.

    Solves beta·B·D^-beta = alpha·A·N^-alpha, the optimum at fixed compute of the scaling law
    loss = E + A/N^alpha + B/D^beta (constants of Besiroglu et al. 2024).

    >>> f"{compute_optimal_tokens(1e9):.1e}"
    '2.3e+10'
    """
    ratio = LAW_BETA * LAW_B / (LAW_ALPHA * LAW_A)
    return float((ratio * max(parameters, 1) ** LAW_ALPHA) ** (1 / LAW_BETA))
