from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import asdict, is_dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import EXPECTED, held_out, parts_of, read, record, text_of

from lightning_lscore.equation.evidence import DeviceUse
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.prediction import Unpredictable
from lightning_lscore.equation.score import Score
from lightning_lscore.record.context import Context
from lightning_lscore.record.file import RECORD_FILE, append_record, read_records
from lightning_lscore.record.lines import CHECKSUM_BYTES, checksum
from lightning_lscore.record.record import Record

# ---------------------------------------------------------------- one line

NUMBERS = st.floats(0, allow_infinity=True) | st.just(math.nan)
SIZES = st.floats(0, 1e300) | st.integers(0, 10**9)
SHARES = st.none() | st.floats(0, 1)
USES = st.builds(DeviceUse, busy_fraction=SHARES, energy_kwh=st.none() | st.floats(0, 1e300))
COVERED = st.builds("measured: sampled over {}% of device time".format, st.integers(-9, 10**12))
WORDS = (
    st.text() | COVERED | st.sampled_from(["7% of 0%", "007%", "1.5%", "12%%", "3 training batch"])
)
FACTORS = st.none() | st.floats(0) | st.just(math.nan)


@st.composite
def any_record(draw):
    nll = draw(st.floats(-1, 800) | st.sampled_from([math.nan, math.inf]))
    measurements = Measurements(
        nll=nll,
        tokens=draw(st.none() | st.integers(0, 10**30)),
        elasticity=draw(st.none() | st.floats(-10, 10)),
        energy_kwh=draw(st.none() | st.floats(0, 1e300)),
        level=draw(st.none() | st.floats(1, 9)),
        to_level={name: draw(SIZES) for name in ("tokens", "cost")[: draw(st.integers(0, 2))]},
        own=draw(st.dictionaries(st.text(), SIZES, max_size=2)),
        provenance=draw(st.dictionaries(st.text(), WORDS, max_size=3)),
    )
    score = Score(
        perplexity=measurements.perplexity,
        f_D=draw(FACTORS),
        f_A=draw(FACTORS),
        f_H=draw(FACTORS),
        missing=tuple(draw(st.lists(st.text(), max_size=2))),
    )
    return record(
        draw(st.integers(0, 10**6)),
        draw(st.text()),
        measurements=measurements,
        score=score,
        evaluation=held_out(source=draw(st.text()), perplexities=(draw(NUMBERS),)),
        hardware=draw(st.dictionaries(st.text(), USES, max_size=2)),
        versions={"torch": draw(st.text())},
        assumptions=draw(st.dictionaries(st.text(), WORDS, max_size=2)),
    )


def same(a, b):
    """Equal to the last bit, where NaN equals NaN, 0.0 is not -0.0 and 1 is not 1.0."""
    return plain(a) == plain(b)


def plain(value):
    if is_dataclass(value):
        value = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else repr(value)


@given(any_record())
def test_a_record_comes_back_from_its_lines(written):
    """Strict JSON holds everything, NaN and infinity included, to the last bit."""
    text = text_of(written)
    parts_of(written)
    assert not any(c in text.replace("\n", "") for c in "\r\u2028")
    assert len(text.splitlines()) == 2
    back = read(text)
    for name in Record.__dataclass_fields__:
        assert same(getattr(back, name), getattr(written, name)), name
    again = text_of(back)  # the provenance may stand in another order
    assert text_of(read(again)) == again


def test_a_record_of_plain_numbers_comes_back_equal():
    """Nothing is lost or renamed, and whole numbers stay whole."""
    assert read(text_of(record())) == record()
    assert type(read(text_of(record())).measurements.tokens) is int


