"""Logs of runs that were made without LScore: values by step, whoever wrote them."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = ("step", "global_step", "_step", "steps", "iteration", "iter")
"""Names of the column that holds the step, the first that is there."""


@dataclass(frozen=True, kw_only=True)
class ForeignLog:
    """What a log says: values by step and key, and facts about the whole run."""

    source: str
    """The file, for provenance."""
    kind: str
    """Who wrote it, for a reader."""
    values: Mapping[int, Mapping[str, float]]
    """Step -> key -> the last value at this step."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Of the run as a whole, such as ``max_steps``."""

    @property
    def keys(self) -> dict[str, int]:
        """Key -> at how many steps it has a value."""
        counts: dict[str, int] = defaultdict(int)
        for values in self.values.values():
            for key in values:
                counts[key] += 1
        return dict(counts)

    def until(self, step: int, key: str) -> float | None:
        """Return the newest value of a key at a step or before it."""
        known = [s for s, values in self.values.items() if s <= step and key in values]
        return self.values[max(known)][key] if known else None


def read_log(path: str | Path) -> ForeignLog:
    """Read a log: Lightning's ``metrics.csv``, ``trainer_state.json`` of transformers, event files
    of TensorBoard, any CSV file with a column of steps, or a folder that holds one of these.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is none of these, or holds no step.
        ModuleNotFoundError: for event files without tensorboard.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no log at {path}")
    for one in _candidates(path):
        if one.name.startswith("events.out.tfevents"):
            log = _of_tensorboard(one.parent if path.is_dir() else one)
        elif one.suffix == ".json":
            log = _of_transformers(one)
        else:
            log = _of_csv(one)
        if not log.values:
            raise ValueError(f"{one}: expected values at one step at least, got none.")
        return log
    raise ValueError(
        f"{path}: expected metrics.csv, trainer_state.json, event files of TensorBoard or a CSV "
        "file, got none of these."
    )


def _candidates(path: Path) -> Iterator[Path]:
    if path.is_file():
        if path.suffix in (".csv", ".json") or path.name.startswith("events.out.tfevents"):
            yield path
        return
    yield from (p for p in (path / "metrics.csv", path / "trainer_state.json") if p.exists())
    # The newest checkpoint of transformers has the whole history.
    yield from sorted(path.glob("checkpoint-*/trainer_state.json"), key=_step_of_checkpoint)[::-1]
    yield from sorted(path.glob("events.out.tfevents*"))


def _step_of_checkpoint(path: Path) -> int:
    number = path.parent.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _of_csv(path: Path) -> ForeignLog:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        step = next((name for name in STEPS if name in names), None)
        if step is None:
            raise ValueError(
                f"{path}: expected a column of steps ({', '.join(STEPS)}), got "
                f"{', '.join(names) or 'nothing'}."
            )
        rows = [row for row in reader if _number(row.get(step)) is not None]
    # Lightning calls the first optimiser step 0.
    kind, first = ("Lightning's CSVLogger", 1) if path.name == "metrics.csv" else ("a CSV file", 0)
    values: dict[int, dict[str, float]] = defaultdict(dict)
    for row in rows:
        at = int(_number(row[step]) or 0) + first
        values[at] |= {
            str(k): number
            for k, text in row.items()
            if k != step and (number := _number(text)) is not None
        }
    return ForeignLog(source=path.name, kind=kind, values=_in_order(values))


def _of_transformers(path: Path) -> ForeignLog:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        history = state["log_history"]
        values: dict[int, dict[str, float]] = defaultdict(dict)
        for entry in history:
            numbers = {k: n for k, v in entry.items() if (n := _number(v)) is not None}
            values[int(numbers.pop("step"))] |= numbers
    except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a trainer_state.json of transformers, with a log_history whose "
            f"entries have a step, got what cannot be read so ({error!r}). Other logs are .csv "
            "files, or TensorBoard's."
        ) from error
    facts = {k: n for k, v in state.items() if (n := _number(v)) is not None}
    last = values[max(values)] if values else {}
    facts |= {k: last[k] for k in ("train_runtime", "total_flos") if k in last}
    return ForeignLog(source=path.name, kind="transformers", values=_in_order(values), facts=facts)


def _of_tensorboard(path: Path) -> ForeignLog:
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util.tensor_util import make_ndarray
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "event files need tensorboard: pip install tensorboard", name="tensorboard"
        ) from error
    files = sorted(path.glob("events.out.tfevents*")) if path.is_dir() else [path]
    values: dict[int, dict[str, float]] = defaultdict(dict)
    started = math.inf
    for file in files:
        for event in EventFileLoader(str(file)).Load():
            started = min(started, event.wall_time)
            for value in event.summary.value:
                if value.HasField("tensor") and not value.tensor.tensor_shape.dim:
                    number = _number(make_ndarray(value.tensor).item())
                    if number is not None:
                        values[int(event.step)][value.tag] = number
                        values[int(event.step)]["wall_seconds"] = event.wall_time - started
    return ForeignLog(source=files[0].name, kind="TensorBoard", values=_in_order(values))


def _in_order(values: Mapping[int, Mapping[str, float]]) -> dict[int, Mapping[str, float]]:
    return {step: values[step] for step in sorted(values)}


def _number(value: Any) -> float | None:
    """Return a number, NaN and infinities too; None for what is none."""
    if isinstance(value, bool) or value in (None, ""):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
