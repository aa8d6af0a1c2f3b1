"""The tokens of a batch are found, whatever its structure."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from transformers import BatchEncoding

from lightning_lscore.model.batch import find_mask, find_tokens, integer_tensors

IDS = torch.arange(12).reshape(3, 4)
OTHER = torch.zeros(5, 6, dtype=torch.int64)
LENGTHS = torch.tensor([4, 4, 2])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
FLOATS = torch.rand(3, 4)
Pair = namedtuple("Pair", "x y")

BATCHES = {
    "a tensor": IDS,
    "a tuple": (IDS, OTHER),
    "a list": [FLOATS, IDS],
    "a named tuple": Pair(IDS, OTHER),
    "a dictionary": {"labels": OTHER, "input_ids": IDS},
    "a dictionary of tokens": {"labels": OTHER, "tokens": IDS},
    "a dictionary of x": {"y": OTHER, "x": IDS},
    "names before order": {"x": OTHER, "input_ids": IDS},
    "a name that holds no integers": {"inputs": FLOATS, "labels": IDS},
    "unknown names": OrderedDict(lengths=LENGTHS, text=IDS),
    "a UserDict": UserDict(labels=OTHER, input_ids=IDS),
    "a BatchEncoding": BatchEncoding({"attention_mask": MASK, "input_ids": IDS}),
    "a nested dictionary": {"meta": {"name": "a"}, "data": {"ids": IDS}},
    "a tuple in a list": [("text", LENGTHS), (IDS, OTHER)],
    "one dimension before two": (LENGTHS, IDS),
    "other things": {"name": "text", "n": 3, "none": None, "bytes": b"ab", "ids": IDS},
    "the mask comes first": {"attention_mask": MASK, "ids": IDS},
    "int32": IDS.int(),
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_tokens_are_found_in_batches_of_any_shape(batch):
    """Names come first, then the first tensor of whole numbers with two dimensions."""
    assert torch.equal(find_tokens(batch), IDS)


@dataclasses.dataclass
class Batch:
    scores: torch.Tensor
    ids: torch.Tensor


def test_tokens_are_found_in_objects_with_attributes():
    """A dataclass is a batch too, as the docstring of integer_tensors says."""
    assert torch.equal(find_tokens(Batch(FLOATS, IDS)), IDS)


def test_one_dimension_is_taken_where_there_are_no_two():
    """A packed row of tokens is better than nothing."""
    assert torch.equal(find_tokens([FLOATS, LENGTHS]), LENGTHS)


def test_all_integer_tensors_are_given_in_order_but_for_the_mask():
    """The search sees every candidate."""
    batch = {"attention_mask": MASK, "a": [IDS, FLOATS], "b": {"c": (OTHER, "text")}}
    found = list(integer_tensors(batch))
    assert [t.shape for t in found] == [IDS.shape, OTHER.shape]


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"input_ids": IDS, "attention_mask": MASK}, True),
        (BatchEncoding({"input_ids": IDS, "attention_mask": MASK}), True),
        ({"input_ids": IDS, "attention_mask": MASK[:, :2]}, False),
        ({"input_ids": IDS, "attention_mask": MASK[None]}, False),
        ({"input_ids": IDS, "attention_mask": None}, False),
        ({"input_ids": IDS}, False),
        ((IDS, MASK), True),
        ((IDS, OTHER), False),
        ((IDS, IDS % 2), False),
    ],
)
def test_a_mask_counts_only_if_it_fits_the_tokens(batch, found):
    """A mask of another shape, such as a 4-D causal one, says nothing about padding."""
    assert (find_mask(batch, IDS) is not None) == found
