"""The tensors in a batch, whatever its structure, each with its name and the way to it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Getter = Callable[[Any], Any]

# Structures deeper than this are not data of a batch, and may go round in circles.
_DEEPEST = 6


class Leaf(NamedTuple):
    """One tensor of a batch."""

    name: str
    """The nearest key or field that leads to it; empty in a plain tuple or list."""
    path: tuple[Getter, ...]
    """What leads from the batch to it, one step after another."""
    keys: tuple[Any, ...]
    """The keys, fields and places in sequences on that way."""
    tensor: Tensor

    @property
    def own_name(self) -> str:
        """Its name, if no other tensor of a tuple or list has the same."""
        return self.name if self.place_in_list is None else ""

    @property
    def place_in_list(self) -> int | None:
        """Where it is in a tuple or list; None: it is in none."""
        return self.keys[-1] if self.keys and type(self.keys[-1]) is int else None

    def __str__(self) -> str:
        name = self.name or "batch" + "".join(f"[{key}]" for key in self.keys)
        return name if self.tensor.is_nested else f"{name} {list(self.tensor.shape)}"


def follow(path: Sequence[Getter], batch: Any) -> Tensor | None:
    """Return the tensor at the end of a path; None if this batch has none there."""
    try:
        for get in path:
            batch = get(batch)
    except (LookupError, TypeError, AttributeError):
        return None
    return batch if isinstance(batch, Tensor) else as_tensor(batch)


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, also of a NumPy array or of a list of whole numbers; else None."""
    if isinstance(value, Tensor):
        return value
    numpy = sys.modules.get("numpy")  # whoever has an array has imported it
    if numpy is not None and isinstance(value, numpy.ndarray):
        # As a copy: torch warns of memory that is read-only, and takes no negative strides.
        return torch.from_numpy(numpy.array(value)) if value.dtype.kind in "iubf" else None
    if isinstance(value, (list, tuple)) and value and type(value[0]) is int:
        return torch.tensor(value) if all(type(n) is int for n in value) else None
    return None


def leaves(batch: Any) -> list[Leaf]:
    """Return the tensors of a batch in their order.

    They lie in mappings and what has ``keys()`` like one (``TensorDict``), sequences, named tuples,
    dataclasses and other objects with attributes, in any nesting.
    """
    return list(_leaves(batch, "", (), ()))


def _leaves(
    value: Any, name: str, path: tuple[Getter, ...], keys: tuple[Any, ...]
) -> Iterator[Leaf]:
    tensor = as_tensor(value)
    if tensor is not None:
        yield Leaf(name, path, keys, tensor)
    elif len(keys) < _DEEPEST:
        for key, get, one in parts(value):
            yield from _leaves(
                one, key if isinstance(key, str) else name, (*path, get), (*keys, key)
            )


def parts(value: Any) -> Iterator[tuple[Any, Getter, Any]]:
    """Yield what a structure holds: its key, field or place, the way to it, and itself."""
    if is_mapping(value):
        for key in list(value.keys()):
            yield key, itemgetter(key), value[key]
    elif isinstance(value, (str, bytes, type, nn.Module)) or callable(value):
        return
    elif isinstance(value, Sequence):
        names = getattr(value, "_fields", range(len(value)))  # of a named tuple
        for i, (field, one) in enumerate(zip(names, value, strict=False)):
            yield field, itemgetter(i), one
    else:
        for field in fields_of(value):
            yield field, attrgetter(field), getattr(value, field, None)


def is_mapping(value: Any) -> bool:
    """Whether a batch, or a part of one, has values by keys."""
    if isinstance(value, (dict, Mapping)):  # isinstance of a Mapping is slow: dict comes first
        return True
    kind = type(value)
    is_like_one = callable(getattr(kind, "keys", None)) and hasattr(kind, "__getitem__")
    return is_like_one and not dataclasses.is_dataclass(kind)  # a tensorclass has fields


def fields_of(value: Any) -> list[str]:
    """Return the names of an object's public attributes that are data."""
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    slots = (getattr(kind, "__slots__", ()) for kind in type(value).__mro__)
    names = [name for one in slots for name in ([one] if isinstance(one, str) else one)]
    names += getattr(value, "__dict__", {})
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def is_integer(tensor: Tensor) -> bool:
    """Whether a tensor holds whole numbers, as token ids are; truth values are not."""
    dtype = tensor.dtype
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def comparable(tensor: Tensor) -> Tensor:
    """Return the same numbers in a type that PyTorch compares: not in most of the unsigned ones."""
    return tensor.long() if tensor.dtype in _INCOMPARABLE else tensor


_INCOMPARABLE = frozenset({torch.uint16, torch.uint32, torch.uint64})
