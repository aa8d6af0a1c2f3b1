"""Which tensor of a batch holds the tokens, which of them are read, and what is padding."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lightning_lscore.model.tokens import TokenCounter

B, T, VOCABULARY = 8, 16, 50
IDS = torch.randint(3, VOCABULARY, (B, T), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([16, 16, 10, 9, 8, 5, 4, 3])
N = int(LENGTHS.sum())
PLACES = torch.arange(T)
REAL = PLACES < LENGTHS[:, None]
MASK = REAL.long()
PADDED = torch.where(REAL, IDS, 0)
PADDED_LEFT = torch.where(REAL.flip(1), IDS, 0)
LABELS = torch.where(REAL, IDS, -100)
ANSWERS = LABELS.masked_fill(PLACES < 3, -100)  # of one row no label is left
PIXELS = torch.arange(B * 3 * 8 * 8).reshape(B, 3, 8, 8).to(torch.uint8)
POSITIONS = PLACES.expand(B, T)


@dataclasses.dataclass
class WithSlots:
    __slots__ = ("mask", "scores", "tokens")
    scores: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor


Named = namedtuple("Named", "labels input_ids attention_mask")


class LikeTensorDict:
    def __init__(self, **tensors):
        self._tensors = tensors

    def keys(self):
        return self._tensors.keys()

    def __getitem__(self, key):
        return self._tensors[key]


@dataclasses.dataclass
class LikeTensorClass:
    """Has keys, but is indexed by samples."""

    labels: torch.Tensor
    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    def keys(self):
        return vars(self).keys()

    def __getitem__(self, index):
        raise ValueError("expected an index")


def masked(kind):
    return kind(labels=ANSWERS, input_ids=PADDED, attention_mask=MASK)


def rows(ids=IDS):
    return [row[:n] for row, n in zip(ids, LENGTHS, strict=True)]


# What is found without a look at the model: the batch, and how many of its tokens count.
FORMS = {
    "ids": (IDS, B * T),
    "inputs and targets": ((IDS[:, :-1], IDS[:, 1:]), B * (T - 1)),
    "targets first by name": ({"targets": IDS[:, 1:], "idx": IDS[:, 1:].clone()}, B * (T - 1)),
    "ids, mask, labels of answers": ((PADDED, MASK, ANSWERS), N),
    "a list of them": ([PADDED, REAL, ANSWERS], N),
    "a mask of tokens that are no padding id": ((IDS, MASK, ANSWERS), N),
    "a mask of padding": ((PADDED, ~REAL), N),
    "a mask of a prompt": ((IDS, (PLACES > 4).long().expand(B, T)), B * T),
    "segments, then a mask": ((IDS, torch.zeros_like(IDS), torch.ones_like(IDS)), B * T),
    "ids and padded labels": ((PADDED, LABELS), N),
    "ids and labels of answers": ({"input_ids": PADDED, "labels": ANSWERS}, N),
    "shifted labels": (
        {"input_ids": PADDED, "labels": nn.functional.pad(ANSWERS[:, 1:], (0, 1), value=-100)},
        N,
    ),
    "prompts without padding": (
        {"input_ids": IDS, "labels": IDS.masked_fill(PLACES < 3, -100)},
        B * T,
    ),
    "padding that ends texts too": (
        {"input_ids": torch.where(REAL, IDS, 2).index_fill(1, torch.tensor([1]), 2), "y": ANSWERS},
        N,
    ),
    "a loss mask": (
        {"tokens": PADDED, "loss_mask": (REAL & (PLACES > 1)).float(), "position_ids": POSITIONS},
        N,
    ),
    "a mask by another name": ({"tokens": PADDED, "mask": MASK}, N),
    "a mask of padding by name": ({"src": PADDED, "src_key_padding_mask": ~REAL}, N),
    "one that shows none": ({"src": IDS, "src_key_padding_mask": ~REAL & False}, B * T),
    "packed documents in a mask": ({"input_ids": PADDED, "attention_mask": MASK * 2}, N),
    "a mask of four dimensions": (
        {"input_ids": IDS, "attention_mask": torch.ones(B, 1, T, T)},
        128,
    ),
    "lengths": ({"text": PADDED, "lengths": LENGTHS}, N),
    "lengths without a name": ((PADDED, LENGTHS), N),
    "classes without a name": ((IDS, torch.arange(B)), B * T),
    "segments and positions": (
        {
            "token_type_ids": torch.zeros_like(IDS),
            "position_ids": POSITIONS,
            "input_ids": PADDED,
            "attention_mask": MASK,
        },
        N,
    ),
    "source and target": ({"tgt": IDS[:, :5], "src": IDS}, B * T),
    "an encoder-decoder": (
        {"labels": IDS[:, :4], "decoder_input_ids": IDS[:, :4], "input_ids": IDS},
        B * T,
    ),
    "two texts a sample": (
        {
            "chosen_input_ids": PADDED,
            "chosen_attention_mask": MASK,
            "rejected_input_ids": IDS,
            "rejected_attention_mask": torch.ones_like(IDS),
        },
        N + B * T,
    ),
    "masked words": ({"masked_ids": IDS, "label_ids": LABELS, "special_tokens_mask": MASK}, B * T),
    "documents' numbers": ({"document_ids": POSITIONS, "doc_tokens": IDS}, B * T),
    "pictures of bytes": ((PIXELS, IDS), B * T),
    "pictures of bytes, channels last": ((PIXELS.permute(0, 2, 3, 1), IDS), B * T),
    "pictures of bytes without channels": ((PIXELS[:, 0], IDS), B * T),
    "pictures by name": ({"image": PIXELS, "caption": IDS}, B * T),
    "pictures of floats": ((PIXELS / 255, IDS), B * T),
    "sounds of 16 bits": ((torch.zeros(B, 400, dtype=torch.int16), IDS), B * T),
    "sounds of floats": ({"input_features": torch.rand(B, 4, 9), "labels": LABELS}, N),
    "sizes of pictures": ({"image_grid_thw": torch.ones(2, 3, dtype=torch.int64), "ids": IDS}, 128),
    "bytes of text": ((IDS.to(torch.uint8), IDS.to(torch.uint8)), B * T),
    "ids of 16 bits": (IDS.to(torch.uint16), B * T),
    "embeddings": ({"inputs_embeds": torch.rand(B, T, 4), "labels": ANSWERS}, B * T),
    "masked embeddings": ({"inputs_embeds": torch.rand(B, T, 4), "attention_mask": MASK}, N),
    "ids below 0": (torch.where(REAL, IDS, -1), N),
    "one packed row": (
        {"cu_seqlens": torch.tensor([0, 5, 128]), "input_ids": IDS.view(-1), "max_seqlen": 100},
        B * T,
    ),
    "a packed batch of one": (
        {"cu_seqlens": torch.tensor([[0, 128]]), "input_ids": IDS.view(1, -1)},
        B * T,
    ),
    "an index and a class": (
        {"index": torch.arange(B), "x": torch.arange(B), "text": IDS},
        B * T,
    ),
    "a dataclass with slots": (WithSlots(torch.rand(B, T), PADDED, MASK), N),
    "a named tuple": (masked(Named), N),
    "a UserDict": (masked(UserDict), N),
    "an object with attributes": (masked(SimpleNamespace), N),
    "a TensorDict": (masked(LikeTensorDict), N),
    "a tensorclass": (masked(LikeTensorClass), N),
    "a nested dictionary": ({"data": {"ids": PADDED, "mask": MASK}, "meta": ["a"]}, N),
    "a tuple by name": ({"batch": (PADDED, MASK)}, N),
    "a tuple of like tensors by an input's name": ({"x": (PADDED, MASK, ANSWERS)}, N),
    "a tuple of unlike tensors by an input's name": ({"x": (PADDED, LENGTHS)}, N),
    "arrays": ({"input_ids": PADDED.numpy(), "attention_mask": MASK.numpy()}, N),
    "arrays of 16 bits": ((IDS.numpy().astype(np.uint16)[:, ::-1],), B * T),
    "samples as dictionaries": ([{"input_ids": row, "labels": row} for row in rows()], N),
    "samples as dictionaries of lists": ([{"input_ids": row.tolist()} for row in rows()], N),
    "samples as pairs": ([(row, row) for row in rows()], N),
    "samples as tensors": (rows(), N),
    "samples as lists": ([row.tolist() for row in rows()], N),
    "a list of sequences": ({"input_ids": [row.tolist() for row in rows()]}, N),
    "columns": ({"input_ids": list(IDS.t())}, B * T),
}


@pytest.mark.parametrize(("batch", "expected"), FORMS.values(), ids=FORMS)
def test_the_tokens_of_a_batch_of_any_form_are_counted(batch, expected):
    """Those of the first batch as those of later ones, which are counted without a look."""
    counter = TokenCounter(warn=pytest.fail)
    for times in (1, 2, 3):
        counter.add(batch)
        assert counter.total == times * expected
    assert counter.uncounted == 0


class Reader(nn.Module):
    """Reads ids as a model does, beside positions."""

    def __init__(self, padding_idx=None):
        super().__init__()
        self.tokens = nn.Embedding(256, 4, padding_idx=padding_idx)
        self.positions = nn.Embedding(512, 4)

    def forward(self, *parts):
        for ids in parts:
            self.tokens(ids)
            self.positions(torch.arange(ids.shape[-1]))


SOURCE, TARGET, BYTES = IDS[:, :12].clone(), IDS[:, 1:].clone(), PIXELS[:, 0, 0].clone()

# What the model reads of a batch decides: the batch, what is read, and how many tokens count.
READINGS = {
    "all": (IDS, [IDS], B * T),
    "all but the last": (IDS, [IDS[:, :-1]], B * (T - 1)),
    "a copy of them": (IDS, [IDS[:, :-1].clone()], B * (T - 1)),
    "all but the last row of time": (IDS.t().clone(), [IDS.t()[:-1].clone()], B * (T - 1)),
    "the beginning": (IDS, [IDS[:, :12]], B * 12),
    "in pieces": (IDS, [IDS[:, :8], IDS[:, 8:]], B * T),
    "in pieces but the last": (IDS, [IDS[:, :8], IDS[:, 8:-1]], B * (T - 1)),
    "in micro-batches": (IDS, [IDS[:4], IDS[4:]], B * T),
    "flattened": (IDS, [IDS.view(-1)], B * T),
    "the second of two": ((TARGET, IDS), [IDS], B * T),
    "a caption": ({"image": PIXELS, "caption": IDS}, [IDS[:, :-1]], B * (T - 1)),
    "bytes beside ids": ((BYTES, IDS), [BYTES.int()], B * 8),
    "source and target": ((SOURCE, IDS), [SOURCE, IDS], B * 12),
    "two towers": (
        {"query_input_ids": SOURCE, "doc_input_ids": IDS, "original_input_ids": TARGET},
        [SOURCE, IDS],
        B * (12 + T),
    ),
}


@pytest.mark.parametrize(("batch", "read", "expected"), READINGS.values(), ids=READINGS)
def test_what_an_embedding_reads_in_the_first_step_counts(batch, read, expected):
    """Of T + 1 ids T are read; a view of a batch's tensor is known by its memory."""
    model, said = Reader(), []
    counter = TokenCounter(model=model, tell=said.append)
    model(*read)
    counter.add(batch)
    counter.add(batch)
    assert counter.total == 2 * expected
    assert counter.samples == 2 * B * (1 + (isinstance(batch, dict) and "doc_input_ids" in batch))
    assert "read by the embedding" in said[0]


