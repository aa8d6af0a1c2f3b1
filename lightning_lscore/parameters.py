"""Parameter counts of plain and sharded models."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a whole model, over all of its shards; tied ones count once."""

    trainable: int
    total: int


def count_parameters(module: nn.Module) -> ParameterCount:
    """Counts the parameters of ``module``.

    ``parameters()`` already yields tied ones once; a DTensor's ``numel`` is that of the whole
    tensor; DeepSpeed's ZeRO-3 leaves empty tensors that know their real size as ``ds_numel``.
    FSDP1's flat parameters hold only the local shard: count before it wraps the model.
    """
    trainable = total = 0
    for parameter in module.parameters():
        n = size(parameter)
        total += n
        trainable += n if parameter.requires_grad else 0
    return ParameterCount(trainable, total)


def size(parameter: nn.Parameter) -> int:
    """Numbers in a parameter, over all of its shards."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
