"""transformers language models inside a module: finding them, and hearing how they are called."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..model.sharded import is_sharded
from .nll import row_nll

_BUFFER = 32 << 20  # bytes of the logits that are made at a time where a model makes none
# What models do to their logits behind the output layer: Gemma 2, Cohere, Granite, Falcon-H1, ...
_SCALES = re.compile(
    r"((final|output)_)?logits?_(soft_?cap|scal)\w*|(lm_head|output)_multiplier|softcap"
    r"|unpadded_vocab_size"
)


@dataclass(frozen=True)
class Call:
    """One forward pass of a language model."""

    model: Any
    labels: Tensor | None
    tokens: Tensor | None
    """What it reads from left to right: its input, or that of its decoder, [B, T]."""
    mask: Tensor | None
    """The attention mask of these."""
    logits: Tensor | None
    """[B, T, V]."""
    hidden: Any
    """[B, T, H], what its output layer reads; only where there are no logits."""
    loss: Any
    shifted: bool
    """Whether its loss compares label t with logits t, as encoder-decoder models do."""


class LanguageModel:
    """Tells about each call of a transformers model, until detached.

    Args:
        model: one of :func:`transformers_language_models`.
        heard: called with each :class:`Call`, when the model's forward is over.
    """

    def __init__(self, model: Any, heard: Callable[[Call], None]) -> None:
        self._model = model
        self._heard = heard
        self._hidden: Any = None
        self._seq2seq = bool(getattr(model.config, "is_encoder_decoder", False))
        self._signature = inspect.signature(type(model).forward.__get__(model))
        self._leave = [_Forward.of(model).join(self._on_model)]
        if model.base_model is not model and not self._seq2seq:
            self._leave.append(_Forward.of(model.base_model).join(self._on_base))

    def detach(self) -> None:
        """Leaves the model as it was."""
        while self._leave:
            self._leave.pop()()

    def _on_base(self, args: Any, kwargs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._hidden = getattr(hidden, "last_hidden_state", hidden)

    def _on_model(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden, self._hidden = self._hidden, None
        given = self._signature.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        of = "decoder_" if self._seq2seq else ""
        logits = _logits_of(output)
        # Under this name transformers itself takes labels that are shifted already.
        shifted = given.get("shift_labels")
        self._heard(
            Call(
                model=self._model,
                labels=given.get("labels") if shifted is None else shifted,
                tokens=given.get(of + "input_ids"),
                mask=given.get(of + "attention_mask"),
                logits=logits,
                hidden=hidden if logits is None else None,
                loss=output[0] if isinstance(output, tuple) else getattr(output, "loss", None),
                shifted=self._seq2seq or shifted is not None,
            )
        )


def hidden_nll(call: Call, labels: Tensor, ignore_index: int) -> Tensor:
    """NLL [B, T] of a model that makes no logits, from its hidden states, some rows at a time.

    Such a model has a loss that is fused with the output layer (as that of the Liger kernels),
    lest logits fill the memory; so they do not here. Waits for the device.

    Args:
        call: with labels and without logits.
        labels: [B, T], of which label t belongs to hidden state t, as the model's loss counts them.
        ignore_index: label of the positions that are not counted.

    Raises:
        ValueError: where hidden states times output layer are not the logits.
    """
    head, hidden = call.model.get_output_embeddings(), call.hidden
    reason = None
    if not isinstance(hidden, Tensor) or hidden.shape[:-1] != labels.shape:
        reason = "its base model gives no state for each label"
    elif not isinstance(head, nn.Linear) or is_sharded(head.weight):
        reason = f"its output layer is no nn.Linear in one piece, but a {type(head).__name__}"
    elif scale := _scale(call.model.config):
        reason = f"it changes its logits behind the output layer ({scale})"
    else:
        with torch.no_grad():
            nll = _by_rows(hidden, labels.to(hidden.device), head, ignore_index)
        mean, loss = float(nll.sum() / (labels != ignore_index).sum()), call.loss
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            reason = "without its loss that cannot be checked"
        elif math.isfinite(mean) and not math.isclose(mean, float(loss), rel_tol=0.01):
            reason = f"that makes a mean loss of {mean:.4g}, and its own is {float(loss):.4g}"
    if reason is not None:
        raise ValueError(
            f"The {type(call.model).__name__} returned no logits, and they cannot be made from its "
            f"hidden states: {reason}."
        )
    return nll


def _by_rows(hidden: Tensor, labels: Tensor, head: nn.Linear, ignore_index: int) -> Tensor:
    rows = max(1, _BUFFER // (4 * head.weight.shape[0]))
    linear = partial(nn.functional.linear, weight=head.weight, bias=head.bias)
    states, targets = hidden.to(head.weight.dtype).flatten(0, -2), labels.flatten()
    parts = zip(torch.split(states, rows), torch.split(targets, rows), strict=True)
    nll = [row_nll(linear(h), t, ignore_index) for h, t in parts]
    return torch.cat(nll).view(labels.shape)


def _scale(config: Any) -> str:
    """The first setting that says that logits are more than the output of a linear layer."""
    for name, value in config.get_text_config().to_dict().items():
        if _SCALES.fullmatch(name) and value not in (None, 0, 1):
            return f"{name}={value}"
    return ""


def transformers_language_models(module: nn.Module) -> list[nn.Module]:
    """The outermost transformers models in ``module`` that predict tokens from left to right.

    If transformers was never imported there are none, so it is not imported here either.
    """
    # Not asked of transformers itself, which would import it: whoever has a model has this.
    transformers = sys.modules.get("transformers.modeling_utils")
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


Listener = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
"""(arguments, keyword arguments, output of forward) -> nothing."""


class _Forward:
    """Stands in for a module's ``forward`` as long as somebody listens.

    A forward hook is not asked where ``forward`` is called directly, as PEFT did up to 0.17. All
    listeners share one of these, so that they may leave in any order.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._own = vars(module).get("forward")  # such as that of an offloading library
        self._forward = module.forward
        self._listeners: list[Listener] = []
        functools.update_wrapper(self, module.forward)  # generate() reads its signature

    @classmethod
    def of(cls, module: nn.Module) -> _Forward:
        present = vars(module).get("forward")
        if isinstance(present, cls):
            return present
        module.forward = new = cls(module)
        return new

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._forward(*args, **kwargs)
        for listener in self._listeners:
            listener(args, kwargs, output)
        return output

    def join(self, listener: Listener) -> Callable[[], None]:
        """Adds a listener; what is returned takes it away again."""
        # torch.compile is not to look into it.
        listener = torch.compiler.disable(listener)  # type: ignore[no-untyped-call]
        self._listeners.append(listener)
        return partial(self._remove, listener)

    def _remove(self, listener: Listener) -> None:
        self._listeners.remove(listener)
        if self._listeners or vars(self._module).get("forward") is not self:
            return
        del self._module.forward
        if self._own is not None:
            self._module.forward = self._own


def _logits_of(output: Any) -> Tensor | None:
    """Logits in a transformers output: by name, or the first tensor [B, T, V] in a tuple."""
    found = output if isinstance(output, tuple) else [getattr(output, "logits", None)]
    return next((x for x in found if isinstance(x, Tensor) and x.ndim == 3), None)
