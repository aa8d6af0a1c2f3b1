"""What is looked for once a step has ended without a model that was called with labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .found_logits import hand_on_found
from .labels import Labels
from .loss_call import LossCalls
from .own_loss import OwnLoss
from .step import Step
from .ways import (
    Found,
    LogitsAndLabels,
    by_call,
    by_function,
    by_logits,
    by_loss,
    by_outputs,
    returned_loss,
)


class AfterStep:
    """Goes through the ways until one hands on logits and labels.

    Args:
        function: the user's.
        from_loss: allow the mean loss that validation_step returns.
        losses: what was heard in the step.
        own_loss: finds those of the batch's text in it.
        labels: what is known about them.
    """

    def __init__(
        self,
        function: LogitsAndLabels | None,
        from_loss: bool,
        losses: LossCalls,
        own_loss: OwnLoss,
        labels: Labels,
    ) -> None:
        self._function = function
        self._from_loss = from_loss
        self._losses = losses
        self._own_loss = own_loss
        self._labels = labels

    def hand_on(self, step: Step, module: Any, outputs: Any, batch: Any) -> str | None:
        """Hand on what the first of the ways finds, and return how, in words; None: nothing."""
        ignore_index, declared = self._labels.ignored.index, self._own_loss.declared

        def give(found: Found | None) -> str | None:
            if found is None:
                return None
            loss = returned_loss(outputs)
            return hand_on_found(step, found, loss, self._losses, self._labels)

        ways: tuple[Callable[[], str | None], ...] = (
            lambda: give(by_function(self._function, module, outputs, batch)),
            lambda: give(None if declared else by_outputs(outputs)),
            lambda: self._by_own_loss(step, outputs, batch),
            lambda: give(by_logits(outputs, batch, ignore_index)),
            lambda: give(by_call(step.only_call(), batch, ignore_index)),
            lambda: give(self._by_mean_loss(step, outputs, batch)),
        )
        return next((how for way in ways if (how := way()) is not None), None)

    def _by_own_loss(self, step: Step, outputs: Any, batch: Any) -> str | None:
        found = self._own_loss.find(self._losses, batch, outputs, step.repeated)
        for nll, labels, _ in found or ():
            step.add(nll, self._labels.marked(labels), is_nll=True)
        return found[-1][-1] if found else None

    def _by_mean_loss(self, step: Step, outputs: Any, batch: Any) -> Found | None:
        if not self._from_loss:
            return None
        self._own_loss.doubt_mean(step.repeated)
        return by_loss(outputs, batch, self._labels.ignored.index)
