"""Parameters of plain and sharded models."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a whole model, over all its shards; tied parameters count once."""

    trainable: int
    total: int


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count the parameters of ``module``; under FSDP1 pass the strategy's whole model."""
    whole = sizes(module)
    trainable = total = 0
    for parameter in module.parameters():
        n = whole[id(parameter)]
        total += n
        trainable += n if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def sizes(module: nn.Module) -> dict[int, int]:
    """Return the number of elements of each parameter, over all its shards, by the parameter's id.

    ``parameters()`` already yields tied parameters once, and a DTensor's ``numel`` is that of the
    whole tensor. DeepSpeed's ZeRO-3 leaves empty tensors with their real size in ``ds_numel``.
    FSDP1 leaves local shards, and keeps the original shapes beside the flat parameter.
    """
    found = {id(p): int(getattr(p, "ds_numel", p.numel())) for p in module.parameters()}
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for part in module.modules() if fsdp is not None else ():
        if isinstance(part, fsdp.FullyShardedDataParallel) and part._flat_param is not None:
            flat = part._flat_param
            whole = [shape.numel() for shape in flat._shapes]
            if flat._params is None:  # use_orig_params=False: it stands for all of them
                found[id(flat)] = sum(whole)
            else:
                found.update(zip(map(id, flat._params), whole, strict=True))
    return found
