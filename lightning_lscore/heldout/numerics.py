"""Dtypes of sums, sizes of buffers, and what a device can do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# exp(x) is computed as exp2(x log2 e): torch.exp takes 3 times as long as exp2 on a CPU.
LOG2E = math.log2(math.e)


def log2e(x: Tensor) -> float:
    """Return log2 e in the dtype of the sums: off by a part in 1e8, too little to matter."""
    return torch.tensor(LOG2E, dtype=sum_dtype(x)).item()


def sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for sums over a row."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def may_look(x: Tensor) -> bool:
    """Whether code may branch on values; on a GPU that would wait for the device at every batch."""
    return x.device.type == "cpu"


def wide(x: Tensor) -> Tensor:
    """Return x in float64, on the CPU if it was on MPS, which has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def rows_in(size: int, x: Tensor) -> int:
    """Return how many rows of x fit into a buffer of ``size`` bytes, at least 1."""
    return max(1, size // (x.shape[-1] * sum_dtype(x).itemsize))
