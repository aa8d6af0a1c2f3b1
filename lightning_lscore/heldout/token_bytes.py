"""Bytes of the text of tokens, which make perplexities comparable across tokenizers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CountBytes = Callable[[Tensor], int]
"""Token ids [n] -> bytes of their text in UTF-8."""


def make_count_bytes(given: Any) -> CountBytes:
    """Return a function that counts the bytes of tokens.

    Special tokens have no bytes.

    Args:
        given: that function itself; a tokenizer of transformers or tokenizers, byte-level (GPT-2,
            Llama 3) or SentencePiece; or an encoding of tiktoken.

    Raises:
        ValueError: for a tokenizer whose vocabulary does not reveal the bytes of its tokens.
    """
    lengths = _lengths(given)
    if lengths is not None:
        return _Table(lengths)
    if callable(given) and not hasattr(given, "convert_ids_to_tokens"):
        function: CountBytes = given
        return function
    raise ValueError(
        "count_bytes: expected a byte-level or SentencePiece tokenizer of transformers, tokenizers "
        "or tiktoken, or a function from token ids [n] to the bytes of their text, got "
        f"a {type(given).__name__}. For a model that reads bytes use count_bytes=len."
    )


class _Table:
    def __init__(self, lengths: list[int]) -> None:
        self._lengths = torch.tensor(lengths, dtype=torch.int64)

    def __call__(self, ids: Tensor) -> int:
        ids = ids.cpu()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(self._lengths):
            raise ValueError(
                f"count_bytes: expected token ids from 0 to {len(self._lengths) - 1}, got "
                f"{int(ids.min())} to {int(ids.max())}. Is this the tokenizer of the data?"
            )
        return int(self._lengths[ids.long()].sum())


def _lengths(tokenizer: Any) -> list[int] | None:
    """Return the bytes of each token by its id; None if the tokenizer does not reveal them."""
    if hasattr(tokenizer, "decode_single_token_bytes"):  # tiktoken
        special = set(tokenizer.special_tokens_set)
        values = dict.fromkeys(range(tokenizer.n_vocab), 0)
        for token_id in values:
            try:
                token = tokenizer.decode_single_token_bytes(token_id)
            except KeyError:  # an id without a token
                continue
            values[token_id] = 0 if token.decode("utf-8", "replace") in special else len(token)
        return list(values.values())
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    decoder = getattr(backend, "decoder", None)
    if decoder is None or not hasattr(backend, "get_added_tokens_decoder"):
        return None
    steps = json.loads(decoder.__getstate__())  # a decoder has no other way to inspect it
    kinds = [step["type"] for step in steps.get("decoders", [steps])]
    if "ByteLevel" in kinds:
        measure: Callable[[str], int] = len  # one character stands for one byte
    elif "Metaspace" in kinds or "ByteFallback" in kinds:
        measure = _piece
    else:
        return None
    lengths = [0] * (max(backend.get_vocab(with_added_tokens=True).values()) + 1)
    for token, token_id in backend.get_vocab(with_added_tokens=False).items():
        lengths[token_id] = measure(token)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    for token_id, added in backend.get_added_tokens_decoder().items():
        lengths[token_id] = 0 if added.special else len(added.content.encode())
    return [0 if i in special else n for i, n in enumerate(lengths)]


def _piece(token: str) -> int:
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return 1
    return len(token.replace("\u2581", " ").encode())
