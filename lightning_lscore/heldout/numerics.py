"""How numbers are held: the dtypes of sums, and what may be asked of a device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# exp(x) is computed as exp2(x log2 e): torch.exp takes 3 times as long as exp2 on a CPU.
LOG2E = math.log2(math.e)


def log2e(x: Tensor) -> float:
    """log2 e as the dtype of the sums has it: off by a part in 1e8, which no NLL shows."""
    return torch.tensor(LOG2E, dtype=sum_dtype(x)).item()


def sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def may_look(x: Tensor) -> bool:
    """Whether the code may decide by values; on a GPU it would wait for them at every batch."""
    return x.device.type == "cpu"


def wide(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).double()


def rows_in(size: int, x: Tensor) -> int:
    return max(1, size // (x.shape[-1] * sum_dtype(x).itemsize))
