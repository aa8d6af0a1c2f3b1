"""A run's record as an object: a table where it is shown, a data frame, a picture, a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..record.comparable import best_record
from ..record.file import read_run as read_records_of_run
from ..record.record import Record
from .headline import headline
from .tables import COLUMNS, rows_of, spending_summary, validation_table

SHOWN = 30
"""Validations that a table shows at most: the newest."""


def read_run(path: str | os.PathLike[str], run: str | None = None) -> Run:
    """Read a run: its validations, oldest first.

    Args:
        path: as for :func:`~lightning_lscore.read_records`.
        run: its identifier, or the beginning of it. Default: the run that wrote last.

    Raises:
        FileNotFoundError, ValueError: as ``read_records``, and where there is no validation.
    """
    return Run(read_records_of_run(path, run), os.fspath(path))


class Run(list[Record]):
    """The validations of one run, a list. A notebook shows it as a table.

    Args:
        records: at least one, oldest first.
        name: for a reader, such as the run's folder.
    """

    def __init__(self, records: Sequence[Record], name: str = "") -> None:
        if not records:
            raise ValueError("expected at least one validation, got none.")
        super().__init__(records)
        self.name = name or records[-1].run

    @property
    def best(self) -> Record | None:
        """The validation with the lowest L of those that compare with the last."""
        return best_record(self)

    def to_pandas(self) -> Any:
        """Return a data frame with a row for each validation and a column for each measure.

        The columns are those that loggers get, and the measures that are in the record alone.
        Needs pandas.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_pandas needs pandas: pip install pandas", name="pandas"
            ) from error
        rows = [
            {
                "step": r.step,
                "epoch": r.epoch,
                "L": r.score.L,
                "f_D": r.score.f_D,
                "f_A": r.score.f_A,
                "f_H": r.score.f_H,
                **r.measurements.measured(),
                **r.measurements.own,
                "learning_rate": r.learning_rate.now,
                "time": r.time,
            }
            for r in self
        ]
        return pandas.DataFrame(rows)

    def plot(self) -> Any:
        """Return a matplotlib figure of perplexity, L and the factors over training tokens."""
        from .plots import figure_of_run

        return figure_of_run(self)

    def report(self, path: str | os.PathLike[str], over: str = "tokens") -> None:
        """Write a page of HTML about the run, see :func:`~lightning_lscore.show.report.report`."""
        from .report import report

        made = report({self.name: self}, over=over)
        Path(path).write_text(made.html, encoding="utf-8")

    def __repr__(self) -> str:
        table = validation_table(self[-SHOWN:])
        return f"{self.name}\n{table}\n{spending_summary(self)}"

    def _repr_html_(self) -> str:
        from . import page

        shown = self[-SHOWN:]
        marks = {i: ("", "lowest L") for i, r in enumerate(shown) if r is self.best}
        table = page.table(COLUMNS, rows_of(shown), marks=marks)
        return f"<div><b>{escape(headline(self))}</b><br>{escape(self.name)}{table}</div>"
