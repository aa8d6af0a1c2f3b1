"""The run's model as a whole, whatever part of it a strategy leaves to this process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from ..model.experts import active_parameters
from ..model.flops import FlopsModel, flops_of
from ..model.parameters import ParameterCount, count_parameters


class Architecture:
    """Counts a model before it is sharded, and again while it trains: freezing may change it.

    Args:
        model: not yet wrapped by a strategy.
        flops_per_token: given, to be counted in a step, or None: estimated from the structure, or
            counted where that does not tell.
    """

    def __init__(self, model: nn.Module, flops_per_token: float | Literal["count"] | None) -> None:
        self.model: nn.Module | None = model
        """As the strategy has wrapped it, once it has; None once it was let go of."""
        self._whole = count_parameters(model)
        given = None
        if flops_per_token is not None and flops_per_token != "count":
            given = FlopsModel.given(flops_per_token)
        self.flops = given or flops_of(model)
        """What it needs for a token, as it was trained when last looked at."""
        self._active = active_parameters(model)
        self._asked_to_count, self._is_given = flops_per_token == "count", given is not None
        self._state: tuple[tuple[str, bool], ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "model": None}  # a copy lets go of it too

    @property
    def parameters(self) -> ParameterCount:
        """Of the whole model at this moment."""
        now = self._whole if self.model is None else count_parameters(self.model)
        whole = max(now, self._whole, key=lambda count: count.total)
        return replace(whole, active=self._active)

    @property
    def is_to_be_counted(self) -> bool:
        """Whether a step is to be counted: it was asked for, or the estimate would guess."""
        return self._asked_to_count or bool(self.flops.lacks)

    def begin(self, model: nn.Module) -> None:
        """Take the model as it is trained, which a strategy may have wrapped."""
        self.model, self._state = model, _state(model)
        now = count_parameters(model)
        if now != self._whole and now.total >= self._whole.total:  # FSDP1 makes one of several
            self._estimate(model)

    def look(self) -> bool:
        """Look at the model again: are there other parameters, or do others learn?"""
        if self.model is None or self._state == (now := _state(self.model)):
            return False
        self._state = now
        self._estimate(self.model)
        return not self._is_given

    def _estimate(self, model: nn.Module) -> None:
        self._active = active_parameters(model)
        if not self._is_given:
            self.flops = flops_of(model)


def _state(model: nn.Module) -> tuple[tuple[str, bool], ...]:
    return tuple((name, p.requires_grad) for name, p in model.named_parameters())
