"""The first error of what listens inside of someone's step, kept until the step is over."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class FirstError:
    """Lets no error of a listener into the code that it listens to.

    >>> errors = FirstError()
    >>> errors.keep(lambda: 1 / 0)()
    >>> errors.throw()
    Traceback (most recent call last):
        ...
    ZeroDivisionError: division by zero
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_error": None}  # it holds the step's tensors

    def keep(self, listener: Callable[..., None]) -> Callable[..., None]:
        """Return the listener, such that its error is kept; after one, nothing is heard."""

        @functools.wraps(listener)
        def heard(*args: Any, **kwargs: Any) -> None:
            if self._error is None:
                try:
                    listener(*args, **kwargs)
                except Exception as error:
                    self._error = error

        return heard

    def forget(self) -> None:
        """Hear again."""
        self._error = None

    def throw(self) -> None:
        """Raise the error that was kept, if there is one, and hear again."""
        error, self._error = self._error, None
        if error is not None:
            raise error