def test_numbers_that_change_at_each_validation_stay_out_of_the_context():
    """Else it would be written each time: coverage, and batches without tokens."""

    def at(share, batches):
        m = Measurements(
            tokens=7,
            provenance={
                "busy_fraction": f"measured: sampled over {share}% of device time",
                "samples": f"unavailable: no integer tensor in {batches} training batch(es)",
            },
        )
        return record(measurements=m, score=replace(record().score, missing=(f"x: {share}%",)))

    (first, one), (second, two) = parts_of(at(97, 1)), parts_of(at(100, 30))
    assert first == second
    assert one["numbers"] == [97, 1, 97]
    assert two["numbers"] == [100, 30, 100]
    assert read(text_of(at(100, 30))) == at(100, 30)


def test_a_validation_takes_less_than_a_kilobyte():
    """With every measure that there is, and one device."""
    names = [n for n in Measurements.__dataclass_fields__ if n not in NO_MEASURES]
    m = Measurements(**dict.fromkeys(names, math.pi * 100000.0))
    uses = {
        "GPU-1": DeviceUse(**{n: getattr(m, n, math.e) for n in DeviceUse.__dataclass_fields__})
    }
    score = Formula(D=math.pi, A=math.e, H=math.sqrt(2)).score(m)
    whole = record(
        measurements=m, score=score, hardware=uses, prediction=Unpredictable(reason="x" * 60)
    )
    assert len(text_of(whole).splitlines()[1]) < 1024


NO_MEASURES = ("level", "to_level", "own", "provenance", "perplexity", "nominal_perplexity")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_written_as_text(value):
    """JSON knows neither NaN nor infinity, so other programs can read the file."""
    context, line = parts_of(record(perplexity=value))
    written = {"nan": "NaN", "inf": "Infinity"}[str(value)]
    assert dict(zip(context["measures"], line["measured"], strict=True))["nll"] == written
    assert read(text_of(record(perplexity=value))).L is None


def test_what_is_missing_is_not_written():
    """A measure without a value has no name, and L without one is null."""
    context, line = parts_of(record())
    assert context["measures"] == ["perplexity", "nll", "tokens"]
    assert line["L"] is None
    assert context["missing"] == ["energy_kwh: unavailable: not measured"]


def test_what_follows_from_another_measure_is_not_written():
    """Perplexity from the NLL, to the last bit."""
    m = Measurements(nll=1.2345, bits_per_byte=0.7)
    context, _ = parts_of(record(measurements=m))
    assert context["measures"] == ["nll", "bits_per_byte"]
    assert read(text_of(record(measurements=m))).measurements == m


def test_L_in_the_line_is_the_product_of_the_parts():
    """A program that reads the line needs no formula."""
    formula = Formula(D=0.95, A=0.9, H=0.85)
    scored = record(score=formula.score(Measurements(perplexity=20.0)))
    assert parts_of(scored)[1]["L"] == scored.L == pytest.approx(14.535)


