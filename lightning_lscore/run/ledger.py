"""Where a run's record lies, and what it says when the run goes on."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from ..curve.patience import Patience
from ..record.file import RECORD_FILE, append_record, read_records, records_since
from ..record.record import Record
from ..show.replay import Replay, replay
from . import processes
from .state import RunState


class Ledger:
    """Keeps the record on rank 0. What the disk refuses costs a warning, never the run.

    Args:
        prefix: put before the file's name, with _ for each slash in it.
        warn: called with each warning.
    """

    def __init__(self, prefix: str, warn: Callable[[str], None]) -> None:
        self.directory: str | os.PathLike[str] | None = None
        """None: no record."""
        self._file, self._warn = re.sub(r"[/\\]", "_", prefix) + RECORD_FILE, warn

    @property
    def path(self) -> str | None:
        """The file that this process writes; None where it writes none."""
        if self.directory is None or processes.rank() != 0:
            return None
        return os.path.join(self.directory, self._file)

    def write(self, record: Record) -> None:
        """Add a line."""
        if (path := self.path) is None:
            return
        try:
            append_record(path, record)
        except (OSError, TypeError, ValueError) as error:
            self._warn(
                f"cannot write its record to {path} ({error}); training and logging go on without "
                "it. Check the folder, or give the Trainer another default_root_dir."
            )

    def count_lost(self, state: RunState) -> None:
        """Count what the run spent after the checkpoint that it goes on from."""
        if (path := self.path) is None:
            return
        try:
            state.count_lost(records_since(path, state.id, state.spending.batches))
        except (OSError, ValueError) as error:
            self._warn(
                f"cannot tell from {path} what the run lost since its checkpoint ({error}); "
                "training goes on. Check the file: it may be another program's."
            )

    def replay(self, run: str) -> Replay | None:
        """Return where the shipped rule would have stopped the run; None if nowhere, or unknown."""
        if (path := self.path) is None or not os.path.exists(path):
            return None
        try:
            records = [r for r in read_records(path) if r.run == run]
            return replay(records, Patience()) if records else None
        except (OSError, ValueError):  # a formula whose functions are not in the record
            return None
