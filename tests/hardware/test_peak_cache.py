"""The files of measured peaks: found again, never half written, replaced by better ones only."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_lscore.hardware import peak_cache
from lightning_lscore.hardware.peak_cache import CachedPeak, PeakCache, better, cache_folder

OF = {"device": "Invented CPU", "dtype": "float32", "threads": 2, "torch": "2.9"}
QUIET = CachedPeak(flops=1e11, what="a product", measured_at="2026-01-02T03:04+00:00")
BUSY = replace(QUIET, flops=2e10, disturbed="a third of the CPU time")


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {}, "~/.cache/lightning_lscore"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/lightning_lscore"),
        ("linux", {"XDG_CACHE_HOME": ""}, "~/.cache/lightning_lscore"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "~/Library/Caches/lightning_lscore"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/lightning_lscore"),
        ("win32", {}, "~/AppData/Local/lightning_lscore"),
        *((name, {"LSCORE_CACHE": "/own"}, "/own") for name in ("linux", "darwin", "win32")),
        ("linux", {"LSCORE_CACHE": ""}, "~/.cache/lightning_lscore"),
    ],
)
def test_the_folder_is_the_one_for_caches_of_the_system_or_the_users_own(
    platform, environment, folder
):
    assert cache_folder(environment, platform) == Path(folder).expanduser()


def test_a_kept_peak_is_found_again_by_what_it_is_of(tmp_path):
    """Another device, precision, number of threads or version of torch has a peak of its own."""
    folder = tmp_path / "made" / "when needed"
    assert PeakCache(folder, OF).load() is None
    assert PeakCache(folder, OF).save(QUIET) == QUIET
    assert PeakCache(folder, OF).load() == QUIET
    for name in OF:
        assert PeakCache(folder, {**OF, name: "another"}).load() is None
    assert [path.suffix for path in folder.iterdir()] == [".json"]


@pytest.mark.parametrize(
    ("first", "second", "stands"),
    [
        (BUSY, QUIET, QUIET),
        (QUIET, BUSY, QUIET),
        (BUSY, replace(BUSY, flops=3e10), replace(BUSY, flops=3e10)),
        (replace(BUSY, flops=3e10), BUSY, replace(BUSY, flops=3e10)),
        (QUIET, replace(QUIET, flops=1.1e11), replace(QUIET, flops=1.1e11)),
        # A device has done it, so it can; and about as much was seen on a quiet machine.
        (QUIET, replace(BUSY, flops=1.01e11), replace(QUIET, flops=1.01e11)),
        # A clock that was high for a moment is no reason to measure in every process.
        (QUIET, replace(BUSY, flops=1.2e11), replace(QUIET, flops=1.2e11)),
        # What was called quiet cannot have been.
        (QUIET, replace(BUSY, flops=1.3e11), replace(BUSY, flops=1.3e11)),
        (QUIET, replace(BUSY, flops=2e11), replace(BUSY, flops=2e11)),
    ],
)
def test_the_better_of_two_stands_in_whatever_order_they_come(tmp_path, first, second, stands):
    cache = PeakCache(tmp_path, OF)
    cache.save(first)
    assert cache.save(second) == stands
    assert cache.load() == stands == better(second, first)


def test_there_is_no_better_one_of_none():
    assert better() is better(None, None) is None
    assert better(None, BUSY) == BUSY


def good(**changes):
    peak = {"flops": 1e11, "what": "x", "measured_at": "x", "disturbed": ""}
    return json.dumps({"of": OF, "peak": {**peak, **changes}})


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", good()[:-9], "[" * 100_000, good(flops=0), good(flops=-1.0),
        good(flops=float("nan")), good(flops=float("inf")), good(flops="1"), good(flops=True),
        good(what=None), good(more=1), good().replace("Invented CPU", "Other CPU"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_error_until_it_is_replaced(tmp_path, text):
    """A machine that is quiet, or one that is busy, replaces it."""
    cache = PeakCache(tmp_path, OF)
    cache.save(QUIET)
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        cache.load()
    assert cache.save(BUSY) == cache.load() == BUSY
    assert cache.save(QUIET) == cache.load() == QUIET


def test_bytes_that_are_no_text_are_an_error_too(tmp_path):
    cache = PeakCache(tmp_path, OF)
    cache.save(QUIET)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="utf-8"):
        cache.load()


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside(tmp_path, monkeypatch):
    cache = PeakCache(tmp_path, OF)
    cache.save(BUSY)

    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr(peak_cache.os, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        cache.save(QUIET)
    assert cache.load() == BUSY
    assert len(list(tmp_path.iterdir())) == 1


def keep_many(folder, start, peaks):
    start.wait(60)
    for peak in peaks:
        PeakCache(folder, OF).save(peak)
        assert PeakCache(folder, OF).load() is not None


def test_processes_that_write_at_once_leave_a_quiet_figure_and_whole_files(tmp_path):
    """Those on a busy machine cannot replace it, whoever comes last."""
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    busy = [replace(BUSY, flops=BUSY.flops + i) for i in range(100)]
    work = [busy, busy, [QUIET] * 100, [*busy[::-1]]]
    processes = [context.Process(target=keep_many, args=(tmp_path, start, w)) for w in work]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
    assert PeakCache(tmp_path, OF).load() == QUIET
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
