from __future__ import annotations

import copy
import json
import math
import os
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_lscore.record.records import (
    RECORD_FILE,
    Record,
    append_record,
    read_records,
    records_since,
)

from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.prediction import Prediction
from lightning_lscore.record import records

FORMULA = Formula(D=Factor("tokens", 1000.0), H=Factor("energy_kwh", 1.0), A=0.5)

EXPECTED = Prediction(
    best_L=4.0, best_L_low=3.5, best_L_high=4.5, growth=2.0, growth_low=1.5, growth_high=3.0,
    horizon=5.0,
)  # fmt: skip


def record(batch=1, run="a", *, perplexity=5.0, tokens=100, **changes):
    measurements = Measurements(
        perplexity=perplexity, tokens=tokens, provenance={"tokens": "measured: counted"}
    )
    values = {
        "run": run,
        "batch": batch,
        "step": 10 * batch,
        "epoch": 0,
        "time": "2025-01-01T00:00:00+00:00",
        "measurements": measurements,
        "score": FORMULA.score(measurements),
        "formula": FORMULA.to_dict(),
        "evaluation": {"tokens": [7], "perplexities": [perplexity]},
        "lost_device_hours": 0.25,
        "prediction": asdict(EXPECTED),
        "devices": ({"key": "GPU-1", "peak_flops": 1e12},),
        "hardware": {"GPU-1": {"energy_kwh": 1.5, "busy_fraction": 0.5}},
        "versions": {"torch": "2"},
    }
    return Record(**{**values, **changes})


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


def strict(line):
    return json.loads(line, parse_constant=refuse)


def ids(found):
    return [(r.run, r.batch) for r in found]


# ---------------------------------------------------------------- one line

NUMBERS = st.floats(0, allow_infinity=True) | st.just(math.nan)
FACTORS = st.none() | st.floats(0) | st.just(math.nan)


@st.composite
def any_record(draw):
    nll = draw(st.floats(-1, 800) | st.sampled_from([math.nan, math.inf]))
    measurements = Measurements(
        nll=nll,
        tokens=draw(st.none() | st.integers(0, 10**30)),
        elasticity=draw(st.none() | st.floats(-10, 10)),
        energy_kwh=draw(st.none() | st.floats(0, 1e300)),
        provenance=draw(st.dictionaries(st.text(), st.text(), max_size=3)),
    )
    score = records.Score(
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
        evaluation={"source": draw(st.text()), "perplexities": [draw(NUMBERS)]},
        versions={"torch": draw(st.text())},
    )


def same(a, b):
    """Equal, where NaN equals NaN."""
    return a == b or (repr(a) == repr(b) and "nan" in repr(a))


@given(any_record())
def test_a_record_comes_back_from_its_line(written):
    """One line of strict JSON holds everything, NaN and infinity included, to the last bit."""
    line = written.to_json()
    strict(line)
    assert not any(c in line for c in "\n\r\u2028")
    back = Record.from_json(line)
    assert same(back.measurements, written.measurements)
    assert same(back.score, written.score)
    assert (back.run, back.batch, back.time) == (written.run, written.batch, written.time)
    assert (back.devices, back.versions) == (written.devices, written.versions)
    assert Record.from_json(back.to_json()).to_json() == line


def test_a_record_of_plain_numbers_comes_back_equal():
    """Nothing is lost or renamed."""
    assert Record.from_json(record().to_json()) == record()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_written_as_text(value):
    """JSON knows neither NaN nor infinity, so other programs can read the file."""
    data = strict(record(perplexity=value).to_json())
    written = {"nan": "NaN", "inf": "Infinity"}[str(value)]
    assert data["measurements"]["perplexity"] == written
    assert data["score"]["perplexity"] == written
    assert data["evaluation"]["perplexities"] == [written]


def test_what_is_missing_is_not_written():
    """A measure without a value has no key, and L without one is null."""
    data = strict(record().to_json())
    assert data["measurements"].keys() == {"perplexity", "nll", "tokens"}
    assert data["score"]["L"] is None
    assert data["score"]["missing"] == ["energy_kwh: unavailable: nobody measured it"]


