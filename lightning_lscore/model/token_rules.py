"""Which tensor of a training batch holds the tokens, which of them are read, and what is padding.

The rules, in their order, each by the name that a record shows:

tokens
    1. *read by the embedding*: what the model looked up in its first step, or the part of each row
       that it did: all but the last id. Of several, such as source and target of a translation, it
       is the first by the rules below.
    2. *by its name*, ``input_ids`` first; several that are called so, as ``chosen_input_ids``, all
       count.
    3. *the first of whole numbers*, those with rows before those without, labels last.
    4. *by its name* ``inputs_embeds`` [B, T, size], where there are no ids.

padding
    1. *attention_mask*, or another mask of the tokens' shape that hides one id at the rows' ends.
    2. *ids below 0*; so are labels that stand for the input of pictures or sounds.
    3. *lengths* of the rows.
    4. labels or a loss mask that ignore one id at the rows' ends. Elsewhere, as in prompts, the
       model reads what they ignore.
    5. the *padding_idx* of an embedding, the *pad_token_id* of a config or the *ignore_index* of a
       loss, where rows end or start with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from .batch import is_input_ids, is_named_input, is_target, likely_tokens
from .embedding_reads import WHOLE, EmbeddingReads
from .leaves import Leaf, comparable, is_integer, leaves
from .pad_ids import PadId
from .padding import (
    Lengths,
    Mask,
    Negative,
    Padding,
    are_lengths,
    doubtful_run,
    is_binary,
    mask_of_padding,
    run_of_id,
    run_of_ignored,
)
from .place import Place

_EMBEDDINGS = ("inputs_embeds", "input_embeds", "inputs_embeddings")
_LENGTHS = (
    *("lengths", "length", "input_lengths", "seq_lens", "seq_lengths", "seqlens", "seq_len"),
    *("lens", "src_lens", "src_lengths", "text_lengths"),
)
# Masks of something else than padding have one of these in their names.
_OF_OTHERS = (
    *("loss", "label", "target", "completion", "answer", "assistant", "response", "mlm", "noise"),
    *("special", "global", "causal", "prefix", "prompt", "image", "span"),
)


@dataclass(frozen=True)
class Evidence:
    """What is known of the model that the batches train."""

    reads: EmbeddingReads
    pads: Sequence[PadId] = ()


def find_places(batch: Any, evidence: Evidence, look: bool = True) -> list[Place]:
    """Return where a batch has its tokens: several places if it holds a list of sequences.

    Args:
        batch: one, of one loader.
        evidence: of the model.
        look: whether the rules may look at the data, which waits for a GPU.
    """
    all_leaves = leaves(batch)
    likely = likely_tokens(all_leaves)
    found = _read(all_leaves, likely, evidence.reads) or _named(likely)
    if not found or is_target(found[0][1]):
        found = _embeddings(all_leaves) or found
    for place, tokens in found:
        ids, place.in_list = tokens.tensor, bool(_list_of(tokens, likely))
        if ids.is_nested:
            continue
        same = [leaf for leaf in all_leaves if leaf.tensor.shape == ids.shape]
        place.padding = _mask_by_name(tokens, same)
        if place.padding is None and is_target(tokens) and ids.ndim > 1:
            place.padding = Negative("labels below 0", tokens.path)
        if look and place.padding is None and is_integer(ids) and not place.in_list:
            lengths = [leaf for leaf in all_leaves if leaf.tensor.shape == ids.shape[:1]]
            place.watched = [tokens, *(leaf for leaf in same if leaf.keys != tokens.keys)]
            find_padding(place, place.watched, evidence.pads, lengths)
        if look and place.padding is not None and place.cuts_rows:
            _see_whether_it_follows_padding(place, batch, ids)
    return [place for place, _ in found]


def _see_whether_it_follows_padding(place: Place, batch: Any, ids: Tensor) -> None:
    """Read rows whole if the step cuts them where the longest one ends, which changes."""
    assert place.padding is not None
    length = place.read_shape(ids.shape)[-1]
    cuts = (WHOLE, place.index, (..., slice(None, length - 1)))
    n_whole, n_cut, n_shorter = (place.padding.count(batch, ids, cut) for cut in cuts)
    if n_whole is not None and n_shorter is not None and n_whole == n_cut != n_shorter:
        place.index = WHOLE


def find_padding(
    place: Place, watched: Sequence[Leaf], pads: Sequence[PadId], lengths: Sequence[Leaf] = ()
) -> None:
    """Look for padding, and for what looks like it, in a batch. Waits for a device."""
    tokens, *same = (leaf._replace(tensor=comparable(leaf.tensor)) for leaf in watched)
    place.padding = next(_paddings(tokens, same, lengths, pads), None)
    place.doubt = doubtful_run(tokens.tensor) if place.padding is None else None


Found = list[tuple[Place, Leaf]]

_READ = "read by the embedding"


def _place(leaf: Leaf, rule: str, index: Any = WHOLE) -> tuple[Place, Leaf]:
    return Place(str(leaf), rule, leaf.path, index, leaf.tensor.ndim), leaf


def _read(all_leaves: Sequence[Leaf], likely: Sequence[Leaf], reads: EmbeddingReads) -> Found:
    if not reads.reads:
        return []
    known = {leaf.keys for leaf in likely}
    others = [leaf for leaf in all_leaves if leaf.keys not in known and is_integer(leaf.tensor)]
    read: list[tuple[Leaf, Any]] = []
    for leaf in (*likely, *others):
        part = None if leaf.tensor.is_nested else reads.part_of(leaf.tensor)
        # What is unlikely to be tokens may have their shape by chance.
        if part is not None and (leaf.keys in known or reads.lies_in(leaf.tensor)):
            read.append((leaf, part))
    own = [one for one in read if reads.lies_in(one[0].tensor)]
    if not read:
        return []
    chosen, index = (own or read)[0]
    several = [(leaf, part) for leaf, part in own if is_input_ids(leaf.name)]
    if is_input_ids(chosen.name) and several:
        return [_place(leaf, _READ, part) for leaf, part in several]
    if is_input_ids(chosen.name) and chosen.name != "input_ids":
        return []  # one of several that were put together
    place, _ = _place(chosen, _READ, index)
    place.also = ", ".join(
        str(leaf)
        for leaf, _ in own
        if leaf is not chosen and leaf.keys in known and reads.begins_at(leaf.tensor)
    )
    return [(place, chosen)]


def _named(likely: Sequence[Leaf]) -> Found:
    if not likely:
        return []
    first = likely[0]
    rule = "found by its name" if first.name else "the first of whole numbers"
    if is_input_ids(first.name) and first.name != "input_ids":
        return [_place(leaf, rule) for leaf in likely if is_input_ids(leaf.name)]
    return [_place(leaf, rule) for leaf in _list_of(first, likely) or [first]]


def _list_of(leaf: Leaf, likely: Sequence[Leaf]) -> list[Leaf]:
    """Return the sequences of the list of inputs that a tensor is in; none if it is in no such.

    Tensors of one shape may be ids, labels and a mask.
    """
    if leaf.place_in_list is None or not is_named_input(leaf):
        return []
    together = [one for one in likely if one.keys[:-1] == leaf.keys[:-1]]
    alike = leaf.tensor.ndim == 1 or len({one.tensor.shape for one in together}) > 1
    return together if alike and len({one.tensor.ndim for one in together}) == 1 else []


def _embeddings(all_leaves: Sequence[Leaf]) -> Found:
    for leaf in all_leaves:
        if leaf.name in _EMBEDDINGS and leaf.tensor.ndim == 3:
            first = itemgetter((..., 0))  # one number of each token, as if it were its id
            ids = leaf._replace(path=(*leaf.path, first), tensor=first(leaf.tensor))
            return [_place(ids, "found by its name")]
    return []


# ---------------------------------------------------------------------- padding


def _mask_by_name(tokens: Leaf, same: Sequence[Leaf]) -> Padding | None:
    """``attention_mask`` needs no look at it."""
    of_several = tokens.name.replace("input_ids", "attention_mask")
    names = [of_several] * (of_several != tokens.name)
    for name in (*names, "attention_mask"):
        for leaf in same:
            # In a list of sequences each has its own.
            if leaf.name == name and leaf.place_in_list in (None, tokens.place_in_list):
                return Mask(name, leaf.path)
    return None


def _paddings(
    tokens: Leaf, same: Sequence[Leaf], lengths: Sequence[Leaf], pads: Sequence[PadId]
) -> Iterator[Padding]:
    """Yield what shows padding, the best first. Waits for a device."""
    ids = tokens.tensor
    yield from _masks([leaf for leaf in same if _may_be_mask(leaf)], ids)
    if bool((ids < 0).any()):
        yield Negative("ids below 0", tokens.path)
    if ids.ndim < 2:
        return
    for leaf in lengths:
        name = leaf.own_name.lower()
        if name in _LENGTHS or (not name and are_lengths(leaf.tensor, ids)):
            yield Lengths(name or "lengths", leaf.path)
    for leaf in same:
        if (rule := run_of_ignored(leaf, tokens)) is not None:
            yield rule
    for pad in pads:
        if rule := run_of_id(tokens, pad.id, pad.words, pad.ends_texts):
            yield rule


def _may_be_mask(leaf: Leaf) -> bool:
    name = leaf.own_name.lower()
    is_one = "mask" in name or "pad" in name
    return not name or (is_one and not any(word in name for word in _OF_OTHERS))


def _masks(leaves: Sequence[Leaf], ids: Tensor) -> Iterator[Padding]:
    """Yield masks of padding, those that show some before those that show none."""
    found = [] if is_binary(ids) else [(leaf, mask_of_padding(leaf.tensor, ids)) for leaf in leaves]
    masks = [
        Mask(leaf.own_name or "a mask of 0 and 1", leaf.path, of_padding=inverse)
        for leaf, inverse in found
        # Zeros alone may be segments, which have no name in a tuple.
        if inverse is not None
        and (leaf.own_name or leaf.tensor.dtype is torch.bool or bool(leaf.tensor.any()))
    ]
    shows = {leaf.path: bool((leaf.tensor != leaf.tensor.flatten()[0]).any()) for leaf, _ in found}
    yield from sorted(masks, key=lambda mask: not shows[mask.path])
