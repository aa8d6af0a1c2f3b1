"""What a run can do without: where it fails, it is said once and given up, and training goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Extras:
    """Runs what enters neither T nor L, such as a forecast or a line of the record.

    Args:
        warn: called once with each extra that failed.

    >>> extras = Extras(print)
    >>> extras.run("its forecast", lambda: 1 / 0)
    gives up its forecast (ZeroDivisionError: division by zero); training goes on without it.
    >>> extras.run("its forecast", lambda: 1)
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._given_up: set[str] = set()

    def run(self, what: str, function: Callable[[], T]) -> T | None:
        """Return what the function returns; None where it raises, and ever after.

        Args:
            what: in words.
            function: what is to be done.
        """
        if what in self._given_up:
            return None
        try:
            return function()
        except Exception as error:
            self._given_up.add(what)
            why = f"{type(error).__name__}: {error}"
            self._warn(f"gives up {what} ({why}); training goes on without it.")
            return None
