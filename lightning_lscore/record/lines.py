"""The lines of ``lscore.jsonl``, schema 2: a context once, then a short line for each validation.

A context holds what many validations share: run, formula, versions, devices, held-out set, the
names of the measures, and where each came from. A validation holds values in the order of these
names, and the hash of its context. Both are strict JSON: NaN and infinities are strings.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..equation.evidence import DeviceUse, EvaluationSet, OccupiedDevice
from ..equation.measurements import Measurements
from ..equation.prediction import Prediction, Unpredictable
from ..equation.safe_numbers import as_number, exp, short
from ..equation.score import Score
from .record import Record

SCHEMA = 2

_USES = tuple(f.name for f in fields(DeviceUse))
_FORECAST = tuple(f.name for f in fields(Prediction))
_AS_MEASURED = "="
"""In place of a number that equals the measure of the same name: on one device nearly all do."""

# Numbers in a text that change from one validation to the next: the coverage, batches not counted.
_CHANGING = re.compile(r"(?<![\d.])(?:0|[1-9]\d{0,8})(?=%| training batch)")


# ---------------------------------------------------------------------- writing


def lines_of(record: Record) -> tuple[str, str, str]:
    """Return the hash of the record's context, and the two lines, each with its end."""
    context, validation = split(record)
    text = _json(context)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    head = {"schema": SCHEMA, "context": key}
    return key, _json({**head, **context}) + "\n", _json({**head, **validation}) + "\n"


