from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from lightning_lscore.heldout.repeated_samples import repeated_samples, uncorrected


def loaders(n, ranks, size, *, shuffle=False, drop_last=False, drop_last_batch=False):
    """One loader for each rank over the numbers 0 .. n-1."""
    data = torch.arange(n)
    for rank in range(ranks):
        sampler = DistributedSampler(
            data, num_replicas=ranks, rank=rank, shuffle=shuffle, drop_last=drop_last
        )
        yield DataLoader(data, batch_size=size, sampler=sampler, drop_last=drop_last_batch)


def kept(loader):
    """What is left of each batch of a loader after the repeats at its end are cut off."""
    for index, batch in enumerate(loader):
        repeated = repeated_samples(loader, index)
        assert 0 <= repeated <= len(batch)
        yield from batch[: len(batch) - repeated].tolist()


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_every_sample_is_kept_exactly_once_over_all_ranks(ranks, shuffle):
    """By brute force against torch's own sampler, also with fewer samples than ranks."""
    for n in [*range(1, 18)]:
        for size in (1, 2, 3, 5, 20):
            all_kept = [x for one in loaders(n, ranks, size, shuffle=shuffle) for x in kept(one)]
            assert sorted(all_kept) == list(range(n)), (n, size)


def test_the_repeats_really_are_there():
    """Without the correction 5 samples on 2 ranks count as 6."""
    batches = [b for loader in loaders(5, 2, 2) for b in loader]
    assert sum(map(len, batches)) == 6
    repeats = [
        [repeated_samples(loader, i) for i in range(len(loader))] for loader in loaders(5, 2, 2)
    ]
    assert repeats == [[0, 0], [0, 1]]


def test_an_incomplete_batch_that_the_loader_drops_takes_its_repeats_along():
    """The batches that are left keep what they keep without drop_last."""
    for n in range(1, 12):
        for whole, cut in zip(
            loaders(n, 2, 3), loaders(n, 2, 3, drop_last_batch=True), strict=True
        ):
            assert list(kept(cut)) == list(kept(whole))[: 3 * len(cut)]


def test_a_sampler_that_drops_the_rest_repeats_nothing():
    """drop_last of the sampler makes it deal only whole rounds."""
    for loader in loaders(5, 2, 2, drop_last=True):
        assert [repeated_samples(loader, i) for i in range(len(loader))] == [0]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(5))


DATA = torch.arange(5)
PLAIN = {
    "no loader": None,
    "a list of batches": [1, 2],
    "one process": DataLoader(DATA, batch_size=2),
    "a shuffled loader": DataLoader(DATA, batch_size=2, shuffle=True),
    "a stream": DataLoader(Stream(), batch_size=2),
    "a stream without batches": DataLoader(Stream(), batch_size=None),
    "items that may be whole batches": DataLoader(
        DATA, batch_size=None, sampler=DistributedSampler(DATA, num_replicas=2, rank=1)
    ),
    "an own batch sampler": DataLoader(
        DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 2, False)
    ),
    "batches of no known size": DataLoader(DATA, batch_sampler=[[0, 1], [2]]),
}


@pytest.mark.parametrize("loader", PLAIN.values(), ids=PLAIN)
def test_nothing_is_cut_off_without_a_distributed_sampler(loader):
    """Anything that is not known to repeat samples is left as it is."""
    assert [repeated_samples(loader, i) for i in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sampler_of_ones_own_is_seen_where_lightning_deals_it_out(ranks):
    """It puts its own DistributedSampler around it; what repeats is in the order of the inner."""
    kept_by_all = []
    for rank in range(ranks):
        sampler = DistributedSamplerWrapper([3, 1, 4, 0, 2], num_replicas=ranks, rank=rank)
        loader = DataLoader(DATA, batch_size=2, sampler=sampler)
        kept_by_all += kept(loader)
    assert sorted(kept_by_all) == [0, 1, 2, 3, 4]


def test_a_distributed_sampler_inside_a_batch_sampler_is_seen():
    """Lightning wraps the sampler so when the user gave a batch sampler."""
    sampler = DistributedSampler(DATA, num_replicas=2, rank=1, shuffle=False)
    loader = DataLoader(DATA, batch_sampler=BatchSampler(sampler, 2, False))
    assert list(kept(loader)) == [1, 3]


def combined(mode, *lengths, ranks=1):
    samplers = [
        DistributedSampler(range(n), num_replicas=ranks, rank=0, shuffle=False) for n in lengths
    ]
    parts = zip(lengths, samplers, strict=True)
    return CombinedLoader([DataLoader(range(n), sampler=s) for n, s in parts], mode)


REPEATS = {
    "a shorter loader begins anew": (lambda: combined("max_size_cycle", 4, 8), "max_size_cycle"),
    "repeats in a batch of several": (lambda: combined("max_size", 5, 8, ranks=2), "Distributed"),
    "samples are drawn": (
        lambda: DataLoader(range(4), sampler=RandomSampler(range(4), replacement=True)),
        "with replacement",
    ),
}


@pytest.mark.parametrize(("make", "says"), REPEATS.values(), ids=REPEATS)
def test_samples_that_count_twice_are_said_where_they_cannot_be_told_apart(make, says):
    (sentence,) = uncorrected([make()])
    assert says in sentence


def test_nothing_is_said_of_loaders_that_repeat_nothing_or_are_corrected():
    fine = [combined("max_size", 4, 8), combined("min_size", 4, 8, ranks=2), DataLoader(range(3))]
    assert uncorrected([*fine, *loaders(5, 2, 2), [1, 2]]) == []
