"""Lines of schema 1, each of which said everything: read, and not written any more."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..equation.evidence import DeviceUse, EvaluationSet, OccupiedDevice
from ..equation.measurements import Measurements
from ..equation.measures import MEASURES
from ..equation.prediction import Prediction, Unpredictable
from ..equation.score import Score
from .json_numbers import float_of, hours, number_or_none, plain_float
from .record import Record


def record_of(data: Mapping[str, Any], before: Record | None = None) -> Record:
    """Return the record of a line; measures of a later version are passed over.

    Args:
        data: the line's JSON object.
        before: the record of the line before. What equals a part of it is held once by both.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: if it is no record.
    """
    score = data["score"]
    m = Measurements.of(
        {_now(k): float_of(v) for k, v in data["measurements"].items()},
        level=number_or_none(data.get("level"), "level"),
        own=dict(data.get("own", {})),
        provenance=_held(
            {_now(k): sys.intern(str(v)) for k, v in data["provenance"].items()},
            before and before.measurements.provenance,
        ),
    )
    return Record(
        run=sys.intern(str(data["run"])),
        batch=int(data["batch"]),
        step=int(data["step"]),
        epoch=int(data["epoch"]),
        time=str(data["time"]),
        measurements=m,
        score=Score(
            **{k: number_or_none(score[k], k) for k in ("perplexity", "f_D", "f_A", "f_H")},
            missing=tuple(map(str, score["missing"])),
        ),
        formula=_held(_formula(data["formula"]), before and before.formula),
        evaluation=_held(_evaluation(data["evaluation"]), before and before.evaluation),
        lost_device_hours=hours(data.get("lost_device_hours", 0.0)),
        prediction=_prediction(data.get("prediction", {})),
        devices=_held(tuple(map(_device, data["devices"])), before and before.devices),
        hardware={str(k): _use(seen) for k, seen in data.get("hardware", {}).items()},
        versions=_held(
            {str(k): sys.intern(str(v)) for k, v in data["versions"].items()},
            before and before.versions,
        ),
    )


def _now(name: str) -> str:
    """The name of a measure today: those that CPUs have too lost their ``gpu_``."""
    return name.removeprefix("gpu_") if name.removeprefix("gpu_") in MEASURES else name


def _held(part: Any, before: Any) -> Any:
    return before if part == before else part


def _formula(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        letter: {**factor, "measure": _now(factor["measure"])}
        if isinstance(factor, Mapping) and isinstance(factor.get("measure"), str)
        else factor
        for letter, factor in data.items()
    }


def _evaluation(data: Mapping[str, Any]) -> EvaluationSet | None:
    if not data:
        return None
    count = data.get("bytes")
    return EvaluationSet(
        tokens=tuple(map(int, data.get("tokens", ()))),
        perplexities=tuple(map(plain_float, data.get("perplexities", ()))),
        source=str(data.get("source", "")),
        bytes=None if count is None else tuple(map(int, count)),
        fingerprints=tuple(map(str, data.get("fingerprints", ()))),
        longest=tuple(map(int, data.get("longest", ()))),
    )


def _prediction(data: Mapping[str, Any]) -> Prediction | Unpredictable | None:
    if "reason" in data:
        return Unpredictable(reason=str(data["reason"]))
    if not data:
        return None
    return Prediction(**{n: plain_float(data[n]) for n in Prediction.__dataclass_fields__})


def _device(data: Mapping[str, Any]) -> OccupiedDevice:
    peak = number_or_none(data.get("peak_flops"), "peak_flops")
    names = ("key", "name", "kind", "dtype", "peak_source")
    return OccupiedDevice(peak_flops=peak, **{name: str(data.get(name, "")) for name in names})


def _use(data: Mapping[str, Any]) -> DeviceUse:
    known = DeviceUse.__dataclass_fields__
    return DeviceUse(**{_now(k): plain_float(v) for k, v in data.items() if _now(k) in known})
