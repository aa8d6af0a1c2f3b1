"""Training tokens and sequences are counted, padding apart."""

from __future__ import annotations

import warnings
from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.model.batch import find_tokens
from lightning_lscore.model.tokens import TokenCounter

IDS = torch.arange(12).reshape(3, 4)
OTHER = torch.zeros(5, 6, dtype=torch.int64)
LENGTHS = torch.tensor([4, 4, 2])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
FLOATS = torch.rand(3, 4)
Pair = namedtuple("Pair", "x y")


NO_TOKENS = {
    "None": None,
    "a number": 3,
    "text": "tokens",
    "nothing": {},
    "an empty list": [],
    "floats": FLOATS,
    "booleans": MASK.bool(),
    "complex numbers": torch.complex(FLOATS, FLOATS),
    "floats in a dictionary": {"input_ids": FLOATS},
    "only a mask": {"attention_mask": MASK},
    "an object": object(),
}


@pytest.mark.parametrize("batch", NO_TOKENS.values(), ids=NO_TOKENS)
def test_no_tokens_is_none_and_counted_as_such(batch):
    """A batch without tokens adds none, and is remembered as uncounted."""
    assert find_tokens(batch) is None
    counter = TokenCounter()
    counter.add(batch)
    assert (counter.total, counter.samples) == (0, 0)
    assert (counter.batches, counter.uncounted) == (1, 1)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7), st.booleans()), max_size=4))