@pytest.mark.parametrize("padding", [{"attention_mask": MASK}, {}], ids=["mask", "padding_idx"])
def test_rows_that_a_step_cuts_where_the_longest_ends_count_whole_later(padding):
    model = Reader(padding_idx=0)
    counter = TokenCounter(model=model)
    short = {"input_ids": PADDED[4:], **{key: mask[4:] for key, mask in padding.items()}}
    model(short["input_ids"][:, :8])
    counter.add(short)
    counter.add({"input_ids": PADDED, **padding})
    assert counter.total == int(LENGTHS[4:].sum()) + N


def test_a_cut_that_grows_is_noticed_where_the_total_is_read():
    """As a validation does: the step after it is listened to."""
    model, said = Reader(), []
    counter = TokenCounter(model=model, tell=said.append)
    for length in (4, 4, 8, T, T):
        model(IDS[:, :length])
        counter.add(IDS)
        total = counter.total
    assert total == B * (4 + 4 + 8 + T + T)
    assert ["from batch 3 on" in words for words in said] == [False, True, True]
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_rows_that_a_step_cuts_to_a_length_of_its_own_stay_cut():
    model = Reader()
    counter = TokenCounter(model=model)
    batch = {"input_ids": PADDED, "attention_mask": MASK}
    model(PADDED[:, :8])
    counter.add(batch)
    counter.add(batch)
    assert counter.total == 2 * int(LENGTHS.clamp(max=8).sum())


