"""Which record files a path stands for: a file, a run's folder, its checkpoints, or many runs."""

from __future__ import annotations

import os
from pathlib import Path

from . import remote

RECORD_FILE = "lscore.jsonl"
RUNS_FOLDER = "lscore"
"""Holds a folder for each run that has no folder of its own."""

# In a run's folder; with a prefix; runs without a folder of their own; those of a logger.
_PATTERNS = (
    RECORD_FILE,
    f"*{RECORD_FILE}",
    f"{RUNS_FOLDER}/*/*{RECORD_FILE}",
    f"*/{RECORD_FILE}",
)


def record_files(path: str | os.PathLike[str]) -> list[str]:
    """Return the record files that a path stands for, the one that was written last at the end.

    Args:
        path: a record file; the folder of a run, of its checkpoints or of many runs; a checkpoint.
            A folder may be remote.

    Raises:
        FileNotFoundError: if there are none; the message says where they were looked for.
    """
    path = remote.without_protocol(path)
    folders = [path]
    if path.endswith(".ckpt"):  # also the folder of a sharded one
        folders = [os.path.dirname(path), os.path.dirname(os.path.dirname(path))]
    elif _is_file(path):
        return [path]
    elif os.path.basename(path.rstrip("/\\")) == "checkpoints":
        folders = [path, os.path.dirname(path.rstrip("/\\"))]
    for folder in folders:
        for pattern in _PATTERNS:
            if files := _matching(folder, pattern):
                return files
    raise FileNotFoundError(
        f"no record at {path}: expected the {RECORD_FILE} that LScore writes into the run's "
        "folder, that folder, or that of its checkpoints."
    )


def _is_file(path: str) -> bool:
    return remote.is_file(path) if remote.is_remote(path) else os.path.isfile(path)


def _matching(folder: str, pattern: str) -> list[str]:
    if remote.is_remote(folder):
        return remote.found(folder, pattern)
    files = [p for p in Path(folder).glob(pattern) if p.is_file()]
    return [str(p) for p in sorted(files, key=lambda p: (p.stat().st_mtime_ns, str(p)))]
