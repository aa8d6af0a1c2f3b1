"""Where a run's record lies, and what it says when the run goes on."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from ..curve.patience import Patience
from ..equation.safe_numbers import short
from ..hardware.peak_cache import cache_folder
from ..record import remote
from ..record.file import RECORD_FILE, append_record, copy_run, read_run, records_since
from ..record.record import Record
from ..show.replay import Replay, replay
from . import processes
from .state import RunState


class Ledger:
    """Keeps the record on rank 0. What the disk or a store refuses costs a warning, never the run.

    In a remote folder, such as ``s3://bucket/run``, the record is kept in a local file too. Each
    validation sends what the store lacks of it, so that a line that could not be sent goes later.

    Args:
        prefix: put before the file's name, with _ for each slash in it.
        warn: called with each warning.
    """

    def __init__(self, prefix: str, warn: Callable[[str], None]) -> None:
        self.directory: str | os.PathLike[str] | None = None
        """None: no record."""
        self._file, self._warn = re.sub(r"[/\\]", "_", prefix) + RECORD_FILE, warn
        self._unsent = False

    @property
    def path(self) -> str | None:
        """The file that this process writes; None where it writes none."""
        if self.directory is None or processes.rank() != 0:
            return None
        path = os.path.join(remote.without_protocol(self.directory), self._file)
        return path if remote.is_remote(path) else os.path.abspath(path)

    @property
    def local_path(self) -> str | None:
        """The same on this machine."""
        return None if self.path is None else _local(self.path)

    def go_on(self, state: RunState) -> None:
        """Go on with the record of a run, if it has one already.

        What was spent after the checkpoint counts as lost. Where the run now has another folder, it
        takes its lines up to the checkpoint along.
        """
        path, batch = self.path, state.spending.batches
        if path is None:
            return
        before = path
        try:
            lines = records_since(_fetched(path), state.id, batch)
            if not lines and state.record not in (None, path):
                before = str(state.record)
                lines = records_since(_fetched(before), state.id, batch)
                if lines:
                    copy_run(_local(before), _local(path), state.id, batch)
            state.count_lost(lines)
        except Exception as error:  # a store may raise anything
            self._warn(
                f"cannot tell from {before} what the run lost since its checkpoint ({error}); "
                "training goes on. Check the file: it may be another program's."
            )

    def write(self, record: Record) -> None:
        """Add a line."""
        if self.path is None or self.local_path is None:
            return
        try:
            append_record(self.local_path, record)
        except (OSError, TypeError, ValueError) as error:
            self._warn(
                f"cannot write its record to {self.local_path} ({error}); training and logging go "
                "on without it. Check the folder, or say LScore(directory=...)."
            )
        else:
            self._send()

    def close(self) -> None:
        """Send what is left; once all was sent the local file of a remote record goes."""
        path, local = self.path, self.local_path
        if path is None or local is None or path == local:
            return
        if self._unsent:
            self._send()
        if not self._unsent:
            Path(local).unlink(missing_ok=True)

    def _send(self) -> None:
        path, local = self.path, self.local_path
        if path is None or local is None or path == local:
            return
        try:
            remote.send(Path(local).read_bytes(), path)
            self._unsent = False
        except Exception as error:  # a store may raise anything
            self._unsent = True
            self._warn(
                f"cannot write its record to {path} ({short(error)}); it is kept in {local}, and "
                "sent at a later validation. Check the address and the credentials, or say "
                "LScore(directory=...)."
            )

    def replay(self, run: str) -> Replay | None:
        """Return where the shipped rule would have stopped the run; None if nowhere, or unknown."""
        if (path := self.local_path) is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # lines that are no record
                return replay(read_run(path, run), Patience())
        except (OSError, ValueError):  # a formula whose functions are not in the record
            return None


def _local(path: str) -> str:
    if not remote.is_remote(path):
        return path
    try:
        folder = cache_folder()
    except RuntimeError:  # no home
        folder = Path(tempfile.gettempdir()) / "lightning_lscore"
    return str(folder / "records" / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.jsonl")


def _fetched(path: str) -> str:
    """The path on this machine of a file, which holds what a store has of it."""
    local = _local(path)
    if local != path and (there := remote.read(path)):
        own = Path(local).read_bytes() if os.path.exists(local) else b""
        Path(local).parent.mkdir(parents=True, exist_ok=True)
        known = set(there.splitlines())
        left = [line for line in own.splitlines(keepends=True) if line.strip() not in known]
        Path(local).write_bytes(there + b"".join(left))
    return local