@pytest.mark.parametrize("real", [REAL, torch.ones_like(REAL)], ids=["padding", "none"])
@pytest.mark.parametrize("hidden", [float("-inf"), -1e4])
def test_a_mask_that_is_added_to_scores_is_0_for_tokens(real, hidden):
    counter = TokenCounter()
    counter.add({"input_ids": IDS, "attention_mask": torch.where(real, 0.0, hidden)})
    assert counter.total == int(real.sum())


def test_where_the_model_reads_something_else_the_other_rules_hold():
    model, said = Reader(), []
    counter = TokenCounter(model=model, tell=said.append)
    model(torch.zeros(3, 3, dtype=torch.int64))
    counter.add(IDS)
    assert counter.total == B * T
    assert "the first of whole numbers" in said[0]


def test_where_nothing_is_heard_of_the_model_this_is_said():
    """As where all of the step is compiled: of T + 1 ids T + 1 count then."""
    said = []
    counter = TokenCounter(model=Reader(), tell=said.append)
    counter.add(IDS)
    assert "with what the step may cut off, since no embedding was heard in it" in said[0]


def test_what_is_read_without_gradient_does_not_count():
    """As by a teacher, or in an evaluation."""
    model = Reader()
    counter = TokenCounter(model=model)
    with torch.no_grad():
        model(IDS[:, :-1])
    counter.add(IDS)
    assert counter.total == B * T


