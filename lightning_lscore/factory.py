"""LScore in every Trainer of a process, by an environment variable and without a line of code.

Lightning calls the entry points of its groups ``callbacks_factory`` whenever a Trainer is made.
This one returns a callback only where ``LSCORE`` is set:

    LSCORE=1 python train.py               # LScore(); so do true, yes and on
    LSCORE=study.json python train.py      # LScore("study.json")
    LSCORE=0 python train.py               # none; nor do false, no, off and nothing

It is never in the way: see :class:`~lightning_lscore.environment.EnvironmentLScore`.
"""

from __future__ import annotations

import os
from typing import Any

_YES = ("1", "true", "yes", "on")
_NO = ("", "0", "false", "no", "off")


def callbacks() -> list[Any]:
    """Return an LScore if ``LSCORE`` is set; else an empty list, without a heavy import.

    Raises:
        FileNotFoundError: if the variable is the path of no file.
        ValueError: if the file holds no formula.
    """
    asked = os.environ.get("LSCORE", "").strip()
    if asked.lower() in _NO:
        return []
    from .environment import EnvironmentLScore

    if asked.lower() in _YES:
        return [EnvironmentLScore()]
    expected = f"LSCORE: expected 1, 0 or the path of a formula, got {asked!r}"
    try:
        return [EnvironmentLScore(asked)]
    except OSError as error:
        raise FileNotFoundError(f"{expected}, which cannot be read ({error}).") from error
    except ValueError as error:
        raise ValueError(f"{expected}, which holds none ({error}).") from error
