"""Perplexity of one long text, by windows that slide over it.

A model reads at most C tokens at a time (``context_length``). The first window predicts C tokens;
each later one begins S tokens further (``stride``), reads C tokens and is scored on the last S of
its predictions only, so the others serve as context and every token is counted once:

    tokens      b 1 2 3 4 5 6 7 8 9        C = 4, S = 2, b the beginning-of-sequence token
    window 0    b 1 2 3                    predicts 1 2 3 4
    window 1        2 3 4 5                predicts     5 6
    window 2            4 5 6 7            predicts         7 8
    window 3                6 7 8          predicts             9

At S = C windows share no input; at S = 1 every token has all the context that the model can use,
at C / S times the work. Perplexity depends on context, stride and beginning: state them with it.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..equation.safe_numbers import exp
from .nll import token_nll

__all__ = ["TextEvaluation", "evaluate_text"]


@dataclass(frozen=True, kw_only=True)
class TextEvaluation:
    """What :func:`evaluate_text` measured, and how.

    Sum, tokens, bytes and words are those of one span: the text, or without a beginning-of-sequence
    token the text after its first token, which nothing predicts.
    """

    nll_sum: float
    """Sum of the negative log-likelihoods, nats."""
    tokens: int
    """Predicted tokens, each counted once."""
    utf8_bytes: int | None
    """Bytes of the span; None where it is not known where the first token ends."""
    words: int | None
    """Pieces of the span between runs of whitespace; None as for the bytes."""
    context_length: int
    """Tokens that the model reads at most to predict one."""
    stride: int
    """Tokens that a window after the first is scored on."""
    bos: int | None
    """Id of the beginning-of-sequence token that predicts the first one; None: without."""
    full_last: bool
    """Whether the last window begins early enough to be full."""

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats per token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nll_sum / tokens); inf beyond the range of a float."""
        return exp(self.nll)

    @property
    def word_perplexity(self) -> float | None:
        """exp(nll_sum / words): compares across tokenizers."""
        return exp(self.nll_sum / self.words) if self.words else None

    @property
    def byte_perplexity(self) -> float | None:
        """exp(nll_sum / bytes): compares across tokenizers."""
        return exp(self.nll_sum / self.utf8_bytes) if self.utf8_bytes else None

    @property
    def bits_per_byte(self) -> float | None:
        """nll_sum / (ln 2 · bytes): compares across tokenizers."""
        return self.nll_sum / (math.log(2) * self.utf8_bytes) if self.utf8_bytes else None

    def __str__(self) -> str:
        start = "without BOS" if self.bos is None else f"BOS {self.bos}"
        return (
            f"perplexity {self.perplexity:.6g} of {self.tokens} tokens"
            f" (context {self.context_length}, stride {self.stride}, {start})"
        )


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
    """Perplexity, and bits per byte, of a causal language model on one text of any length.

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
        add_bos: whether a beginning-of-sequence token comes before the text, so that the first
            token is predicted too; without, it is only read. Default: if there is one.
        bos_token_id: the token to begin with, by default the tokenizer's ``bos_token_id``.
        full_last: let the last window begin early enough to read context_length tokens. Otherwise
            it begins a stride after the one before and may be shorter.
        progress: show a bar, in tokens, on stderr.

    Returns:
        The sums in nats, the counts, and the settings to be stated with them.

    Raises:
        TypeError: text that is not a string.
        ValueError: a text with no token to predict, a stride or length out of range, no BOS token
            where one is asked for, no context_length where the model names none, or logits of an
            unexpected shape.

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
            f"Expected a text with a token to predict, got {text!r}: {len(ids)} tokens, BOS"
            " included. Without BOS the first token is only read, so two are needed."
        )
    context = _context_length(model) if context_length is None else context_length
    step = max(1, context // 2) if stride is None else stride
    _check(context, step, batch_size)
    span = None if start is None else text[start:]
    return TextEvaluation(
        nll_sum=_nll_sum(
            model, ids, _batches(len(ids) - 1, context, step, full_last, batch_size), progress
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


@dataclass(frozen=True)
class _Window:
    """Inputs ids[begin:end]; each predicts the next, and the last ``new`` predictions count."""

    begin: int
    end: int
    new: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.end - self.begin, self.new


def _windows(predicted: int, context: int, stride: int, full_last: bool) -> Iterator[_Window]:
    """Windows over predicted + 1 tokens, which together predict all but the first once."""
    end = min(context, predicted)
    yield _Window(0, end, end)
    for begin in itertools.count(stride, stride):
        if end == predicted:
            return
        new = min(stride, predicted - end)
        end += new
        yield _Window(end - context if full_last else begin, end, new)


def _batches(
    predicted: int, context: int, stride: int, full_last: bool, size: int
) -> Iterator[list[_Window]]:
    """The windows, neighbours of equal shape together."""
    windows = _windows(predicted, context, stride, full_last)
    for _, alike in itertools.groupby(windows, lambda window: window.shape):
        while batch := list(itertools.islice(alike, size)):
            yield batch


def _nll_sum(
    model: nn.Module, ids: Sequence[int], batches: Iterator[list[_Window]], progress: bool
) -> float:
    from tqdm import tqdm  # type: ignore[import-untyped]  # comes with lightning

    tokens = torch.tensor(ids, device=_device(model))
    total = torch.zeros((), dtype=torch.float64)
    bar = tqdm(total=len(ids) - 1, unit="token", disable=not progress)
    with bar, _evaluating(model), torch.no_grad():
        for batch in batches:
            nll = _batch_nll(model, tokens, batch)
            total = total.to(nll.device) + nll
            bar.update(sum(window.new for window in batch))
    return total.item()


def _batch_nll(model: nn.Module, tokens: Tensor, batch: list[_Window]) -> Tensor:
    """Sum of the NLL of the new tokens of windows of equal shape, nats."""
    new = batch[0].new
    inputs = torch.stack([tokens[window.begin : window.end] for window in batch])
    labels = torch.stack([tokens[window.end - new + 1 : window.end + 1] for window in batch])
    output = model(inputs, **_sparing(model, new))
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[1] < new:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ValueError(
            f"Expected the model to return logits [{len(batch)}, {inputs.shape[1]}, vocabulary],"
            f" or an object with them as `logits`, got {found}. Wrap it in a module that does."
        )
    # Of a model that keeps the new rows only, these are all.
    return token_nll(logits[:, -new:], labels.to(logits.device), ignore_index=None)[0]


def _sparing(model: nn.Module, rows: int) -> dict[str, Any]:
    """Arguments that save work, where the model has them: the last rows alone, no cache."""
    names = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": rows, "num_logits_to_keep": rows, "use_cache": False}
    return {name: value for name, value in options.items() if name in names}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards each module is in its own again, as frozen ones may differ."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _device(model: nn.Module) -> torch.device:
    """Where a model takes its input: with its first weights, offloaded ones apart."""
    devices = (weight.device for weight in (*model.parameters(), *model.buffers()))
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def _tokenize(tokenizer: Any, text: str) -> tuple[list[int], int | None]:
    """Ids without special tokens; the character where the second begins, if that is known."""
    if not isinstance(text, str):
        raise TypeError(f"Expected one text, a str, got {type(text).__name__}. Join the parts.")
    options = {"return_offsets_mapping": True} if getattr(tokenizer, "is_fast", False) else {}
    # verbose=False: a text longer than the model's context is what the windows are for.
    encoding = tokenizer(text, add_special_tokens=False, verbose=False, **options)
    (_, end), *rest = encoding.get("offset_mapping") or [(0, None)]
    # Tokens may be bytes: where the second begins within the first's character, no span is exact.
    return list(encoding["input_ids"]), None if rest and rest[0][0] < end else end


def _bos(tokenizer: Any, add: bool | None, token: int | None) -> int | None:
    token = getattr(tokenizer, "bos_token_id", None) if token is None else token
    if add and token is None:
        raise ValueError(
            "Expected a tokenizer with a bos_token_id, got none. Give bos_token_id, such as"
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
        "Expected a model whose config has max_position_embeddings, got none."
        " Give context_length: the number of tokens that the model reads at once."
    )


def _check(context: int, stride: int, batch_size: int) -> None:
    for name, value in (("context_length", context), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"Expected {name} of at least 1, got {value}.")
    if not 1 <= stride <= context:
        raise ValueError(
            f"Expected a stride from 1 to context_length={context}, got {stride}."
            " A longer one would leave out the tokens between the windows."
        )
