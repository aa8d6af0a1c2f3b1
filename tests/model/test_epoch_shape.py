from __future__ import annotations

import random
import time

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_lscore.model import epoch_shape as module
from lightning_lscore.model.epoch_shape import EpochShape, epoch_shape


class Rows(Dataset):
    """Token rows of given lengths."""

    def __init__(self, lengths):
        self.lengths, self.read = lengths, []

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        self.read.append(index)
        return torch.ones(self.lengths[index], dtype=torch.int64)


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def walk(loader, length, batches):
    """Tokens of a run's first so many batches, of epochs that end after ``length``."""
    total = 0
    while batches:
        for batch, _ in zip(loader, range(length), strict=False):
            if not batches:
                break
            total, batches = total + batch.numel(), batches - 1
    return total


@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=30),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 40),
    st.data(),
)
def test_a_short_loader_in_order_is_read_and_known_exactly(lengths, size, drop, batches, data):
    """Whatever is dropped at its end, and where an epoch ends before it."""
    loader = DataLoader(Rows(lengths), size, collate_fn=padded, drop_last=drop)
    length = data.draw(st.integers(1, max(1, len(loader))))
    shape = epoch_shape(loader, length)
    if length > 1:  # of a single batch nothing is to be learned
        assert shape.is_read
        assert shape.until(batches) == pytest.approx(walk(loader, length, batches))


@given(st.integers(1, 30), st.integers(1, 7), st.booleans(), st.integers(0, 40), st.data())
def test_of_a_shuffled_loader_the_last_batch_may_be_short(rows, size, drop, batches, data):
    """Its rows are not read: they come in any order."""
    dataset = Rows([1] * rows)
    loader = DataLoader(dataset, size, shuffle=True, collate_fn=padded, drop_last=drop)
    length = data.draw(st.integers(1, max(1, len(loader))))
    if len(loader):
        shape = epoch_shape(loader, length)
        assert dataset.read == []
        assert not shape.is_read
        assert shape.until(batches) * size == pytest.approx(walk(loader, length, batches))


def test_a_long_loader_is_read_here_and_there():
    """Rows that grow along it give the mean of all of them."""
    dataset = Rows([1 + i // 1000 for i in range(100_000)])
    loader = DataLoader(dataset, 16, collate_fn=padded)
    shape = epoch_shape(loader, len(loader))
    assert len(dataset.read) == module.ROWS
    whole = sum(dataset.lengths)
    assert shape.until(len(loader)) == pytest.approx(whole, rel=0.01)
    assert shape.until(len(loader) / 2) == pytest.approx(whole / 4, rel=0.05)


def test_reading_ahead_leaves_random_numbers_as_they_were():
    """Data that draws them gives training the same rows."""

    class Draws(Rows):
        def __getitem__(self, index):
            torch.rand(1), random.random(), numpy.random.rand()
            return super().__getitem__(index)

    def draw():
        return torch.rand(1).item(), random.random(), numpy.random.rand()

    torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
    expected = draw()
    torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
    assert epoch_shape(DataLoader(Draws([2] * 4)), 4).is_read
    assert draw() == expected


class Endless(IterableDataset):
    def __iter__(self):
        yield from ()


class Slow(Rows):
    def __getitem__(self, index):
        time.sleep(0.001)
        return super().__getitem__(index)


class Broken(Rows):
    def __getitem__(self, index):
        raise OSError("not now")


@pytest.mark.parametrize(
    ("loader", "count"),
    [
        (DataLoader(Slow([1] * 9)), None),
        (DataLoader(Broken([1] * 9)), None),
        (DataLoader(Rows([1] * 9), num_workers=1), None),
        (DataLoader(torch.ones(9, 3)), None),  # numbers, not tokens
        (DataLoader(Rows([1] * 9)), lambda batch: batch["ids"].numel()),
        (DataLoader(Rows([1] * 9)), lambda batch: 0),
    ],
)
def test_what_cannot_be_read_quickly_is_left_to_training(loader, count, monkeypatch):
    """Errors too; the number of rows is known all the same."""
    monkeypatch.setattr(module, "SECONDS", 0.0005)
    if not isinstance(loader.dataset, Slow):
        monkeypatch.setattr(module, "SECONDS", 60)
    shape = epoch_shape(loader, 9, count)
    assert not shape.is_read
    assert shape.until(18) == 18


@pytest.mark.parametrize(
    "loader",
    [
        None,
        [torch.ones(3)],
        {"a": DataLoader(Rows([1]))},
        DataLoader(Endless()),
        DataLoader(Rows([1] * 4), batch_sampler=[[0, 1], [2, 3]]),
        DataLoader(Rows([1] * 4), batch_size=None),
    ],
)
def test_of_other_loaders_nothing_is_known(loader):
    """Batches then count alike."""
    assert epoch_shape(loader, 2) is None


def test_without_a_length_nothing_is_known():
    """Nor where an epoch has no batch."""
    loader = DataLoader(Rows([1] * 4))
    assert epoch_shape(loader, float("inf")) is None
    assert epoch_shape(loader, 0) is None


def test_a_shape_counts_whole_epochs_and_parts():
    """Batches of 4, 4 and 12 tokens, and of ones whose last is half as large."""
    shape = EpochShape(length=3, read=(4, 4, 12))
    assert [shape.until(n) for n in range(5)] == [0, 4, 8, 20, 24]
    assert [EpochShape(length=3, short=0.5).until(n) for n in (1, 2, 3, 4)] == [1, 2, 2.5, 3.5]
