"""What a model's embeddings look up in a training step: the best witness of what its tokens are."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .leaves import is_integer
from .unseen import begin_at_no, unseen

_MOST = 256
"""Look-ups that are kept; a copy of a model, whose hooks nobody removes, must not grow."""


class Read(NamedTuple):
    """The ids of one look-up."""

    shape: torch.Size
    memory: int | None
    """Address of their memory: views, such as ``ids[:, :-1]``, share that of the batch's tensor."""
    start: int | None
    """Address of the first id."""


class EmbeddingReads:
    """Listen to the embeddings of a model until its first training step is over.

    Ids are not looked at and not kept, only their shapes and addresses. Nothing is heard inside of
    what torch.compile made, so of a compiled module its arguments are taken. Graphs ask whether an
    embedding has hooks, so on one that was not heard they stay until :meth:`close`; they cost
    nothing there.

    Args:
        model: as it is trained.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self.reads: list[Read] = []
        self.has_model = model is not None
        self._hooks: dict[int, Any] = {}
        self._heard: dict[int, nn.Module] = {}
        self._hear = unseen(_hear)
        begin_at_no(EmbeddingReads._note)
        compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
        for part in () if model is None else model.modules():
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag, compiled)):
                hook = part.register_forward_pre_hook(self._note, with_kwargs=True)
                self._hooks[id(part)] = hook

    def __getstate__(self) -> dict[str, Any]:
        # What is hidden cannot be pickled, and a copy of the model keeps no other's embeddings.
        return {**vars(self), "_hear": _hear, "_heard": {}}

    def _note(self, part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self._heard[id(part)] = part
            self._hear(self.reads, (*args, *kwargs.values()))

    def stop(self) -> None:
        """Listen no more to the embeddings that were heard."""
        for part in self._heard.keys() & self._hooks.keys():
            self._hooks.pop(part).remove()

    def listen_again(self) -> None:
        """Forget what was heard, and listen to the same embeddings once more."""
        self.reads = []
        for key, part in self._heard.items():
            if key not in self._hooks:
                self._hooks[key] = part.register_forward_pre_hook(self._note, with_kwargs=True)

    def close(self) -> None:
        """Listen no more at all."""
        self._heard.clear()
        while self._hooks:
            self._hooks.popitem()[1].remove()

    def part_of(self, tensor: Tensor) -> Any:
        """Return which part of a tensor of the batch was looked up, as an index; None if none was.

        A tensor that lies in the memory that was read, or whose parts do, comes before one of the
        same shape as what was read, whose copy that may be.
        """
        memory, _ = addresses(tensor)
        own = [read for read in self.reads if memory is not None and read.memory == memory]
        shapes = [read.shape for read in own or self.reads]
        if own:
            shapes.append(torch.Size([sum(shape.numel() for shape in shapes)]))  # part by part
        for shape in shapes:
            index = index_of(tensor.shape, shape, is_view=bool(own))
            if index is not None:
                return index
        return first_of_rows(tensor.shape, shapes[0]) if own else None

    def lies_in(self, tensor: Tensor) -> bool:
        """Whether the very memory of a tensor was read, and not what may be a copy."""
        memory, _ = addresses(tensor)
        return memory is not None and any(read.memory == memory for read in self.reads)

    def begins_at(self, tensor: Tensor) -> bool:
        """Whether what was read begins where a tensor does."""
        _, start = addresses(tensor)
        return start is not None and any(read.start == start for read in self.reads)


WHOLE = ...
"""Index of all of a tensor."""
ALL_BUT_LAST = (..., slice(None, -1))
"""Index of the inputs where the last id of each row is only a target."""
ALL_BUT_LAST_ROW = (slice(None, -1),)
"""The same where the first dimension is that of time."""


def index_of(shape: torch.Size, read: torch.Size, is_view: bool = False) -> Any:
    """Return the index by which ids of one shape become those that were read, None if none does.

    Args:
        shape: of a tensor in the batch.
        read: shape of what an embedding read.
        is_view: whether both lie in the same memory, so that only their size need be equal.

    >>> index_of(torch.Size([4, 9]), torch.Size([4, 8])) == ALL_BUT_LAST
    True
    """
    indices: Any = (WHOLE, ALL_BUT_LAST, ALL_BUT_LAST_ROW) if shape else (WHOLE,)
    parts = [torch.empty(shape, device="meta")[index].shape for index in indices]
    if read in parts:
        return indices[parts.index(read)]
    sizes = [part.numel() for part in parts] if is_view or len(read) == 1 else []
    return indices[sizes.index(read.numel())] if read.numel() in sizes else None


def first_of_rows(shape: torch.Size, read: torch.Size) -> Any:
    """Return the index by which rows are cut to the length that was read, None if they are not."""
    cut = read[:-1] == shape[:-1] and 0 < len(read) == len(shape) and read[-1] < shape[-1]
    return (..., slice(None, read[-1])) if cut else None


def _hear(reads: list[Read], given: Sequence[Any]) -> None:
    if not torch.is_grad_enabled() or len(reads) >= _MOST:
        return  # a teacher, or an evaluation
    with contextlib.suppress(Exception):  # a training step never fails of this
        for ids in given:
            if isinstance(ids, Tensor) and is_integer(ids):
                reads.append(Read(ids.shape, *addresses(ids)))


def addresses(tensor: Tensor) -> tuple[int | None, int | None]:
    """Return the addresses of a tensor's memory and of its first number, if it has any.

    Views, such as ``ids[:, :-1]``, share the former with their tensor.
    """
    try:
        return tensor.untyped_storage().data_ptr() or None, tensor.data_ptr() or None
    except (RuntimeError, NotImplementedError, AttributeError):  # a subclass without memory
        return None, None
