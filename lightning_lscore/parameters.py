"""Parameter counts of plain and sharded models, and the arithmetic that they imply."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .formula import FLOPS_PER_PARAMETER


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a whole model, over all of its shards; tied ones count once."""

    trainable: int
    total: int

    @property
    def flops_per_token(self) -> float:
        """Training FLOP per token: 6 per trainable parameter, 4 per frozen one.

        A frozen weight needs the forward product and the one that passes the gradient on, but no
        gradient of its own (2 + 2 of the 2 + 2 + 2 of Kaplan et al. 2020). Attention's products of
        activations are not counted.
        """
        return FLOPS_PER_PARAMETER * self.trainable + 4.0 * (self.total - self.trainable)


FLOPS_CONVENTION = "6 FLOP per trainable parameter and token, 4 per frozen one; attention apart"


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
