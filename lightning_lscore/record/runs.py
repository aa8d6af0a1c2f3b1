"""The runs that paths stand for, each as one curve wherever its lines lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .file import read_records, split_run
from .record import Record
from .remote import is_remote


def read_runs(
    paths: Sequence[str | os.PathLike[str]], *, may_be_empty: bool = False
) -> dict[str, list[Record]]:
    """Read the validations of runs, oldest first, by a name for each.

    Args:
        paths: as for :func:`read_records`. Where one stands for several runs, the name of each is
            the path with ``#`` and the run's identifier. A run that went on in another folder is
            one run, under the name of the newest.
        may_be_empty: whether to pass over a path without a validation.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_records`, and for a path without a validation.
    """
    runs: dict[str, list[Record]] = {}
    for path in dict.fromkeys(map(_name, paths)):
        found: dict[str, list[Record]] = {}
        for record in read_records(path):
            found.setdefault(record.run, []).append(record)
        if not found and not may_be_empty:
            raise ValueError(f"expected at least one validation in {path}, got none.")
        place = split_run(path)[0]
        runs |= {path if len(found) == 1 else f"{place}#{run}": found[run] for run in found}
    return _joined(runs)


def _name(path: str | os.PathLike[str]) -> str:
    return os.fspath(path) if is_remote(path) else str(Path(path))


def one_run(paths: Sequence[str | os.PathLike[str]]) -> list[Record]:
    """Read the validations of the one run that all paths stand for, oldest first.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_runs`, and for several runs, with a list.
    """
    runs = read_runs(paths)
    if len(runs) > 1:
        there = ", ".join(
            f"{name} ({len(records)} validations, the last at {records[-1].time})"
            for name, records in runs.items()
        )
        raise ValueError(f"expected one run, got {len(runs)}; say which: {there}.")
    (records,) = runs.values()
    return records


def _joined(runs: dict[str, list[Record]]) -> dict[str, list[Record]]:
    """The same with each run that another goes on with put before that one."""
    same: dict[str, list[str]] = {}
    for name, records in runs.items():
        same.setdefault(records[0].run, []).append(name)
    for names in same.values():
        for name in [*names]:
            for other in names:
                if name != other and _goes_on(runs[name], runs[other]):
                    later = runs[other]
                    runs[other] = [r for r in runs.pop(name) if r.batch < later[0].batch] + later
                    names.remove(name)
                    break
    return runs


def _goes_on(a: Sequence[Record], b: Sequence[Record]) -> bool:
    """Whether b went on where a, of the same run, was: b knows of the fit that wrote a's end."""
    end, fits = a[-1].fits, b[-1].fits
    if not end or not fits:  # of a version that did not name them
        return a[-1].time < b[-1].time
    return end[-1] in fits[:-1] or (end == fits and len(a) <= len(b))
