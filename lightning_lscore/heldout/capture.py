"""Logits and labels of a validation batch, out of any LightningModule: the map of this room.

While a validation step runs, ``stand_in`` puts listeners in front of what it calls: ``listening``
at transformers models, ``loss_call`` at the loss functions and embeddings of PyTorch. ``step`` is
the batch under way, ``first_error`` keeps what goes wrong in listening until it is over.

Where logits and labels come from, in this order; ``Capture.source`` names what was used:

1. what the user declares: a function (module, outputs, batch) -> (logits, labels), or a loss call;
2. a transformers language model that is called with labels (``labelled_call``), already in the
   step; one that makes no logits is measured by its loss call, or its hidden states;
3. logits and labels in what validation_step returns;
4. a loss call whose labels are the batch's own text (``own_loss``, ``text_rows``, ``fit``);
5. logits in what validation_step returns, with labels from the batch;
6. such a model that is called without labels: the labels are those in the batch, or the input
   tokens themselves;
7. if the user allows it: the mean loss that validation_step returns.

``after_step`` lists those that come after the step, with a function of ``ways`` for each;
``found_logits`` takes what they return. ``labels`` holds what is known about a run's labels: how
they are shifted against logits (``alignment`` asks in order, ``shift_evidence`` answers), which of
them count (``ignored``), and whether they are text (``is_text``).

``step`` drops padding and repeated samples (``counted_labels``) and hands the rest to a
``held_out``, whose sums ``perplexity`` keeps; ``rows``, ``nll`` and ``softmax`` compute the NLL.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..model.language_models import language_models
from .after_step import AfterStep
from .first_error import FirstError
from .held_out import HeldOut
from .labelled_call import hand_on_call
from .labels import Labels
from .listening import Call, LanguageModel
from .loss_call import LossCalls
from .nothing_found import nothing_found
from .own_loss import ChooseLoss, OwnLoss
from .step import Step
from .ways import LogitsAndLabels

__all__ = ["Capture", "ChooseLoss"]

_SEVERAL = (
    "scores what a model was called with, and no label or loss says that it is text to be learnt: "
    "the step calls it with several texts, as with preferred and rejected answers. Say what counts "
    "with LScore(logits_and_labels=function)."
)
_SKIPPED = (
    "left out batches for which validation_step returned None, after it had computed no loss and "
    "read no token."
)


class Capture:
    """Finds logits and labels of each validation batch and hands them on at once.

    Args:
        function: the user's, see above.
        labels_are_shifted: whether label t is the token after input t. None: read it off the data.
        ignore_index: label of the positions that are not counted. None: found.
        from_loss: allow the last way above.
        loss_call: which of a step's loss calls counts; None: those that are of its text.
        compile: see :func:`~lightning_lscore.heldout.nll.row_nll`.
    """

    def __init__(
        self,
        function: LogitsAndLabels | None = None,
        labels_are_shifted: bool | None = None,
        ignore_index: int | None = None,
        from_loss: bool = False,
        loss_call: ChooseLoss | None = None,
        compile: bool = False,
    ) -> None:
        self.source = ""
        """Which way was used and how the labels were aligned, in words."""
        self._function = function
        self._labels = Labels(labels_are_shifted, ignore_index, are_given=function is not None)
        self._errors = FirstError()
        self._losses = LossCalls(self._errors, ignore_index, compile)
        self._own_loss = OwnLoss(loss_call)
        self._after_step = AfterStep(
            function, from_loss, self._losses, self._own_loss, self._labels
        )
        self._models: list[LanguageModel] = []
        self._mesh: Any = None
        self._step: Step | None = None
        self._sources: set[str] = set()
        self._said: set[str] = set()  # doubts about whole steps
        self._told: list[str] = []  # how many labels of each source counted in its first batch

    @property
    def guessed(self) -> bool:
        """Whether the alignment was neither declared nor readable from the data."""
        return self._labels.alignment.guessed

    @property
    def doubts(self) -> list[str]:
        """Sentences about evidence that contradicts itself, or leaves something open."""
        labels = self._labels
        doubtful = (labels.alignment, self._own_loss, labels.ignored, labels.is_text)
        return [doubt for one in doubtful for doubt in one.doubts] + sorted(self._said)

    @property
    def assumption(self) -> str:
        """What is taken for granted about the labels, and the arguments that override it."""
        if not self._told:
            return "none, since this process had no held-out label that counts"
        return (
            f"{' | '.join(self._told)}. Overridden by logits_and_labels, loss_call, "
            "labels_are_shifted and ignore_index"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_models": [], "_mesh": None, "_step": None}  # a copy does not listen

    # ------------------------------------------------------------------ over a validation

    def attach(self, module: nn.Module) -> None:
        """Listen to loss calls, and to the transformers models in ``module``, until :meth:`detach`.

        A model that is frozen beside a trainable one, a teacher for example, is not scored.
        """
        self.detach()
        self._mesh = getattr(module, "device_mesh", None)
        self._labels.ignored.look_into(module)
        self._losses.attach(module, self._mesh)
        if self._function is not None or self._own_loss.declared:
            return
        models = language_models(module)
        learning = [m for m in models if any(p.requires_grad for p in m.parameters())] or models
        for model in models:
            heard = self._after_forward if model in learning else self._after_teacher
            self._models.append(LanguageModel(model, heard, self._losses.enter, self._errors))

    def detach(self) -> None:
        """Stop listening, and release all tensors."""
        while self._models:
            self._models.pop().detach()
        self._losses.detach()
        self._errors.forget()
        self._step = None

    # ------------------------------------------------------------------ over a step

    def start_batch(self, batch: Any, held_out: HeldOut, repeated: int = 0) -> None:
        """Prepare for a validation step.

        Args:
            batch: that the step will get.
            held_out: receives the logits, or their NLL, and the labels of the step.
            repeated: samples at the end of the batch that a sampler repeated; they are not counted.
        """
        self._step = Step(batch, held_out, repeated, self._labels.ignored.index, self._mesh)
        self._losses.start(measure=self._function is None)

    def end_batch(self, module: Any, outputs: Any, batch: Any) -> None:
        """Hand on logits and labels after a validation step, unless they were heard in it.

        Raises:
            ValueError: if no logits and labels could be found, or their lengths differ. What went
                wrong inside of the step is raised here as well, so that the step never fails of it.
        """
        step, self._step = self._step, None
        assert step is not None, "start_batch comes first"
        try:
            self._errors.throw()
            if step.labelled is None:
                self._find(step, module, outputs, batch)
                if step.of_several and self.source.startswith("forward of"):
                    self._said.add(_SEVERAL)
        finally:
            self._losses.forget()
        if self.source not in self._sources and (counted := step.counted()):
            self._sources.add(self.source)
            self._told.append(f"{self.source}; {counted} counted in the first batch")

    def _find(self, step: Step, module: Any, outputs: Any, batch: Any) -> None:
        how = self._after_step.hand_on(step, module, outputs, batch)
        if how is not None:
            self.source = how
        elif not self._is_empty(outputs):
            refused = step.refused + self._own_loss.refusal(self._losses.heard)
            raise nothing_found(outputs, bool(self._models), refused)

    def _is_empty(self, outputs: Any) -> bool:
        """Whether a batch without logits and labels is none to complain about."""
        if self._losses.heard and not self._losses.any_counted():
            return True  # as where all labels of a batch are those of prompts
        skips = bool(self.source) and outputs is None and not self._losses.any_heard
        if skips:
            self._said.add(_SKIPPED)
        return skips

    def _after_teacher(self, call: Call) -> None:
        self._losses.leave()

    def _after_forward(self, call: Call) -> None:
        step = self._step
        if call.labels is None or step is None:
            self._losses.stay()
        if step is None:
            return  # a forward pass outside of a batch, in an epoch hook for example
        if call.labels is not None:
            losses = self._losses.leave()
            how = hand_on_call(step, call, call.labels, losses, self._labels, self._own_loss)
            self.source = how or self.source
        else:
            step.note(call)
