"""Ids that a model says to be padding."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn


class PadId(NamedTuple):
    """An id of padding."""

    id: int
    words: str
    """Who says so."""
    ends_texts: bool
    """Whether it ends a text too, so that one alone at the end of a row is none."""


def pad_ids(model: nn.Module | None, ignore_index: int | None = None) -> list[PadId]:
    """Return what embeddings, configs and losses inside a model take for padding.

    Args:
        model: None: there is none to ask.
        ignore_index: as the user says it: padding if it is an id.
    """
    found: dict[int, PadId] = {}
    ends: set[int] = set()
    said: list[tuple[Any, str]] = [(ignore_index, "the given ignore_index")]
    for part in () if model is None else model.modules():
        config = getattr(part, "config", None)
        end = getattr(config, "eos_token_id", None)
        ends.update(end if isinstance(end, list) else [end] if isinstance(end, int) else [])
        said += [
            (getattr(part, "padding_idx", None), "the padding_idx of an embedding"),
            (getattr(config, "pad_token_id", None), "the config's pad_token_id"),
            (getattr(part, "ignore_index", None), f"the ignore_index of {type(part).__name__}"),
        ]
    for value, words in said:
        if type(value) is int and value >= 0:
            found.setdefault(value, PadId(value, words, ends_texts=value in ends))
    return list(found.values())
