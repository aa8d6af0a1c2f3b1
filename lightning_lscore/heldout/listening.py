"""Listen to the calls of a transformers language model in a validation step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..model.unseen import unseen
from .first_error import FirstError
from .stand_in import Listener, StandIn


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
        before: called when a forward pass begins.
        errors: keeps those of listening.
    """

    def __init__(
        self,
        model: Any,
        heard: Callable[[Call], None],
        before: Callable[[], None],
        errors: FirstError,
    ) -> None:
        self._model = model
        self._errors = errors
        self._heard = heard
        self._hidden: Any = None
        self._seq2seq = bool(getattr(model.config, "is_encoder_decoder", False))
        self._signature = inspect.signature(type(model).forward.__get__(model))
        self._leave = [self._listen(model, self._on_model, before)]
        if model.base_model is not model and not self._seq2seq:
            self._leave.append(self._listen(model.base_model, self._on_base))

    def _listen(
        self, model: Any, listener: Listener, before: Callable[[], None] | None = None
    ) -> Callable[[], None]:
        # torch.compile must not trace the listeners.
        kept = self._errors.keep
        return StandIn.of(model, "forward").join(
            unseen(kept(listener)), before and unseen(kept(before))
        )

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


def _logits_of(output: Any) -> Tensor | None:
    """Return logits of a transformers output: by name, or the first tensor [B, T, V] in a tuple."""
    found = output if isinstance(output, tuple) else [getattr(output, "logits", None)]
    return next((x for x in found if isinstance(x, Tensor) and x.ndim == 3), None)
