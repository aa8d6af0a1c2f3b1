"""The file of a run's record: appended to line by line, and whole after a crash at any byte.

A line that a crash cut off is passed over when reading and cut away by the next write. What was
repeated after a resume replaces what it repeats.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import warnings
from collections.abc import Iterator
from typing import IO

from ..equation.baseline import register_reader
from . import remote
from .find import RECORD_FILE, record_files
from .lines import lines_of
from .reader import Reader
from .record import Record

__all__ = [
    "RECORD_FILE",
    "append_record",
    "copy_run",
    "read_records",
    "read_run",
    "records_since",
]

SEARCHED_BYTES = 2**26  # of a file's end, for the newest line of a run

# After so many validations a context is written again: should the line be spoiled, its copy tells
# what the validations mean.
_CONTEXT_AGAIN = frozenset({0, *(8**n for n in range(1, 12))})

# Each file as this process left it: device, inode and size, and the hashes of the contexts in it
# with the validations that follow them.
_written: dict[str, tuple[tuple[int, int, int], dict[str, int]]] = {}


def append_record(path: str | os.PathLike[str], record: Record) -> None:
    """Add a validation, on disk when this returns. A torn line is cut off first.

    The line of context goes before it, unless this process wrote it and nobody has changed the
    file since.

    Raises:
        OSError: if the file cannot be written.
        TypeError: if a value of the record is no JSON.
    """
    key, context, validation = lines_of(record)
    path = os.path.abspath(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "a+b") as file:
        _cut_torn_line(file)
        place, contexts = _written.pop(path, (None, {}))
        if place != _place(file):
            contexts = {}
        n = contexts.get(key, 0)
        # One write: a crash tears at most one line, and readers see it whole or not at all.
        file.write((context * (n in _CONTEXT_AGAIN) + validation).encode())
        file.flush()
        os.fsync(file.fileno())
        _written[path] = _place(file), {**contexts, key: n + 1}


def _place(file: IO[bytes]) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size


def read_records(path: str | os.PathLike[str], run: str | None = None) -> list[Record]:
    """Read the validations that runs wrote, oldest first.

    Args:
        path: a record file; the folder of a run, of its checkpoints or of many runs, or a
            checkpoint; any of them with ``#`` and a run's identifier behind it.
        run: the identifier of a run, or its beginning: the others are left out.

    Returns:
        Records in the order written, file by file. Where a run went on from a checkpoint and
        validated again, the repeated validations replace those that the resume threw away.

    Warns:
        UserWarning: for lines that are no record, with their numbers; they are left out. A last
            line without its end, as a crash leaves it, is passed over.

    Raises:
        FileNotFoundError: if there is no such file; the message says where it was looked for.
        ValueError: if no line of a file is a record, or none of the run ``run``.
    """
    place, named = split_run(path)
    run = named if run is None else run
    with _without_gc():
        records = [record for file in record_files(place) for record in _read_file(file)]
    if run is None:
        return records
    mine = [record for record in records if record.run.startswith(run)]
    if len({record.run for record in mine}) != 1:
        there = ", ".join(sorted({record.run for record in records})) or "none"
        raise ValueError(f"{place}: expected one run of the name {run!r}, got {there}.")
    return mine


def split_run(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Return a path, and the run that stands behind its ``#``; None without one."""
    text = os.fspath(path)
    place, mark, run = text.rpartition("#")
    return (place, run) if mark and run and not os.path.exists(text) else (text, None)


def _read_file(path: str) -> list[Record]:
    reader = Reader()
    with _open(path) as file:
        found, spoiled = _read(file, reader)
        if spoiled:  # once more: a context may stand behind validations whose own was spoiled
            file.seek(0)
            found, spoiled = _read(file, reader)
    if spoiled:
        number, error = spoiled[0]
        others = [str(n) for n, _ in spoiled[1:6]] + ["..."] * (len(spoiled) > 6)
        more = f" (and {len(spoiled) - 1} more: {', '.join(others)})" if others else ""
        told = f"{path}, line {number}{more}: {error}"
        if not found:
            raise ValueError(told) from error
        warnings.warn(f"{told}; it is left out, and the rest was read.", stacklevel=3)
    return found


