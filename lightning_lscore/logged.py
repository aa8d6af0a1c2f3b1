"""What LScore logs in Lightning, so that nothing that others log there is touched."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from .run.names import KEYS, Names
from .run.stand_in import StandIn


class Logged:
    """Logs the values of a validation, under other names where someone else uses theirs.

    Lightning would raise, average or overwrite where two log under one name. What others log is
    known from the sanity check or from a validation before. In the first of all the module may
    still log a name after LScore has: then LScore takes its own back and logs it under another.

    Args:
        prefix: of LScore's names.
        tell: called with a sentence whenever a name has changed.
    """

    def __init__(self, prefix: str, tell: Callable[[str], None]) -> None:
        self.names = Names(prefix)
        self._prefix, self._tell = prefix, tell
        self._place = f"LScore {prefix!r}."  # in which Lightning's results
        self._is_logging = False
        self._open = contextlib.ExitStack()  # until the end of the validation

    def avoid(self, trainer: Any) -> None:
        """Find names that nobody has used so far, before the first step."""
        self._avoid([self._prefix + key for key in KEYS], self._used_by_others(trainer))

    def log(self, trainer: Any, module: Any, values: Mapping[str, float]) -> None:
        """Log the values; give way to whatever else is logged before :meth:`close`."""
        self._avoid(values, self._used_by_others(trainer))
        for key, value in values.items():
            self._log(trainer, module, key, value)
        give_way = partial(self._give_way, trainer, module, values)
        self._open.callback(StandIn.of(trainer._results, "log").join(partial(_then, give_way)))
        # Lightning advises to average over the ranks when it computes these, before it calls
        # on_validation_end: what LScore logs is the same on all of them.
        mine = "|".join(re.escape(self.names.of(key)) for key in values)
        self._open.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", rf"It is recommended to use `self.log\('({mine})'")

    def close(self) -> None:
        """End what :meth:`log` has begun."""
        self._open.close()

    def _avoid(self, keys: Iterable[str], others: set[str]) -> list[str]:
        moved = list(self.names.avoid(keys, others))
        if moved:
            told = ", ".join(f"{old!r} is {new!r}" for old, new in self.names.moved.items())
            self._tell(
                "someone else logs under these names or in their paths, so what LScore logs as "
                f"{told}. Monitor the latter for LScore's value."
            )
        return moved

    def _log(self, trainer: Any, module: Any, key: str, value: float) -> None:
        # As tensors: Lightning makes float32 of Python numbers, where 1e9 + 1 is 1e9.
        dtype = torch.float32 if module.device.type == "mps" else torch.float64
        name, self._is_logging = self.names.of(key), True
        module.log(
            name,
            torch.tensor(value, dtype=dtype, device=module.device),
            prog_bar=key == f"{self._prefix}L",
            on_epoch=True,
            add_dataloader_idx=False,
        )
        self._is_logging = False
        # Where Lightning has stored it, the module's own of that name would be stored too.
        stored = trainer._results.pop(f"on_validation_epoch_end.{name}", None)
        if stored is not None:  # else the module's ``log`` is its own, and changes names
            trainer._results[self._place + name] = stored

    def _give_way(self, trainer: Any, module: Any, values: Mapping[str, float]) -> None:
        """Log under other names what someone else has just logged."""
        if self._is_logging:
            return
        before = {key: self.names.of(key) for key in values}
        for key in self._avoid(values, self._used_by_others(trainer)):
            trainer._results.pop(self._place + before[key], None)
            self._log(trainer, module, key, values[key])

    def _used_by_others(self, trainer: Any) -> set[str]:
        """Return the names under which anything else was logged in this fit or validation."""
        training = trainer.fit_loop.epoch_loop
        found = (trainer._results, training._results, training.val_loop._results)
        places = [place for results in found if results for place in results.items()]
        theirs = [metric.meta for place, metric in places if not place.startswith(self._place)]
        return {name for meta in theirs for name in _names_of(meta)}


@contextlib.contextmanager
def _then(afterwards: Callable[[], None]) -> Iterator[None]:
    yield
    afterwards()


def _names_of(meta: Any) -> Iterator[str]:
    """Yield the names that Lightning makes of one: for steps and epochs, and for each loader."""
    several = meta.add_dataloader_idx and meta.dataloader_idx is not None
    loader = f"/dataloader_idx_{meta.dataloader_idx}" if several else ""
    for part in ("", "_step", "_epoch") if meta.on_step and meta.on_epoch else ("",):
        yield meta.name + part + loader
