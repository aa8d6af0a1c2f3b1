from __future__ import annotations

import os
import warnings
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import held_out, ids, record, text_of

from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record import file
from lightning_lscore.record.file import (
    RECORD_FILE,
    append_record,
    read_records,
    records_since,
)
from lightning_lscore.record.record import Record

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
    assert path.read_bytes() == text_of(record(1)).encode()
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
    first = whole.index(b"\n", whole.index(b"\n") + 1) + 1  # behind the context
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

    key, context, validation = file.lines_of(record(2))

    def die(fd):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        torn = (key, context[: len(context) // 2], validation[: len(validation) // 2])
        patch.setattr(file, "lines_of", lambda record: torn)
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


JUNK = [b"\n", b"{}\n", b"\xff\xfe\n", b"\x00\x00\n", b"[[\n", b"1\r\n"]


@pytest.mark.parametrize("junk", JUNK)
def test_a_whole_line_that_is_no_record_is_named(path, junk):
    """The message names the file and the line; the other lines are read."""
    write(path, record(1), record(2))
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:2], junk, whole[2], junk]))
    with pytest.warns(UserWarning, match=r"lscore\.jsonl, line 3 \(and 1 more: 5\): "):
        assert read_records(path) == [record(1), record(2)]
    path.write_bytes(junk)
    with pytest.raises(ValueError, match=r"lscore\.jsonl, line 1: "):
        read_records(path)


def test_a_spoiled_line_costs_that_line_alone(path):
    """Whichever it is: a copy of the context says what the validations mean."""
    write(path, *(record(n) for n in range(1, 11)))
    whole = path.read_bytes().splitlines(keepends=True)
    assert len(whole) == 10 + 2
    for i, line in enumerate(whole):
        path.write_bytes(b"".join([*whole[:i], line[:9] + b"?" + line[10:], *whole[i + 1 :]]))
        with pytest.warns(UserWarning, match=rf"lscore\.jsonl, line {i + 1}: "):
            found = read_records(path)
        assert len(found) == 10 - (b'"run"' not in line)


def test_a_long_run_repeats_its_context_ever_less_often(path):
    write(path, *(record(n) for n in range(70)))
    lines = path.read_text().splitlines()
    assert [i for i, line in enumerate(lines) if '"run"' in line] == [0, 9, 66]


@settings(max_examples=60)
@given(st.binary(max_size=100), st.integers(0, 3))
def test_any_bytes_are_records_or_a_value_error(tmp_path_factory, junk, at):
    """Random bytes anywhere in a file raise nothing else; what is left out is named."""
    path = tmp_path_factory.getbasetemp() / "junk.jsonl"
    line = text_of(record()).rstrip().encode()
    place = at * len(line) // 3
    path.write_bytes(line[:place] + junk + line[place:] + b"\n")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = read_records(path)
        except ValueError as error:
            message = str(error)
        else:
            message = str(warned[0].message) if warned else ""
            message = message or ("junk.jsonl, line 1" if len(found) <= 1 else "")
    assert "junk.jsonl, line " in message


@pytest.mark.parametrize("spoiled", ['"measures":["nll",', '"hardware":["x",', '"forecast":["x",'])
def test_a_spoiled_context_is_named_when_its_file_is_read(path, spoiled):
    """Not later, when somebody looks at a validation that no longer fits it."""
    write(path, record(1))
    name = spoiled.partition("[")[0]
    text = path.read_text()
    assert name + "[" in text
    path.write_text(text.replace(name + "[", spoiled, 1))
    with pytest.raises(ValueError, match=r"lscore\.jsonl, line 2: "):
        read_records(path)


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
    path.write_text("".join(text_of(record(n, run)) for run, n in lines))
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


def test_a_context_that_a_resumed_run_began_to_repeat_hides_none_of_its_lines(path):
    """A crash at any byte of it: the run goes on again from the lines before."""
    write(path, record(1), record(2))
    whole = path.read_bytes()
    context = whole[: whole.index(b"\n")]
    for cut in range(len(context) + 1):
        path.write_bytes(whole + context[:cut])
        assert ids(records_since(path, "a", 1)) == [("a", 2), ("a", 1)], cut


