"""Files of a store that fsspec knows by its protocol: ``s3://``, ``gs://``, ``memory://``, ...

Lightning brings fsspec. Object stores cannot append, so a record is kept in a local file too, and
what the store lacks of it is sent.
"""

from __future__ import annotations

import os
import posixpath
from typing import Any


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Return whether a path begins with the protocol of a store."""
    return "://" in os.fspath(path)


def without_protocol(path: str | os.PathLike[str]) -> str:
    """Return a path on this machine without the protocol that fsspec has for it."""
    return os.fspath(path).removeprefix("file://").removeprefix("local://")


def read(url: str) -> bytes:
    """Return the content of a remote file; empty if there is none."""
    store, place = _store(url)
    return bytes(store.cat_file(place)) if store.exists(place) else b""


def send(lines: bytes, url: str) -> None:
    """Add to a remote file those whole lines that it lacks."""
    store, place = _store(url)
    there = read(url)
    there = there[: there.rfind(b"\n") + 1]  # a torn end is cut off
    known = set(there.splitlines())
    lacking = [line for line in lines.splitlines() if line not in known]
    if lacking:
        store.makedirs(posixpath.dirname(place), exist_ok=True)
        store.pipe_file(place, there + b"".join(line + b"\n" for line in lacking))


def found(url: str, pattern: str) -> list[str]:
    """Return the remote files below a folder that match, oldest name first."""
    store, place = _store(url)
    places = store.glob(posixpath.join(place, pattern))
    return sorted(store.unstrip_protocol(one) for one in places if store.isfile(one))


def is_file(url: str) -> bool:
    """Return whether there is a remote file."""
    store, place = _store(url)
    return bool(store.isfile(place))


def _store(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    store, place = url_to_fs(url)
    store.invalidate_cache()  # others write there too
    return store, place
