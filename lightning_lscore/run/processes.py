"""What the ranks of a run tell each other: once when a fit begins, once at each validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def gather_objects(mine: Any) -> list[Any]:
    """The objects of all ranks, in their order. Collective."""
    if not _several():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def gather_numbers(mine: Sequence[float], device: torch.device) -> list[list[float]]:
    """The numbers of all ranks, in their order, in one exchange. Collective.

    Args:
        mine: equally many on each rank; float64, so counts are exact up to 2^53.
        device: where the process group's tensors lie.
    """
    if not _several():
        return [list(mine)]
    numbers = torch.tensor(mine, dtype=torch.float64, device=device)
    everyone = [torch.empty_like(numbers) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, numbers)
    return [theirs.tolist() for theirs in everyone]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
