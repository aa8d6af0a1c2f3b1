"""Finished runs, as the tests make them up."""

from __future__ import annotations

import math

from lightning_lscore.curve.calibrate import calibrate

SIZES = [2e7, 5e7, 1.2e8, 3e8, 7e8]
TOKENS_EACH = [5, 10, 20, 40, 80, 160]


def chinchilla(N, D):
    return 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658


def runs(loss=chinchilla, sizes=SIZES, ratios=TOKENS_EACH):
    """Parameters, tokens and losses of a grid of runs."""
    N, D = zip(*((n, n * r) for n in sizes for r in ratios), strict=True)
    return list(N), list(D), [loss(n, d) for n, d in zip(N, D, strict=True)]


def quick(*data, **options):
    return calibrate(*data, **{"resamples": 200, **options})


def world(e_N, e_D, alpha=0.3478, beta=0.3658, noise=lambda: 0.0):
    """A law with these elasticities at 1e8 parameters and 2e9 tokens."""

    def loss(N, D):
        return (
            3
            + e_N * math.expm1(-alpha * math.log(N / 1e8)) / alpha
            + e_D * math.expm1(-beta * math.log(D / 2e9)) / beta
            + noise()
        )

    return loss


AT = {"reference_parameters": 1e8, "reference_tokens": 2e9}