# Ids that a model says to be padding: the module, the ids, and how many are none.
PAD_IDS = {
    "of an embedding": (Reader(padding_idx=0), PADDED, N),
    "of an embedding, on the left": (Reader(padding_idx=0), PADDED_LEFT, N),
    "of a loss": (nn.CrossEntropyLoss(ignore_index=0), PADDED, N),
    "of ids of 16 bits": (Reader(padding_idx=0), PADDED.to(torch.uint16), N),
    "that no row ends with": (Reader(padding_idx=0), IDS, B * T),
    "inside of rows": (Reader(padding_idx=0), PADDED.index_fill(1, torch.tensor([1]), 0), N),
    "of a loss over all": (nn.CrossEntropyLoss(), IDS, B * T),
}


@pytest.mark.parametrize(("model", "batch", "expected"), PAD_IDS.values(), ids=PAD_IDS)
def test_padding_by_an_id_that_the_model_knows_is_not_counted(model, batch, expected):
    counter = TokenCounter(model=model, warn=pytest.fail)
    counter.add(batch)
    counter.add(batch)
    assert counter.total == 2 * expected


def test_padding_by_an_id_that_the_user_ignores_is_not_counted():
    counter = TokenCounter(ignore_index=0, warn=pytest.fail)
    counter.add(PADDED)
    assert counter.total == N


def test_an_id_of_padding_inside_of_rows_is_a_token_at_their_ends_too():
    """Unless there is more than one of them: not every vocabulary has a token for padding alone."""
    counter = TokenCounter(model=Reader(padding_idx=0))
    counter.add(IDS.index_fill(1, torch.tensor([1, T - 1]), 0))
    assert counter.total == B * T


@pytest.mark.parametrize(("ends", "expected"), [(0, B), (3, 0)])
def test_one_end_of_a_text_is_no_padding(ends, expected):
    """A model may pad with the token that ends a text."""
    model = nn.Module()
    model.config = SimpleNamespace(pad_token_id=3, eos_token_id=ends)
    batch = IDS.masked_fill(IDS == 3, 4).index_fill(1, torch.tensor([T - 1]), 3)
    counter = TokenCounter(model=model)
    counter.add(batch)
    assert counter.total == B * T - expected


