"""Finished runs to calibrate on: from their records, or from a CSV file."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..equation.formula import Formula
from ..equation.safe_numbers import as_number
from .comparable import why_other_set
from .record import Record
from .runs import read_runs

COLUMNS = ("parameters", "tokens", "loss")


@dataclass(frozen=True)
class FinishedRuns:
    """Parameters, training tokens and held-out loss of runs, one entry each."""

    parameters: tuple[float, ...]
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    """ln T at the end of each run, in nats."""
    T: str = "perplexity"
    """Whether the loss is that of a token, or of a nominal one (``"nominal_perplexity"``)."""


def read_finished(paths: Sequence[str | os.PathLike[str]]) -> FinishedRuns:
    """The last validation of each run in record files or folders, or the rows of CSV files.

    Runs with different tokenizers are told by nominal perplexity, if all know their bytes.

    Args:
        paths: records, or CSV files with columns parameters, tokens and loss [nats/token].

    Raises:
        FileNotFoundError, ValueError: for a path that holds no run, runs that were evaluated on
            different sets, a run in which something was not measured, or CSV files among records.
    """
    tables = [os.fspath(path) for path in paths if os.fspath(path).endswith(".csv")]
    if tables and len(tables) < len(paths):
        raise ValueError(
            "expected either records or CSV files, got both: nothing says that the losses in a CSV "
            "file were measured on the same held-out set as those in the records."
        )
    if tables:
        rows = [row for table in tables for row in _rows(table)]
        T = "perplexity"
    else:
        runs = read_runs(paths, may_be_empty=True)
        ends = [(name, records[-1]) for name, records in runs.items()]
        T = _common_perplexity(ends)
        rows = [_row(name, record, T) for name, record in ends]
    if not rows:
        raise ValueError("expected at least one finished run, got none.")
    N, D, loss = zip(*rows, strict=True)
    return FinishedRuns(N, D, loss, T)


def _common_perplexity(ends: Sequence[tuple[str, Record]]) -> str:
    """The T in which all runs compare.

    Raises:
        ValueError: if there is none.
    """
    reasons = []
    for nominal in (False, True):
        known = all(r.measurements.nominal_perplexity is not None for _, r in ends)
        other = [
            f"{name} was {why[0]} than {ends[0][0]}"
            for name, r in ends[1:]
            if (why := why_other_set(r, ends[0][1], nominal=nominal))
        ]
        if not other and (known or not nominal):
            return "nominal_perplexity" if nominal else "perplexity"
        reasons += other
    raise ValueError(
        f"expected runs on one evaluation set, got others: {reasons[0]}. Evaluate all on the same "
        "held-out text; with different tokenizers say LScore(count_bytes=tokenizer)."
    )


def _row(name: str, record: Record, T: str) -> tuple[float, float, float]:
    m = record.measurements
    values = []
    for measure in ("trainable_parameters", "tokens", T):
        value = Formula(T=T).ln_T(m) if measure == T else m.get(measure)
        if value is None:
            raise ValueError(
                f"{name}: expected a run with a value of {measure!r}: {m.why_missing(measure)}."
            )
        values.append(float(value))
    N, D, loss = values
    return N, D, loss


def _rows(path: str) -> Iterator[tuple[float, float, float]]:
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [c for c in COLUMNS if c not in (reader.fieldnames or [])]:
            raise ValueError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, got "
                f"{', '.join(reader.fieldnames or ['nothing'])}. Add {', '.join(missing)}."
            )
        for row in reader:
            numbers = [_number(path, reader.line_num, column, row[column]) for column in COLUMNS]
            yield numbers[0], numbers[1], numbers[2]


def _number(path: str, line: int, column: str, text: str | None) -> float:
    try:
        number = as_number(float(text or ""))
    except ValueError:
        number = None
    if number is None or not 0 < number < math.inf:
        raise ValueError(
            f"{path}, line {line}: expected a finite number > 0 in {column}, got {text!r}. Leave "
            "out runs that diverged."
        )
    return number