def test_L_in_the_line_is_the_product_of_the_parts():
    """A program that reads the line needs no formula."""
    formula = Formula(D=0.95, A=0.9, H=0.85)
    scored = record(score=formula.score(Measurements(perplexity=20.0)))
    assert strict(scored.to_json())["score"]["L"] == scored.L == pytest.approx(14.535)


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
    written = record(run=text, evaluation={"source": text}, versions={text: text})
    line = written.to_json()
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()
    append_record(tmp_path / RECORD_FILE, written)
    append_record(tmp_path / RECORD_FILE, record(2))
    assert read_records(tmp_path)[0] == written


def test_loggers_get_what_has_a_value():
    """What was not measured or scored has no key, and each measure is under lscore/."""
    assert record().logged_values() == {
        "perplexity": 5.0,
        "lscore/best_L_expected": 4.0,
        "f_D": record().score.f_D,
        "f_A": 0.5,
        "lscore/tokens": 100,
    }


def test_a_record_is_scored_again_under_another_formula():
    """The measurements are all that a new score needs."""
    assert record(perplexity=20.0).rescored(Formula(D=0.5)).L == 10.0
    assert Formula.from_dict(record().formula) == FORMULA


# ---------------------------------------------------------------- lines that are no records

VALID = json.loads(record().to_json())
LATER = ["level", "own", "lost_device_hours", "prediction", "hardware"]
KEYS = [k for k in VALID if k not in ("schema", *LATER)]


@pytest.mark.parametrize("key", ["schema", *KEYS])
def test_a_line_without_one_of_its_keys_is_a_value_error(key):
    """What is missing from a line is an error and not a default."""
    with pytest.raises(ValueError, match=r"not a record|schema"):
        Record.from_json(json.dumps({k: v for k, v in VALID.items() if k != key}))


def test_a_line_of_before_is_read():
    """What was added since starts empty."""
    old = Record.from_json(json.dumps({k: v for k, v in VALID.items() if k not in LATER}))
    assert (old.prediction, old.lost_device_hours) == ({}, 0.0)
    assert (old.measurements.level, old.measurements.own) == (None, {})
    whole = record()
    assert old.hardware == {}
    added = {name: getattr(whole, name) for name in ("prediction", "lost_device_hours", "hardware")}
    assert replace(old, **added) == whole


@pytest.mark.parametrize("schema", [0, 2, "1", None, [1]])
def test_another_schema_is_a_value_error(schema):
    """A line of an unknown version is refused as such."""
    with pytest.raises(ValueError, match='expected a JSON object with "schema": 1'):
        Record.from_json(json.dumps({**VALID, "schema": schema}))


def test_measures_of_a_later_version_are_passed_over():
    """A newer writer may measure more."""
    data = copy.deepcopy(VALID)
    data["measurements"]["invented_later"] = 5
    data["invented_later"] = []
    assert Record.from_json(json.dumps(data)) == record()


@pytest.mark.parametrize("name", ["perplexity", "f_D", "f_A", "f_H"])
@pytest.mark.parametrize("value", ["high", [1], {}, True, "1", pytest.param(10**400, id="10**400")])
def test_a_score_holds_numbers_or_null(name, value):
    """A part of L that is of another type is a ValueError, and not a failure of L later on."""
    data = copy.deepcopy(VALID)
    data["score"][name] = value
    with pytest.raises(ValueError, match=r"record|expected"):
        Record.from_json(json.dumps(data))


BAD_LINES = {
    "nothing": "",
    "text": "hello",
    "a number": "1",
    "a list": "[]",
    "deep nesting": "[" * 100_000,
    "a deep object": '{"schema": 1, "run": ' + "[" * 100_000,
    "many digits": '{"schema": 1, "run": ' + "9" * 5000 + "}",
    "duplicate keys, the last of them wrong": record().to_json()[:-1] + ', "score": 1}',
    "a huge count": record().to_json().replace('"tokens": 100', '"tokens": 1' + "0" * 400),
    "an infinite count": record().to_json().replace('"tokens": 100', '"tokens": 1e999'),
    "an infinite step": record().to_json().replace('"step": 10', '"step": 1e999'),
    "lost time that is no number": record().to_json().replace("0.25", '"long"'),
    "lost time below 0": record().to_json().replace("0.25", "-1"),
    "lost time without an end": record().to_json().replace("0.25", '"Infinity"'),
    "a negative count": record().to_json().replace('"tokens": 100', '"tokens": -1'),
}


