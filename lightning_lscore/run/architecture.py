"""The run's model as a whole, whatever part of it a strategy leaves to this process."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..model.flops import FlopsModel, flops_of
from ..model.parameters import ParameterCount, count_parameters


class Architecture:
    """Counts a model before it is sharded, and again while it trains: freezing may change it.

    Args:
        model: not yet wrapped by a strategy.
        flops_per_token: given, to be counted in a step, or None: estimated from the structure.
    """

    def __init__(self, model: nn.Module, flops_per_token: float | Literal["count"] | None) -> None:
        self.model: nn.Module | None = model
        """As the strategy has wrapped it, once it has; None once it was let go of."""
        self._whole = count_parameters(model)
        given = None
        if flops_per_token is not None and flops_per_token != "count":
            given = FlopsModel.given(flops_per_token)
        self._is_given, self._flops = given is not None, given or flops_of(model)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "model": None}  # a copy lets go of it too

    @property
    def parameters(self) -> ParameterCount:
        """Of the whole model at this moment."""
        now = self._whole if self.model is None else count_parameters(self.model)
        return max(now, self._whole, key=lambda count: count.total)

    @property
    def flops(self) -> FlopsModel:
        """What the model needs for a token, as it is trained now."""
        if self._is_given or self.model is None:
            return self._flops
        now = count_parameters(self.model)
        if now == self._whole or now.total < self._whole.total:
            return self._flops  # FSDP1 makes one parameter of several
        return flops_of(self.model)
