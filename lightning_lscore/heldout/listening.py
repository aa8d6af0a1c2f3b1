"""Listen to the calls of a transformers language model in a validation step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One forward pass of a language model."""

    model: Any
    labels: Tensor | None
    tokens: Tensor | None
    """Token ids [B, T] that it reads from left to right: its input, or its decoder's."""
    mask: Tensor | None
    """Attention mask of these tokens."""
    logits: Tensor | None
    """[B, T, V]."""
    hidden: Any
    """Input of its output layer, [B, T, H]; only if there are no logits."""
    loss: Any
    shifted: bool
    """Whether its loss compares label t with logits t, as encoder-decoder models do."""


class LanguageModel:
    """Reports each call of a transformers model, until detached.

    Args:
        model: one of :func:`~lightning_lscore.model.language_models.language_models`.
        heard: called with a :class:`Call` after each forward pass.
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
        """Restore the model."""
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
        # transformers takes labels that are already shifted under this name.
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


Listener = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
"""(arguments, keyword arguments, output of forward) -> nothing."""


class _Forward:
    """Stands in for a module's ``forward`` while it has listeners.

    A forward hook misses direct calls of ``forward``, which PEFT made up to 0.17. All listeners to
    a module share one stand-in, and may leave in any order.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._own = vars(module).get("forward")  # set by an offloading library, for example
        self._forward = module.forward
        self._listeners: list[Listener] = []
        functools.update_wrapper(self, module.forward)  # generate() inspects the signature

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
        """Add a listener, and return the function that removes it."""
        # torch.compile must not trace it.
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
    """Return logits of a transformers output: by name, or the first tensor [B, T, V] in a tuple."""
    found = output if isinstance(output, tuple) else [getattr(output, "logits", None)]
    return next((x for x in found if isinstance(x, Tensor) and x.ndim == 3), None)