@pytest.mark.parametrize("line", BAD_LINES.values(), ids=BAD_LINES)
def test_only_a_value_error_comes_out_of_a_line_that_is_no_record(line):
    """Whatever is wrong with it."""
    with pytest.raises(ValueError, match=r".+"):
        Record.from_json(line)


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


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(places(VALID), key=str)), JSON, st.sampled_from(["set", "add", "cut"])
)
def test_a_mutated_line_is_a_record_or_a_value_error(path, value, how):
    """What from_json accepts can be used and written again; the rest is a ValueError."""
    data = copy.deepcopy(VALID)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    if how == "cut":
        del parent[path[-1]]
    elif how == "add" and isinstance(parent, dict):
        parent[f"{path[-1]}'"] = value
    else:
        parent[path[-1]] = value
    check(json.dumps(data))


@settings(max_examples=100)
@given(st.text() | JSON.map(json.dumps))
def test_any_line_is_a_record_or_a_value_error(line):
    """Random text and random JSON raise nothing else."""
    check(line)


def check(line):
    try:
        found = Record.from_json(line)
    except ValueError:
        return
    assert found.L is None or isinstance(found.L, float)
    strict(found.to_json())


# ---------------------------------------------------------------- a file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / RECORD_FILE


def write(path, *written):
    for one in written:
        append_record(path, one)


def test_records_are_read_in_the_order_written(path):
    """By file, by folder, and by text as well as by Path."""
    write(path, record(1), record(2), record(3))
    for place in (path, path.parent, str(path), str(path.parent)):
        assert read_records(place) == [record(1), record(2), record(3)]


def test_each_record_is_on_disk_when_append_returns(path, monkeypatch):
    """A line is whole, ends with a newline, and was synchronised."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    write(path, record(1))
    assert path.read_bytes() == record(1).to_json().encode() + b"\n"
    assert synced == [path.stat().st_size]


@pytest.mark.parametrize("place", ["", "none.jsonl", "folder/none"])
def test_a_missing_file_says_where_it_was_looked_for(tmp_path, place):
    """A folder without a record is as missing as a file that does not exist."""
    with pytest.raises(FileNotFoundError, match=rf"no record at {tmp_path}.*expected the lscore"):
        read_records(tmp_path / place)


def test_an_empty_file_holds_no_records(path):
    """A run that ended before its first validation is no error."""
    path.parent.mkdir()
    path.touch()
    assert read_records(path) == []


def test_a_line_torn_at_any_byte_is_passed_over_and_then_replaced(path):
    """After a crash anywhere in a write, the lines before are read and the next append is whole."""
    write(path, record(1), record(2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        before = [record(1)] * (cut >= first) + [record(2)] * (cut == len(whole))
        assert read_records(path) == before, cut
        if cut % 40 and abs(cut - first) > 2 and cut < len(whole) - 2:
            continue  # each append waits for the disk
        append_record(path, record(3, "b"))
        assert read_records(path) == [*before, record(3, "b")], cut


def test_a_torn_line_longer_than_a_block_is_cut_off(path):
    """The search for the line's beginning goes back as far as it takes."""
    write(path, record(1))
    whole = path.read_bytes()
    for junk in (65535, 65536, 65537, 200_000):
        path.write_bytes(whole + b"x" * junk)
        append_record(path, record(2))
        assert read_records(path) == [record(1), record(2)]
        path.write_bytes(b"x" * junk)
        append_record(path, record(1))
        assert path.read_bytes() == whole


