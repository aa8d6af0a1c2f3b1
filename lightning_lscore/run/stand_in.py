"""Stand in for a method of someone else's loop, to know when it begins and ends."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Around = Callable[[], AbstractContextManager[Any]]
"""Makes the context in which a call of the method runs."""


class StandIn:
    """Runs each call of an object's method inside contexts, as long as there are any.

    All who ask for the same method share one, and may leave in any order.

    >>> class Loop:
    ...     def run(self): print("runs")
    >>> class Edges(contextlib.AbstractContextManager):
    ...     def __enter__(self): print("begins")
    ...     def __exit__(self, *error): print("ends")
    >>> loop = Loop()
    >>> leave = StandIn.of(loop, "run").join(Edges)
    >>> loop.run()
    begins
    runs
    ends
    >>> leave(); loop.run()
    runs
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._own = vars(owner).get(name)  # another's stand-in
        self._method = getattr(owner, name)
        self._around: list[Around] = []
        functools.update_wrapper(self, self._method)

    @classmethod
    def of(cls, owner: Any, name: str) -> StandIn:
        """Return the one that stands there, or put one there."""
        present = vars(owner).get(name)
        if isinstance(present, cls):
            return present
        made = cls(owner, name)
        setattr(owner, name, made)
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for around in [*self._around]:
                stack.enter_context(around())
            return self._method(*args, **kwargs)

    def join(self, around: Around) -> Callable[[], None]:
        """Let calls run inside of this context too, and return the function that ends it."""
        self._around.append(around)
        return functools.partial(self._leave, around)

    def _leave(self, around: Around) -> None:
        if around in self._around:
            self._around.remove(around)
        if self._around or vars(self._owner).get(self._name) is not self:
            return
        delattr(self._owner, self._name)
        if self._own is not None:
            setattr(self._owner, self._name, self._own)
