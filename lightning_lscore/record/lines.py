"""The lines of ``lscore.jsonl``, schema 2: a context once, then a short line for each validation.

A context holds what many validations share: run, formula, versions, devices, held-out set, the
names of the measures, and where each came from. A validation holds values in the order of these
names, and the hash of its context. Both are strict JSON: NaN and infinities are strings. A
validation ends with its checksum, the CRC-32 of all before it: a line that has it is as it was
written, so it need not be checked, nor even parsed, before somebody asks for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ..equation.evidence import DeviceUse
from ..equation.measurements import Measurements
from ..equation.prediction import Prediction, Unpredictable
from ..equation.safe_numbers import exp
from .record import Record

SCHEMA = 2

USES = tuple(f.name for f in fields(DeviceUse))
FORECAST = tuple(f.name for f in fields(Prediction))
AS_MEASURED = "="
"""In place of a number that equals the measure of the same name: on one device nearly all do."""

# Numbers in a text that change from one validation to the next: the coverage, batches not counted.
_CHANGING = re.compile(r"(?<![\d.])(?:0|[1-9]\d{0,8})(?=%| training batch)")


# ---------------------------------------------------------------------- writing


def lines_of(record: Record) -> tuple[str, str, str]:
    """Return the hash of the record's context, and the two lines, each with its end."""
    context, validation = split(record)
    key = _hash(_json(context).encode())
    head = {"schema": SCHEMA, "context": key}
    line = _json({**head, **validation})[:-1]
    return key, _json({**head, **context}) + "\n", f"{line}{checksum(line.encode())}\n"


def _hash(context: bytes) -> str:
    return hashlib.sha256(context).hexdigest()[:12]


_HEAD = re.compile(rb'{"schema":2,"context":"([0-9a-f]{12})",(?="run":)')


def is_as_written(context: bytes) -> bool:
    """Return whether the line of a context has the hash that it states."""
    head = _HEAD.match(context)
    return head is not None and _hash(b"{" + context[head.end() :].rstrip()) == head[1].decode()


def checksum(line: bytes) -> str:
    """Return the end of a validation's line, from its last comma on."""
    return f',"crc":"{zlib.crc32(line):08x}"}}'


CHECKSUM_BYTES = len(checksum(b""))


def split(record: Record) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what may hold for many validations, and what holds for this one."""
    m, score, evaluation = record.measurements, record.score, record.evaluation
    measured = _without_derived(m.measured())
    uses = [n for n in USES if any(getattr(u, n) is not None for u in record.hardware.values())]
    numbers: list[int] = []
    context: dict[str, Any] = {
        "run": record.run,
        "formula_id": record.formula_id,
        "formula": dict(record.formula),
        "versions": dict(record.versions),
        "assumptions": dict(record.assumptions),
        "fits": list(record.fits),
        "devices": [asdict(device) for device in record.devices],
        "evaluation": None if evaluation is None else asdict(evaluation),
        "level": m.level,
        "measures": list(measured),
        "own": list(m.own),
        "provenance": [
            [_factor(text, numbers), names] for text, names in _by_text(m.provenance).items()
        ],
        "missing": [_factor(text, numbers) for text in score.missing],
        "hardware": list(record.hardware),
        "uses": uses,
        "forecast": list(FORECAST),
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
            [_unless(getattr(use, name), getattr(m, name, None)) for name in uses]
            for use in record.hardware.values()
        ],
        "numbers": numbers,
        "lost_device_hours": record.lost_device_hours,
        "planned": record.planned,
        "rate": [record.learning_rate.now, record.learning_rate.decay],
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


def _by_text(provenance: Mapping[str, str]) -> dict[str, list[str]]:
    """Measures by what is said of them: many have the same origin."""
    found: dict[str, list[str]] = {}
    for name, text in provenance.items():
        found.setdefault(text, []).append(name)
    return found


def _factor(text: str, numbers: list[int]) -> str | list[str]:
    """The text between its changing numbers, which are added to ``numbers``."""
    found = _CHANGING.findall(text)
    numbers.extend(map(int, found))
    return _CHANGING.split(text) if found else text


def _unless(value: Any, known: Any) -> Any:
    return AS_MEASURED if value is not None and _same(value, known) else value


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or (a != a and b != b)) and str(a) == str(b)


def _prediction_to_json(prediction: Prediction | Unpredictable | None) -> Any:
    if isinstance(prediction, Prediction):
        return [getattr(prediction, name) for name in FORECAST]
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
