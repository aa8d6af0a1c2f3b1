"""Pictures of a run's record. Needs matplotlib: ``pip install lightning-lscore[plots]``."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from ..record.comparable import best_record, comparable_with_last
from ..record.record import Record


def plot_run(records: Sequence[Record], path: str | os.PathLike[str]) -> None:
    """Write the picture of a run to a file.

    Args:
        records: see :func:`figure_of_run`.
        path: where to write; the ending says the format (``.png``, ``.svg``, ``.pdf``).

    Raises:
        ValueError: if no record has tokens.
    """
    figure_of_run(records).savefig(path, dpi=150)


def figure_of_run(records: Sequence[Record]) -> Any:
    """Draw perplexity and L, and below them the three factors, over training tokens.

    Args:
        records: of one run, at least one of them with a number of tokens. Those whose L does not
            compare with the last one's are left out.

    Returns:
        A matplotlib figure.

    Raises:
        ValueError: if no record has tokens.
    """
    # The object interface: it opens no window and leaves the user's pyplot state alone.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    records = [r for r in records if r.measurements.tokens is not None]
    records = comparable_with_last(records)
    if not records:
        raise ValueError("expected records with training tokens to draw over, got none.")
    tokens = [r.measurements.tokens for r in records]
    figure = Figure(figsize=(8, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))

    upper.plot(tokens, _values(records, "perplexity"), "o-", color="0.55", label="perplexity")
    upper.plot(tokens, _values(records, "L"), "o-", color="C3", label="L, cost-adjusted perplexity")
    best = best_record(records)
    if best is not None:
        x, y = best.measurements.tokens, best.L
        label = f"best L {y:.3f}, step {best.step}"
        upper.plot([x], [y], "*", color="C3", markersize=18, zorder=3, label=label)
        for axes in (upper, lower):
            axes.axvline(x, color="C3", linewidth=0.8, linestyle=":")
    upper.set_ylabel("perplexity")
    if any(0 < v < math.inf for name in ("perplexity", "L") for v in _values(records, name)):
        upper.set_yscale("log")
        upper.yaxis.set_major_formatter("{x:g}")
        upper.yaxis.set_minor_formatter("{x:g}")
    upper.legend()
    upper.set_title("L = perplexity · f(D) · f(A) · f(H)")

    names = {"f_D": "f(D) data", "f_A": "f(A) parameters", "f_H": "f(H) machine time"}
    for (name, label), style in zip(names.items(), ("o-", "s--", "^-"), strict=True):
        lower.plot(tokens, _values(records, name), style, markersize=4, label=label)
    lower.axhline(1.0, color="0.7", linewidth=0.8)
    lower.set_ylabel("factor (1 = no charge)")
    lower.set_xlabel("training tokens")
    lower.xaxis.set_major_formatter(EngFormatter())
    lower.legend()
    return figure


def _values(records: Sequence[Record], name: str) -> list[float]:
    values = (getattr(record.score, name) for record in records)
    return [math.nan if value is None else value for value in values]
