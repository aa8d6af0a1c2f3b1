"""LScore in every Trainer of a process, by an environment variable and without a line of code.

Lightning calls the entry points of its groups ``callbacks_factory`` whenever a Trainer is made.
This one returns a callback only where ``LSCORE`` is set:

    LSCORE=1 python train.py               # LScore()
    LSCORE=study.json python train.py      # LScore("study.json")

A script that adds its own LScore does not need this one: Lightning refuses a second one.
"""

from __future__ import annotations

import os
from typing import Any


def callbacks() -> list[Any]:
    """Return an LScore if ``LSCORE`` is set; else an empty list, without a heavy import.

    Raises:
        FileNotFoundError, ValueError: as ``LScore(path)``, where the variable is a path.
    """
    asked = os.environ.get("LSCORE", "")
    if asked in ("", "0"):
        return []
    from .callback import LScore

    return [LScore(None if asked == "1" else asked)]