HOSTILE = [
    'a"b',
    "line\nfeed\r\n",
    "\x1b[31mred\x1b[0m\x07",
    "<script>alert(1)</script>",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\ud800",
    "\x00",
    "NaN",
    "x" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_one_line_of_printable_characters(tmp_path, text):
    """No text ends the line, steers a terminal, or fails to come back."""
    written = record(run=text, evaluation=held_out(source=text), versions={text: text})
    for line in text_of(written).split("\n")[:-1]:
        assert len(line.splitlines()) == 1
        assert line.isascii()
        assert line.isprintable()
    append_record(tmp_path / RECORD_FILE, written)
    append_record(tmp_path / RECORD_FILE, record(2))
    assert read_records(tmp_path)[0] == written


# ---------------------------------------------------------------- lines that are no records

CONTEXT, VALID = parts_of(record())


def together(context, line):
    return f"{json.dumps(context)}\n{json.dumps(line)}\n"


@pytest.mark.parametrize("key", sorted(CONTEXT))
def test_a_context_without_one_of_its_keys_is_a_value_error(key):
    """What is missing is an error and not a default."""
    with pytest.raises(ValueError, match=r"not a record|schema"):
        read(together({k: v for k, v in CONTEXT.items() if k != key}, VALID))


NEEDED = ("schema", "context", "batch", "step", "epoch", "time", "factors", "measured")


@pytest.mark.parametrize("key", [*NEEDED, "lost_device_hours", "hardware", "perplexities"])
def test_a_validation_without_one_of_its_keys_is_a_value_error(key):
    """Those that it needs: others are absent where they have no value."""
    line = {k: v for k, v in VALID.items() if k != key}
    if key == "perplexities":
        assert read(together(CONTEXT, line)).evaluation.perplexities == ()
        return
    with pytest.raises(ValueError, match=r"record|schema|expected|zip"):
        read(together(CONTEXT, line))


@pytest.mark.parametrize("schema", [0, 3, "1", "2", None, [1], True])
def test_another_schema_is_a_value_error(schema):
    """A line of an unknown version is refused as such."""
    for pair in (({**CONTEXT, "schema": schema}, VALID), (CONTEXT, {**VALID, "schema": schema})):
        with pytest.raises(ValueError, match='expected a JSON object with "schema": 1 or 2'):
            read(together(*pair))


def test_a_validation_without_its_context_is_a_value_error():
    """Its values have no names."""
    with pytest.raises(ValueError, match="not a record: KeyError"):
        read(json.dumps(VALID))


def test_measures_of_a_later_version_are_passed_over():
    """A newer writer may measure more, of runs and of devices, and foretell more."""
    context, line = copy.deepcopy(CONTEXT), copy.deepcopy(VALID)
    context["measures"].append("invented_later")
    line["measured"].append(5)
    context["uses"].append("invented_later")
    line["hardware"][0].append(5)
    context["forecast"].append("invented_later")
    line["prediction"].append(5)
    context["invented_later"] = line["invented_later"] = []
    assert read(together(context, line)) == record()


@pytest.mark.parametrize("place", ["perplexity", 0, 1, 2])
@pytest.mark.parametrize("value", ["high", [1], {}, True, "1", pytest.param(10**400, id="10**400")])
def test_a_score_holds_numbers_or_null(place, value):
    """A part of L that is of another type is a ValueError, and not a failure of L later on."""
    line = copy.deepcopy(VALID)
    if isinstance(place, int):
        line["factors"][place] = value
    else:
        line[place] = value
    with pytest.raises(ValueError, match=r"record|expected"):
        read(together(CONTEXT, line))


WHOLE = text_of(record())
BAD_LINES = {
    "nothing": " ",
    "text": "hello",
    "a number": "1",
    "a list": "[]",
    "deep nesting": "[" * 100_000,
    "a deep object": '{"schema": 2, "run": ' + "[" * 100_000,
    "many digits": '{"schema": 2, "run": ' + "9" * 5000 + "}",
    "duplicate keys, the last of them wrong": WHOLE.rstrip()[:-1] + ', "factors": 1}',
    "a huge count": WHOLE.replace(",100]", ",1" + "0" * 400 + "]"),
    "an infinite count": WHOLE.replace(",100]", ",1e999]"),
    "a count that is none": WHOLE.replace(",100]", ",NaN]"),
    "an infinite step": WHOLE.replace('"step":10', '"step":1e999'),
    "lost time that is no number": WHOLE.replace("0.25", '"long"'),
    "lost time below 0": WHOLE.replace("0.25", "-1"),
    "lost time without an end": WHOLE.replace("0.25", '"Infinity"'),
    "a negative count": WHOLE.replace(",100]", ",-1]"),
    "a bool for a count": WHOLE.replace(",100]", ",true]"),
    "too few values": WHOLE.replace(",100]", "]"),
    "numbers that are none": WHOLE.replace('"prediction":[4.0', '"prediction":["x"'),
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_only_a_value_error_comes_out_of_a_line_that_is_no_record(line):
    """Whatever is wrong with it."""
    assert line != WHOLE
    with pytest.raises(ValueError, match=r".+"):
        read(line)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**308, 10**320) | st.floats()
    | st.text(max_size=4) | st.sampled_from(["NaN", "tokens", "Infinity"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value, path=()):
    """The paths to everything inside of a JSON value."""
    children = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


@settings(max_examples=600)
@given(
    st.sampled_from(sorted(places([CONTEXT, VALID]), key=str)),
    JSON,
    st.sampled_from(["set", "add", "cut"]),
)
def test_a_mutated_line_is_a_record_or_a_value_error(path, value, how):
    """What is accepted can be used and written again; the rest is a ValueError."""
    data = copy.deepcopy([CONTEXT, VALID])
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    if how == "cut":
        del parent[path[-1]]
    elif how == "add" and isinstance(parent, dict):
        parent[f"{path[-1]}'"] = value
    else:
        parent[path[-1]] = value
    check("\n".join(map(json.dumps, data)))


@settings(max_examples=100)
@given(st.text() | JSON.map(json.dumps))
def test_any_line_is_a_record_or_a_value_error(line):
    """Random text and random JSON raise nothing else."""
    check(line)


def check(text):
    try:
        found = read(text)
    except (ValueError, IndexError):  # IndexError: no line at all
        return
    if found is None:  # a context alone
        return
    assert found.L is None or isinstance(found.L, float)
    repr(found)
    parts_of(found)


@pytest.mark.parametrize(
    "prediction",
    [None, Unpredictable(reason="The run is too short."), EXPECTED, replace(EXPECTED, growth=0.5)],
)
def test_a_prediction_comes_back_or_why_there_is_none(prediction):
    """Infinity included."""
    assert read(text_of(record(prediction=prediction))).prediction == prediction
    infinite = replace(EXPECTED, best_L_high=math.inf)
    assert read(text_of(record(prediction=infinite))).prediction == infinite


@pytest.mark.parametrize("prediction", [3, [1], [*asdict(EXPECTED).values()][1:], {"growth": "x"}])
def test_a_prediction_that_is_none_is_a_value_error(prediction):
    """Whoever shows it can rely on its numbers."""
    with pytest.raises(ValueError, match=r"."):
        read(together(CONTEXT, {**VALID, "prediction": prediction}))


# ---------------------------------------------------------------- the checksum


def test_a_line_with_its_checksum_is_parsed_when_somebody_asks(monkeypatch):
    """Of many runs one seldom looks at every validation."""
    parsed = []
    plain = Context.record
    monkeypatch.setattr(Context, "record", lambda *args: parsed.append(1) or plain(*args))
    found = read(text_of(record()))
    assert (found.run, found.batch, parsed) == ("a", 1, [])
    assert found.L is None
    assert found == record()
    assert parsed == [1]


def test_a_line_without_its_checksum_is_checked_at_once():
    """Somebody changed it; what is wrong with it comes out when it is read."""
    text = text_of(record())
    assert read(text.replace('"step":10', '"step":11')).step == 11
    with pytest.raises(ValueError, match="not a record"):
        read(text.replace('"step":10', '"step":[]'))
    _, line = text.splitlines()
    assert checksum(line[:-CHECKSUM_BYTES].encode()) == line[-CHECKSUM_BYTES:]


def test_a_forged_checksum_hides_nothing_for_long():
    """The error comes when somebody asks for what is wrong, as often as it is asked for."""
    context, line = text_of(record()).splitlines()
    forged = line[:-CHECKSUM_BYTES].replace('"step":10', '"step":[]')
    found = read(f"{context}\n{forged}{checksum(forged.encode())}\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="not a record"):
            _ = found.L


def test_records_that_are_not_parsed_yet_are_copied_like_others():
    """By copy, pickle and replace; and a name that no record has is an AttributeError."""
    for again in (copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r)), replace):
        assert again(read(text_of(record()))) == record()
    with pytest.raises(AttributeError, match="'Record' object has no attribute 'loss'"):
        _ = read(text_of(record())).loss
