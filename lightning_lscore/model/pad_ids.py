"""Ids that a model says to be padding."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class PadId(NamedTuple):
    """An id of padding."""

    id: int
    words: str
    """Who says so."""
    ends_texts: bool
    """Whether it ends a text too, so that one alone at the end of a row is none."""


def pad_ids(model: nn.Module | None) -> list[PadId]:
    """Return what embeddings, configs and losses inside a model take for padding."""
    found: dict[int, PadId] = {}
    ends: set[int] = set()
    for part in () if model is None else model.modules():
        config = getattr(part, "config", None)
        end = getattr(config, "eos_token_id", None)
        ends.update(end if isinstance(end, list) else [end] if isinstance(end, int) else [])
        for value, words in (
            (getattr(part, "padding_idx", None), "the padding_idx of an embedding"),
            (getattr(config, "pad_token_id", None), "the config's pad_token_id"),
            (getattr(part, "ignore_index", None), f"the ignore_index of {type(part).__name__}"),
        ):
            if type(value) is int and value >= 0:
                found.setdefault(value, PadId(value, words, False))
    return [pad._replace(ends_texts=pad.id in ends) for pad in found.values()]