def test_a_last_line_that_is_no_record_is_a_value_error(path):
    """So is one that names the run; what lies further back is nobody's concern."""
    write(path, record(1))
    whole = path.read_bytes()
    path.write_bytes(b"hello\n" + whole)
    assert records_since(path, "a", 0) == [record(1)]
    for junk in (b"hello\n", b'"a" and more\n' + text_of(record(1, "b")).encode()):
        path.write_bytes(whole + junk)
        with pytest.raises(ValueError, match=r"."):
            records_since(path, "a", 0)


def test_of_a_long_file_only_the_end_is_read(path, monkeypatch):
    """Whatever lies before it: here zeros without an end of line."""
    path.parent.mkdir()
    with open(path, "wb") as sparse:
        sparse.truncate(2**31)
        sparse.seek(2**31)
        sparse.write(b"\n")
    write(path, *(record(n, versions={"torch": f"{n}" * 50_000}) for n in range(1, 8)))
    assert ids(records_since(path, "a", 2)) == [("a", n) for n in (7, 6, 5, 4, 3, 2)]
    monkeypatch.setattr(file, "SEARCHED_BYTES", 2**17)
    # Two contexts, and the validation of a third, whose context is found where it stands.
    assert ids(records_since(path, "a", 2)) == [("a", 7), ("a", 6), ("a", 5)]


def test_a_context_further_ahead_than_what_is_searched_is_found(path, monkeypatch):
    """It was written once, long before; another run's lines lie in between."""
    write(path, record(1, "b"))
    write(path, *(record(n, versions={"torch": "2" * 3000}) for n in range(1, 100)))
    write(path, record(2, "b"))
    monkeypatch.setattr(file, "SEARCHED_BYTES", 2**12)
    found = records_since(path, "a", 98)
    assert ids(found) == [("a", 99), ("a", 98)]
    assert found[0] == record(99, versions={"torch": "2" * 3000})


def test_a_context_is_written_once_and_again_when_it_may_be_gone(path):
    """Only what this process wrote last, and nobody has changed since, is known to be there."""

    def contexts():
        return [line for line in path.read_text().splitlines() if '"run"' in line]

    write(path, record(1), record(2), record(3))
    assert len(contexts()) == 1
    write(path, record(4, versions={"torch": "3"}), record(5, versions={"torch": "3"}), record(6))
    assert len(contexts()) == 2
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"torn')  # by another process; it is cut off again
    write(path, record(7))
    assert len(contexts()) == 2
    path.write_bytes(path.read_bytes() + text_of(record(1, "b")).encode())
    write(path, record(8))
    assert len(contexts()) == 4
    assert ids(read_records(path)) == [*(("a", n) for n in range(1, 8)), ("b", 1), ("a", 8)]
    path.unlink()
    write(path, record(8))
    path.write_bytes(path.read_bytes())  # as it was, but may be another file
    write(path, record(9))
    assert ids(read_records(path)) == [("a", 8), ("a", 9)]
    os.replace(path, path.with_name("away"))
    write(path, record(10))
    assert read_records(path) == [record(10)]


def test_a_write_that_fails_leaves_nothing_to_rely_on(path, monkeypatch):
    """The context may not have reached the disk."""
    write(path, record(1))

    def full(fd):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            append_record(path, record(2, versions={"torch": "3"}))
    path.write_bytes(path.read_bytes()[:-10])
    write(path, record(2, versions={"torch": "3"}))
    assert ids(read_records(path)) == [("a", 1), ("a", 2)]


def test_a_repeated_run_of_many_lines_is_read_in_one_pass(path, monkeypatch):
    """Each line is looked at once when written over and not at each repeat."""
    path.parent.mkdir()
    text = "".join(text_of(record(n)) for n in (*range(200), *[100] * 200))
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
        3, "one run", evaluation=held_out(tokens=(8,)), versions={"torch": "2", "lightning": "2"}
    )
    provenance = {"tokens": "measured: counted", "cost": "unavailable: no price"}
    write(path, record(1, "one run"), record(2, "one run"))
    write(path, replace(changed, measurements=Measurements(tokens=1, provenance=provenance)))
    a, b, c = read_records(path)
    assert a.run is b.run is c.run
    for name in ("formula", "evaluation", "devices", "versions", "assumptions"):
        assert getattr(a, name) is getattr(b, name)
    assert a.measurements.provenance is b.measurements.provenance
    assert (c.evaluation, c.versions) == (changed.evaluation, changed.versions)
    assert c.measurements.provenance == provenance
    assert c.measurements.provenance["tokens"] is a.measurements.provenance["tokens"]
    assert not hasattr(a.measurements, "__dict__")
