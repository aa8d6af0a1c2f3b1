"""Stand in for a function or method while someone listens to its calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

from ..model.unseen import begin_at_no

Listener = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
"""(arguments, keyword arguments, output) -> nothing."""


class StandIn:
    """Stands in for an attribute of an object or module while it has listeners.

    A forward hook misses direct calls of ``forward``, which PEFT made up to 0.17. All listeners to
    one function share one stand-in, and may leave in any order.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name
        self._own = vars(owner).get(name)  # None for a method of its class
        self._function = getattr(owner, name)
        self._listeners: list[tuple[Listener, Callable[[], None] | None]] = []
        functools.update_wrapper(self, self._function)  # generate() inspects the signature

    @classmethod
    def of(cls, owner: Any, name: str) -> StandIn:
        present = vars(owner).get(name)
        if isinstance(present, cls):
            return present
        begin_at_no(cls.__call__)
        new = cls(owner, name)
        setattr(owner, name, new)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_listeners": []}  # nobody listens to a copy of its owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for _, before in self._listeners:
            if before is not None:
                before()
        output = self._function(*args, **kwargs)
        for listener, _ in self._listeners:
            listener(args, kwargs, output)
        return output

    def join(
        self, listener: Listener, before: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        """Add a listener, and what is called when a call begins; return what removes them."""
        pair = (listener, before)
        self._listeners.append(pair)
        return partial(self._remove, pair)

    def _remove(self, pair: tuple[Listener, Callable[[], None] | None]) -> None:
        self._listeners.remove(pair)
        if self._listeners or vars(self._owner).get(self._name) is not self:
            return
        if self._own is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)
