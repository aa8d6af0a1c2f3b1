"""Installed versions of what the numbers depend on."""

from __future__ import annotations

import contextlib
from functools import cache
from importlib import metadata

_PACKAGES = ("lightning-lscore", "lightning", "torch", "torchmetrics", "transformers")


@cache
def versions() -> dict[str, str]:
    """Return them by package; a package that is not installed is absent."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
