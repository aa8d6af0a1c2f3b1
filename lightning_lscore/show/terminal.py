"""A run, or many, as a table in a terminal. Needs rich: ``pip install lightning-lscore[show]``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..equation.formula_json import id_of
from ..record.comparable import best_record, comparable_with_last
from ..record.reaching import lowest
from ..record.record import Record
from .cells import count, duration, number
from .headline import headline

_BLOCKS = "▁▂▃▄▅▆▇█"
MOST_ROWS = 40
"""Of more validations the first, some between, and the newest are shown."""
WIDE = 120
"""Characters of a line that hold all columns; in fewer the factors are left out."""


def run_table(
    name: str, records: Sequence[Record], most: int = MOST_ROWS, width: int = WIDE
) -> Group:
    """Return the validations of a run, its best ones marked, below a sentence about it.

    Args:
        name: of the run, for a reader.
        records: its validations, at least one.
        most: rows to show at most.
        width: characters of a line.
    """
    alike, last = comparable_with_last(records), records[-1]
    best, low = best_record(records), lowest(alike)
    table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
    factors = ("f(D)", "f(A)", "f(H)") if width >= WIDE else ()
    titles = ("step", "tokens", "time", "perplexity", *factors, "L", "bought", "needed")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    before = None
    for r in _some(alike, most, keep=(best, None if low is None else low.record)):
        if before is not None and before != r.batch:
            table.add_row("⋮", style="dim")
        cells = _row(r, with_factors=bool(factors))
        table.add_row(*cells, _marks(r, best, low and low.record), style=_style(r is best))
        at = next(i for i, other in enumerate(alike) if other is r)
        before = alike[at + 1].batch if at + 1 < len(alike) else None
    left_out = len(records) - len(alike)
    sparks = Text(f"perplexity {sparkline([_ln(r.score.perplexity) for r in alike])}   L ")
    sparks.append(sparkline([_ln(r.L) for r in alike]), style="red")
    lines = [Text(headline(records), style="bold"), Text(_below(name, last), style="dim"), sparks]
    if left_out:
        lines.append(Text(f"{left_out} more validations do not compare with the last one.", "dim"))
    return Group(*lines, Text(), table)


def runs_table(runs: Mapping[str, Sequence[Record]]) -> Table:
    """Return a line for each run: how far it came, its lowest perplexity and its lowest L."""
    table = Table(box=None, pad_edge=False, header_style="dim", caption_justify="left")
    table.add_column("run", overflow="fold", min_width=8)
    for title in ("step", "tokens", "time", "perplexity", "L", "formula", "L so far"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, records in runs.items():
        last, best, low = records[-1], best_record(records), lowest(records)
        table.add_row(
            Text(name),
            f"{last.step:,}",
            count(last.measurements.tokens),
            duration(last.measurements.device_hours),
            "-" if low is None else number(low.record.score.perplexity),
            number(None if best is None else best.L),
            Text(id_of(last.formula), style="dim"),
            sparkline([_ln(r.L) for r in comparable_with_last(records)], 8),
        )
    if len({id_of(records[-1].formula) for records in runs.values()}) > 1:
        table.caption = "Values of L under different formulas do not compare; see lscore compare."
    return table


def follow(
    read: Callable[[], Any], console: Any, *, seconds: float, sleep: Callable[[float], None]
) -> Iterator[None]:
    """Show what ``read`` returns anew every so many seconds, until interrupted.

    Args:
        read: returns something that rich can show.
        console: rich's.
        seconds: between two looks.
        sleep: waits so long.

    Yields:
        After each look.
    """
    from rich.live import Live

    with Live(read(), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            yield
            sleep(seconds)
            live.update(read(), refresh=True)


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Return values as blocks of eight heights, means where there are more than ``width``.

    >>> sparkline([1.0, 2.0, 3.0, 2.0])
    '▁▅█▅'
    """
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return ""
    n = min(width, len(known))
    cuts = [i * len(known) // n for i in range(n + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, span = min(means), (max(means) - min(means)) or 1.0
    return "".join(_BLOCKS[min(7, int(8 * (v - low) / span))] for v in means)


def _row(r: Record, *, with_factors: bool) -> list[str]:
    m, s = r.measurements, r.score
    factors = (s.f_D, s.f_A, s.f_H) if with_factors else ()
    scores = [number(v) for v in (s.perplexity, *factors, s.L)]
    bought, needed = (_percent(m.get(x)) for x in ("elasticity", "elasticity_needed"))
    return [f"{r.step:,}", count(m.tokens), duration(m.device_hours), *scores, bought, needed]


def _percent(elasticity: float | None) -> str:
    """Return by how many percent 1 % more spending lowers perplexity."""
    return "" if elasticity is None else f"{-elasticity:.2f} %"


def _marks(r: Record, best: Record | None, low: Record | None) -> Text:
    marks = [("lowest L", "red")] * (r is best) + [("lowest perplexity", "cyan")] * (r is low)
    return Text.assemble(*[(f"{name} ", style) for name, style in marks])


def _style(is_best: bool) -> str:
    return "bold" if is_best else ""


def _ln(value: float | None) -> float:
    return math.log(value) if value is not None and 0 < value < math.inf else math.nan


def _some(records: Sequence[Record], most: int, keep: Sequence[Record | None]) -> Iterator[Record]:
    """Yield evenly spread validations: the first, the newest, and those to keep among them."""
    n = len(records)
    chosen = {round(i * (n - 1) / (most - 1)) for i in range(most)} if n > most else {*range(n)}
    for i, r in enumerate(records):
        if i in chosen or any(r is one for one in keep):
            yield r


def _below(name: str, last: Record) -> str:
    m = last.measurements
    used = [f"model FLOPs utilisation {m.mfu:.1%}"] if m.mfu is not None else []
    used += [f"busy {m.busy_fraction:.0%}"] if m.busy_fraction is not None else []
    used += [f"{m.energy_kwh:.3g} kWh"] if m.energy_kwh is not None else []
    used += [f"{m.cost:,.2f} paid"] if m.cost is not None else []
    return " · ".join([name, str(last.formula.get("origin", "given")), *used])