def test_a_crash_in_the_middle_of_a_write_harms_no_earlier_line(path, monkeypatch):
    """The write is cut short, the process dies, and the next one goes on."""
    write(path, record(1))

    text = record(2).to_json()

    def die(fd):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Record, "to_json", lambda self: text[: len(text) // 2])
        patch.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            append_record(path, record(2))
    path.write_bytes(path.read_bytes()[:-1])
    assert read_records(path) == [record(1)]
    append_record(path, record(2))
    assert read_records(path) == [record(1), record(2)]


def test_a_record_that_cannot_be_written_leaves_the_file_as_it_was(path):
    """A value that is no JSON adds not even a part of a line."""
    write(path, record(1))
    with pytest.raises(TypeError):
        append_record(path, record(2, versions={"torch": object()}))
    assert read_records(path) == [record(1)]
    append_record(path, record(2))
    assert ids(read_records(path)) == [("a", 1), ("a", 2)]


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path):
    """The callback catches it and lets training go on."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        append_record(tmp_path / "file" / RECORD_FILE, record())


@pytest.mark.parametrize("junk", [b"\n", b"{}\n", b"\xff\xfe\n", b"\x00\x00\n", b"[[\n", b"1\r\n"])
def test_a_whole_line_that_is_no_record_is_named(path, junk):
    """The message names the file and the line."""
    write(path, record(1))
    path.write_bytes(path.read_bytes() + junk)
    with pytest.raises(ValueError, match=r"lscore\.jsonl, line 2: "):
        read_records(path)


@settings(max_examples=60)
@given(st.binary(max_size=100), st.integers(0, 3))
def test_any_bytes_are_records_or_a_value_error(tmp_path_factory, junk, at):
    """Random bytes anywhere in a file raise nothing else."""
    path = tmp_path_factory.getbasetemp() / "junk.jsonl"
    line = record().to_json().encode()
    place = at * len(line) // 3
    path.write_bytes(line[:place] + junk + line[place:] + b"\n")
    try:
        found = read_records(path)
    except ValueError as error:
        message = str(error)
    else:
        message = "junk.jsonl, line 1" if len(found) <= 1 else ""
    assert "junk.jsonl, line " in message


# ---------------------------------------------------------------- resumes


def test_repeated_validations_replace_those_thrown_away(path):
    """A run that went on from its second validation has one third and one fourth."""
    old = [record(n, perplexity=9.0) for n in (1, 2, 3, 4)]
    new = [record(n, perplexity=8.0) for n in (3, 4, 5)]
    write(path, *old, *new)
    assert read_records(path) == [*old[:2], *new]


def test_what_was_thrown_away_goes_even_if_the_resumed_run_is_shorter(path):
    """A resume that validated once ends the run there."""
    write(path, *(record(n) for n in (1, 2, 3, 4)), record(2, perplexity=8.0))
    assert read_records(path) == [record(1), record(2, perplexity=8.0)]


def test_several_runs_in_one_file_do_not_touch_each_other(path):
    """Each run keeps its own validations, in the order written."""
    write(path, record(1), record(2), record(1, "b"), record(3), record(2, "b"))
    expected = [("a", 1), ("a", 2), ("b", 1), ("a", 3), ("b", 2)]
    assert ids(read_records(path)) == expected


def test_a_run_resumed_after_another_one_wrote_replaces_its_own(path):
    """It does not matter whose line came last."""
    write(path, record(1), record(2), record(1, "b"), record(2, perplexity=8.0))
    assert read_records(path) == [record(1), record(1, "b"), record(2, perplexity=8.0)]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=12))
def test_reading_keeps_what_no_later_line_replaces(tmp_path_factory, lines):
    """A line stays unless a later one of its run has the same or a lower number."""
    path = tmp_path_factory.getbasetemp() / "runs.jsonl"
    path.write_text("".join(record(n, run).to_json() + "\n" for run, n in lines))
    expected = [
        (run, n)
        for i, (run, n) in enumerate(lines)
        if not any(other == run and later <= n for other, later in lines[i + 1 :])
    ]
    assert ids(read_records(path)) == expected


# ---------------------------------------------------------------- since a checkpoint


def test_the_lines_since_a_batch_are_those_back_to_it(path):
    """Newest first; repeats included; of one run, whoever else wrote."""
    write(path, record(1), record(2), record(3), record(9, "b"), record(3), record(4))
    write(path, record(9, "b"))
    assert ids(records_since(path, "a", 3)) == [("a", 4), ("a", 3)]
    assert ids(records_since(path, "a", 1)) == [("a", n) for n in (4, 3, 3, 2, 1)]
    assert ids(records_since(path, "a", 0)) == ids(records_since(path, "a", 1))
    assert records_since(path, "b", 10) == [record(9, "b")]
    assert records_since(path, "c", 1) == []


def test_no_file_has_no_lines_and_a_torn_line_is_none(path):
    assert records_since(path, "a", 0) == []
    write(path, record(1), record(2))
    path.write_bytes(path.read_bytes()[:-1])
    assert ids(records_since(path, "a", 9)) == [("a", 1)]


def test_a_last_line_that_is_no_record_is_a_value_error(path):
    """So is one that names the run; what lies further back is nobody's concern."""
    write(path, record(1))
    whole = path.read_bytes()
    path.write_bytes(b"hello\n" + whole)
    assert records_since(path, "a", 0) == [record(1)]
    for junk in (b"hello\n", b'"a" and more\n' + record(1, "b").to_json().encode() + b"\n"):
        path.write_bytes(whole + junk)
        with pytest.raises(ValueError, match=r"."):
            records_since(path, "a", 0)


