"""L and its parts: what a formula makes of one validation's measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Score:
    """L and its parts. ``None``: a measure that the formula needs is missing (see ``missing``)."""

    perplexity: float | None
    """T, per token, or per nominal token of 4 bytes if the formula says so."""
    f_D: float | None
    f_A: float | None
    f_H: float | None
    missing: tuple[str, ...] = ()
    """"measure: reason" for each measure that is missing."""

    @property
    def L(self) -> float | None:
        """The cost-adjusted perplexity; lower is better."""
        T, D, A, H = self.perplexity, self.f_D, self.f_A, self.f_H
        if T is None or D is None or A is None or H is None:
            return None
        # Smallest first: a factor of 0 must not meet a product that has overflowed.
        return math.prod(sorted((T, D, A, H)))

    def __repr__(self) -> str:
        values = {x: getattr(self, x) for x in ("L", "perplexity", "f_D", "f_A", "f_H")}
        shown = [f"{x}={v if v is None else format(v, '.6g')}" for x, v in values.items()]
        return f"Score({', '.join(shown + [f'missing={self.missing}'] * bool(self.missing))})"