def split(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what may hold for many validations, and what holds for this one."""
    m, score, evaluation = record.measurements, record.score, record.evaluation
    measured = _without_derived(m.measured())
    numbers: list[int] = []
    context: dict[str, Any] = {
        "run": record.run,
        "formula": dict(record.formula),
        "versions": dict(record.versions),
        "devices": [asdict(device) for device in record.devices],
        "evaluation": None if evaluation is None else asdict(evaluation),
        "level": m.level,
        "measures": list(measured),
        "own": list(m.own),
        "provenance": {name: _factor(text, numbers) for name, text in m.provenance.items()},
        "missing": [_factor(text, numbers) for text in score.missing],
        "hardware": list(record.hardware),
        "uses": list(_USES),
        "forecast": list(_FORECAST),
    }
    perplexities: list[Any] = []
    if evaluation is not None:
        perplexities = [_unless(T, m.perplexity) for T in evaluation.perplexities]
        del context["evaluation"]["perplexities"]
    validation = {
        "batch": record.batch,
        "step": record.step,
        "epoch": record.epoch,
        "time": record.time,
        "L": score.L,
        "perplexity": _unless(score.perplexity, m.perplexity),
        "factors": [score.f_D, score.f_A, score.f_H],
        "measured": list(measured.values()),
        "own": list(m.own.values()),
        "perplexities": perplexities,
        "hardware": [
            [_unless(getattr(use, name), getattr(m, name, None)) for name in _USES]
            for use in record.hardware.values()
        ],
        "numbers": numbers,
        "lost_device_hours": record.lost_device_hours,
        "prediction": _prediction_to_json(record.prediction),
    }
    return context, {k: v for k, v in validation.items() if v not in ([], None) or k == "L"}


def _without_derived(measured: dict[str, float]) -> dict[str, float]:
    """The measures less those that Measurements computes from others, to the last bit."""
    m = dict(measured)
    if "nll" in m and _same(m.get("perplexity"), exp(m["nll"])):
        del m["perplexity"]
    bits = m.get("bits_per_byte")
    if bits is not None:
        again = Measurements(bits_per_byte=bits).nominal_perplexity
        if _same(m.get("nominal_perplexity"), again):
            m.pop("nominal_perplexity", None)
    return m


def _factor(text: str, numbers: list[int]) -> str | list[str]:
    """The text between its changing numbers, which are added to ``numbers``."""
    found = _CHANGING.findall(text)
    numbers.extend(map(int, found))
    return _CHANGING.split(text) if found else text


def _unless(value: Any, known: Any) -> Any:
    return _AS_MEASURED if value is not None and _same(value, known) else value


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (a != a and b != b)) and str(a) == str(b)


def _prediction_to_json(prediction: Prediction | Unpredictable | None) -> Any:
    if isinstance(prediction, Prediction):
        return [getattr(prediction, name) for name in _FORECAST]
    return None if prediction is None else prediction.reason


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(_strict(data), allow_nan=False, separators=(",", ":"))


def _strict(value: Any) -> Any:
    """The value with NaN and infinities as the strings that ``float`` reads back."""
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(v) for v in value]
    return value


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Context:
    """What a line of context says, ready for the validations that refer to it.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if it is no context.
    """

    run: str
    formula: dict[str, Any]
    versions: dict[str, str]
    devices: tuple[OccupiedDevice, ...]
    evaluation: dict[str, Any] | None
    level: float | None
    measures: tuple[str, ...]
    own: tuple[str, ...]
    texts: dict[str, str]
    """Provenance; of those with numbers what it says without."""
    with_numbers: tuple[tuple[str, tuple[str, ...]], ...]
    """The parts of such a text between its numbers."""
    missing: tuple[str | tuple[str, ...], ...]
    hardware: tuple[str, ...]
    uses: tuple[str, ...]
    forecast: tuple[str, ...]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Context:
        provenance = {_word(name): _template(text) for name, text in data["provenance"].items()}
        evaluation = data["evaluation"]
        return cls(
            run=_word(data["run"]),
            formula=dict(data["formula"]),
            versions={_word(k): _word(v) for k, v in data["versions"].items()},
            devices=tuple(_device(device) for device in data["devices"]),
            evaluation=None if evaluation is None else _set(evaluation),
            level=number_or_none(data["level"], "level"),
            measures=tuple(map(_word, data["measures"])),
            own=tuple(map(_word, data["own"])),
            texts={k: t if isinstance(t, str) else "".join(t) for k, t in provenance.items()},
            with_numbers=tuple((k, t) for k, t in provenance.items() if not isinstance(t, str)),
            missing=tuple(map(_template, data["missing"])),
            hardware=tuple(map(_word, data["hardware"])),
            uses=tuple(map(_word, data["uses"])),
            forecast=tuple(map(_word, data["forecast"])),
        )

    def record(self, data: Mapping[str, Any], before: Record | None = None) -> Record:
        """Return the validation of a line that refers to this context.

        Args:
            data: of the line.
            before: a record of the same context. What equals a part of it is held once by both:
                most of a long file's memory.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, OverflowError: if it is no validation.
        """
        numbers = iter(data.get("numbers", ()))
        measured = self.measured(data)
        m = Measurements.of(
            measured,
            level=self.level,
            own=dict(zip(self.own, map(float_of, data.get("own", ())), strict=True)),
            provenance=self._provenance(numbers, before),
        )
        perplexity = data.get("perplexity")
        f_D, f_A, f_H = (number_or_none(f, "factors") for f in data["factors"])
        score = Score(
            perplexity=m.perplexity
            if perplexity == _AS_MEASURED
            else number_or_none(perplexity, "perplexity"),
            f_D=f_D,
            f_A=f_A,
            f_H=f_H,
            missing=tuple(_filled(text, numbers) for text in self.missing),
        )
        return Record(
            run=self.run,
            batch=int(data["batch"]),
            step=int(data["step"]),
            epoch=int(data["epoch"]),
            time=str(data["time"]),
            measurements=m,
            score=score,
            formula=self.formula,
            evaluation=self._evaluation(data.get("perplexities", ()), m, before),
            lost_device_hours=hours(data["lost_device_hours"]),
            prediction=self._prediction(data.get("prediction")),
            devices=self.devices,
            hardware=self._hardware(data.get("hardware", ()), m),
            versions=self.versions,
        )

    def measured(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a validation's line by measure; derived ones are absent."""
        return dict(zip(self.measures, map(float_of, data.get("measured", ())), strict=True))

    def _provenance(self, numbers: Iterator[Any], before: Record | None) -> Mapping[str, str]:
        if not self.with_numbers:
            return self.texts
        filled = {name: _filled(parts, numbers) for name, parts in self.with_numbers}
        if before is not None:
            last = before.measurements.provenance
            if all(last.get(name) == text for name, text in filled.items()):
                return last
        return self.texts | filled

    def _evaluation(
        self, perplexities: Sequence[Any], m: Measurements, before: Record | None
    ) -> EvaluationSet | None:
        if self.evaluation is None:
            return None
        each = tuple(plain_float(m.perplexity if T == _AS_MEASURED else T) for T in perplexities)
        last = None if before is None else before.evaluation
        if last is not None and last.perplexities == each:
            return last
        return EvaluationSet(perplexities=each, **self.evaluation)

    def _hardware(self, rows: Sequence[Any], m: Measurements) -> dict[str, DeviceUse]:
        return {
            key: DeviceUse(
                **{
                    name: getattr(m, name) if value == _AS_MEASURED else number_or_none(value, name)
                    for name, value in zip(self.uses, row, strict=True)
                    if name in _USES
                }
            )
            for key, row in zip(self.hardware, rows, strict=True)
        }

    def _prediction(self, data: Any) -> Prediction | Unpredictable | None:
        if data is None:
            return None
        if isinstance(data, str):
            return Unpredictable(reason=data)
        values = dict(zip(self.forecast, map(plain_float, data), strict=True))
        return Prediction(**{name: values[name] for name in _FORECAST})


def _word(text: Any) -> str:
    """The text, held once however many contexts have it."""
    return sys.intern(str(text))


def _template(text: Any) -> str | tuple[str, ...]:
    return tuple(map(str, text)) if isinstance(text, list) else _word(text)


def _filled(text: str | tuple[str, ...], numbers: Iterator[Any]) -> str:
    if isinstance(text, str):
        return text
    first, *others = text
    return first + "".join(f"{int(next(numbers, 'none'))}{part}" for part in others)


def _device(data: Mapping[str, Any]) -> OccupiedDevice:
    peak = number_or_none(data["peak_flops"], "peak_flops")
    names = ("key", "name", "kind", "dtype", "peak_source")
    return OccupiedDevice(peak_flops=peak, **{name: str(data[name]) for name in names})


def _set(data: Mapping[str, Any]) -> dict[str, Any]:
    count = data["bytes"]
    return {
        "tokens": tuple(map(int, data["tokens"])),
        "source": str(data["source"]),
        "bytes": None if count is None else tuple(map(int, count)),
        "fingerprints": tuple(map(str, data["fingerprints"])),
        "longest": tuple(map(int, data["longest"])),
    }


# ---------------------------------------------------------------------- numbers, both schemas


def float_of(value: Any) -> Any:
    """Return the float of a string that stands for NaN or an infinity, any other value as it is."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def plain_float(value: Any) -> float:
    """Return a number as a float.

    Raises:
        ValueError: if it is none.
    """
    number = as_number(float_of(value))
    if number is None:
        raise ValueError(f"expected a number, got {short(value)}")
    return number


def number_or_none(value: Any, name: str) -> float | None:
    """Return a number as a float, or None for None.

    Raises:
        ValueError: if it is neither.
    """
    if value is None or type(value) is float:
        return value
    number = as_number(float_of(value))
    if number is None:
        raise ValueError(f"{name}: expected a number or null, got {short(value)}")
    return number


def hours(value: Any) -> float:
    """Return the hours that a run lost.

    Raises:
        ValueError: if they are no finite number >= 0.
    """
    number = as_number(value)
    if number is None or not 0 <= number < math.inf:
        raise ValueError(f"lost_device_hours: expected a number >= 0, got {short(value)}")
    return number
