"""Perplexity of one long text, by windows that slide over it: see ``text_windows``."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from .text_nll import nll_sum
from .text_result import TextEvaluation
from .text_windows import batches_of_windows

__all__ = ["TextEvaluation", "evaluate_text"]


def evaluate_text(
    model: nn.Module,
    tokenizer: Any,
    text: str,
    *,
    context_length: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    add_bos: bool | None = None,
    bos_token_id: int | None = None,
    full_last: bool = False,
    progress: bool = False,
) -> TextEvaluation:
    """Measure perplexity and bits per byte of a causal language model on one text of any length.

    Two short passes first look whether the model is causal: whether the logits of earlier tokens
    stay the same when a later one changes.

    Each token's NLL enters a float64 sum once, whatever the stride. Logits are scored where they
    are, and only where tokens are new; a model that takes ``logits_to_keep`` computes no others.
    The model runs where it is, in eval mode (each module's own mode is restored) and without
    gradient. Tokenizers split the text as they do anywhere, but add no special tokens.

    Args:
        model: input_ids [B, T] -> logits [B, T, V] of the next tokens, or an object with them as
            ``logits``, as the causal models of transformers return. It may return the last rows
            only, and need not be one of transformers'.
        tokenizer: called as those of transformers: (text, add_special_tokens=False, verbose=False,
            and return_offsets_mapping=True if ``is_fast``) -> mapping with ``input_ids``.
        text: not empty. One that begins with the BOS token itself gets no second one.
        context_length: tokens that the model reads at once. Default: the model's
            ``config.max_position_embeddings``, which for recent models may ask for much memory.
        stride: tokens between the beginnings of windows, from 1 to context_length. Default: half
            the context, where a token has at least half of it, at about twice the work of none.
        batch_size: windows of equal shape that are computed together; the first and the last have
            a shape of their own, unless stride and length make them equal.
        add_bos: whether to begin with a beginning-of-sequence token, which predicts the first token
            of the text; without it that token is only read. Default: if the tokenizer has one.
        bos_token_id: the token to begin with, by default the tokenizer's ``bos_token_id``.
        full_last: let the last window begin early enough to read context_length tokens. Otherwise
            it begins a stride after the one before and may be shorter.
        progress: show a bar, in tokens, on stderr.

    Returns:
        The sums in nats, the counts, and the settings to be stated with them.

    Raises:
        TypeError: text that is not a string.
        ValueError: an encoder-decoder or another model that sees the tokens it is to predict, as
            masked ones do: its result would be no perplexity. A text with no token to predict, a
            stride or length out of range, no BOS token despite add_bos, no context_length although
            the model's config has none, or logits of an unexpected shape.

    Compared with others:
        transformers' guide counts the last target to a window: its ``max_length`` M is a
        context_length of M - 1 here, and at a stride of M it never predicts the first token of a
        window. It weights the mean loss of a window of n new tokens by n - 1 (older versions: all
        windows alike), which is exact in the first window only; here every token weighs the same.

        lm-evaluation-harness (0.4) computes the ``loglikelihood_rolling`` of a text as done here
        with stride=context_length, full_last=True and, where the tokenizer has no BOS token,
        bos_token_id=tokenizer.eos_token_id; its tokenizer may add a BOS token of its own on top.
        word_perplexity, byte_perplexity and bits_per_byte are defined as there, over this text
        (its wikitext task counts the words and bytes of another: the one before detokenisation).

    References:
        Hugging Face, "Perplexity of fixed-length models",
        https://huggingface.co/docs/transformers/perplexity
        Gao et al., lm-evaluation-harness: ``utils.get_rolling_token_windows``, ``api/metrics.py``,
        ``tasks/wikitext``, https://github.com/EleutherAI/lm-evaluation-harness

    Example:
        >>> import torch
        >>> class Uniform(torch.nn.Module):
        ...     def forward(self, input_ids):
        ...         return torch.zeros(*input_ids.shape, 256)
        >>> def utf8(text, **options):
        ...     return {"input_ids": list(text.encode())}
        >>> result = evaluate_text(Uniform(), utf8, "So be it.", context_length=4, bos_token_id=0)
        >>> print(result)
        perplexity 256 of 9 tokens (context 4, stride 2, BOS 0)
        >>> round(result.bits_per_byte, 6), round(result.word_perplexity)
        (8.0, 16777216)
    """
    ids, start = _tokenize(tokenizer, text)
    bos = _bos(tokenizer, add_bos, bos_token_id)
    if bos is not None and ids[:1] != [bos]:
        ids, start = [bos, *ids], 0
    if len(ids) < 2:
        raise ValueError(
            f"expected a text with a token to predict, got {text!r}: {len(ids)} tokens, BOS"
            " included. Without BOS the first token is only read, so two are needed."
        )
    context = _context_length(model) if context_length is None else context_length
    step = max(1, context // 2) if stride is None else stride
    _check(context, step, batch_size)
    span = None if start is None else text[start:]
    return TextEvaluation(
        nll_sum=nll_sum(
            model,
            ids,
            batches_of_windows(len(ids) - 1, context, step, full_last, batch_size),
            progress,
        ),
        tokens=len(ids) - 1,
        utf8_bytes=None if span is None else len(span.encode()),
        # As lm-evaluation-harness splits: whitespace at an end makes an empty word there.
        words=None if span is None else len(re.split(r"\s+", span)),
        context_length=context,
        stride=step,
        bos=bos,
        full_last=full_last,
    )


def _tokenize(tokenizer: Any, text: str) -> tuple[list[int], int | None]:
    """Return ids without special tokens, and the character where the second begins, if known."""
    if not isinstance(text, str):
        raise TypeError(f"expected one text, a str, got {type(text).__name__}. Join the parts.")
    options = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    # verbose=False: the windows are for texts longer than the model's context.
    encoding = tokenizer(text, add_special_tokens=False, verbose=False, **options)
    (_, end), *rest = encoding.get("offset_mapping") or [(0, None)]
    # Tokens may be bytes: where the second begins within the first's character, no span is exact.
    return list(encoding["input_ids"]), None if rest and rest[0][0] < end else end


def _bos(tokenizer: Any, add: bool | None, token: int | None) -> int | None:
    token = getattr(tokenizer, "bos_token_id", None) if token is None else token
    if add and token is None:
        raise ValueError(
            "expected a tokenizer with a bos_token_id, got none. Give bos_token_id, for example"
            " tokenizer.eos_token_id, or add_bos=False: the first token is then only read."
        )
    return None if add is False else token


def _context_length(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config  # a limit beside it is the images'
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(length := getattr(config, name, None), int):
            return length
    raise ValueError(
        "expected a model whose config has max_position_embeddings, got none."
        " Give context_length: the number of tokens that the model reads at once."
    )


def _check(context: int, stride: int, batch_size: int) -> None:
    for name, value in (("context_length", context), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}.")
    if not 1 <= stride <= context:
        raise ValueError(
            f"expected a stride from 1 to context_length={context}, got {stride}."
            " A longer one would leave out the tokens between the windows."
        )
