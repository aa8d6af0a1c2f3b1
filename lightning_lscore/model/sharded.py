"""Logits that several processes hold together, as a DTensor of tensor or data parallelism.

Each process works on its own part. Where the vocabulary is sharded, processes exchange only what
the softmax needs, a few numbers per row; no process ever holds the logits of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor

_TENSOR_PARALLEL = "tensor_parallel"  # what Lightning's ModelParallelStrategy calls it


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor. Checks attributes, because importing the class takes long."""
    return isinstance(x, Tensor) and hasattr(x, "placements") and hasattr(x, "device_mesh")


def whole(x: Any) -> Any:
    """Return the full tensor of a DTensor (a collective, for small tensors); else x itself."""
    return x.full_tensor() if is_sharded(x) else x


@dataclass(frozen=True)
class Part:
    """The part of logits [..., V] that this process holds.

    Raises:
        ValueError: for logits that are partial sums, or sharded in strides.
    """

    logits: Tensor
    rows: tuple[slice, ...]
    """Where its rows lie in the whole."""
    first_word: int
    """Vocabulary index of its first column."""
    groups: tuple[Any, ...]
    """Process groups that share the vocabulary of its rows."""
    names: tuple[str, ...]
    """Names of the mesh dimensions, if they have any."""
    is_first: bool
    """True on the one process, of those that hold (words of) the same rows, that counts them."""

    @classmethod
    def of(cls, logits: Any) -> Part:
        mesh, last = logits.device_mesh, logits.ndim - 1
        start, size = [0] * logits.ndim, list(logits.shape)
        groups, is_first = [], True
        for i, placement in enumerate(logits.placements):
            at, n = mesh.get_local_rank(i), mesh.size(i)
            if placement.is_replicate():
                is_first = is_first and at == 0
                continue
            if type(placement).__name__ != "Shard":
                raise ValueError(
                    "expected logits that are replicated or sharded along one of their dimensions, "
                    f"got a DTensor with {placement!r}. Call logits.redistribute with Shard(-1)."
                )
            dim = placement.dim % logits.ndim
            # DTensor cuts as torch.chunk does: the last parts may be shorter, or empty.
            chunk = -(-size[dim] // n)
            offset = min(at * chunk, size[dim])
            start[dim], size[dim] = start[dim] + offset, min(chunk, size[dim] - offset)
            if dim == last:
                groups.append(mesh.get_group(i))
                is_first = is_first and at == 0
        rows = tuple(slice(a, a + s) for a, s in zip(start[:-1], size[:-1], strict=True))
        names = tuple(mesh.mesh_dim_names or ())
        return cls(logits.to_local(), rows, start[last], tuple(groups), names, is_first)

    def own(self, labels: Tensor) -> Tensor:
        """Return this part's labels, from the labels of all rows or of this part."""
        labels = whole(labels)
        return labels if labels.shape == self.logits.shape[:-1] else labels[self.rows]

    def maximum(self, x: Tensor) -> Tensor:
        """Return the elementwise maximum over ``groups``. Collective."""
        return self._reduce(x, dist.ReduceOp.MAX)

    def sum(self, x: Tensor) -> Tensor:
        """Return the elementwise sum over ``groups``. Collective."""
        return self._reduce(x, dist.ReduceOp.SUM)

    def _reduce(self, x: Tensor, operation: Any) -> Tensor:
        x = x.contiguous().clone()
        for group in self.groups:
            dist.all_reduce(x, operation, group=group)
        return x


def row_shapes(logits: Tensor, part: Part | None) -> list[tuple[int, ...]]:
    """Return the shapes that labels of these logits may have: of all rows, or of this process's.

    Where time is sharded, a process lacks the label after its last token, so it needs all labels.
    """
    if part is None or part.logits.shape[1:-1] != logits.shape[1:-1]:
        return [logits.shape[:-1]]
    return [logits.shape[:-1], part.logits.shape[:-1]]


def counts_here(mesh: Any, part: Part | None) -> bool:
    """Whether this process is the one to count its rows, of all that compute them.

    Args:
        mesh: ``LightningModule.device_mesh`` of a strategy with tensor parallelism, else None.
        part: of logits that are a DTensor, else None.
    """
    first = part is None or part.is_first
    if peers(mesh) == 1 or (part is not None and _TENSOR_PARALLEL in part.names):
        return first
    return first and bool(mesh.get_local_rank(_TENSOR_PARALLEL) == 0)


def peers(mesh: Any) -> int:
    """Return how many processes compute each batch together, by tensor parallelism on ``mesh``."""
    named = getattr(mesh, "mesh_dim_names", None) or ()
    return int(mesh[_TENSOR_PARALLEL].size()) if _TENSOR_PARALLEL in named else 1
