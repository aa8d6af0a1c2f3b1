"""Samples that a loader repeats: to give every rank the same number, or by its nature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler


def repeated_samples(loader: object, batch_index: int) -> int:
    """Return how many samples at the end of this rank's batch are repeats.

    torch's DistributedSampler deals sample r + j·R of its list to rank r of R as its j-th, and
    fills the list up from its beginning (https://docs.pytorch.org/docs/stable/data.html,
    ``DistributedSampler``, ``drop_last=False``). Lightning puts one into validation loaders.

    Args:
        loader: this rank's loader; anything but a DataLoader over a DistributedSampler repeats 0.
        batch_index: 0, 1, 2, ...
    """
    if not isinstance(loader, DataLoader):
        return 0
    batches = loader.batch_sampler
    sampler = getattr(batches, "sampler", loader.sampler)
    size = getattr(batches, "batch_size", loader.batch_size)
    if not isinstance(sampler, DistributedSampler) or not size:
        return 0
    samples = len(sampler.dataset)  # type: ignore[arg-type]
    real = len(range(sampler.rank, samples, sampler.num_replicas))
    end = min((batch_index + 1) * size, sampler.num_samples)
    return min(max(0, end - real), size)


def uncorrected(loaders: Sequence[Any]) -> list[str]:
    """Return sentences about samples that count twice and that no batch tells apart.

    Args:
        loaders: for validation. One that is no DataLoader but has several of them, ``flattened``,
            makes one batch of theirs, as Lightning's CombinedLoader does.
    """
    found = []
    for loader in loaders:
        parts = [loader] if isinstance(loader, DataLoader) else getattr(loader, "flattened", [])
        if len(parts) > 1 and getattr(loader, "_mode", "") == "max_size_cycle":
            found.append(
                "counts held-out samples of the shorter loaders again each time that "
                "CombinedLoader(mode='max_size_cycle') begins with them anew. Use mode='max_size'."
            )
        for part in parts:
            sampler = getattr(part, "sampler", None)
            if getattr(sampler, "replacement", False):
                found.append(
                    f"counts held-out samples as often as the {type(sampler).__name__} draws them, "
                    "with replacement. Take them in turn for validation."
                )
            pads = isinstance(sampler, DistributedSampler) and not sampler.drop_last
            if pads and len(parts) > 1 and sampler.total_size > len(sampler.dataset):  # type: ignore
                found.append(
                    "counts held-out samples twice that the DistributedSampler repeats: with "
                    f"CombinedLoader(mode={getattr(loader, '_mode', '')!r}) no batch tells them "
                    "apart. Use mode='sequential', or as many samples as devices divide."
                )
    return found
