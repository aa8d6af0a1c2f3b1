"""Rules that stop a run: CostEarlyStopping as it ships, and what people use instead.

A rule takes a curve and ln f at each of its validations, and returns the index of the one at which
it stops; the last one where it does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

from public_curves import Curve

from lightning_lscore.curve.patience import Patience
from lightning_lscore.equation.learning_rate import LearningRate

Rule: TypeAlias = Callable[[Curve, Sequence[float]], int]

OURS = "CostEarlyStopping"
"""The shipped callback's decisions. A learning rate that was logged is known to the end of the run,
as a scheduler tells it; one that was not is unknown."""


def all_rules(patience: Callable[[], Patience]) -> dict[str, Rule]:
    """Return every rule by name, ours first.

    Args:
        patience: makes the rule of :class:`~lightning_lscore.CostEarlyStopping`.
    """
    return {
        OURS: cost_early_stopping(patience),
        f"{OURS}, rate unknown": cost_early_stopping(patience, LearningRate()),
        f"{OURS}, decay ahead": cost_early_stopping(patience, LearningRate(decay="ahead")),
        f"{OURS}(ratio=0.25)": cost_early_stopping(lambda: Patience(ratio=0.25)),
        "never": lambda curve, ln_f: len(curve.loss) - 1,
        **{f"EarlyStopping({n}) on loss": early_stopping(n) for n in (1, 2, 3, 5)},
        **{f"EarlyStopping({n}) on L": early_stopping(n, on_L=True) for n in (1, 2, 3, 5)},
        "Prechelt GL(2)": generalisation_loss(2.0),
        "Prechelt PQ(0.5)": progress_quotient(0.5),
        "Prechelt UP(3)": strips_up(3),
    }


def cost_early_stopping(
    patience: Callable[[], Patience], learning_rate: LearningRate | None = None
) -> Rule:
    """Return the shipped rule.

    Args:
        patience: makes it, new for each curve.
        learning_rate: taken at every validation. Default: the one logged.
    """

    def rule(curve: Curve, ln_f: Sequence[float]) -> int:
        judge = patience()
        for i, (loss, price) in enumerate(zip(curve.loss, ln_f, strict=True)):
            verdict = judge.update(
                ln_T=loss,
                ln_f=price,
                spent=curve.spent[i],
                planned=1,
                ln_f_at_end=0,
                learning_rate=learning_rate or curve.learning_rate(i),
            )
            if verdict.stop:
                return i
        return len(curve.loss) - 1

    return rule


def early_stopping(patience: int, *, on_L: bool = False) -> Rule:
    """Return Lightning's EarlyStopping(monitor, patience)."""

    def rule(curve: Curve, ln_f: Sequence[float]) -> int:
        best, at = math.inf, 0
        for i, (loss, price) in enumerate(zip(curve.loss, ln_f, strict=True)):
            value = loss + price if on_L else loss
            if value < best:
                best, at = value, i
            elif i - at >= patience:
                return i
        return len(curve.loss) - 1

    return rule


# Prechelt 1998, "Early stopping - but when?" (https://doi.org/10.1007/3-540-49430-8_3). The curves
# lack its training loss: the progress is that of the held-out loss, over strips of five.
_STRIP = 5


def generalisation_loss(alpha: float) -> Rule:
    """Return GL: stop once the loss is alpha percent above its lowest."""
    return _first(lambda seen: _percent_above_lowest(seen) > alpha)


def progress_quotient(alpha: float) -> Rule:
    """Return PQ: stop once the generalisation loss over the progress exceeds alpha."""

    def stops(seen: Sequence[float]) -> bool:
        strip = seen[-_STRIP:]
        progress = 1000 * (sum(strip) / len(strip) / max(min(strip), 1e-12) - 1)
        return len(seen) >= _STRIP and _percent_above_lowest(seen) > alpha * progress

    return _first(stops)


def strips_up(strips: int) -> Rule:
    """Return UP: stop once the loss rose in so many validations in a row."""

    def stops(seen: Sequence[float]) -> bool:
        last = seen[-strips - 1 :]
        return len(last) > strips and all(b > a for a, b in pairwise(last))

    return _first(stops)


def _percent_above_lowest(seen: Sequence[float]) -> float:
    return 100 * (seen[-1] / max(min(seen), 1e-12) - 1)


def _first(stops: Callable[[Sequence[float]], bool]) -> Rule:
    def rule(curve: Curve, ln_f: Sequence[float]) -> int:
        found: Iterator[int] = (i for i in range(len(curve.loss)) if stops(curve.loss[: i + 1]))
        return next(found, len(curve.loss) - 1)

    return rule
