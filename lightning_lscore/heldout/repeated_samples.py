"""Samples that a distributed sampler repeats to give every rank the same number."""

from __future__ import annotations

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
