"""Logits and labels of a validation batch, out of any LightningModule.

Five ways, tried in this order; ``Capture.source`` names the one that was used:

1. the user's function (module, outputs, batch) -> (logits, labels);
2. listening to a transformers language model that is called with labels; one that makes no logits
   is measured by its hidden states;
3. logits in what validation_step returns, with labels from there or from the batch;
4. listening to such a model that is called without labels: the labels are those in the batch, or
   the input tokens themselves;
5. if the user allows it: the mean loss that validation_step returns.

Way 2 is here and in ``listening``, the others are in ``ways``. ``alignment`` shifts the labels that
they find; ``step`` ignores those that do not count, and hands the rest on to a ``HeldOut``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..model.batch import find_tokens
from ..model.language_models import language_models
from ..model.sharded import whole
from .alignment import Alignment, shift
from .held_out import HeldOut
from .hidden_nll import hidden_nll
from .listening import Call, LanguageModel
from .nothing_found import nothing_found
from .step import Step
from .ways import (
    LogitsAndLabels,
    by_call,
    by_function,
    by_loss,
    by_outputs,
)


class Capture:
    """Finds logits and labels of each validation batch and hands them on at once.

    Args:
        function: way 1 above.
        labels_are_shifted: whether label t is the token after input t. None: read it off the data.
        ignore_index: label of the positions that are not counted.
        from_loss: allow way 5.
    """

    def __init__(
        self,
        function: LogitsAndLabels | None = None,
        labels_are_shifted: bool | None = None,
        ignore_index: int = -100,
        from_loss: bool = False,
    ) -> None:
        self.source = ""
        """Which way was used and how the labels were aligned, in words."""
        self._function = function
        self._alignment = Alignment(labels_are_shifted, ignore_index)
        self._ignore_index = ignore_index
        self._from_loss = from_loss
        self._models: list[LanguageModel] = []
        self._mesh: Any = None
        self._step: Step | None = None

    @property
    def guessed(self) -> bool:
        """Whether the alignment was neither declared nor readable from the data."""
        return self._alignment.guessed

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_models": [], "_mesh": None, "_step": None}  # a copy does not listen

    # ------------------------------------------------------------------ over a validation

    def attach(self, module: nn.Module) -> None:
        """Listen to the transformers models in ``module``, until :meth:`detach`.

        A model that is frozen beside a trainable one, a teacher for example, is not scored.
        """
        self.detach()
        self._mesh = getattr(module, "device_mesh", None)
        if self._function is None:
            models = language_models(module)
            learning = [m for m in models if any(p.requires_grad for p in m.parameters())]
            self._models = [LanguageModel(m, self._after_forward) for m in learning or models]

    def detach(self) -> None:
        """Stop listening, and release all tensors."""
        while self._models:
            self._models.pop().detach()
        self._step = None

    # ------------------------------------------------------------------ over a step

    def start_batch(self, batch: Any, held_out: HeldOut, repeated: int = 0) -> None:
        """Prepare for a validation step.

        Args:
            batch: that the step will get.
            held_out: receives the logits, or their NLL, and the labels of the step.
            repeated: samples at the end of the batch that a sampler repeated; they are not counted.
        """
        self._step = Step(batch, held_out, repeated, self._ignore_index, self._mesh)

    def end_batch(self, module: Any, outputs: Any, batch: Any) -> None:
        """Hand on logits and labels after a validation step, unless they were heard in it.

        Raises:
            ValueError: if no logits and labels could be found, or their lengths differ.
        """
        step, ignore, self._step = self._step, self._ignore_index, None
        assert step is not None, "start_batch comes first"
        if step.labelled is not None:
            return
        found = by_function(self._function, module, outputs, batch)
        found = found or by_outputs(outputs, batch, ignore)
        found = found or by_call(step.only_call(), batch, ignore)
        if found is None and self._from_loss:
            found = by_loss(outputs, batch, ignore)
        if found is None:
            raise nothing_found(outputs, bool(self._models), step.refused)
        self.source, values, labels = found
        tokens = find_tokens(batch) if step.call is None else step.call.tokens
        shifted, how = self._alignment.of_found(values, labels, tokens, step.call)
        self.source += f"; {how}"
        labels = self._shifted(labels, shifted)
        step.hand_on(values, labels, step.call, is_nll=values.ndim == 0)

    def _after_forward(self, call: Call) -> None:
        step = self._step
        if step is None:
            return  # a forward pass outside of a batch, in an epoch hook for example
        if call.labels is not None:
            self._with_its_labels(step, call, call.labels)
        else:
            step.note(call)

    def _with_its_labels(self, step: Step, call: Call, labels: Tensor) -> None:
        if step.labelled not in (None, call.model):
            raise ValueError(
                "expected one language model to be called with labels in a validation step, "
                f"got a {type(step.labelled).__name__} and another, a {type(call.model).__name__}."
                " Say which one counts with LScore(logits_and_labels=function)."
            )
        values = call.logits
        shifted, how = self._alignment.of_call(call, labels)
        labels = self._shifted(labels, shifted)
        if values is None:
            try:
                values = hidden_nll(call, labels, self._ignore_index)
            except ValueError as error:
                step.refused = f" {error}"
                return
            how = " and its hidden states, since it made no logits"
        step.labelled = call.model
        self.source = f"forward of {type(call.model).__name__}, with its labels{how}"
        step.hand_on(values, labels, call, is_nll=call.logits is None)

    def _shifted(self, labels: Tensor, already: bool) -> Tensor:
        labels = whole(labels)
        return labels if already else shift(labels, self._ignore_index)