def test_what_looks_like_padding_and_is_counted_is_said():
    """Nothing tells that the id at the ends of rows is padding."""
    warned = []
    TokenCounter(warn=warned.append).add(PADDED)
    (message,) = warned
    assert "counts id 0 at the ends of rows of batch [8, 16] as tokens" in message
    assert "count_tokens" in message


def test_padding_that_comes_with_a_later_batch_is_said_and_counted_from_then_on():
    """The newest batch is looked at again when the total is read, which may wait for a device."""
    warned = []
    counter = TokenCounter(model=Reader(padding_idx=0), warn=warned.append)
    counter.add(IDS)
    assert (counter.total, warned) == (B * T, [])
    counter.add(PADDED)
    assert counter.total == 2 * B * T
    (message,) = warned
    assert "found padding in batch [8, 16] (id 0 at the ends of rows" in message
    counter.add(PADDED)
    assert counter.total == 2 * B * T + N
    assert len(warned) == 1


SAYINGS = {
    "a mask": (
        {"input_ids": PADDED, "attention_mask": MASK},
        "128 tokens of input_ids [8, 16], 71 without padding (attention_mask); found by its name",
    ),
    "none": (IDS, "128 tokens of batch [8, 16]; the first of whole numbers"),
    "many": (
        rows(),
        "71 tokens of 8 tensors such as batch [16]; the first of whole numbers",
    ),
}


@pytest.mark.parametrize(("batch", "expected"), SAYINGS.values(), ids=SAYINGS)
def test_the_rule_and_what_it_counted_are_told_once(batch, expected):
    said = []
    counter = TokenCounter(tell=said.append)
    counter.add(batch)
    counter.add(batch)
    assert said == [f"{expected}; LScore(count_tokens=...) overrides it"]


def test_another_kind_of_batch_is_told_too():
    """And counted by its own rule."""
    said = []
    counter = TokenCounter(tell=said.append)
    for batch in (IDS, {"input_ids": PADDED, "attention_mask": MASK}, IDS):
        counter.add(batch)
    assert counter.total == 2 * B * T + N
    first, both = said
    assert "batch [8, 16]" in first
    assert "batch [8, 16]" in both
    assert "input_ids [8, 16], 71 without" in both


def test_a_mask_that_a_later_batch_lacks_or_has_alone_is_noticed():
    """Batches of the same keys may differ in what is None."""
    counter = TokenCounter()
    for mask in (MASK, None, MASK):
        counter.add({"input_ids": PADDED, "attention_mask": mask, "labels": LABELS})
    assert counter.total == 3 * N


def test_a_given_function_is_told_and_no_rule_is_asked():
    said = []
    counter = TokenCounter(lambda batch: 7, model=Reader(), tell=said.append)
    counter.add(IDS)
    counter.add(IDS)
    assert said == ["7 in the first batch, by the given count_tokens"]


def test_lists_of_sequences_are_told_once_and_need_no_look():
    """However many batches there are, of whatever length."""
    said = []
    counter = TokenCounter(tell=said.append, warn=pytest.fail)
    for n in range(1, 30):
        counter.add({"input_ids": rows()[:n]})
    assert len(said) == 1


class Broken:
    """A batch whose data cannot be had."""

    def keys(self):
        raise RuntimeError("closed")

    def __getitem__(self, key):
        raise RuntimeError("closed")


def test_a_batch_that_cannot_be_looked_at_ends_no_training():
    """It is uncounted, and said."""
    warned = []
    counter = TokenCounter(warn=warned.append)
    counter.add(Broken())
    counter.add(IDS)
    assert (counter.total, counter.batches, counter.uncounted) == (B * T, 2, 1)
    assert "could not count the tokens of a batch, a Broken" in warned[0]


def test_where_batches_have_too_many_structures_to_be_looked_at_this_is_said():
    """A named mask is still used."""
    warned = []
    counter = TokenCounter(warn=warned.append)
    for i in range(20):
        counter.add({"input_ids": PADDED, "attention_mask": MASK, f"more {i}": None})
    assert (counter.total, warned) == (20 * N, [])
    for i in range(2):
        counter.add({"input_ids": IDS, f"others {i}": None})
    assert counter.total == 20 * N + 2 * B * T
    assert set(warned) == {message for message in warned if "more than 16 structures" in message}
    assert warned