def test_of_a_long_file_only_the_end_is_read(path, monkeypatch):
    """Whatever lies before it: here zeros without an end of line."""
    path.parent.mkdir()
    with open(path, "wb") as file:
        file.truncate(2**31)  # sparse
        file.seek(2**31)
        file.write(b"\n")
    write(path, *(record(n, versions={"torch": "x" * 50_000}) for n in range(1, 8)))
    assert ids(records_since(path, "a", 2)) == [("a", n) for n in (7, 6, 5, 4, 3, 2)]
    monkeypatch.setattr(records, "SEARCHED_BYTES", 2**17)
    assert ids(records_since(path, "a", 2)) == [("a", 7), ("a", 6)]


def test_a_repeated_run_of_many_lines_is_read_in_one_pass(path, monkeypatch):
    """Each line is looked at once when written over and not at each repeat."""
    path.parent.mkdir()
    text = "".join(record(n).to_json() + "\n" for n in (*range(200), *[100] * 200))
    path.write_text(text)
    asked = []
    plain = Record.__getattribute__

    def counting(self, name):
        if name == "batch":
            asked.append(name)
        return plain(self, name)

    monkeypatch.setattr(Record, "__getattribute__", counting)
    assert len(read_records(path)) == 101
    assert len(asked) < 5 * 400


def test_lines_of_one_run_share_what_is_equal(path):
    """Or a million of them would fill the memory; of a part that changed, at least the words."""
    changed = record(
        3, "one run", evaluation={"tokens": [8]}, versions={"torch": "2", "lightning": "2"}
    )
    provenance = {"tokens": "measured: counted", "cost": "unavailable: no price"}
    write(path, record(1, "one run"), record(2, "one run"))
    write(path, replace(changed, measurements=Measurements(tokens=1, provenance=provenance)))
    a, b, c = read_records(path)
    assert a.run is b.run is c.run
    for name in ("formula", "evaluation", "devices", "versions"):
        assert getattr(a, name) is getattr(b, name)
    assert a.measurements.provenance is b.measurements.provenance
    assert (c.evaluation, c.versions) == (changed.evaluation, changed.versions)
    assert c.measurements.provenance == provenance
    assert c.measurements.provenance["tokens"] is a.measurements.provenance["tokens"]
    assert not hasattr(a.measurements, "__dict__")


def test_records_are_frozen():
    """Readers cannot change what was written by accident."""
    with pytest.raises(AttributeError):
        record().step = 3
    assert replace(record(), step=3).step == 3


@pytest.mark.parametrize(
    "prediction",
    [
        {},
        {"reason": "The run is too short."},
        asdict(EXPECTED),
        {**asdict(EXPECTED), "growth": 0.5},
    ],
)
def test_a_prediction_comes_back_or_why_there_is_none(prediction):
    """Infinity included; what a later version adds is passed over."""
    written = record(prediction=prediction)
    assert Record.from_json(written.to_json()).prediction == prediction
    line = strict(written.to_json())
    if "best_L" in prediction:
        line["prediction"] |= {"later": 1, "best_L_high": "Infinity"}
        assert Record.from_json(json.dumps(line)).prediction["best_L_high"] == math.inf


@pytest.mark.parametrize("prediction", [3, None, [1], {"best_L": 1.0}, {"growth": "x"}, "reason"])
def test_a_prediction_that_is_none_is_a_value_error(prediction):
    """Whoever shows it can rely on its numbers."""
    line = {**strict(record().to_json()), "prediction": prediction}
    if prediction == {"growth": "x"}:
        line["prediction"] = {**asdict(EXPECTED), "growth": "x"}
    with pytest.raises(ValueError, match=r"."):
        Record.from_json(json.dumps(line))
