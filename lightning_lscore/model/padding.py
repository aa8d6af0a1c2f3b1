"""What tells padding from tokens: a mask, lengths, or what stands at the ends of rows.

Rules find a :class:`Padding` in the first batch, whose data they look at; each later batch is then
counted by it without a look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .leaves import Getter, Leaf, comparable, follow, is_integer


@dataclass(frozen=True)
class Padding:
    """A way to count what is no padding in a batch."""

    words: str
    """What shows padding, in words."""
    path: tuple[Getter, ...]
    """To the tensor in the batch that does."""

    def count(self, batch: Any, ids: Tensor, index: Any) -> Tensor | None:
        """Return the number of tokens, int64, on the batch's device; None if nothing shows it.

        Args:
            batch: of the same structure as the one in which this was found.
            ids: of the batch, all of them.
            index: of those that the model reads.
        """
        shown = follow(self.path, batch)
        return None if shown is None else self.tokens(comparable(shown), comparable(ids), index)

    def tokens(self, shown: Tensor, ids: Tensor, index: Any) -> Tensor | None:
        """Return the same, by what the path leads to."""
        raise NotImplementedError


@dataclass(frozen=True)
class Mask(Padding):
    """A mask of the tokens' shape."""

    of_padding: bool = False
    """Whether it is true where there is padding, and not where there is none."""

    def tokens(self, shown: Tensor, ids: Tensor, index: Any) -> Tensor | None:
        if shown.shape != ids.shape:
            return None
        # Not a sum: packed documents have masks of 1, 2, 3.
        n = torch.count_nonzero(of_tokens(shown)[index])
        return ids[index].numel() - n if self.of_padding else n


@dataclass(frozen=True)
class Negative(Padding):
    """Ids below 0, which no embedding has; in labels they stand for padding."""

    def tokens(self, shown: Tensor, ids: Tensor, index: Any) -> Tensor | None:
        return torch.count_nonzero(ids[index] >= 0)