@settings(max_examples=30)
def test_totals_are_sums_over_batches(shapes):
    """Tokens apart from padding, sequences and batches add up."""
    counter, expected = TokenCounter(), 0
    for rows, columns, masked in shapes:
        batch = {"input_ids": torch.ones(rows, columns, dtype=torch.int64)}
        mask = torch.ones(rows, columns, dtype=torch.int64).tril()
        if masked:
            batch["attention_mask"] = mask
        counter.add(batch)
        expected += int(mask.sum()) if masked else rows * columns
    assert counter.total == expected
    assert counter.samples == sum(rows for rows, _, _ in shapes)
    assert (counter.batches, counter.uncounted) == (len(shapes), 0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_masks_of_any_type_are_summed(dtype):
    """More than 255 tokens of a small type do not wrap around."""
    ids = torch.ones(20, 30, dtype=torch.int64)
    counter = TokenCounter()
    counter.add({"input_ids": ids, "attention_mask": torch.ones(20, 30, dtype=dtype)})
    assert counter.total == 600


def test_a_function_counts_what_cannot_be_found():
    """It decides alone, whatever the batch holds, and no batch is uncounted."""
    counter = TokenCounter(lambda batch: torch.tensor(batch["n"]))
    counter.add({"n": 7})
    counter.add({"n": 5, "input_ids": IDS, "attention_mask": MASK})
    assert (counter.total, counter.uncounted, counter.batches) == (12, 0, 2)
    assert counter.samples == 3


MASKED = {"input_ids": IDS, "attention_mask": MASK}
OF_SEVERAL = {
    "a mapping": ({"a": 0, "b": 0}, {"a": MASKED, "b": (OTHER, FLOATS)}, 7 + 30),
    "a list": ([0, 0], [OTHER, IDS], 30 + 12),
    "nested": ({"a": [0, 0], "b": 0}, {"a": [IDS, IDS], "b": MASKED}, 12 + 12 + 7),
    "one that ended": ([0, 0], [None, IDS], 12),
    "one without text": ({"a": 0, "b": 0}, {"a": (FLOATS, LENGTHS), "b": OTHER}, 30),
    "one alone": ([0], [MASKED], 7),
    "made one by the module": ({"a": 0, "b": 0}, MASKED, 7),
    "made two by the module": ([0, 0, 0], (IDS, OTHER), 12),
    "each of micro-batches": ([0, 0], [[MASKED, MASKED], {"input_ids": [LENGTHS, IDS[0]]}], 21),
}


@pytest.mark.parametrize(("loaders", "batch", "expected"), OF_SEVERAL.values(), ids=OF_SEVERAL)
def test_a_batch_of_several_loaders_holds_one_of_each(loaders, batch, expected):
    """Unlike the inputs and labels of one loader's batch, all of them are trained on."""
    counter = TokenCounter(loaders=loaders)
    counter.add(batch)
    assert (counter.total, counter.batches, counter.uncounted) == (expected, 1, 0)
    counter = TokenCounter(lambda batch: len(batch), loaders=loaders)
    counter.add(batch)
    assert counter.total == len(batch)


def test_a_batch_of_several_loaders_without_tokens_is_uncounted_once():
    counter = TokenCounter(loaders=[0, 0])
    counter.add([FLOATS, None])
    assert (counter.total, counter.batches, counter.uncounted) == (0, 1, 1)


def jagged(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the strided layout is a prototype
        return torch.nested.nested_tensor([LENGTHS, IDS[0], LENGTHS[:2]], layout=layout)


LENGTHS_OF = {
    "micro-batches": ([[MASKED, MASKED]], {4: 14}),
    "inputs and labels apart": ([({"input_ids": IDS}, {"labels": IDS})], {4: 12}),
    "a list of sequences": ([{"input_ids": [LENGTHS, IDS[0], LENGTHS]}], {3: 6, 4: 4}),
    "a list of images": ([{"x": [FLOATS], "inputs": [], "ids": IDS}], {4: 12}),
    "labels of sounds": ([{"x": FLOATS, "labels": torch.where(MASK == 1, IDS, -100)}], {4: 7}),
    "with masks": ([{"input_ids": [IDS, OTHER], "attention_mask": [MASK, None]}], {4: 7, 6: 30}),
    "a jagged tensor": ([{"input_ids": jagged(torch.jagged), "attention_mask": MASK}], {3: 9}),
    "a nested tensor": ([{"input_ids": jagged(torch.strided), "attention_mask": MASK}], {3: 9}),
    "a row of each length": ([{"input_ids": IDS}, {"input_ids": OTHER}], {4: 12, 6: 30}),
    "of the same length": ([{"input_ids": IDS}] * 3, {4: 36}),
    "padding apart": ([{"input_ids": IDS, "attention_mask": MASK}, (IDS, FLOATS)], {4: 19}),
    "one packed row": ([LENGTHS], {3: 3}),
    "several texts a sample": ([torch.zeros(2, 5, 7, dtype=torch.int64)], {7: 70}),
    "a single token": ([torch.tensor(3)], {1: 1}),
    "none found": ([FLOATS], {}),
}


@pytest.mark.parametrize(("batches", "expected"), LENGTHS_OF.values(), ids=LENGTHS_OF)
def test_tokens_are_counted_by_the_length_of_their_sequences(batches, expected):
    """Attention's arithmetic grows with it."""
    counter = TokenCounter()
    for batch in batches:
        counter.add(batch)
    assert counter.by_length == expected
    assert counter.total == sum(expected.values())


def test_places_for_tokens_are_those_of_padding_too():
    """What the model computes for a batch, by the length of its sequences."""
    counter = TokenCounter()
    assert counter.add_with_padding(MASKED) == {4: 12}
    assert counter.add_with_padding([MASKED, {"input_ids": OTHER, "attention_mask": OTHER}]) == {
        4: 12,
        6: 30,
    }
    assert counter.by_length == {4: 14, 6: 0}
    counter = TokenCounter(lambda batch: 7)
    assert [counter.add_with_padding(MASKED) for _ in range(2)] == [{4: 7}, {4: 7}]


def test_samples_are_sequences():
    counter = TokenCounter()
    for batch in (IDS, LENGTHS, {"input_ids": [LENGTHS, LENGTHS]}, jagged(torch.jagged)):
        counter.add(batch)
    assert counter.samples == 3 + 1 + 2 + 3


def test_a_function_counts_tokens_in_sequences_of_a_length_that_is_found():
    """And of length 0, not known, where the batch has no tensor of tokens."""
    counter = TokenCounter(lambda batch: 7)
    for batch in ({"input_ids": IDS}, FLOATS, FLOATS):
        counter.add(batch)
    assert counter.by_length == {4: 7, 0: 14}


def test_tokens_that_were_counted_elsewhere_are_added():
    """A batch of which only the number of tokens is known: no sequences, and of length 0."""
    counter = TokenCounter()
    counter.add({"input_ids": IDS})
    counter.add_counted(7)
    assert counter.by_length == {4: 12, 0: 7}
    assert (counter.total, counter.batches, counter.samples, counter.uncounted) == (19, 2, 3, 0)


class OnAnotherDevice(torch.Tensor):
    """A CPU tensor that says it lies on a GPU, and counts how often it is fetched."""

    fetched = 0

    @property
    def device(self) -> Any:
        return torch.device("cuda", 0)

    def __int__(self) -> int:
        OnAnotherDevice.fetched += 1
        return int(self.as_subclass(torch.Tensor))


def test_a_mask_on_a_gpu_is_fetched_only_when_the_total_is_read(monkeypatch):
    """After the first batch counting makes the host wait for no device; the total waits once."""
    counter = TokenCounter()
    counter.add({"input_ids": IDS, "attention_mask": MASK.as_subclass(OnAnotherDevice)})
    monkeypatch.setattr(OnAnotherDevice, "fetched", 0)
    for _ in range(2):
        counter.add({"input_ids": IDS, "attention_mask": MASK.as_subclass(OnAnotherDevice)})
    assert counter.samples == 3 * len(IDS)
    assert OnAnotherDevice.fetched == 0
    assert (counter.total, counter.total) == (21, 21)
    assert OnAnotherDevice.fetched == 1
    counter.add({"input_ids": IDS})
    counter.add({"input_ids": IDS, "attention_mask": MASK.as_subclass(OnAnotherDevice)})
    assert counter.by_length == {4: 21 + 12 + 7}
    assert int(MASK.sum()) == 7


def test_masks_on_a_gpu_are_summed_by_length(monkeypatch):
    """One number is fetched for each length, besides the one that is told of the first batch."""
    counter = TokenCounter()
    for ids in (IDS, IDS[:, :2], IDS):
        mask = torch.ones_like(ids).as_subclass(OnAnotherDevice)
        counter.add({"input_ids": ids, "attention_mask": mask})
    monkeypatch.setattr(OnAnotherDevice, "fetched", 0)
    assert counter.by_length == {4: 24, 2: 6}
    assert OnAnotherDevice.fetched == 2
