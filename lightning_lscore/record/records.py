"""The record of a run: one JSON line a validation, whole after a crash.

A line holds everything that the score was made of, so that a run can be explained, compared and
scored again under another formula long after it ended. A line that was cut off by a crash is
passed over when reading, and what was repeated after a resume replaces what it repeats.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import metadata
from typing import Any

from ..equation.baseline import register_reader
from ..equation.formula import Formula
from ..equation.measurements import Measurements
from ..equation.measures import MEASURES
from ..equation.prediction import Prediction
from ..equation.safe_numbers import as_number, short
from ..equation.score import Score

RECORD_FILE = "lscore.jsonl"
SCHEMA = 1
SEARCHED_BYTES = 2**26  # of a file's end, for the newest line of a run


@dataclass(frozen=True, kw_only=True)
class Record:
    """One validation: what was measured, the formula in force, the score, and where it ran."""

    run: str
    """Identifies the run; a resumed run keeps it."""
    batch: int
    """Micro-batches of one rank so far: the order of a run's validations."""
    step: int
    """Optimiser steps of the Trainer (its ``global_step``)."""
    epoch: int
    time: str
    """When the line was written, ISO 8601, UTC."""
    measurements: Measurements
    score: Score
    formula: Mapping[str, Any]
    """As ``Formula.to_dict()``; read it back with ``Formula.from_dict``."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What T was measured on, see ``Evaluation.to_dict``."""
    lost_device_hours: float = 0.0
    """Spent in training that was thrown away, where the run went on from an earlier checkpoint; in
    no measure above. At least so much: nobody wrote down what passed between the last validation
    before a crash and the crash."""
    prediction: Mapping[str, Any] = field(default_factory=dict)
    """The best L expected, see ``predict.Prediction``; or ``reason``, why nothing is expected."""
    devices: tuple[Mapping[str, Any], ...] = ()
    """What the run computes on now: key, name, kind, peak and its source of each."""
    hardware: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each device did in training since the run began, by its key, see ``Totals.measures``:
    also of those that it computed on before a resume."""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def L(self) -> float | None:
        """The cost-adjusted perplexity of this validation."""
        return self.score.L

    def logged_values(self) -> dict[str, float]:
        """What loggers get, by key; what has no value is left out."""
        score, measured = self.score, self.measurements.measured()
        values = {
            "L": score.L,
            "perplexity": self.measurements.perplexity,
            "f_D": score.f_D,
            "f_A": score.f_A,
            "f_H": score.f_H,
            "lscore/best_L_expected": self.prediction.get("best_L"),
            **{f"lscore/{k}": v for k, v in measured.items() if MEASURES[k].logged},
            **{f"lscore/{k}": v for k, v in self.measurements.own.items()},
        }
        return {key: value for key, value in values.items() if value is not None}

    def rescored(self, formula: Formula) -> Score:
        """The score of the same measurements under another formula."""
        return formula.score(self.measurements)

    def to_json(self) -> str:
        """One line of strict JSON: NaN and infinities are written as strings."""
        score = self.score
        line = {
            "schema": SCHEMA,
            "run": self.run,
            "batch": self.batch,
            "step": self.step,
            "epoch": self.epoch,
            "time": self.time,
            "measurements": self.measurements.measured(),
            "level": self.measurements.level,
            "own": dict(self.measurements.own),
            "provenance": dict(self.measurements.provenance),
            "score": {
                "L": score.L,
                "perplexity": score.perplexity,
                "f_D": score.f_D,
                "f_A": score.f_A,
                "f_H": score.f_H,
                "missing": list(score.missing),
            },
            "formula": dict(self.formula),
            "evaluation": dict(self.evaluation),
            "lost_device_hours": self.lost_device_hours,
            "prediction": dict(self.prediction),
            "devices": [dict(d) for d in self.devices],
            "hardware": {key: dict(seen) for key, seen in self.hardware.items()},
            "versions": dict(self.versions),
        }
        return json.dumps(_strict(line), allow_nan=False)

    @classmethod
    def from_json(cls, line: str, before: Record | None = None) -> Record:
        """The inverse of :meth:`to_json`, also of lines that have less, as early ones do.

        Measures of a later version are passed over.

        Args:
            line: of a record file.
            before: the record of the line before, if there is one. What equals a part of it is
                held once by both: most of a long file's memory.

        Raises:
            ValueError: if the line is not a record of a known schema.
        """
        held = before and before.measurements.provenance
        try:
            data = json.loads(line)
            if not isinstance(data, dict) or data.get("schema") != SCHEMA:
                raise ValueError(f'expected a JSON object with "schema": {SCHEMA}')
            score = data["score"]
            measured = {k: _number(v) for k, v in data["measurements"].items()}
            return cls(
                run=sys.intern(str(data["run"])),
                batch=int(data["batch"]),
                step=int(data["step"]),
                epoch=int(data["epoch"]),
                time=str(data["time"]),
                measurements=Measurements.of(
                    measured,
                    level=_part(data.get("level"), "level"),
                    own=dict(data.get("own", {})),
                    provenance=_shared(dict(data["provenance"]), held),
                ),
                score=Score(
                    **{k: _part(score[k], k) for k in ("perplexity", "f_D", "f_A", "f_H")},
                    missing=tuple(map(str, score["missing"])),
                ),
                formula=_shared(dict(data["formula"]), before and before.formula),
                evaluation=_shared(dict(data["evaluation"]), before and before.evaluation),
                lost_device_hours=_hours(data.get("lost_device_hours", 0.0)),
                prediction=_prediction(data.get("prediction", {})),
                devices=_shared(tuple(map(dict, data["devices"])), before and before.devices),
                hardware=_hardware(data.get("hardware", {})),
                versions=_shared(dict(data["versions"]), before and before.versions),
            )
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a record: {type(error).__name__}: {error}") from error


@cache
def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    found = {}
    for name in ("lightning-lscore", "lightning", "torch", "torchmetrics", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def append_record(path: str | os.PathLike[str], record: Record) -> None:
    """Adds one line, on disk when this returns. A torn line that a crash left is cut off first.

    Raises:
        OSError: if the file cannot be written.
    """
    line = record.to_json().encode() + b"\n"
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "a+b") as file:
        _cut_torn_line(file)
        # One write, so that a crash tears at most this line, and readers see it whole or not.
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_records(path: str | os.PathLike[str]) -> list[Record]:
    """The validations that a run wrote, oldest first.

    Args:
        path: a record file, or a folder that holds ``lscore.jsonl``.

    Returns:
        Records in the order written. Where a run went on from a checkpoint and validated again,
        the repeated validations replace those that the resume threw away.

    Raises:
        FileNotFoundError: if there is no such file; the message says where it was looked for.
        ValueError: if a line is not a record; the message names the file and the line. A last line
            without its end, as a crash leaves it, is passed over.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        path = os.path.join(path, RECORD_FILE)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"no record at {path}: expected the {RECORD_FILE} that LScore writes into the run's "
            "log directory, or the folder that holds it."
        )
    records: list[Record | None] = []
    kept: dict[str, list[tuple[int, int]]] = {}  # of each run's lines, the batch and the place
    before = None
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            try:
                record = before = Record.from_json(line, before)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            mine = kept.setdefault(record.run, [])
            while mine and mine[-1][0] >= record.batch:  # each is taken out once: linear in all
                records[mine.pop()[1]] = None
            mine.append((record.batch, len(records)))
            records.append(record)
    return [r for r in records if r is not None]


