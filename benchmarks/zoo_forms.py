"""What the forms of modules in the zoo are made of: rows, data and small models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from zoo_judge import UNCOUNTED, Row, Rows, Specimen

WORDS, WIDTH, LENGTH, PAD, EOS, MASK = 64, 32, 12, 0, 2, 4

ROWS: list[Row] = []


def form(
    group: str,
    layout: str,
    batches: Callable[[], Sequence[Any]],
    due: Sequence[str] = ("exact",),
    **more: Any,
) -> Callable[[type[Specimen]], type[Specimen]]:
    """Make a row of a class."""

    def add(kind: type[Specimen]) -> type[Specimen]:
        make = partial(_make, kind, batches)
        ROWS.append(Row(group, kind.__name__, layout, make, tuple(due), **more))
        return kind

    return add


def _make(kind: type[Specimen], batches: Callable[[], Sequence[Any]]) -> Any:
    return kind(), batches()


LM, ELSE = "modules of one's own", "no language model"
ANY = ("exact", "exact, doubted", "refused", "doubtful")
DOUBTED = ("exact", "exact, doubted")
NONE = ("none", "refused")
DOUBT = ("none", "refused", "doubtful")


# ---------------------------------------------------------------- data


def ids(seed: int, rows: int = 4, length: int = LENGTH) -> Tensor:
    """Words, without padding."""
    return torch.randint(5, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(seed: int, rows: int = 4, length: int = LENGTH, left: bool = False) -> Tensor:
    """Words that end with EOS, and padding."""
    text = ids(seed, rows, length)
    for i in range(rows):
        n = length - (3 * i) % 7
        text[i, n - 1], text[i, n:] = EOS, PAD
        if left:
            text[i] = text[i].roll(length - n)
    return text


def whole() -> list[Tensor]:
    return [ids(0), ids(1, rows=3)]


def one_more() -> list[Tensor]:
    """T + 1 words, of which the step makes inputs and labels."""
    return [ids(0, length=LENGTH + 1), ids(1, rows=3, length=LENGTH + 1)]


def with_padding(left: bool = False) -> list[Tensor]:
    return [padded(0, left=left), padded(1, rows=3, left=left)]


def labelled(tokens: Tensor) -> dict[str, Tensor]:
    """The usual dictionary; labels are a copy of the words, without padding and prompt."""
    mask = (tokens != PAD).long()
    labels = tokens.masked_fill(mask == 0, UNCOUNTED)
    labels[:, :3] = UNCOUNTED
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def dictionaries() -> list[dict[str, Tensor]]:
    return [labelled(t) for t in with_padding()]


def tuples() -> list[tuple[Tensor, ...]]:
    return [tuple(b.values()) for b in dictionaries()]


def shifted_dictionaries() -> list[dict[str, Tensor]]:
    """Inputs, and the words after them with EOS at the end, padded apart; the inputs' mask."""
    found = []
    for t in with_padding():
        inputs = t[:, :-1].masked_fill(t[:, 1:] == PAD, PAD)
        labels = t[:, 1:].masked_fill(t[:, 1:] == PAD, UNCOUNTED)
        found.append({"input_ids": inputs, "attention_mask": (inputs != PAD).long()})
        found[-1]["labels"] = labels
    return found


def x_and_y() -> list[tuple[Tensor, Tensor]]:
    return [(t[:, :-1].contiguous(), t[:, 1:].contiguous()) for t in one_more()]


@dataclasses.dataclass(slots=True)
class Slots:
    """A batch as a dataclass without a dictionary."""

    source: Tensor
    target: Tensor


class Named(NamedTuple):
    """A batch as a named tuple."""

    tokens: Tensor
    loss_mask: Tensor


# ---------------------------------------------------------------- models


class GPT(nn.Module):
    """One block of a GPT, with logits that are far from uniform."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, WIDTH), nn.Embedding(64, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 48, 0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, words, bias=False)
        self.head.weight.data.mul_(4)

    def features(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        places = torch.arange(n, device=x.device)
        return self.block(self.words(x) + self.places(places), src_mask=causal)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class OwnGPT(Specimen):
    """Batches are words; the loss is that of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = GPT()

    def forward(self, x: Tensor) -> Tensor:
        return self.lm(x)

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[:, :-1]), batch[:, 1:]


class PaddedGPT(OwnGPT):
    """The same, and padding does not count."""

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        y = batch[:, 1:]
        yield self.lm(batch[:, :-1]), y.masked_fill(y == PAD, UNCOUNTED)


class LabelledGPT(OwnGPT):
    """Batches are dictionaries whose labels are a copy of the words."""

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]


class PairGPT(OwnGPT):
    """Batches are (x, y), y the words after x."""

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[0]), batch[1]