def _open(path: str) -> IO[bytes]:
    return io.BytesIO(remote.read(path)) if remote.is_remote(path) else open(path, "rb")


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Keep the garbage collector from looking again and again through what is all kept."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(file: IO[bytes], reader: Reader) -> tuple[list[Record], list[tuple[int, ValueError]]]:
    """The validations that no later line replaces, and the lines that are no record."""
    records: list[Record | None] = []
    kept: dict[str, list[tuple[int, int]]] = {}  # of each run's lines, the batch and the place
    spoiled = []
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = reader.take(line)
        except ValueError as error:
            spoiled.append((number, error))
            continue
        if record is None:
            continue
        mine = kept.setdefault(record.run, [])
        batch = record.batch
        while mine and mine[-1][0] >= batch:  # each is taken out once: linear in all
            records[mine.pop()[1]] = None
        mine.append((batch, len(records)))
        records.append(record)
    return [r for r in records if r is not None], spoiled


def read_run(path: str | os.PathLike[str], run: str | None = None) -> list[Record]:
    """Read the validations of one run, oldest first.

    Args:
        path: as for :func:`read_records`.
        run: its identifier, or the beginning of it. Default: the run that wrote last.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_records`, and where there is no record.
    """
    records = read_records(path, run)
    if not records:
        raise ValueError(f"expected at least one validation in {os.fspath(path)}, got none.")
    return [r for r in records if r.run == records[-1].run]


register_reader(read_run)  # for Formula.from_record(path)


def copy_run(source: str, target: str, run: str, batch: int) -> None:
    """Add a run's lines up to ``batch`` to another file, each behind its context.

    Raises:
        OSError: if a file cannot be read or written.
    """
    lines, reader, mark = [], Reader(), b'"run":' + json.dumps(run).encode()
    with open(source, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                record = reader.take(line)
                is_mine = mark in line if record is None else record.run == run
                if is_mine and line.endswith(b"\n") and (record is None or record.batch <= batch):
                    lines.append(line)
    os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
    with open(target, "a+b") as file:
        _cut_torn_line(file)
        file.write(b"".join(lines))
        file.flush()
        os.fsync(file.fileno())


def records_since(path: str | os.PathLike[str], run: str, batch: int) -> list[Record]:
    """Read one run's lines from the newest back to the first at ``batch`` or before.

    They are read from the end of the file, so a long one takes no longer than a short one; at most
    ``SEARCHED_BYTES`` are read for them. A context may lie further ahead.

    Args:
        path: a record file.
        run: the run's identifier.
        batch: of a checkpoint, say.

    Returns:
        Newest first; empty if there is no such file, or no such line.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the last line, or one that belongs to the run, is not a record.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return []
    marks = (b'"context":', json.dumps(run).encode())  # of schema 2, and of schema 1
    with file:
        reader, end, size = Reader(), file.seek(0, os.SEEK_END), 2**14
        while True:
            size = min(4 * size, SEARCHED_BYTES, end)
            file.seek(end - size)
            *lines, torn = file.read(size).split(b"\n")  # a torn last line, or empty
            if size < end:
                del lines[:1]  # its beginning is further ahead
            found: list[Record] = []
            for i, line in enumerate(reversed(lines)):
                if i and not any(mark in line for mark in marks):
                    continue
                record = _take_backwards(file, reader, line, end - len(torn))
                if record is not None and record.run == run:
                    found.append(record)
                    if record.batch <= batch:
                        return found
            if size in (SEARCHED_BYTES, end):
                return found


def _take_backwards(file: IO[bytes], reader: Reader, line: bytes, end: int) -> Record | None:
    """The record of a line whose context was perhaps not read yet; it lies before ``end``."""
    refers = re.match(rb'{"schema":2,"context":"(\w+)","batch":', line)
    if refers is not None and not reader.knows(refers[1]):
        context = _find_backwards(file, b'"context":"%s","run":' % refers[1], end)
        if context:
            reader.take(context)
    return reader.take(line)


def _find_backwards(file: IO[bytes], mark: bytes, stop: int, block: int = 2**20) -> bytes:
    """The last line before ``stop`` that has ``mark``; empty if there is none."""
    end = stop
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        at = file.read(min(end + len(mark), stop) - start).rfind(mark)
        if at >= 0:
            file.seek(_line_start(file, start + at))
            return file.readline()
        end = start
    return b""


def _line_start(file: IO[bytes], place: int, block: int = 2**16) -> int:
    """Where the line begins that ``place`` lies in."""
    while place > 0:  # backwards in blocks: the file may be long
        start = max(0, place - block)
        file.seek(start)
        newline = file.read(place - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        place = start
    return 0


def _cut_torn_line(file: IO[bytes]) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.truncate(_line_start(file, end))
