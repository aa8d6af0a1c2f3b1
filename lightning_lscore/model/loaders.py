"""The batches that one batch holds: those of several loaders, micro-batches, samples in a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .leaves import as_tensor, is_integer, is_mapping


def batches_of(loaders: Any, batch: Any) -> list[Any]:
    """Return the batches of all loaders if the Trainer has several: one batch holds them all.

    Args:
        loaders: in nested mappings and sequences. The batch has the same structure, unless the
            module changed it.
        batch: of one step; None stands for an exhausted loader.
    """
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(loaders, Mapping) and isinstance(batch, Mapping):
        if loaders.keys() == batch.keys():
            pairs = [(loader, batch[key]) for key, loader in loaders.items()]
    elif isinstance(loaders, (list, tuple)) and isinstance(batch, (list, tuple)):
        pairs = zip(loaders, batch, strict=True) if len(loaders) == len(batch) else ()
    parts = [one for loader, part in pairs for one in batches_of(loader, part)]
    return parts or ([] if batch is None else [batch])


def micro_batches(batch: Any) -> list[Any]:
    """Return the micro-batches or samples that a batch is a list of; else the batch alone.

    They are mappings with the same keys, pairs of rows, or rows of ids: so many, or of such
    lengths, that they are no inputs and labels, which are one batch.
    """
    if not isinstance(batch, (list, tuple)) or not batch:
        return [batch]
    first = batch[0]
    if is_mapping(first):
        keys = list(first.keys())
        alike = all(is_mapping(one) and list(one.keys()) == keys for one in batch)
    elif isinstance(batch, tuple):
        alike = False
    elif isinstance(first, tuple):
        alike = all(isinstance(one, tuple) and all(map(_is_row, one)) for one in batch)
    else:
        least = 1 if isinstance(first, list) else 3 if len({*map(_size, batch)}) > 1 else 4
        alike = len(batch) >= least and all(map(_is_row, batch))
    return list(batch) if alike else [batch]


def _is_row(value: Any) -> bool:
    row = as_tensor(value)
    return row is not None and row.ndim == 1 and is_integer(row)


def _size(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0