@dataclass(frozen=True)
class Lengths(Padding):
    """Lengths of the rows without padding, [B]."""

    def tokens(self, shown: Tensor, ids: Tensor, index: Any) -> Tensor | None:
        if shown.shape != ids.shape[:1]:
            return None
        return shown.clamp(max=ids[index].shape[-1]).sum(dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Run(Padding):
    """Padding stands at one end of each row, as a run of one id, where labels are ignored."""

    value: int
    """The id. It may end a text too, with a label that counts."""
    labels: bool = False
    """Whether the path leads to labels, ignored below 0, and not to the ids themselves."""
    is_mask: bool = False
    """Whether these labels are a mask, 0 where they are ignored."""
    at_start: bool = False
    anywhere: bool = False
    """Whether the same stands nowhere else, so that it may be counted without regard to place."""

    def tokens(self, shown: Tensor, ids: Tensor, index: Any) -> Tensor | None:
        if shown.shape != ids.shape:
            return None
        real = ids[index] != self.value
        if self.labels:
            real |= labelled(shown[index], self.is_mask)
        return torch.count_nonzero(real) if self.anywhere else reach(real, self.at_start).sum()

    def simplified(self, shown: Tensor, ids: Tensor) -> Run:
        """Return the cheaper way to count where it gives the same in a batch."""
        simple = replace(self, anywhere=True)
        counts = [one.tokens(shown, ids, ...) for one in (self, simple)]
        return simple if counts[0] == counts[1] else self


def of_tokens(mask: Tensor) -> Tensor:
    """Return an attention mask that is true, or not 0, for tokens; waits for no device.

    One of floating point may be added to scores: then tokens have 0, and padding a number below.
    """
    if not mask.is_floating_point():
        return mask
    return torch.where((mask > 0).any(), mask > 0, mask == 0)


def labelled(labels: Tensor, is_mask: bool) -> Tensor:
    """Return where labels are not ignored."""
    return labels != 0 if is_mask else labels >= 0


def reach(real: Tensor, at_start: bool = False) -> Tensor:
    """Return how far each row reaches until its run of padding, [...]: 0 where all is padding.

    Args:
        real: where there is none, [..., T].
        at_start: whether the run stands at the start of the row, so that it is measured backwards.
    """
    if not real.shape[-1]:
        return real.new_zeros(real.shape[:-1], dtype=torch.int64)
    places = torch.arange(1, real.shape[-1] + 1, device=real.device)
    return (real * (places.flip(0) if at_start else places)).amax(-1)


def mask_of_padding(mask: Tensor, ids: Tensor) -> bool | None:
    """Return whether a mask is true where there is padding; None: it tells nothing of padding.

    Padding is at one end of each row, and all of it one id. So a mask that goes from 1 to 0 shows
    padding behind the tokens, whatever is in it; one from 0 to 1 may be of a prompt, which a loss
    leaves out, unless one id tells. A mask that would make all of it padding is true for none.
    Waits for a device.
    """
    if ids.ndim < 1 or not is_binary(mask):
        return None
    on = mask != 0
    if bool(on.all()) or not bool(on.any()):
        return not bool(on.any())
    change = on.long().diff(dim=-1)
    if bool(((change != 0).sum(-1) > 1).any()):
        return None
    off_alike, on_alike = _alike(ids[~on]), _alike(ids[on])
    if off_alike != on_alike:
        return on_alike
    return False if bool((change <= 0).all() and (change < 0).any()) else None


def as_padding_mask(mask: Tensor, ids: Tensor) -> Tensor | None:
    """Return a mask that is true for tokens, not for padding; None if it is no mask of padding."""
    inverse = mask_of_padding(mask, ids)
    return None if inverse is None else (mask == 0 if inverse else mask)


def is_binary(tensor: Tensor) -> bool:
    """Whether there is nothing in a tensor but 0 and 1. Waits for a device."""
    return tensor.dtype is torch.bool or bool(((tensor == 0) | (tensor == 1)).all())


def are_lengths(lengths: Tensor, ids: Tensor) -> bool:
    """Whether whole numbers [B] prove to be the rows' lengths: behind them all is one id.

    Waits for a device.
    """
    if lengths.shape != ids.shape[:1] or ids.ndim != 2 or not is_integer(lengths):
        return False
    if not bool(((lengths > 0) & (lengths <= ids.shape[1])).all()):
        return False
    places = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    behind, last = ids[places > lengths[:, None]], ids[places == lengths[:, None]]
    return _alike(behind) and bool((last != behind[0]).all())


def run_of_ignored(labels: Leaf, tokens: Leaf) -> Run | None:
    """Return the padding that labels or a loss mask show: they ignore one id at the rows' ends.

    What they ignore elsewhere, a prompt for example, is read by the model. Waits for a device.
    """
    words, ids = labels.own_name or "labels", tokens.tensor
    is_mask = "mask" in words
    if not (is_mask or (is_integer(labels.tensor) and bool((labels.tensor < 0).any()))):
        return None
    last = reach(labelled(labels.tensor, is_mask))[..., None]
    places = torch.arange(1, ids.shape[-1] + 1, device=ids.device)
    # One more may be what a shift left over: the label of the last token.
    ignored = ids[(places > last + 1) & (last > 0)]
    if not _alike(ignored):
        return None
    pad = int(ignored[0])
    said = f"id {pad} at the ends of rows, ignored by {words}"
    rule = Run(said, labels.path, value=pad, labels=True, is_mask=is_mask)
    return rule.simplified(labels.tensor, ids)


def run_of_id(tokens: Leaf, pad: int, words: str, ends_texts: bool) -> Run | None:
    """Return the padding by an id that is known to be padding's, if rows end or start with it.

    One alone at the end of a row may be a token, if the id ends texts or stands inside of rows too.
    Waits for a device.

    Args:
        tokens: [..., T].
        pad: the id.
        words: how it is known.
        ends_texts: whether it ends a text too.
    """
    real = tokens.tensor != pad
    for at_start, end in ((False, "ends"), (True, "starts")):
        n = reach(real, at_start)
        runs = (real.shape[-1] - n)[n > 0]
        is_inside = int((~real)[n > 0].sum()) > int(runs.sum())
        if bool((runs > (ends_texts or is_inside)).any()):
            said = f"id {pad} at the {end} of rows, {words}"
            rule = Run(said, tokens.path, value=pad, at_start=at_start)
            return rule.simplified(tokens.tensor, tokens.tensor)
    return None


def doubtful_run(ids: Tensor) -> int | None:
    """Return the id that at least two rows end with, three times or more, and that is in no text.

    Padding would look so. An id that stands between others too is a token: a space, for example.
    """
    if ids.ndim < 2 or ids.shape[-1] < 4:
        return None
    final = ids[..., -1]
    n = reach(ids != final[..., None])
    ends = final[(n > 0) & (ids.shape[-1] - n >= 3)]
    if ends.numel() < 2 or not _alike(ends):
        return None
    within = torch.arange(ids.shape[-1], device=ids.device) < n[..., None]
    return None if bool((within & (ids == ends[0])).any()) else int(ends[0])


def _alike(values: Tensor) -> bool:
    return values.numel() > 0 and bool((values == values[0]).all())
