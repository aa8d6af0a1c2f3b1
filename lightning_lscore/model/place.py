"""Where batches of one structure have their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .embedding_reads import ALL_BUT_LAST, ALL_BUT_LAST_ROW, WHOLE
from .leaves import Getter, Leaf, comparable, follow, is_mapping
from .padding import Padding


@dataclass(eq=False)
class Place:
    """Where batches of one structure have their tokens, and how many of them count."""

    name: str
    """Of the tensor, with its shape in the first batch."""
    rule: str
    """That found it, in words."""
    path: tuple[Getter, ...]
    index: Any = WHOLE
    """Of the ids that the model reads."""
    dimensions: int = 2
    padding: Padding | None = None
    doubt: int | None = None
    """An id that looks like padding, and is counted."""
    in_list: bool = False
    """Whether it is one of the tensors of a list, whose length differs from batch to batch."""
    also: str = ""
    """What else the model read, in words."""
    watched: Sequence[Leaf] = ()
    """The tokens, and what has their shape: padding may come with later batches."""
    latest: Sequence[Tensor | None] = ()
    """Those of the newest batch."""
    whole: dict[torch.Size, int] = field(default_factory=dict)
    """Batches without padding, by the shape of what is read."""
    _cut: Any = None
    """The index that the shapes below belong to."""
    _read_shapes: dict[torch.Size, torch.Size] = field(default_factory=dict)

    def measure(self, batch: Any) -> Measured | None:
        """Measure a batch; None if it has not the structure. Waits for no device."""
        ids = follow(self.path, batch)
        if ids is None or ids.ndim != self.dimensions:
            return None
        if ids.is_nested:
            rows, n = ids.size(0), ids.values().numel()
            return Measured(self, torch.Size([rows, n // max(1, rows)]), n)  # of mean length
        if self.padding is None:
            if self.watched:
                self.latest = [ids, *(follow(leaf.path, batch) for leaf in self.watched[1:])]
            return Measured(self, self.read_shape(ids.shape), None)
        n_real = self.padding.count(batch, ids, self.index)
        return None if n_real is None else Measured(self, self.read_shape(ids.shape), n_real)

    def read_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape [..., T] of what the model reads of ids of a shape."""
        if self.index is WHOLE:
            return shape
        if self._cut is not self.index:
            self._cut, self._read_shapes = self.index, {}
        read = self._read_shapes.get(shape)
        if read is None:  # to make one takes every step a microsecond
            read = self._read_shapes[shape] = self._read_shape(shape)
        return read

    def _read_shape(self, shape: torch.Size) -> torch.Size:
        if self.index is ALL_BUT_LAST_ROW:
            return torch.Size([*shape[1:], shape[0] - 1])
        _, part = self.index
        return torch.Size([*shape[:-1], len(range(shape[-1])[part])])

    @property
    def cuts_rows(self) -> bool:
        """Whether the model reads the first ids of each row alone, other than all but the last."""
        return self.index not in (WHOLE, ALL_BUT_LAST, ALL_BUT_LAST_ROW)

    def newest(self) -> list[Leaf]:
        """Return what is watched, in the newest batch; the tokens come first."""
        pairs = zip(self.watched, self.latest, strict=False)
        found = [leaf._replace(tensor=tensor) for leaf, tensor in pairs if tensor is not None]
        return [leaf for leaf in found if leaf.tensor.shape == found[0].tensor.shape]

    def has_padding(self, watched: Sequence[Leaf]) -> bool:
        """Whether there is any in a batch. Waits for a device."""
        if self.padding is None:
            return False
        ids = watched[0].tensor
        shown = next(leaf.tensor for leaf in watched if leaf.path == self.padding.path)
        n = self.padding.tokens(comparable(shown), comparable(ids), self.index)
        return n is not None and int(n) < self.read_shape(ids.shape).numel()


class Measured(NamedTuple):
    """The tokens of one batch at one place."""

    place: Place
    shape: torch.Size
    """[..., T] of what is read, padding included."""
    n: Tensor | int | None
    """Tokens without padding, on the batch's device; None: all."""


def in_words(found: Sequence[Measured]) -> str:
    """Say where the tokens of a batch are and how many count. Waits for a device."""
    first = found[0].place
    all_places = sum(one.shape.numel() for one in found)
    n = sum(one.shape.numel() if one.n is None else int(one.n) for one in found)
    several = f"{len(found)} tensors such as " if len(found) > 1 else ""
    words = [f"{all_places:,} tokens of {several}{first.name}"]
    if first.index in (ALL_BUT_LAST, ALL_BUT_LAST_ROW):
        words.append("without the last of each row, which is only a target")
    elif first.cuts_rows:
        words.append(f"the first {first.index[1].stop} of each row")
    if first.padding is not None:
        words.append(f"{n:,} without padding ({first.padding.words})")
    if first.also:
        words.append(f"{first.also} read as well, not counted")
    return f"{', '.join(words)}; {first.rule}"


def structure(batch: Any) -> Any:
    """Return what batches have in common that hold their tokens at the same place."""
    kind = type(batch)
    if kind is dict:
        return kind, *batch
    if isinstance(batch, (list, tuple)):
        return kind, len(batch)
    return (kind, *batch.keys()) if kind is not Tensor and is_mapping(batch) else kind
