"""An LScore that the environment asked for: it is never in the way of a training."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from .callback import LScore
from .heldout.nothing_found import NoLanguageModel
from .run import processes

_log = logging.getLogger("lightning_lscore")

# Of these a process that failed takes no part; the others lead to the exchange that tells it.
_OF_A_BATCH = ("on_validation_batch_start", "on_validation_batch_end")
# These also clean up after what was in the way.
_AT_THE_END = ("on_exception", "teardown")


class EnvironmentLScore(LScore):
    """An :class:`LScore` that gives up where another would raise, once and for all processes.

    Whoever exports ``LSCORE`` trains other things too. Where a training is no language model's, or
    anything fails in here, this says so once and is silent for the rest of the run. It stays out
    where the Trainer has an LScore of its own, or another of these: Lightning puts what the entry
    point gives into the list of callbacks that the script has made, and may see that list again.

    Args:
        formula: as for :class:`LScore`.
    """

    def __init__(self, formula: str | os.PathLike[str] | None = None) -> None:
        super().__init__(formula)
        # The state is that of any LScore, once it is known that no other is in the Trainer, which
        # until then would refuse two of the same key.
        self._common_key = self._state_key.replace(type(self).__qualname__, LScore.__qualname__, 1)
        self._state_key = self._key_of_its_own = f"{self._common_key} of LSCORE, {id(self)}"
        self._failure: Exception | None = None  # of this process, which others do not know of yet
        self._said: set[str] = set()
        self._unsaid: list[str] = []  # warnings until it is known that this is a language model

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        every = [c for c in trainer.callbacks if isinstance(c, LScore)]
        others = [c for c in every if not isinstance(c, EnvironmentLScore)]
        self.stays_out = [*others, *every][0] is not self
        self._state_key = self._key_of_its_own if self.stays_out else self._common_key
        self._failure, self._unsaid = None, []
        self._run(LScore.setup, trainer, pl_module, stage)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        # Counting the FLOP of a step reaches into it: not before it is known to be of use.
        if self._capture.source:
            self._run(LScore.on_train_batch_start, trainer, pl_module, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        """Return the run's memory; nothing where this is silent."""
        return self._run(LScore.state_dict) or {}

    @contextlib.contextmanager
    def _around(self, make: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        context = contextlib.ExitStack()
        self._try(lambda: context.enter_context(make()))
        try:
            yield
        finally:
            self._try(context.close)

    def _warn(self, message: str) -> None:
        if not self._capture.source:
            self._unsaid.append(message)
            return
        try:
            super()._warn(message)
        except Warning:  # a filter makes errors of them, on one process perhaps
            _log.warning(message)

    def _run(self, hook: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.stays_out and hook.__name__ not in _AT_THE_END:
            return None
        if self._failure is not None and hook.__name__ in _OF_A_BATCH:
            return None
        result = self._try(functools.partial(hook, self, *args, **kwargs))
        while self._unsaid and self._capture.source and not self.stays_out:
            self._warn(self._unsaid.pop(0))
        return result

    def _try(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            self._fail(error)
        return None

    def _fail(self, error: Exception) -> None:
        """Give up: at once where all processes know, else at the next exchange between them."""
        tracker = self.tracker
        if tracker is None or tracker.has_failed or processes.world_size() == 1:
            self.stays_out = True
            self._say_why(self._failure or error)
            self._stop()
        elif self._failure is None:
            self._failure = error
            tracker.abandon(error)

    def _say_why(self, error: Exception) -> None:
        what = f"met an error ({type(error).__name__}: {error})"
        if isinstance(error, NoLanguageModel):
            first, _, others = str(error).partition(". ")
            why = others.partition(" Four ways out")[0] if "found no logits" in first else first
            what = f"found no language model in this training ({why.rstrip('.')})"
        elif isinstance(error, processes.OthersFailed):
            what = "found no language model in this training, or failed, on another process"
        message = f"LSCORE is set, but LScore {what}. It is silent for the rest of this run."
        if message not in self._said and processes.rank() == 0:
            _log.warning(message)
        self._said.add(message)


def _guarded(name: str) -> Callable[..., Any]:
    hook = getattr(LScore, name)

    @functools.wraps(hook)
    def guarded(self: EnvironmentLScore, *args: Any, **kwargs: Any) -> Any:
        return self._run(hook, *args, **kwargs)

    return guarded


for _name in set(vars(LScore)) - set(vars(EnvironmentLScore)):
    if _name.startswith("on_") or _name in ("teardown", "load_state_dict"):
        setattr(EnvironmentLScore, _name, _guarded(_name))
