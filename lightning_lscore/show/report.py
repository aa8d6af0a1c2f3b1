"""A page of HTML about one run or several, with its pictures. Needs the extra ``plots``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..equation.formula import Formula
from ..record.comparable import rescored
from ..record.reaching import COSTS
from ..record.record import Record
from .pictures import Picture, save


@dataclass(frozen=True)
class Report:
    """A page, and the pictures on it."""

    html: str
    """It loads nothing from anywhere."""
    pictures: Sequence[Picture]

    def save_pictures(self, folder: str | os.PathLike[str], ending: str) -> Iterator[Path]:
        """Write each picture to a file in the folder, and yield its path.

        Args:
            folder: made if it is not there.
            ending: ``"png"``, ``"svg"`` or another format of matplotlib's.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        for picture in self.pictures:
            path = Path(folder, f"{picture.key}.{ending}")
            save(picture, path)
            yield path


def report(
    runs: Mapping[str, Sequence[Record]],
    *,
    over: str | None = None,
    formula: Formula | None = None,
    baseline: str | None = None,
) -> Report:
    """Return the page of one run, or that of several side by side.

    Args:
        runs: the validations of each by its name, at least one of each.
        over: the measure of spending on the x axis. Default: tokens of one run; tokens, device
            time, energy and cost of several.
        formula: under which they are scored. Default: a run's own, or the one that all share.
        baseline: of several, the name of the one to hold the others against. Default: the first.

    Raises:
        ValueError: for a measure that is not one of spending or has no value, a baseline that is
            no run, and runs on different evaluation sets.
        ModuleNotFoundError: without matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a report needs matplotlib: pip install 'lightning-lscore[plots]'.", name="matplotlib"
        ) from error
    if len(runs) == 1:
        from .run_page import page_of_run

        ((name, records),) = runs.items()
        records = records if formula is None else rescored(records, formula)
        return Report(*page_of_run(name, records, over or "tokens"))
    from .runs_page import page_of_runs

    costs = COSTS if over is None else (over,)
    return Report(*page_of_runs(runs, baseline=baseline, formula=formula, over=costs))
