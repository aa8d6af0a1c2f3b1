"""Logits and labels of a validation batch, out of any LightningModule.

Five ways, tried in this order; the one that was used is kept in ``Capture.source``:

1. the user's function (module, outputs, batch) -> (logits, labels);
2. listening to a transformers language model that is called with labels; one that makes no logits
   is measured by its hidden states;
3. logits in what validation_step returns, with labels from there or from the batch;
4. listening to the same model where it is called without labels: they are looked for in the batch,
   and are the input tokens themselves if it holds no others;
5. if asked to: the mean loss that validation_step returns.

A causal model's logits at position t predict the token at t + 1. Labels are "shifted" when that
has been done to them already (label t is the token after input t), and not shifted when they are a
copy of the input, as transformers models expect them. Shifting one's labels twice goes unnoticed,
so what is not declared is read off the data: which of the two equals the batch's input tokens.

A token counts if its label does and neither it nor the one before it is padding. Where documents
are packed into one sequence, the first token of each counts as well, unless its label says no.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.batch import find_mask, find_tokens, integer_tensors
from ..model.language_models import language_models
from ..model.sharded import Part, counts_here, is_sharded, row_shapes, whole
from .held_out import HeldOut
from .hidden_nll import hidden_nll
from .listening import Call, LanguageModel
from .nll import row_nll, token_nll

LogitsAndLabels = Callable[[Any, Any, Any], tuple[Tensor, Tensor]]
"""(module, outputs, batch) -> logits [B, T, V] and labels [B, T]."""


class Capture:
    """Finds logits and labels of each validation batch and hands them on at once.

    Args:
        function: the user's way, see above.
        labels_are_shifted: whether label t is the token after input t. None: read off the data.
        ignore_index: label of the positions that are not counted.
        from_loss: take the mean loss of validation_step where nothing better is found.
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
        self.guessed = False
        """Whether the alignment was neither declared nor readable from the data."""
        self._function = function
        self._declared = labels_are_shifted
        self._detected: bool | None = None
        self._in_place: bool | None = None  # whether a model's own loss moves no labels
        self._ignore_index = ignore_index
        self._from_loss = from_loss
        self._models: list[LanguageModel] = []
        self._mesh: Any = None
        self._forget()

    # ------------------------------------------------------------------ listening

    def attach(self, module: nn.Module) -> None:
        """Listens to the transformers models in ``module``.

        Only while validating: training is left as it was. A model that is frozen beside one that
        learns, such as a teacher, is not the one to be scored.
        """
        self.detach()
        self._mesh = getattr(module, "device_mesh", None)
        if self._function is None:
            models = language_models(module)
            learning = [m for m in models if any(p.requires_grad for p in m.parameters())]
            self._models = [LanguageModel(m, self._after_forward) for m in learning or models]

    def detach(self) -> None:
        """Stops listening and lets go of all tensors."""
        while self._models:
            self._models.pop().detach()
        self._forget()

    def _forget(self) -> None:
        self._held_out: HeldOut | None = None
        self._batch: Any = None
        self._repeated = 0
        self._labelled: Any = None  # the model that was called with labels
        self._seen: Call | None = None  # one without labels
        self._parts = 0  # calls without labels that got something else than the batch's tokens
        self._refused = ""

    def _after_forward(self, call: Call) -> None:
        if self._held_out is None:
            return  # a forward pass outside of a batch, in somebody's epoch hook
        if call.labels is not None:
            self._with_its_labels(call, call.labels)
        elif call.logits is not None and call.tokens is not None:
            if call.logits.shape[:2] != call.tokens.shape or call.tokens.shape[1] == 1:
                return  # in these, text is generated: there is nothing to score
            expected = find_tokens(self._batch)
            fits = expected is not None and expected.shape == call.tokens.shape
            self._parts += not fits
            if fits or self._seen is None:
                self._seen = call

    def _with_its_labels(self, call: Call, labels: Tensor) -> None:
        if self._labelled not in (None, call.model):
            raise ValueError(
                "expected one language model to be called with labels in a validation step, "
                f"got a {type(self._labelled).__name__} and another, a {type(call.model).__name__}."
                " Say which one counts with LScore(logits_and_labels=function)."
            )
        values, how, shifted = call.logits, "", call.shifted or bool(self._declared)
        if not shifted and self._declared is None and self._loss_moves_no_labels(call, labels):
            shifted, how = True, ", which its loss does not move"
        if values is None:
            try:
                values = hidden_nll(call, self._moved(labels, shifted), self._ignore_index)
            except ValueError as error:
                self._refused = f" {error}"
                return
            how = " and its hidden states, since it made no logits"
        self._labelled = call.model
        self.source = f"forward of {type(call.model).__name__}, with its labels{how}"
        self._emit(values, labels, self._masks(call), shifted, are_nll=call.logits is None)

    def _loss_moves_no_labels(self, call: Call, labels: Tensor) -> bool:
        """Whether a causal model's own loss compares label t with logits t.

        So do those of BART's and Whisper's decoders, and XLNet's. It is told by the loss's value,
        in the first batch that has one: to look waits for the device.
        """
        logits, loss = call.logits, call.loss
        if self._in_place is None and isinstance(loss, Tensor) and isinstance(logits, Tensor):
            sharded = is_sharded(logits) or is_sharded(labels)
            if loss.numel() != 1 or sharded or labels.shape != logits.shape[:-1]:
                return False
            loss, off = float(loss.detach()), []
            for target in (labels, self._moved(labels, False)):
                nll, count = token_nll(logits, target.to(logits.device), self._ignore_index)
                off.append(abs(float(nll / count) - loss))
            if math.isfinite(sum(off)):
                # As near as rounding: an auxiliary loss must not look like it by chance.
                self._in_place = off[0] < 2e-5 * max(1.0, loss) and off[0] < 0.1 * off[1]
        return bool(self._in_place)

    # ------------------------------------------------------------------ one batch

    def start_batch(self, batch: Any, held_out: HeldOut, repeated: int = 0) -> None:
        """Before a validation step.

        Args:
            batch: what the step will get.
            held_out: gets the logits, or their NLL, and the labels of the step.
            repeated: samples at the end of the batch that a sampler repeated, not to be counted.
        """
        self._forget()
        self._batch, self._held_out, self._repeated = batch, held_out, repeated

    def end_batch(self, module: Any, outputs: Any, batch: Any) -> None:
        """After a validation step: hands on what the hooks did not.

        Raises:
            ValueError: if no logits and labels could be found, or their lengths differ.
        """
        try:
            if self._labelled is not None:
                return
            found = self._by_function(module, outputs, batch)
            found = found or self._by_outputs(outputs, batch) or self._by_inputs(batch)
            found = found or self._by_loss(outputs, batch)
            if found is None:
                raise ValueError(self._nothing_found(outputs))
            self.source, values, labels = found
            call, tokens = self._seen, find_tokens(batch)
            shifted = self._is_shifted(values, labels, tokens if call is None else call.tokens)
            self._emit(values, labels, self._masks(call), shifted, are_nll=values.ndim == 0)
        finally:
            self._forget()

    def _by_function(self, *step: Any) -> tuple[str, Tensor, Tensor] | None:
        if self._function is None:
            return None
        found = self._function(*step)
        if not (isinstance(found, tuple) and [isinstance(x, Tensor) for x in found] == [True] * 2):
            raise ValueError(
                "LScore(logits_and_labels=...): expected the function to return the tensors "
                f"(logits, labels), got {_describe(found)}."
            )
        return ("the given function", *found)

    def _by_outputs(self, outputs: Any, batch: Any) -> tuple[str, Tensor, Tensor] | None:
        logits, labels = _in_outputs(outputs)
        if logits is None:
            return None
        if labels is not None:
            return ("logits and labels from validation_step", logits, labels)
        how, labels = self._find_labels(batch, find_tokens(batch))
        if labels is not None and labels.shape[1:] == (logits.shape[1] + 1,):
            labels = labels[:, 1:]  # the step cut its tokens into inputs and labels
        if labels is None or labels.shape != logits.shape[:-1]:
            return None
        return (f"logits from validation_step, {how}", logits, labels)

    def _by_inputs(self, batch: Any) -> tuple[str, Tensor, Tensor] | None:
        call = self._seen
        if call is None or call.logits is None:
            return None
        if self._parts > 1:
            raise ValueError(
                f"expected the {type(call.model).__name__} to be called once without labels in a "
                f"validation step, got {self._parts} calls with parts of the batch. Give each its "
                "labels, or say what counts with LScore(logits_and_labels=function)."
            )
        how, labels = self._find_labels(batch, call.tokens)
        if labels is None or (call.shifted and labels is call.tokens):
            return None
        return (f"forward of {type(call.model).__name__}, {how}", call.logits, labels)

    def _find_labels(self, batch: Any, tokens: Tensor | None) -> tuple[str, Tensor | None]:
        """Labels of the tokens that a model got, and where they were found."""
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, Tensor) and (tokens is None or labels.shape == tokens.shape):
            return "labels from the batch", labels
        if tokens is None:
            return "", None
        for other in integer_tensors(batch):  # (x, y) with y the tokens after x
            if other.shape == tokens.shape and alignment(other, tokens, self._ignore_index):
                return "shifted labels found in the batch", other
        return "the input tokens as labels", tokens

    def _by_loss(self, outputs: Any, batch: Any) -> tuple[str, Tensor, Tensor] | None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not (self._from_loss and isinstance(loss, Tensor) and loss.numel() == 1):
            return None
        given = isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor)
        _, labels = self._find_labels(batch, None if given else find_tokens(batch))
        if labels is None:
            return None
        how = "mean loss of validation_step x counted labels; wrong if the loss holds auxiliary"
        return (f"{how} terms or smoothing", loss.detach().view(()), labels)

    def _is_shifted(self, logits: Tensor, labels: Tensor, tokens: Tensor | None) -> bool:
        if self._declared is not None:
            self.source += f"; declared {'' if self._declared else 'not '}shifted"
            return self._declared
        if labels.ndim == 1 or logits.shape[1:2] == (1,):
            self.source += "; one prediction a sample, nothing to shift"
            return True
        if self._seen is not None and self._seen.shifted:
            self.source += "; labels as an encoder-decoder model has them"
            return True
        if self._detected is None:
            # Once guessed it is not looked at again: to look waits for a GPU, at every batch.
            if not self.guessed and not (whole(labels) != self._ignore_index).any():
                self.source += "; this rank saw no label that counts"
                return False  # there is nothing to tell, nor to guess
            if tokens is not None:
                self._detected = alignment(labels, tokens, self._ignore_index)
            self.guessed = self._detected is None
        shifted = bool(self._detected)
        how = "taken as" if self.guessed else "found to be"
        self.source += f"; labels {how} {'already' if shifted else 'not'} shifted"
        return shifted

    def _masks(self, call: Call | None) -> list[Any]:
        """Attention masks of the tokens that predict: the model's, then the batch's."""
        if call is not None and call.shifted:
            return []  # of an encoder-decoder model they may well be those of the encoder
        tokens = find_tokens(self._batch)
        given = None if call is None else call.mask
        return [given, None if tokens is None else find_mask(self._batch, tokens)]

    def _moved(self, labels: Tensor, shifted: bool) -> Tensor:
        """Labels such that label t is the token after input t: they are small, logits are not."""
        if shifted:
            return labels
        return nn.functional.pad(labels[..., 1:], (0, 1), value=self._ignore_index)

    def _emit(
        self,
        values: Tensor,
        labels: Tensor,
        masks: Sequence[Any],
        shifted: bool,
        are_nll: bool,
    ) -> None:
        """Hands on logits, or NLL, with labels that are moved and rid of all that counts not.

        Args:
            values: logits, or, if ``are_nll``, what :meth:`HeldOut.update_nll` takes.
            labels: one for each row.
            masks: attention masks, of which the first counts that has the labels' shape.
            shifted: whether labels are so already.
        """
        part = Part.of(values) if is_sharded(values) else None
        labels = whole(labels)
        if not are_nll and (labels.ndim > 2 or labels.shape not in row_shapes(values, part)):
            raise ValueError(
                "expected one label for each row of logits, logits [batch, time, vocabulary] and "
                f"labels [batch, time]; got logits {list(values.shape)} and labels "
                f"{list(labels.shape)}. Return the two of equal length from validation_step, or "
                "hand over others with LScore(logits_and_labels=function)."
            )
        labels = self._moved(labels, shifted)
        text = next((t for t in (_text(mask, labels) for mask in masks) if t is not None), None)
        if text is not None:
            labels = labels.masked_fill(~text.to(labels.device), self._ignore_index)
        tokens = find_tokens(self._batch)
        # Of a step that feeds its batch in parts nobody knows which one has the repeated samples.
        if self._repeated and (tokens is None or len(tokens) == len(labels)):
            labels = labels.clone()
            labels[max(0, len(labels) - self._repeated) :] = self._ignore_index
        if part is not None:
            values, are_nll = row_nll(values, labels, self._ignore_index), True
            labels = part.own(labels)
        if not counts_here(self._mesh, part):
            labels = torch.full_like(labels, self._ignore_index)
        if labels.ndim == 1:  # one prediction a sample
            values, labels = values.unsqueeze(1) if values.ndim else values, labels[:, None]
        assert self._held_out is not None
        if labels.numel():
            add = self._held_out.update_nll if are_nll else self._held_out.update
            add(values, labels.to(values.device))

    def _nothing_found(self, outputs: Any) -> str:
        models = "no transformers language model was found inside it"
        if self._models:
            models = "the transformers model inside it gave no logits for tokens of this batch"
        return (
            "LScore found no logits and labels in this validation batch. validation_step returned "
            f"{_describe(outputs)}, and {models}.{self._refused} Four ways out:\n"
            "  1. keep the transformers model as an attribute of the LightningModule and call it "
            "in validation_step, so that it returns logits;\n"
            '  2. return {"logits": logits, "labels": labels} from validation_step;\n'
            "  3. LScore(logits_and_labels=function) with function(module, outputs, batch) -> "
            "(logits, labels);\n"
            "  4. LScore(from_loss=True), if validation_step returns the mean loss of its counted "
            "labels and nothing else is in it, such as label smoothing or an auxiliary term."
        )


