"""Few classes are a vocabulary where their labels are what is read; nothing else is scored."""

from __future__ import annotations

import pytest
import torch
from conftest import reference_nll
from test_own_loss import WORDS, Model, captured
from torch import nn
from torch.nn import functional as F

from lightning_lscore.heldout.nothing_found import NoLanguageModel


def integers(high, *shape, seed=0, low=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


PADDING = torch.arange(12) >= integers(10, 6, 1, low=3)
IDS = integers(WORDS, 6, 12, low=5).masked_fill(PADDING, 0)


def head(classes, pooled=False):
    """A step of logits [B, T, C], or [B, C], their labels and their loss."""
    layer = nn.Linear(16, classes)

    def step(model, b):
        hidden = model.hidden(b["input_ids"])
        logits = layer(hidden[:, -1] if pooled else hidden)
        loss = F.cross_entropy(logits.flatten(0, -2), b["labels"].flatten())
        return {"loss": loss, "logits": logits, "labels": b["labels"]}

    return step


def choose(model, b):
    hidden = model.hidden(b["input_ids"].flatten(0, 1))[:, -1]
    logits = hidden.sum(-1).view(b["labels"].shape[0], -1)
    return {
        "loss": F.cross_entropy(logits, b["labels"]),
        "logits": logits,
        "labels": b["labels"],
    }


def find_spans(model, b):
    start, end = model.hidden(b["input_ids"])[..., :2].unbind(-1)
    loss = F.cross_entropy(start, b["start"]) + F.cross_entropy(end, b["end"])
    return {"loss": loss, "start_logits": start, "end_logits": end}


def transcribe(model, b):
    logits = nn.Linear(16, 30)(b["features"])
    sizes = torch.full((6,), 40), torch.full((6,), 12)
    loss = F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), b["labels"], *sizes)
    return {"loss": loss, "logits": logits, "labels": b["labels"]}


def segment(model, b):
    logits = nn.Conv2d(3, 4, 1)(b["image"])
    loss = F.cross_entropy(logits, b["labels"])
    return {"loss": loss, "logits": logits, "labels": b["labels"]}


FRAMES = {"features": torch.rand(6, 40, 16), "labels": integers(30, 6, 12, low=1)}
IMAGES = {"image": torch.rand(2, 3, 8, 8), "labels": integers(4, 2, 8, 8)}
OTHERS = {
    "tags": (head(5), {"input_ids": IDS, "labels": integers(5, 6, 12)}),
    "tags of 0 at padding": (
        head(5),
        {"input_ids": IDS, "labels": integers(5, 6, 12, low=1).masked_fill(PADDING, 0)},
    ),
    "tags that are mostly 0": (
        head(5),
        {"input_ids": IDS, "labels": integers(5, 6, 12) * (integers(10, 6, 12, seed=1) > 7)},
    ),
    "two tags of two letters": (
        head(2),
        {"input_ids": integers(2, 6, 40), "labels": integers(2, 6, 40, seed=4)},
    ),
    "tags of bases": (
        head(4),
        {"input_ids": integers(4, 6, 40), "labels": integers(3, 6, 40, seed=4)},
    ),
    "sequences": (head(5, pooled=True), {"input_ids": IDS, "labels": integers(5, 6)}),
    "sequences of many classes": (
        head(64, pooled=True),
        {"input_ids": IDS, "labels": integers(64, 6)},
    ),
    "multiple choice": (
        choose,
        {"input_ids": integers(WORDS, 6, 4, 12), "labels": integers(4, 6)},
    ),
    "spans": (find_spans, {"input_ids": IDS, "start": integers(12, 6), "end": integers(12, 6)}),
    "transcription": (transcribe, FRAMES),
    "segmentation": (segment, IMAGES),
}
RETURNED = {
    "all": lambda outputs: outputs,
    "its loss": lambda outputs: outputs["loss"],
    "without its loss": lambda outputs: {**outputs, "loss": None},
}


@pytest.mark.parametrize("returns", RETURNED.values(), ids=RETURNED)
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_text_gets_no_perplexity(name, returns):
    step, batch = OTHERS[name]
    with pytest.raises(NoLanguageModel):
        captured(lambda model, b: returns(step(model, b)), batch)


def test_many_tags_that_are_0_at_padding_are_doubted():
    batch = {"input_ids": IDS, "labels": integers(40, 6, 12, low=1).masked_fill(PADDING, 0)}
    (doubt,) = captured(head(40), batch)[1].doubts
    assert "this is no perplexity" in doubt


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("letters", [2, 4, 26])
def test_few_letters_are_a_vocabulary(letters, moved):
    """Where labels are what is read, as it is or moved by one."""
    rows = integers(letters, 6, 30)
    ids, labels = (rows[:, :-1], rows[:, 1:]) if moved else (rows, rows)

    def step(model, b):
        return {"logits": model(b["input_ids"]), "labels": b["labels"]}

    found, capture = captured(step, {"input_ids": ids, "labels": labels}, Model(letters))
    nll, n = reference_nll(Model(letters)(rows).detach(), rows)
    assert (float(found.nll_sum), int(found.count)) == (pytest.approx(nll, rel=1e-6), n)
    assert capture.doubts == []
