"""Parameters of plain, sharded and quantised models."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .packed import packed


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a whole model, over all its shards; tied parameters count once."""

    trainable: int
    total: int
    active: int | None = field(default=None, compare=False)
    """Those that a token passes, see ``experts.active_parameters``; None: not known."""
    unknown: tuple[str, ...] = field(default=(), compare=False)
    """Modules with weights of an unknown packing, which count by the elements that hold them."""


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count the parameters of ``module``; under FSDP1 pass the strategy's whole model."""
    trainable = total = 0
    for weight, n in weights(module):
        total += n
        trainable += n if weight.requires_grad else 0
    kinds = (type(part) for part in module.modules() if any(n is None for _, n in packed(part)))
    unknown = tuple(dict.fromkeys(kind.__name__ for kind in kinds))
    return ParameterCount(trainable, total, unknown=unknown)


def weights(module: nn.Module) -> list[tuple[Tensor, int]]:
    """Return each parameter with its number of elements, over all its shards.

    ``parameters()`` already yields tied parameters once, and a DTensor's ``numel`` is that of the
    whole tensor. DeepSpeed's ZeRO-3 leaves empty tensors with their real size in ``ds_numel``.
    FSDP1 leaves local shards, and keeps the original shapes beside the flat parameter. Packed
    weights count as what they stand for, those in buffers too. A parameter that a lazy module has
    not made yet counts as 0.
    """
    found: dict[int, tuple[Tensor, int]]
    found = {id(p): (p, _elements(p)) for p in module.parameters()}
    for part in module.modules():
        for tensor, n in packed(part):
            if n is not None:
                found[id(tensor)] = (tensor, n)
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for part in module.modules() if fsdp is not None else ():
        if isinstance(part, fsdp.FullyShardedDataParallel) and part._flat_param is not None:
            flat = part._flat_param
            whole = [shape.numel() for shape in flat._shapes]
            if flat._params is None:  # use_orig_params=False: it stands for all of them
                found[id(flat)] = (flat, sum(whole))
            else:
                each = zip(flat._params, whole, strict=True)
                found.update({id(p): (p, n) for p, n in each})
    return [*found.values()]


def sizes(module: nn.Module) -> dict[int, int]:
    """Return the number of elements of each of the :func:`weights`, by its id."""
    return {id(weight): n for weight, n in weights(module)}


def _elements(parameter: Tensor) -> int:
    if is_lazy(parameter):
        return 0
    return int(getattr(parameter, "ds_numel", parameter.numel()))