def _in_outputs(outputs: Any) -> tuple[Tensor | None, Tensor | None]:
    """Logits, and labels if they are there, by name or in a pair with the other or with a loss."""
    if isinstance(outputs, (tuple, list)):
        tensors = [x for x in outputs if isinstance(x, Tensor)]
        logits = [x for x in tensors if x.is_floating_point() and x.ndim >= 3]
        others = [x for x in tensors if x.ndim == 0 or not x.is_floating_point()]
        if len(outputs) != 2 or not (len(logits) == len(others) == 1):
            return None, None
        return logits[0], others[0] if others[0].ndim else None
    named = outputs if isinstance(outputs, Mapping) else getattr(outputs, "__dict__", {})
    found = [named.get(name) for name in ("logits", "labels")]
    first, second = (x if isinstance(x, Tensor) and x.ndim else None for x in found)
    return first, second


def _text(mask: Any, labels: Tensor) -> Tensor | None:
    """Where neither the token t nor t + 1 is padding, [B, T]; None if the mask is of another shape.

    Args:
        mask: attention mask [B, T], or [B, T + 1] where the step cut its tokens into two.
        labels: [B, T], of which label t is token t + 1.
    """
    mask = whole(mask)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or labels.ndim != 2:
        return None
    text, (b, t) = mask != 0, labels.shape
    if text.shape == (b, t):  # what came after the last token is known by the labels alone
        text = nn.functional.pad(text, (0, 1), value=True)
    return text[:, :-1] & text[:, 1:] if text.shape == (b, t + 1) else None


def alignment(labels: Tensor, tokens: Tensor, ignore_index: int = -100) -> bool | None:
    """Whether labels [B, T] are already shifted against the input tokens [B, T or T + 1].

    True: label t is token t + 1. False: label t is token t. None: both or neither fit.
    Negative and ignored labels fit anything. Reads the data, so it waits for a device.
    """
    labels, tokens = whole(labels), whole(tokens)
    if labels.ndim != 2 or tokens.ndim != 2 or labels.shape[0] != tokens.shape[0]:
        return None
    length = labels.shape[1]
    if tokens.shape[1] - length not in (0, 1):
        return None

    def equal(start: int) -> bool:
        other = tokens[:, start : start + length]
        mine = labels[:, : other.shape[1]]
        return bool(((mine == other) | (mine < 0) | (mine == ignore_index)).all())

    not_shifted, shifted = equal(0), equal(1)
    return None if not_shifted == shifted else shifted


def _describe(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return f"a tensor {list(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} with {', '.join(map(repr, outputs)) or 'nothing in it'}"
    if isinstance(outputs, (tuple, list)):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    return "None" if outputs is None else f"a {type(outputs).__name__}"
