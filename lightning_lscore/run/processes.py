"""What the processes of a run exchange: once when a fit begins, once at each validation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist


def rank() -> int:
    """This process's place among all, 0 without a process group."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """How many processes train together, 1 without a process group."""
    return dist.get_world_size() if _several() else 1


def gather_objects(mine: Any) -> list[Any]:
    """Return the objects of all processes, in the order of their ranks. Collective."""
    if not _several():
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def gather_numbers(mine: Sequence[float], device: torch.device) -> list[list[float]]:
    """Return the numbers of all processes, in the order of their ranks. Collective.

    Args:
        mine: equally many on each process; float64, so counts are exact up to 2^53.
        device: where the process group's tensors lie.
    """
    if not _several():
        return [list(mine)]
    numbers = torch.tensor(mine, dtype=torch.float64, device=device)
    everyone = [torch.empty_like(numbers) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, numbers)
    return [theirs.tolist() for theirs in everyone]


def exchange(
    mine: Mapping[str, Sequence[float]], device: torch.device
) -> list[dict[str, list[float]]]:
    """Return what all processes have to say, by the same names, in one exchange. Collective.

    Args:
        mine: the same names with equally many numbers on each process.
        device: where the process group's tensors lie.

    >>> exchange({"tokens": [8], "seconds": [1.5, 2.0]}, torch.device("cpu"))
    [{'tokens': [8], 'seconds': [1.5, 2.0]}]
    """
    everyone = gather_numbers([*itertools.chain(*mine.values())], device)
    return [
        {name: list(itertools.islice(numbers, len(part))) for name, part in mine.items()}
        for numbers in map(iter, everyone)
    ]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
