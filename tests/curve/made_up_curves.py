"""Curves of ln T over spending, as the tests make them up."""

from __future__ import annotations

import random


def power_law(spent, beta=0.4, rise=1.0, noise=0.0, seed=0):
    rng = random.Random(seed)
    return [2 + rise * s**-beta + rng.gauss(0, noise) for s in spent]
