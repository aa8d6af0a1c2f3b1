"""What the processes of a run exchange: once when a fit begins, once at each validation."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist


class OthersFailed(RuntimeError):
    """Another process could not do its part of what all of them do together."""

    def __init__(self) -> None:
        super().__init__("another process failed; its own messages say why.")


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


@contextlib.contextmanager
def together(failed: Exception | None = None) -> Iterator[Callable[[Any], list[Any]]]:
    """Gather objects, where none waits for one that failed: all of them fail with it. Collective.

    Args:
        failed: why this process cannot do its part.

    Yields:
        :func:`gather_objects`, which raises on all processes if one of them failed before. To
        call it must be the last of what may fail inside of the ``with``.

    Raises:
        OthersFailed: on the processes that did not fail themselves.
    """
    known = False  # to all

    def gather(mine: Any) -> list[Any]:
        nonlocal known
        everyone = gather_objects((failed is not None, mine))
        known = any(has_failed for has_failed, _ in everyone)
        if known:
            raise failed or OthersFailed()
        return [theirs for _, theirs in everyone]

    try:
        yield gather
    except Exception:
        if not known:
            gather_objects((True, None))
        raise


def exchange(
    say: Callable[[], Mapping[str, Sequence[float]]],
    size: int,
    device: torch.device,
    failed: Exception | None = None,
) -> list[dict[str, list[float]]]:
    """Return what all processes have to say, by the same names, in one exchange. Collective.

    Args:
        say: returns the same names with equally many numbers on each process.
        size: how many numbers that are, for a process whose ``say`` raises.
        device: where the process group's tensors lie.
        failed: why this process has nothing to say.

    Raises:
        OthersFailed: if another process failed. One that failed itself raises its own error, and
            all the processes do so here: none waits for another.

    >>> exchange(lambda: {"tokens": [8], "seconds": [1.5, 2.0]}, 3, torch.device("cpu"))
    [{'tokens': [8], 'seconds': [1.5, 2.0]}]
    """
    mine: Mapping[str, Sequence[float]] = {"silence": [0.0] * size}
    try:
        mine = mine if failed else say()
    except Exception as error:
        failed = error
    everyone = gather_numbers([float(failed is not None), *itertools.chain(*mine.values())], device)
    if any(has_failed for has_failed, *_ in everyone):
        raise failed or OthersFailed()
    return [
        {name: list(itertools.islice(numbers, len(part))) for name, part in mine.items()}
        for numbers in (iter(theirs[1:]) for theirs in everyone)
    ]


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
