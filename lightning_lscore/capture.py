"""Logits and labels of a validation batch, out of any LightningModule.

Four ways, tried in this order; the one that was used is kept in ``Capture.source``:

1. the user's function (module, outputs, batch) -> (logits, labels);
2. a forward hook on a transformers language model that is called with ``labels``;
3. ``logits`` and ``labels`` in what validation_step returns;
4. the same hook where the model is called without labels: they are looked for in the batch, and
   are the input tokens themselves if it holds no others.

A causal model's logits at position t predict the token at t + 1. Labels are "shifted" when that
has been done to them already (label t is the token after input t), and not shifted when they are a
copy of the input, as transformers models expect them. Shifting one's labels twice goes unnoticed,
so what is not declared is read off the data: which of the two equals the batch's input tokens.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .tokens import find_mask, find_tokens, integer_tensors

LogitsAndLabels = Callable[[Any, Any, Any], tuple[Tensor, Tensor]]
"""(module, outputs, batch) -> logits [B, T, V] and labels [B, T]."""


Consumer = Callable[[Tensor, Tensor], None]
"""Takes logits [B, T, V] and, for each of them, the token that came next [B, T]."""


class Capture:
    """Finds logits and labels of each validation batch and hands them on at once.

    Args:
        function: the user's way, see above.
        labels_are_shifted: whether label t is the token after input t. None: read off the data.
        ignore_index: label of the positions that are not counted.
    """

    def __init__(
        self,
        function: LogitsAndLabels | None = None,
        labels_are_shifted: bool | None = None,
        ignore_index: int = -100,
    ) -> None:
        self.source = ""
        """Which way was used and how the labels were aligned, in words."""
        self.guessed = False
        """Whether the alignment was neither declared nor readable from the data."""
        self._function = function
        self._declared = labels_are_shifted
        self._detected: bool | None = None
        self._ignore_index = ignore_index
        self._hooks: list[Any] = []
        self._consume: Consumer | None = None
        self._batch: Any = None
        self._padding = 0
        self._labelled: Any = None  # the model that was called with labels
        self._seen: tuple[Tensor, Tensor, Tensor | None] | None = None

    # ------------------------------------------------------------------ hooks

    def attach(self, module: nn.Module) -> None:
        """Hooks the transformers models in ``module``.

        Only while validating: training is left as it was, and torch.compile, which looks for hooks
        when it first compiles, makes its evaluation graphs now. A model that is frozen beside one
        that learns, such as a teacher, is not the one to be scored.
        """
        self.detach()
        if self._function is None:
            models = transformers_language_models(module)
            learning = [m for m in models if any(p.requires_grad for p in m.parameters())]
            for model in learning or models:
                hook = partial(self._after_forward, _signature(model))
                hook = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
                self._hooks.append(model.register_forward_hook(hook, with_kwargs=True))

    def detach(self) -> None:
        """Removes the hooks and lets go of all tensors."""
        while self._hooks:
            self._hooks.pop().remove()
        self._forget()

    def _forget(self) -> None:
        self._consume, self._batch, self._seen, self._labelled = None, None, None, None

    def _after_forward(
        self,
        signature: inspect.Signature,
        model: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if self._consume is None:
            return  # a forward pass outside of a batch, in somebody's epoch hook
        given = signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        labels, tokens, mask = (given.get(k) for k in ("labels", "input_ids", "attention_mask"))
        logits = _logits_of(output, has_labels=labels is not None)
        if labels is not None and logits is not None:
            already = bool(getattr(model.config, "is_encoder_decoder", False))
            self.source = f"forward hook on {type(model).__name__}, with its labels"
            if self._labelled not in (None, model):
                raise ValueError(
                    "expected one language model to be called with labels in a validation step, "
                    f"got a {type(self._labelled).__name__} and another, a {type(model).__name__}. "
                    "Say which one counts with LScore(logits_and_labels=function)."
                )
            self._labelled = model
            self._emit(logits, labels, None if already else mask, shifted=already)
        elif logits is not None and tokens is not None and logits.shape[:2] == tokens.shape:
            expected = find_tokens(self._batch)
            if self._seen is None or (expected is not None and expected.shape == tokens.shape):
                self._seen = (logits, tokens, mask)

    # ------------------------------------------------------------------ one batch

    def start_batch(self, batch: Any, consume: Consumer, padding: int = 0) -> None:
        """Before a validation step.

        Args:
            batch: what the step will get.
            consume: called with logits and targets, never with more than the step's own.
            padding: samples at the end of the batch that a sampler repeated, not to be counted.
        """
        self._forget()
        self._batch, self._consume, self._padding = batch, consume, padding

    def end_batch(self, module: Any, outputs: Any, batch: Any) -> None:
        """After a validation step: hands on what the hooks did not.

        Raises:
            ValueError: if no logits and labels could be found, or their lengths differ.
        """
        try:
            if self._labelled is not None:
                return
            found = self._by_function(module, outputs, batch)
            found = found or self._by_outputs(outputs) or self._by_inputs(batch)
            if found is None:
                raise ValueError(self._nothing_found(outputs))
            self.source, logits, labels = found
            tokens = self._seen[1] if self._seen is not None else find_tokens(batch)
            shifted = self._is_shifted(logits, labels, tokens)
            mask = find_mask(batch, labels)
            self._emit(logits, labels, mask if not shifted else None, shifted=shifted)
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

    def _by_outputs(self, outputs: Any) -> tuple[str, Tensor, Tensor] | None:
        if not isinstance(outputs, Mapping):  # transformers' ModelOutput is one
            return None
        logits, labels = outputs.get("logits"), outputs.get("labels")
        if not (isinstance(logits, Tensor) and isinstance(labels, Tensor)):
            return None
        return ("logits and labels from validation_step", logits, labels)

    def _by_inputs(self, batch: Any) -> tuple[str, Tensor, Tensor] | None:
        if self._seen is None:
            return None
        logits, tokens, mask = self._seen
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if isinstance(labels, Tensor) and labels.shape == tokens.shape:
            return ("forward hook, labels from the batch", logits, labels)
        for other in integer_tensors(batch):  # (x, y) with y the tokens after x
            if other.shape == tokens.shape and alignment(other, tokens) is True:
                return ("forward hook, shifted labels found in the batch", logits, other)
        labels = tokens if mask is None else tokens.masked_fill(mask == 0, self._ignore_index)
        return ("forward hook, the input tokens as labels", logits, labels)

    def _is_shifted(self, logits: Tensor, labels: Tensor, tokens: Tensor | None) -> bool:
        if self._declared is not None:
            self.source += f"; declared {'' if self._declared else 'not '}shifted"
            return self._declared
        if logits.ndim < 3 or logits.shape[1] == 1:
            self.source += "; one prediction a sample, nothing to shift"
            return True
        if self._detected is None and tokens is not None:
            self._detected = alignment(labels, tokens)
        self.guessed = self._detected is None
        shifted = bool(self._detected)
        how = "taken as" if self.guessed else "found to be"
        self.source += f"; labels {how} {'already' if shifted else 'not'} shifted"
        return shifted

    def _emit(self, logits: Tensor, labels: Tensor, mask: Any, *, shifted: bool) -> None:
        if logits.shape[:-1] != labels.shape:
            raise ValueError(
                "expected one label for each row of logits, logits [batch, time, vocabulary] and "
                f"labels [batch, time]; got logits {list(logits.shape)} and labels "
                f"{list(labels.shape)}. Return the two of equal length from validation_step, or "
                "hand over others with LScore(logits_and_labels=function)."
            )
        if isinstance(mask, Tensor) and mask.shape == labels.shape:
            labels = labels.masked_fill(mask == 0, self._ignore_index)
        if not shifted:  # move the labels: they are small, the logits are not
            labels = nn.functional.pad(labels[..., 1:], (0, 1), value=self._ignore_index)
        tokens = find_tokens(self._batch)
        # Of a step that feeds its batch in parts nobody knows which one has the repeated samples.
        if self._padding and (tokens is None or len(tokens) == len(labels)):
            labels = labels.clone()
            labels[max(0, len(labels) - self._padding) :] = self._ignore_index
        assert self._consume is not None
        if logits.ndim == 2:  # one prediction a sample
            logits, labels = logits[:, None], labels[:, None]
        self._consume(logits, labels)

    def _nothing_found(self, outputs: Any) -> str:
        hooked = "" if self._hooks else ", and no transformers language model was found inside it"
        return (
            "LScore found no logits and labels in this validation batch. validation_step returned "
            f"{_describe(outputs)}{hooked}. Three ways out:\n"
            "  1. keep the transformers model as an attribute of the LightningModule and call it "
            "in validation_step, so that it returns logits;\n"
            '  2. return {"logits": logits, "labels": labels} from validation_step;\n'
            "  3. LScore(logits_and_labels=function) with function(module, outputs, batch) -> "
            "(logits, labels)."
        )


def alignment(labels: Tensor, tokens: Tensor) -> bool | None:
    """Whether labels [B, T] are already shifted against the input tokens [B, T or T + 1].

    True: label t is token t + 1. False: label t is token t. None: both or neither fit.
    Negative labels (ignored positions) fit anything. Reads the data, so it waits for a device.
    """
    if labels.ndim != 2 or tokens.ndim != 2 or labels.shape[0] != tokens.shape[0]:
        return None
    length = labels.shape[1]
    if tokens.shape[1] - length not in (0, 1):
        return None

    def equal(start: int) -> bool:
        other = tokens[:, start : start + length]
        mine = labels[:, : other.shape[1]]
        return bool(((mine == other) | (mine < 0)).all())

    not_shifted, shifted = equal(0), equal(1)
    return None if not_shifted == shifted else shifted


def transformers_language_models(module: nn.Module) -> list[nn.Module]:
    """The outermost transformers models in ``module`` that predict tokens from left to right.

    If transformers was never imported there are none, so it is not imported here either.
    """
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return []
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for candidate in module.modules():  # parents come before their children
        if candidate in inside or not isinstance(candidate, transformers.PreTrainedModel):
            continue
        if candidate.get_output_embeddings() is None or "MaskedLM" in type(candidate).__name__:
            continue
        inside.update(candidate.modules())
        found.append(candidate)
    return found


def _signature(model: nn.Module) -> inspect.Signature:
    return inspect.signature(type(model).forward.__get__(model))


def _logits_of(output: Any, *, has_labels: bool) -> Tensor | None:
    """Logits in a transformers output: by name, or behind the loss in a tuple."""
    if isinstance(output, tuple):
        place = 1 if has_labels else 0
        logits = output[place] if len(output) > place else None
    else:
        logits = getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) and logits.ndim == 3 else None


def _describe(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return f"a tensor {list(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"a {type(outputs).__name__} with {', '.join(map(repr, outputs)) or 'nothing in it'}"
    if isinstance(outputs, (tuple, list)):
        return f"a {type(outputs).__name__} of {len(outputs)}"
    return "None" if outputs is None else f"a {type(outputs).__name__}"