def read_run(path: str | os.PathLike[str]) -> list[Record]:
    """The validations of one run, the newest in the file, oldest first.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_records`, and where the file holds no record.
    """
    records = read_records(path)
    if not records:
        raise ValueError(f"expected at least one validation in {os.fspath(path)}, got none.")
    return [r for r in records if r.run == records[-1].run]


register_reader(read_run)  # for Formula.from_record(path)


def records_since(path: str | os.PathLike[str], run: str, batch: int) -> list[Record]:
    """One run's lines from the newest back to the first that was written at ``batch`` or before.

    They are looked for from the end of the file, so that a long one takes no longer than a short
    one; at most ``SEARCHED_BYTES`` are read.

    Args:
        path: a record file.
        run: the run's identifier.
        batch: of a checkpoint, say.

    Returns:
        Newest first; empty if there is no such file, or no such line.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the last line, or one that names the run, is not a record.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return []
    name = json.dumps(run).encode()
    with file:
        end, size = file.seek(0, os.SEEK_END), 2**14
        while True:
            size = min(4 * size, SEARCHED_BYTES, end)
            file.seek(end - size)
            lines = file.read(size).split(b"\n")[:-1]  # the last part is a torn line, or empty
            if size < end:
                del lines[:1]  # its beginning is further ahead
            found: list[Record] = []
            for i, line in enumerate(reversed(lines)):
                if i == 0 or name in line:
                    record = Record.from_json(line.decode(errors="replace"))
                    if record.run == run:
                        found.append(record)
                        if record.batch <= batch:
                            return found
            if size in (SEARCHED_BYTES, end):
                return found


def _cut_torn_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    start = end
    while start > 0:  # backwards in blocks: the file may be long
        block_start = max(0, start - 65536)
        file.seek(block_start)
        newline = file.read(start - block_start).rfind(b"\n")
        if newline >= 0:
            start = block_start + newline + 1
            break
        start = block_start
    file.truncate(start)


def _strict(value: Any) -> Any:
    """The value with NaN and infinities as the strings that ``float`` reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return value


def _part(value: Any, name: str) -> float | None:
    number = _number(value)
    if number is not None and as_number(number) is None:
        raise ValueError(f"score.{name}: expected a number or null, got {short(value)}")
    return as_number(number)


def _shared(part: Any, before: Any) -> Any:
    if part == before:
        return before
    if isinstance(part, dict):  # words at least: the lines of a file have the same ones
        words = part.items()
        return {sys.intern(k): sys.intern(v) if type(v) is str else v for k, v in words}
    return part


def _hours(value: Any) -> float:
    hours = as_number(value)
    if hours is None or not 0 <= hours < math.inf:
        raise ValueError(f"lost_device_hours: expected a number >= 0, got {short(value)}")
    return hours


def _hardware(data: Any) -> dict[str, dict[str, float]]:
    return {
        sys.intern(key): {sys.intern(name): float(value) for name, value in seen.items()}
        for key, seen in data.items()
    }


def _prediction(data: Any) -> dict[str, Any]:
    if "reason" in data:
        return {"reason": str(data["reason"])}
    names = [f.name for f in fields(Prediction)] if data else []
    return {name: float(_number(data[name])) for name in names}


def _number(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value
