"""Curves of real runs, from CSV files: what was spent, the held-out loss, and the learning rate."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_lscore.equation.learning_rate import LearningRate

LEAST = 4  # validations in a curve; shorter ones are left out
COLUMNS = ("set", "curve", "spent", "loss")  # parameters, planned and learning_rate may be missing


class BadFile(Exception):
    """An unusable file; the message says where it is wrong and what to do."""


@dataclass(frozen=True)
class Curve:
    """A run's validations. ``spent`` is a share of the plan, which ends at 1."""

    name: str
    spent: tuple[float, ...]
    loss: tuple[float, ...]
    rates: tuple[float | None, ...]
    """Learning rate at each validation; None where it was not logged."""

    @property
    def is_logged(self) -> bool:
        """Whether the learning rate was logged at every validation."""
        return None not in self.rates

    @property
    def overfits(self) -> bool:
        """Whether its loss ends more than 1 % of perplexity above its lowest."""
        return self.loss[-1] > min(self.loss) + math.log(1.01)

    def learning_rate(self, i: int) -> LearningRate:
        """What the callback knows at a validation whose scheduler can be asked for its future."""
        now, *ahead = self.rates[i:]
        if now is None:
            return LearningRate()
        return LearningRate.before(now, [rate for rate in ahead if rate is not None])

    def part(self, kept: Sequence[int], start: float = 0.0) -> Curve | None:
        """Return these validations as a run that begins at ``start``; None if they are too few."""
        if len(kept) < LEAST or not start < 1:
            return None
        return Curve(
            self.name,
            tuple((self.spent[i] - start) / (1 - start) for i in kept),
            tuple(self.loss[i] for i in kept),
            tuple(self.rates[i] for i in kept),
        )

    def warm(self) -> Curve | None:
        """Return the second half of the validations as a run of its own."""
        half = len(self.spent) // 2
        return self.part(range(half, len(self.spent)), self.spent[half])

    def thinned(self, every: int) -> Curve | None:
        """Keep every ``every``-th validation, the last, and a first one at no spending."""
        last = len(self.spent) - 1
        first = 0 if self.spent[0] == 0 else every - 1
        return self.part(sorted({*range(first, last, every), last}))


def read_curves(paths: Sequence[Path]) -> tuple[dict[str, list[Curve]], int]:
    """Return the curves of all files by set, and how many were too short.

    Raises:
        BadFile: for a file that cannot be read, lacks a column, or whose rows make no curves.
    """
    rows: dict[tuple[str, str], list[tuple[float, float, float | None, float | None]]] = {}
    for path in paths:
        for line, row in read_rows(path, COLUMNS):
            curve = rows.setdefault((row["set"], row["curve"]), [])
            spent, loss = (number(path, line, row, c) for c in ("spent", "loss"))
            if curve and spent <= curve[-1][0]:
                raise BadFile(
                    f"{path}, line {line}: expected spent to grow along curve {row['curve']!r}, "
                    f"got {spent:g} after {curve[-1][0]:g}. Sort the rows, and drop repeated "
                    "validations."
                )
            planned, rate = (
                number(path, line, row, c) if row.get(c) else None
                for c in ("planned", "learning_rate")
            )
            curve.append((spent, loss, rate, planned))
    sets: dict[str, list[Curve]] = {}
    short = 0
    for (group, name), found in rows.items():
        spent, loss, rates, planned = zip(*found, strict=True)
        plan = max(spent[-1], *(p or 0.0 for p in planned))
        if len(found) < LEAST or plan == 0:
            short += 1
            continue
        curve = Curve(name, tuple(s / plan for s in spent), loss, rates)
        sets.setdefault(group, []).append(curve)
    if not sets:
        names = ", ".join(map(str, paths))
        raise BadFile(f"{names}: expected curves of at least {LEAST} validations, got none.")
    return sets, short


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and the cells of each line."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [c for c in columns if c not in (reader.fieldnames or [])]
            if missing:
                raise BadFile(
                    f"{path}: expected the columns {', '.join(columns)}, got "
                    f"{', '.join(reader.fieldnames or ['nothing'])}. Add {', '.join(missing)}."
                )
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path}: expected a readable CSV file in UTF-8, got: {error}.") from error


def number(path: Path, line: int, row: dict[str, str], column: str) -> float:
    """Return a cell as a number.

    Raises:
        BadFile: if it is none that is finite and >= 0.
    """
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise BadFile(
            f"{path}, line {line}: expected a finite number >= 0 in {column}, got "
            f"{row[column]!r}. Leave out the row."
        )
    return value
