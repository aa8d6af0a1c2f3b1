"""What embeddings look up in the first training step."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_lscore.model.embedding_reads import EmbeddingReads

IDS = torch.arange(12).reshape(3, 4)


def test_listening_ends_with_the_step():
    """Later steps pay nothing for it."""
    model = nn.Sequential(nn.Embedding(12, 2))
    reads = EmbeddingReads(model)
    model(IDS)
    reads.stop()
    model(IDS)
    assert [tuple(read.shape) for read in reads.reads] == [(3, 4)]
    assert not model[0]._forward_pre_hooks


def test_an_embedding_that_was_not_heard_is_left_alone_until_the_end():
    """Its compiled graph would have to be made again."""
    model = nn.ModuleList([nn.Embedding(12, 2), nn.Embedding(12, 2)])
    reads = EmbeddingReads(model)
    model[0](IDS)
    reads.stop()
    assert [bool(part._forward_pre_hooks) for part in model] == [False, True]
    reads.close()
    assert not model[1]._forward_pre_hooks


def test_a_compiled_model_is_compiled_once():
    """Neither listening nor its end makes torch.compile begin again; its arguments are heard."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    inner = nn.Sequential(nn.Embedding(12, 2), nn.Linear(2, 3))
    model = nn.ModuleDict({"model": torch.compile(inner, backend="eager", fullgraph=True)})
    reads = EmbeddingReads(model)
    for _ in range(3):
        model["model"](IDS[:, :-1]).sum().backward()
        reads.stop()
    assert [tuple(read.shape) for read in reads.reads] == [(3, 3)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_model_keeps_no_growing_list(copied):
    """Nobody removes the hooks of a copy, made for a moving average of the weights for example."""
    model = nn.Sequential(nn.Embedding(12, 2))
    reads = EmbeddingReads(model)
    twin = copied(model)
    for _ in range(300):
        twin(IDS)
    assert reads.reads == []
    (hook,) = twin[0]._forward_pre_hooks.values()
    assert len(hook.__self__.reads) < 300


def test_ids_by_name_are_heard_and_what_cannot_be_understood_is_not():
    """A training step never fails of it."""
    model = nn.Embedding(12, 2)
    reads = EmbeddingReads(model)
    model(input=IDS)
    with pytest.raises(TypeError):
        model("text")
    assert len(reads.reads) == 1


def test_what_goes_wrong_in_listening_does_not_reach_the_step(monkeypatch):
    def fails(*args):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr("lightning_lscore.model.embedding_reads.addresses", fails)
    model = nn.Embedding(12, 2)
    reads = EmbeddingReads(model)
    assert (model(IDS).shape, reads.reads) == ((*IDS.shape, 2), [])
