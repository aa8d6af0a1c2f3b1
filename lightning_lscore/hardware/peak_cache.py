"""Measured peaks that outlive the process: files in the user's cache directory.

Each peak has two files of its own, one for a figure from a quiet machine and one for a figure from
a busy machine: a process that measured under load cannot overwrite a quiet figure.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

__all__ = ["CachedPeak", "PeakCache", "better", "cache_folder"]

CONFIRMED = 0.8
"""A clock that was high for a moment raises a rate by less than 1 / this; unnoticed programs
lower it by more."""


def cache_folder(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Return the folder of kept peaks: ``$LSCORE_CACHE``, or one in the user's cache directory."""
    if own := environment.get("LSCORE_CACHE"):
        return Path(own)
    if platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    elif platform == "win32":
        local = environment.get("LOCALAPPDATA")
        folder = Path(local) if local else Path.home() / "AppData" / "Local"
    else:
        xdg = environment.get("XDG_CACHE_HOME")
        folder = Path(xdg) if xdg else Path.home() / ".cache"
    return folder / "lightning_lscore"


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedPeak:
    """A measured peak, and when and how it was measured."""

    flops: float
    """FLOP/s."""
    what: str
    """Which product gave it."""
    measured_at: str
    """UTC, in ISO format."""
    disturbed: str = ""
    """Evidence that the machine was busy; empty if it was quiet."""

    def __post_init__(self) -> None:
        texts = (self.what, self.measured_at, self.disturbed)
        number = isinstance(self.flops, (int, float)) and not isinstance(self.flops, bool)
        if not (number and 0 < self.flops < math.inf and all(isinstance(x, str) for x in texts)):
            raise ValueError(f"expected the rate of a product, got {self!r:.200}")


def better(*peaks: CachedPeak | None) -> CachedPeak | None:
    """Return the fastest peak: a rate that a device reached once is possible.

    It counts as quiet if a peak from a quiet machine confirms it. That one may be somewhat slower:
    otherwise a rate that was reached by chance would be measured again by every later process.
    """
    known = [peak for peak in peaks if peak is not None]
    if not known:
        return None
    best = max(known, key=lambda peak: peak.flops)
    quiet = any(not peak.disturbed and peak.flops >= CONFIRMED * best.flops for peak in known)
    return replace(best, disturbed="") if quiet else best


class PeakCache:
    """The kept peaks of one kind of product.

    Args:
        folder: Where the files are; it need not exist.
        of: What identifies the peak: device, dtype, threads and the like.
    """

    def __init__(self, folder: Path, of: Mapping[str, str | int | None]) -> None:
        self._of = dict(of)
        digest = hashlib.sha256(json.dumps(self._of, sort_keys=True).encode()).hexdigest()[:16]
        self._quiet = folder / f"peak-{digest}.json"
        self._busy = folder / f"peak-{digest}-busy.json"

    def load(self) -> CachedPeak | None:
        """Return the kept peak; None if there is none.

        Raises:
            OSError: If no file can be read, though there is one.
            ValueError: If none of the files holds a peak, though there is one.
        """
        peaks, errors = [], []
        for path in (self._quiet, self._busy):
            try:
                peaks.append(self._read(path))
            except (OSError, ValueError) as error:
                errors.append(error)
        best = better(*peaks)
        if best is None and errors:
            raise errors[0]
        return best

    def save(self, peak: CachedPeak) -> CachedPeak:
        """Keep a peak unless a better one is kept already. Return the better one.

        Raises:
            OSError: If the file cannot be written.
        """
        kept = None
        with contextlib.suppress(OSError, ValueError):  # what cannot be read is replaced
            kept = self.load()
        best = better(kept, peak)
        if best is None or best == kept:
            return best or peak
        self._write(self._busy if best.disturbed else self._quiet, best)
        return best

    def _write(self, path: Path, peak: CachedPeak) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"of": self._of, "peak": asdict(peak)}, indent=1) + "\n"
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=".tmp")
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise

    def _read(self, path: Path) -> CachedPeak | None:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            data = json.loads(text)
            if data["of"] != self._of:
                raise ValueError("it is of another product")
            return CachedPeak(**data["peak"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error!r:.200}") from error
