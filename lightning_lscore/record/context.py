"""Read the lines of schema 2: a context, ready for the validations that refer to it.

A thousand runs are some 35,000 lines, so a validation is not checked twice: what is seen to be
plain numbers goes into its objects past their constructors, and what did not change is held once.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from ..equation.evidence import DeviceUse, EvaluationSet, OccupiedDevice
from ..equation.learning_rate import DECAYS, LearningRate
from ..equation.measurements import Measurements
from ..equation.measures import OF_A_VALIDATION, SIGNED
from ..equation.prediction import Prediction, Unpredictable
from ..equation.score import Score
from .json_numbers import float_of, hours, number_or_none, plain_float
from .lines import AS_MEASURED, FORECAST, USES
from .record import Record

Template: TypeAlias = "str | tuple[str, ...]"
"""A text, or its parts between numbers."""

_NUMBERS = {int, float}
_SET_USE = [(name, getattr(DeviceUse, name).__set__) for name in USES]


class Context:
    """What a line of context says.

    Args:
        data: the line's JSON object.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if it is no context.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.run = _word(data["run"])
        """Of the run that the validations belong to."""
        _word(data["formula_id"])  # for other readers: the formula tells it
        self._formula = dict(data["formula"])
        self._versions = {_word(k): _word(v) for k, v in data["versions"].items()}
        self._assumptions = {_word(k): _word(v) for k, v in data["assumptions"].items()}
        self._fits = tuple([_word(fit) for fit in data["fits"]])
        self._devices = tuple(_device(device) for device in data["devices"])
        self._evaluation = None if data["evaluation"] is None else _set(data["evaluation"])
        self._level = number_or_none(data["level"], "level")
        self._measures = [_word(name) for name in data["measures"]]
        self._own = [_word(name) for name in data["own"]]
        told = [(_template(text), [_word(n) for n in names]) for text, names in data["provenance"]]
        self._texts = {n: text for text, names in told if isinstance(text, str) for n in names}
        self._with_numbers = [(text, names) for text, names in told if not isinstance(text, str)]
        self._missing = [_template(text) for text in data["missing"]]
        self._hardware = [_word(key) for key in data["hardware"]]
        self._uses = [_word(name) for name in data["uses"]]
        self._forecast = [_word(name) for name in data["forecast"]]
        self._build = _builder(self._measures)
        self._filled: tuple[Any, dict[str, str], tuple[str, ...]] | None = None  # the newest texts
        self._set_before: EvaluationSet | None = None

    def parse(self, line: bytes) -> Record:
        """Return the validation of a line.

        Raises:
            ValueError: if it is none.
        """
        try:
            return self.record(json.loads(line))
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a record: {type(error).__name__}: {error}") from error

    def record(self, data: Mapping[str, Any]) -> Record:
        """Return the validation of a line that refers to this context.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, OverflowError: if it is no validation.
        """
        provenance, missing = self._with(data.get("numbers", []))
        m = self._measurements(data.get("measured", []), data.get("own", []), provenance)
        T, (f_D, f_A, f_H) = data.get("perplexity"), data["factors"]
        score = Score(
            perplexity=m.perplexity if T == AS_MEASURED else number_or_none(T, "perplexity"),
            f_D=number_or_none(f_D, "f_D"),
            f_A=number_or_none(f_A, "f_A"),
            f_H=number_or_none(f_H, "f_H"),
            missing=missing,
        )
        made = object.__new__(Record)  # its constructor takes three times as long
        made.__dict__.update(
            run=self.run,
            batch=int(data["batch"]),
            step=int(data["step"]),
            epoch=int(data["epoch"]),
            time=str(data["time"]),
            measurements=m,
            score=score,
            formula=self._formula,
            evaluation=self._evaluated(data.get("perplexities", ()), m),
            lost_device_hours=hours(data["lost_device_hours"]),
            planned=number_or_none(data.get("planned"), "planned"),
            learning_rate=_rate(*data.get("rate", (None, "unknown"))),
            prediction=self._prediction(data.get("prediction")),
            devices=self._devices,
            hardware=self._used(data.get("hardware", ()), m),
            versions=self._versions,
            assumptions=self._assumptions,
            fits=self._fits,
        )
        return made

    def _with(self, numbers: list[Any]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Provenance and what is missing, with the numbers of a line in their texts."""
        if self._filled is None or self._filled[0] != numbers:
            left, provenance = iter(numbers), self._texts.copy()
            for parts, names in self._with_numbers:
                text = _filled(parts, left)
                for name in names:
                    provenance[name] = text
            self._filled = numbers, provenance, tuple([_filled(t, left) for t in self._missing])
        return self._filled[1:]

    def _measurements(
        self, values: list[Any], own: list[Any], provenance: dict[str, str]
    ) -> Measurements:
        if len(values) != len(self._measures) or len(own) != len(self._own):
            raise ValueError(
                f"expected {len(self._measures)} measured and {len(self._own)} own values, got "
                f"{len(values)} and {len(own)}"
            )
        if self._build is not None and _are_plain(own, []) and _are_plain(values, self._measures):
            named = dict(zip(self._own, own, strict=True))
            return self._build([*values, self._level, named, {}, provenance])
        return Measurements.of(
            dict(zip(self._measures, map(float_of, values), strict=True)),
            level=self._level,
            own=dict(zip(self._own, map(float_of, own), strict=True)),
            provenance=provenance,
        )

    def _evaluated(self, perplexities: Sequence[Any], m: Measurements) -> EvaluationSet | None:
        if self._evaluation is None:
            return None
        each = tuple([plain_float(m.perplexity if T == AS_MEASURED else T) for T in perplexities])
        if self._set_before is None or self._set_before.perplexities != each:
            self._set_before = EvaluationSet(perplexities=each, **self._evaluation)
        return self._set_before

    def _used(self, rows: Sequence[Any], m: Measurements) -> dict[str, DeviceUse]:
        found = {}
        for key, row in zip(self._hardware, rows, strict=True):
            use = found[key] = object.__new__(DeviceUse)
            values = dict(zip(self._uses, row, strict=True))
            for name, set_value in _SET_USE:
                value = values.get(name)
                if value == AS_MEASURED:
                    value = getattr(m, name)
                set_value(use, number_or_none(value, name))
        return found

    def _prediction(self, data: Any) -> Prediction | Unpredictable | None:
        if data is None:
            return None
        if isinstance(data, str):
            return Unpredictable(reason=data)
        values = dict(zip(self._forecast, map(plain_float, data), strict=True))
        return Prediction(**{name: values[name] for name in FORECAST})


def _are_plain(values: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether these are numbers that need no further check, as nearly all are."""
    if not _NUMBERS.issuperset(map(type, values)) or not math.isfinite(sum(values)):
        return False  # not so with a NaN, and not with bools
    if min(values, default=0) >= 0:
        return True
    signed = [i for i, name in enumerate(names) if name in SIGNED]
    return len([v for v in values if v < 0]) == len([i for i in signed if values[i] < 0])


def _builder(measures: Sequence[str]) -> Callable[[Sequence[Any]], Measurements] | None:
    """A maker of measurements; None for measures of a later version, and those to a level."""
    if len({*measures}) < len(measures) or not OF_A_VALIDATION.keys() >= {*measures}:
        return None
    return Measurements.builder([*measures, "level", "own", "to_level", "provenance"])


def _word(text: Any) -> str:
    """The text, held once however many contexts have it."""
    return sys.intern(str(text))


def _template(text: Any) -> Template:
    return tuple(map(str, text)) if isinstance(text, list) else _word(text)


def _filled(text: Template, numbers: Iterator[Any]) -> str:
    if isinstance(text, str):
        return text
    first, *others = text
    return first + "".join([f"{int(next(numbers, 'none'))}{part}" for part in others])


def _rate(now: Any, decay: Any) -> LearningRate:
    if decay not in DECAYS:
        raise ValueError(f"expected a decay ({', '.join(DECAYS)}), got {decay!r}")
    return LearningRate(now=number_or_none(now, "rate"), decay=decay)


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
