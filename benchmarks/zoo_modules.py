"""Modules of one's own, as people write them for Lightning, and what their perplexity is.

Each class states in ``truth`` which label belongs to which logits, apart from how its step says it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as bound_early
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


# ---------------------------------------------------------------- the loss call


@form(LM, "forward(idx, targets) → logits, loss; flattened; ignore_index -1", whole, fits=True)
class NanoGPT(OwnGPT):
    def both(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.lm(idx)
        loss = F.cross_entropy(logits.view(-1, WORDS), targets.reshape(-1), ignore_index=-1)
        return logits, loss

    def training_step(self, batch, batch_idx):
        targets = batch[:, 1:].clone()
        targets[:, :2] = -1
        return self.both(batch[:, :-1], targets)[1]

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[:, :-1])[:, 2:], batch[:, 3:]


@form(LM, "cross_entropy of logits [B, V, T]", one_more, fits=True)
class Transposed(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1]).transpose(1, 2), batch[:, 1:])


@form(LM, "cross_entropy of logits permuted to [B, V, T]; loss logged, nothing returned", x_and_y)
class Permuted(PairGPT):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.lm(x).permute(0, 2, 1), y)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


@form(LM, "loss in four chunks along time", one_more)
class Chunked(OwnGPT):
    def training_step(self, batch, batch_idx):
        logits, y = self.lm(batch[:, :-1]), batch[:, 1:]
        parts = zip(logits.chunk(4, 1), y.chunk(4, 1), strict=True)
        losses = [F.cross_entropy(a.flatten(0, 1), b.flatten(), reduction="sum") for a, b in parts]
        return sum(losses) / y.numel()


@form(LM, "head and loss in chunks of rows, under activation checkpointing", one_more)
class Checkpointed(OwnGPT):
    def part(self, h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.lm.head(h), y, reduction="sum")

    def training_step(self, batch, batch_idx):
        h, y = self.lm.features(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        run = partial(torch.utils.checkpoint.checkpoint, self.part, use_reentrant=False)
        return sum(run(a, b) for a, b in zip(h.split(7), y.split(7), strict=True)) / len(y)


@form(LM, "nn.CrossEntropyLoss(ignore_index=pad)", with_padding, fits=True)
class PadIgnored(PaddedGPT):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(ignore_index=PAD)

    def training_step(self, batch, batch_idx):
        logits = self.lm(batch[:, :-1])
        return self.criterion(logits.reshape(-1, WORDS), batch[:, 1:].reshape(-1))


@form(LM, "the same; the step returns logits and labels too", with_padding)
class PadIgnoredReturned(PadIgnored):
    def validation_step(self, batch, batch_idx):
        logits, y = self.lm(batch[:, :-1]), batch[:, 1:]
        loss = self.criterion(logits.flatten(0, 1), y.flatten())
        return {"loss": loss, "logits": logits, "labels": y}


@form(LM, "padding on the left, nn.CrossEntropyLoss(ignore_index=pad)", partial(with_padding, True))
class PadLeft(PadIgnored):
    pass


@form(LM, "log_softmax and nll_loss(ignore_index=pad)", with_padding)
class LogSoftmax(PaddedGPT):
    def training_step(self, batch, batch_idx):
        log_p = F.log_softmax(self.lm(batch[:, :-1]), dim=-1)
        return F.nll_loss(log_p.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=PAD)


@form(LM, "nn.LogSoftmax in the model, nn.NLLLoss of [B, V, T]", one_more)
class NLLLoss(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.log_softmax, self.criterion = nn.LogSoftmax(-1), nn.NLLLoss()

    def training_step(self, batch, batch_idx):
        log_p = self.log_softmax(self.lm(batch[:, :-1]))
        return self.criterion(log_p.transpose(1, 2), batch[:, 1:])


def with_loss_mask() -> list[dict[str, Tensor]]:
    return [
        {"tokens": t, "loss_mask": ((t != PAD) & (torch.arange(LENGTH) > 3)).float()}
        for t in with_padding()
    ]


@form(LM, 'reduction="none" times the batch\'s loss_mask', with_loss_mask, ANY, fits=True)
class LossMask(OwnGPT):
    def training_step(self, batch, batch_idx):
        y, m = batch["tokens"][:, 1:], batch["loss_mask"][:, 1:]
        losses = F.cross_entropy(
            self.lm(batch["tokens"][:, :-1]).transpose(1, 2), y, reduction="none"
        )
        return (losses * m).sum() / m.sum()

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        y, counts = batch["tokens"][:, 1:], batch["loss_mask"][:, 1:] > 0
        yield self.lm(batch["tokens"][:, :-1]), y.masked_fill(~counts, UNCOUNTED)


@form(LM, "the same as named tuples", lambda: [Named(*b.values()) for b in with_loss_mask()], ANY)
class NamedLossMask(LossMask):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch._asdict(), batch_idx)

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(batch._asdict())


@form(LM, 'reduction="none" times a mask that the step makes of the padding', with_padding, ANY)
class MaskedAfterwards(PaddedGPT):
    def training_step(self, batch, batch_idx):
        y = batch[:, 1:]
        logits = self.lm(batch[:, :-1]).flatten(0, 1)
        losses = F.cross_entropy(logits, y.flatten(), reduction="none").view_as(y)
        keep = y != PAD
        return losses.masked_select(keep).mean()


@form(LM, 'reduction="none", mean of each row\'s mean', with_padding, ANY)
class MeanOfMeans(PaddedGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        y = batch[:, 1:]
        logits = self.lm(batch[:, :-1]).transpose(1, 2)
        losses = F.cross_entropy(logits, y, reduction="none", ignore_index=PAD)
        return (losses.sum(1) / (y != PAD).sum(1)).mean()


@form(LM, "rows that count picked by a mask before the loss", with_padding)
class Picked(PaddedGPT):
    def training_step(self, batch, batch_idx):
        y = batch[:, 1:]
        keep = y != PAD
        return F.cross_entropy(self.lm(batch[:, :-1])[keep], y[keep])


@form(LM, "one loss call for each sequence, at its own length", with_padding)
class RowByRow(PaddedGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        losses = []
        for row in batch:
            n = int((row != PAD).sum())
            losses.append(F.cross_entropy(self.lm(row[None, : n - 1])[0], row[1:n]))
        return torch.stack(losses).mean()


@form(LM, "from torch.nn.functional import cross_entropy", one_more, fits=True)
class BoundEarly(OwnGPT):
    def training_step(self, batch, batch_idx):
        return bound_early(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, "targets rolled, the last one ignored", whole)
class Rolled(OwnGPT):
    def training_step(self, batch, batch_idx):
        y = batch.roll(-1, 1)
        y[:, -1] = -100
        return F.cross_entropy(self.lm(batch).flatten(0, 1), y.flatten())


@form(LM, "sum of the loss divided by the words", one_more)
class SumLoss(OwnGPT):
    def training_step(self, batch, batch_idx):
        y = batch[:, 1:]
        logits = self.lm(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.numel()


@form(LM, "label smoothing", one_more, fits=True)
class Smoothed(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        logits = self.lm(batch[:, :-1]).flatten(0, 1)
        return F.cross_entropy(logits, batch[:, 1:].flatten(), label_smoothing=0.1)


@form(LM, "class weights", one_more)
class Weighted(OwnGPT):
    plain = False

    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, WORDS))

    def training_step(self, batch, batch_idx):
        return self.criterion(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, "z-loss and a penalty on top", one_more)
class ZLoss(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        logits = self.lm(batch[:, :-1]).flatten(0, 1)
        z = logits.logsumexp(-1).square().mean()
        return (
            F.cross_entropy(logits, batch[:, 1:].flatten()) + 1e-2 * z + self.lm.head.weight.norm()
        )


@form(LM, "logits over a temperature and capped, in float32", one_more)
class Capped(OwnGPT):
    def training_step(self, batch, batch_idx):
        logits = 5 * torch.tanh(self.lm(batch[:, :-1]) / 5) / 0.7
        return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield 5 * torch.tanh(self.lm(batch[:, :-1]) / 5) / 0.7, batch[:, 1:]


@form(LM, "the loss twice: for the log and for each word", one_more)
class Twice(OwnGPT):
    def training_step(self, batch, batch_idx):
        logits, y = self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        self.log("worst", F.cross_entropy(logits, y, reduction="none").max())
        return F.cross_entropy(logits, y)


@form(LM, "the batch in two halves, a loss call each", one_more)
class Halves(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        losses = [
            F.cross_entropy(self.lm(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())
            for part in batch.tensor_split(2)
        ]
        return sum(losses) / 2


@form(LM, "words of 8 bits", lambda: [t.to(torch.uint8) for t in one_more()])
class Bytes(OwnGPT):
    def training_step(self, batch, batch_idx):
        batch = batch.long()
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(batch.long())


@form(LM, "the word after the window alone", one_more, ANY)
class LastWord(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1])[:, -1], batch[:, -1])

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[:, :-1])[:, -1], batch[:, -1]


# ---------------------------------------------------------------- batches


@form(LM, "(ids, mask, labels), labels a copy with -100; cut in the step", tuples, fits=True)
class Tuples(OwnGPT):
    def training_step(self, batch, batch_idx):
        x, _, y = batch
        return F.cross_entropy(self.lm(x)[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[0])[:, :-1], batch[2][:, 1:]


@form(LM, "dictionary with labels a copy; cut in the step", dictionaries)
class Dictionaries(LabelledGPT):
    def training_step(self, batch, batch_idx):
        y = batch["labels"][:, 1:]
        return F.cross_entropy(self.lm(batch["input_ids"])[:, :-1].flatten(0, 1), y.flatten())


@form(LM, "dictionary with labels already shifted, EOS at the end", shifted_dictionaries, fits=True)
class Shifted(OwnGPT):
    def training_step(self, batch, batch_idx):
        logits = self.lm(batch["input_ids"])
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch["input_ids"]), batch["labels"]


@form(LM, "the same; the step returns logits and labels too", shifted_dictionaries)
class ShiftedReturned(Shifted):
    def validation_step(self, batch, batch_idx):
        logits, y = self.lm(batch["input_ids"]), batch["labels"]
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        return {"loss": loss, "logits": logits, "labels": y}


@form(LM, "logits and labels returned, no loss: labels a copy", dictionaries)
class ReturnedCopy(Dictionaries):
    def validation_step(self, batch, batch_idx):
        return {"logits": self.lm(batch["input_ids"]), "labels": batch["labels"]}


@form(LM, "logits and labels returned, no loss: labels shifted", shifted_dictionaries, ANY)
class ReturnedShifted(Shifted):
    def validation_step(self, batch, batch_idx):
        return {"logits": self.lm(batch["input_ids"]), "labels": batch["labels"]}


@form(LM, "logits returned, the words in the batch", whole)
class ReturnedLogits(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def validation_step(self, batch, batch_idx):
        return self.lm(batch), batch


@form(LM, "(x, y) in dataclasses with slots", lambda: [Slots(*b) for b in x_and_y()], fits=True)
class Slotted(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch.source).flatten(0, 1), batch.target.flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch.source), batch.target


@form(LM, "nested dictionaries and lists", lambda: [{"data": {"text": [t]}} for t in one_more()])
class Nested(OwnGPT):
    def training_step(self, batch, batch_idx):
        (t,) = batch["data"]["text"]
        return F.cross_entropy(self.lm(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(batch["data"]["text"][0])


@form(LM, "lists of sequences of their own length, padded in the step", lambda: [
    [row[row != PAD] for row in t] for t in with_padding()
])  # fmt: skip
class Ragged(PaddedGPT):
    def training_step(self, batch, batch_idx):
        t = nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=PAD)
        y = t[:, 1:].masked_fill(t[:, 1:] == PAD, -100)
        return F.cross_entropy(self.lm(t[:, :-1]).flatten(0, 1), y.flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(nn.utils.rnn.pad_sequence(batch, True, PAD))


@form(LM, "several documents in a row, none predicted across", whole)
class Packed(OwnGPT):
    def training_step(self, batch, batch_idx):
        y = batch[:, 1:].clone()
        y[:, 4] = y[:, 8] = -100
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), y.flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        y = batch[:, 1:].clone()
        y[:, 4] = y[:, 8] = UNCOUNTED
        yield self.lm(batch[:, :-1]), y


# ---------------------------------------------------------------- architectures


@form(LM, "LSTM, T + 1 words cut in the step", one_more, fits=True)
class LSTM(Specimen):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.cells = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(self.words(x))[0])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[:, :-1]).reshape(-1, WORDS), batch[:, 1:].reshape(-1))

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self(batch[:, :-1]), batch[:, 1:]


@form(LM, "LSTM, time first in the model, rows in time's order at the loss", one_more)
class TimeMajor(LSTM):
    def training_step(self, batch, batch_idx):
        t = batch.t()
        logits = self(batch[:, :-1]).transpose(0, 1)
        return F.cross_entropy(logits.reshape(-1, WORDS), t[1:].reshape(-1))


@form(LM, "batches [T, B]", lambda: [t.t().contiguous() for t in one_more()])
class TimeFirstBatches(LSTM):
    def training_step(self, batch, batch_idx):
        logits = self(batch[:-1].t()).transpose(0, 1)
        return F.cross_entropy(logits.reshape(-1, WORDS), batch[1:].reshape(-1))

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(batch.t())


def sentence_pairs() -> list[tuple[Tensor, Tensor]]:
    return [(ids(7), padded(0, length=10)), (ids(8, rows=3), padded(1, rows=3, length=10))]


class Translation(Specimen):
    """Encoder and decoder by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.decoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        _, state = self.encoder(self.words(source))
        return self.head(self.decoder(self.words(before), state)[0])

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        source, target = batch
        y = target[:, 1:]
        yield self(source, target[:, :-1]), y.masked_fill(y == PAD, UNCOUNTED)


@form(LM, "(source, target), target cut in the step, ignore_index=pad", sentence_pairs, fits=True)
class TranslationPairs(Translation):
    def training_step(self, batch, batch_idx):
        source, target = batch
        logits = self(source, target[:, :-1])
        y = target[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=PAD)


@form(LM, "the same, source and target of one length; logits and labels returned", lambda: [
    (ids(7), ids(0)), (ids(8, rows=3), ids(1, rows=3))
], ANY)  # fmt: skip
class TranslationReturned(Translation):
    def training_step(self, batch, batch_idx):
        source, target = batch
        return F.cross_entropy(self(source, target[:, :-1]).transpose(1, 2), target[:, 1:])

    def validation_step(self, batch, batch_idx):
        source, target = batch
        return {"logits": self(source, target[:, :-1]), "labels": target[:, 1:]}


@form(LM, "decoder's words shifted to the right in the step, labels with -100", lambda: [
    {"src": a, "tgt": b.masked_fill(b == PAD, -100)} for a, b in sentence_pairs()
])  # fmt: skip
class ShiftRight(Translation):
    def training_step(self, batch, batch_idx):
        y = batch["tgt"]
        before = F.pad(y[:, :-1].masked_fill(y[:, :-1] == -100, PAD), (1, 0), value=EOS)
        return F.cross_entropy(self(batch["src"], before).flatten(0, 1), y.flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        y = batch["tgt"]
        before = torch.cat([torch.full_like(y[:, :1], EOS), y[:, :-1].clamp(min=PAD)], 1)
        yield self(batch["src"], before), y


@form(LM, "sound (floats) and text, decoder's words shifted to the right", lambda: [
    (torch.randn(4, 6, WIDTH), padded(0)), (torch.randn(3, 6, WIDTH), padded(1, rows=3))
])  # fmt: skip
class Speech(Translation):
    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        return self.head(self.decoder(self.words(before), self.encoder(source)[1])[0])

    def training_step(self, batch, batch_idx):
        sound, y = batch
        logits = self(sound, F.pad(y[:, :-1], (1, 0), value=EOS))
        return F.cross_entropy(logits.transpose(1, 2), y, ignore_index=PAD)

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        sound, y = batch
        before = torch.cat([torch.full_like(y[:, :1], EOS), y[:, :-1]], 1)
        yield self(sound, before), y.masked_fill(y == PAD, UNCOUNTED)


@form(LM, "pictures of 8 bits and captions", lambda: [
    (torch.randint(0, 256, (len(t), 3, 4, 4), dtype=torch.uint8), t) for t in one_more()
], fits=True)  # fmt: skip
class Captions(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Linear(48, WIDTH)

    def logits(self, picture: Tensor, text: Tensor) -> Tensor:
        seen = self.see(picture.flatten(1).float() / 255)[:, None]
        return self.lm.head(self.lm.features(text) + seen)

    def training_step(self, batch, batch_idx):
        picture, t = batch
        return F.cross_entropy(self.logits(picture, t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.logits(batch[0], batch[1][:, :-1]), batch[1][:, 1:]


class Prefixed(OwnGPT):
    """A soft prompt of three rows before the words."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(3, WIDTH))

    def logits(self, x: Tensor) -> Tensor:
        h = torch.cat([self.prompt.expand(len(x), -1, -1), self.lm.words(x)], 1)
        n = h.shape[1]
        causal = torch.ones(n, n, dtype=torch.bool).triu(1)
        return self.lm.head(self.lm.block(h, src_mask=causal))

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.logits(batch)[:, 2:-1], batch


@form(LM, "soft prompt, labels padded with -100 in front", whole, DOUBTED)
class SoftPrompt(Prefixed):
    def training_step(self, batch, batch_idx):
        y = F.pad(batch, (3, 0), value=-100)
        return F.cross_entropy(self.logits(batch)[:, :-1].flatten(0, 1), y[:, 1:].flatten())


@form(LM, "soft prompt, its rows cut off", whole, DOUBTED)
class SoftPromptCut(Prefixed):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.logits(batch)[:, 2:-1].flatten(0, 1), batch.flatten())


@form(LM, "soft prompt; logits with its rows and the batch's labels returned", whole, ANY)
class SoftPromptReturned(SoftPrompt):
    def validation_step(self, batch, batch_idx):
        return {"logits": self.logits(batch), "labels": batch}


# ---------------------------------------------------------------- several losses


@form(LM, "two words predicted ahead, two losses", one_more, ANY, fits=True)
class TwoAhead(OwnGPT):
    plain = False

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(WIDTH, WORDS)

    def training_step(self, batch, batch_idx):
        h = self.lm.features(batch[:, :-1])
        one = F.cross_entropy(self.lm.head(h).flatten(0, 1), batch[:, 1:].flatten())
        two = F.cross_entropy(self.second(h[:, :-1]).flatten(0, 1), batch[:, 2:].flatten())
        return one + 0.3 * two


@form(LM, "the loss of two words ahead comes first", one_more, ANY)
class TwoAheadFirst(TwoAhead):
    def training_step(self, batch, batch_idx):
        h = self.lm.features(batch[:, :-1])
        two = F.cross_entropy(self.second(h[:, :-1]).flatten(0, 1), batch[:, 2:].flatten())
        one = F.cross_entropy(self.lm.head(h).flatten(0, 1), batch[:, 1:].flatten())
        return one + 0.3 * two


@form(LM, "a loss at every layer (deep supervision)", one_more, ANY)
class EveryLayer(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        x, y = batch[:, :-1], batch[:, 1:].flatten()
        early = F.cross_entropy(self.lm.head(self.lm.words(x)).flatten(0, 1), y)
        return F.cross_entropy(self.lm(x).flatten(0, 1), y) + 0.1 * early


@form(LM, "a classifier of the sequence beside it", lambda: [
    {"text": t, "topic": torch.arange(len(t)) % 3} for t in one_more()
])  # fmt: skip
class WithTopic(OwnGPT):
    plain = False

    def __init__(self) -> None:
        super().__init__()
        self.topic = nn.Linear(WIDTH, 3)

    def training_step(self, batch, batch_idx):
        t = batch["text"]
        h = self.lm.features(t[:, :-1])
        topic = F.cross_entropy(self.topic(h.mean(1)), batch["topic"])
        return F.cross_entropy(self.lm.head(h).flatten(0, 1), t[:, 1:].flatten()) + topic

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(batch["text"])


@form(LM, "a tagger of the words beside it", lambda: [
    {"text": t, "tags": t[:, :-1] % 5} for t in one_more()
])  # fmt: skip
class WithTags(WithTopic):
    def training_step(self, batch, batch_idx):
        t = batch["text"]
        h = self.lm.features(t[:, :-1])
        logits = F.pad(self.topic(h), (0, 2))
        tags = F.cross_entropy(logits.flatten(0, 1), batch["tags"].flatten())
        return F.cross_entropy(self.lm.head(h).flatten(0, 1), t[:, 1:].flatten()) + tags


@form(LM, "contrastive loss of the sequences beside it", one_more)
class WithContrast(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        h = self.lm.features(batch[:, :-1])
        pooled = F.normalize(h.mean(1), dim=-1)
        contrast = F.cross_entropy(pooled @ pooled.t() / 0.1, torch.arange(len(batch)))
        return F.cross_entropy(self.lm.head(h).flatten(0, 1), batch[:, 1:].flatten()) + contrast


@form(LM, "a frozen teacher whose loss is logged", one_more, ANY)
class Teacher(OwnGPT):
    plain = False

    def __init__(self) -> None:
        super().__init__()
        self.teacher = GPT().requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch[:, :-1], batch[:, 1:].flatten()
        theirs = self.teacher(x).flatten(0, 1)
        self.log("teacher", F.cross_entropy(theirs, y))
        mine = self.lm(x).flatten(0, 1)
        distance = F.kl_div(mine.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
        return F.cross_entropy(mine, y) + distance


@form(LM, "soft labels of a teacher and the words", one_more)
class SoftLabels(Teacher):
    def training_step(self, batch, batch_idx):
        x, y = batch[:, :-1], batch[:, 1:].flatten()
        mine = self.lm(x).flatten(0, 1)
        soft = F.cross_entropy(mine, self.teacher(x).flatten(0, 1).softmax(-1))
        return F.cross_entropy(mine, y) + soft


@form(LM, "text is generated in the step, too", one_more)
class Generates(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def validation_step(self, batch, batch_idx):
        loss = self.training_step(batch, batch_idx)
        text = batch[:, :2]
        for _ in range(3):
            text = torch.cat([text, self.lm(text)[:, -1:].argmax(-1)], 1)
        return loss


@form(LM, "torchmetrics' Perplexity beside the loss", x_and_y)
class WithMetric(PairGPT):
    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.text import Perplexity

        self.metric = Perplexity()

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self.lm(x)
        self.metric(logits, y)
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


# ---------------------------------------------------------------- losses by hand


@form(LM, "log-sum-exp by hand, the loss returned", one_more, ("refused",))
class ByHand(OwnGPT):
    def training_step(self, batch, batch_idx):
        logits, y = self.lm(batch[:, :-1]), batch[:, 1:]
        return (logits.logsumexp(-1) - logits.gather(-1, y[..., None])[..., 0]).mean()


@form(LM, "the same under from_loss", lambda: [*one_more()[:1]] * 2, options={"from_loss": True})
class ByHandFromLoss(ByHand):
    pass


@form(LM, "the same; logits and labels returned", one_more)
class ByHandReturned(ByHand):
    def validation_step(self, batch, batch_idx):
        logits, labels = self.lm(batch[:, :-1]), batch[:, 1:]
        return {"loss": self.training_step(batch, batch_idx), "logits": logits, "labels": labels}


@form(LM, "the same through logits_and_labels=", one_more, options={
    "logits_and_labels": lambda module, _, batch: (module.lm(batch[:, :-1]), batch[:, 1:]),
    "labels_are_shifted": True,
})  # fmt: skip
class ByHandGiven(ByHand):
    pass


@form(
    LM, "log_softmax and gather by hand, smoothed (fairseq's form)", one_more, ("exact", "refused")
)
class Fairseq(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        log_p, y = self.lm(batch[:, :-1]).log_softmax(-1), batch[:, 1:]
        nll = -log_p.gather(-1, y[..., None])[..., 0]
        return 0.9 * nll.mean() - 0.1 * log_p.mean()


@form(LM, "one-hot labels: probabilities as targets of cross_entropy", one_more, ANY)
class OneHot(OwnGPT):
    def training_step(self, batch, batch_idx):
        y = F.one_hot(batch[:, 1:], WORDS).float()
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), y.flatten(0, 1))


@form(LM, "adaptive softmax", one_more, ANY)
class Adaptive(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.loss = nn.AdaptiveLogSoftmaxWithLoss(WIDTH, WORDS, [16, 32])

    def training_step(self, batch, batch_idx):
        h = self.lm.features(batch[:, :-1])
        return self.loss(h.flatten(0, 1), batch[:, 1:].flatten()).loss

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        h = self.lm.features(batch[:, :-1])
        yield self.loss.log_prob(h.flatten(0, 1)), batch[:, 1:].flatten()


@form(LM, "sampled softmax: the label is class 0 of a few", one_more, ("refused", "doubtful"))
class Sampled(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        h, y = self.lm.features(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()
        some = torch.cat([y[:, None], torch.arange(5, 15).expand(len(y), -1)], 1)
        scores = (h[:, None] * self.lm.head.weight[some]).sum(-1)
        return F.cross_entropy(scores, torch.zeros_like(y))


@form(LM, "vmap over the sequences", one_more, ANY)
class Mapped(OwnGPT):
    def training_step(self, batch, batch_idx):
        return torch.vmap(F.cross_entropy)(self.lm(batch[:, :-1]), batch[:, 1:]).mean()


class _Fused(torch.autograd.Function):
    """A loss that makes its logits inside, as fused kernels do."""

    @staticmethod
    def forward(ctx, h, weight, y):
        with torch.enable_grad():
            ctx.inputs = h.detach().requires_grad_(), weight.detach().requires_grad_()
            ctx.loss = F.cross_entropy(ctx.inputs[0] @ ctx.inputs[1].t(), y)
        return ctx.loss.detach()

    @staticmethod
    def backward(ctx, slope):
        return *(slope * g for g in torch.autograd.grad(ctx.loss, ctx.inputs)), None


@form(LM, "an autograd.Function of hidden states and head", one_more, ANY)
class Fused(OwnGPT):
    def training_step(self, batch, batch_idx):
        h = self.lm.features(batch[:, :-1]).flatten(0, 1)
        return _Fused.apply(h, self.lm.head.weight, batch[:, 1:].flatten())


# ---------------------------------------------------------------- compiled, precision


@form(LM, "compiled model, eager loss", one_more)
class CompiledModel(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.run = torch.compile(self.lm, backend="eager")

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.run(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, "model and loss compiled together", one_more, ANY)
class CompiledStep(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.run = torch.compile(self.loss, backend="aot_eager")

    def loss(self, t: Tensor) -> Tensor:
        return F.cross_entropy(self.lm(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        return self.run(batch)


@form(LM, "eager model, compiled loss", one_more, ANY)
class CompiledLoss(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.run = torch.compile(F.cross_entropy, backend="aot_eager")

    def training_step(self, batch, batch_idx):
        return self.run(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, "bfloat16 weights, logits cast to float32 at the loss", one_more)
class Bfloat16(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.lm.bfloat16()

    def training_step(self, batch, batch_idx):
        logits = self.lm(batch[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@form(LM, "bfloat16 weights, bfloat16 loss", one_more)
class Bfloat16Loss(Bfloat16):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, 'Trainer(precision="bf16-mixed")', one_more, trainer={"precision": "bf16-mixed"})
class Mixed(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, 'Trainer(precision="bf16-true")', one_more, trainer={"precision": "bf16-true"}, fits=True)
class TrueBfloat16(Mixed):
    pass


@form(LM, "double precision", one_more, trainer={"precision": "64-true"})
class Double(Mixed):
    pass


# ---------------------------------------------------------------- no language model


class Other(Specimen):
    """Has no perplexity."""

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return None


def pictures(labels: Callable[[int], Tensor]) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    return lambda: [(torch.randn(n, 3, 8, 8), labels(n)) for n in (12, 5)]


@form(ELSE, "classes of pictures", pictures(lambda n: torch.arange(n) % 10), NONE, fits=True)
class ImageClassifier(Other):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


@form(ELSE, "the same; logits and labels returned", pictures(lambda n: torch.arange(n) % 10), NONE)
class ImageClassifierReturned(ImageClassifier):
    def validation_step(self, batch, batch_idx):
        x, y = batch
        return {"loss": F.cross_entropy(self.net(x), y), "logits": self.net(x), "labels": y}


@form(ELSE, "a class for each pixel", pictures(lambda n: torch.randint(0, 5, (n, 8, 8))), NONE,
      fits=True)  # fmt: skip
class Segmentation(Other):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 5, 3, padding=1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y, ignore_index=255)


@form(ELSE, "labels with a channel", pictures(lambda n: torch.randint(0, 5, (n, 1, 8, 8))), NONE)
class SegmentationChannel(Segmentation):
    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y.squeeze(1))


@form(ELSE, "a class of a sequence", lambda: [(t, t[:, 0] % 3) for t in whole()], NONE, fits=True)
class SequenceClassifier(Other):
    def __init__(self) -> None:
        super().__init__()
        self.lm, self.head = GPT(), nn.Linear(WIDTH, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.head(self.lm.features(x)[:, -1]), y)


@form(ELSE, "the same in dictionaries", lambda: [
    {"input_ids": t, "attention_mask": torch.ones_like(t), "labels": t[:, 0] % 3} for t in whole()
], NONE)  # fmt: skip
class SequenceClassifierDict(SequenceClassifier):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["input_ids"], batch["labels"]), batch_idx)


@form(ELSE, "a tag for each word", lambda: [(t, t % 5) for t in whole()], NONE)
class Tagger(SequenceClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 5)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.head(self.lm.features(x)).flatten(0, 1), y.flatten())


@form(ELSE, "the same in dictionaries, -100 at padding; logits and labels returned", lambda: [
    {"input_ids": t, "labels": (t % 5).masked_fill(t == PAD, -100)} for t in with_padding()
], DOUBT)  # fmt: skip
class TaggerReturned(Tagger):
    def training_step(self, batch, batch_idx):
        logits = self.head(self.lm.features(batch["input_ids"]))
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        return {"loss": loss, "logits": logits, "labels": batch["labels"]}


@form(ELSE, "first and last word of an answer", lambda: [
    {"input_ids": t, "start_positions": t[:, 0] % 9, "end_positions": t[:, 1] % 9} for t in whole()
], NONE)  # fmt: skip
class Answers(Other):
    def __init__(self) -> None:
        super().__init__()
        self.lm, self.head = GPT(), nn.Linear(WIDTH, 2)

    def training_step(self, batch, batch_idx):
        first, last = self.head(self.lm.features(batch["input_ids"])).unbind(-1)
        a = F.cross_entropy(first, batch["start_positions"])
        return (a + F.cross_entropy(last, batch["end_positions"])) / 2


@form(ELSE, "texts and pictures matched (CLIP)", lambda: [
    (torch.randn(len(t), 3, 4, 4), t) for t in whole()
], NONE)  # fmt: skip
class Matched(Other):
    def __init__(self) -> None:
        super().__init__()
        self.lm, self.see = GPT(), nn.Linear(48, WIDTH)

    def training_step(self, batch, batch_idx):
        a, b = self.see(batch[0].flatten(1)), self.lm.features(batch[1]).mean(1)
        y = torch.arange(len(a))
        return (F.cross_entropy(a @ b.t(), y) + F.cross_entropy(b @ a.t(), y)) / 2


@form(ELSE, "masked words, masked in the step; the words as labels", whole, DOUBT)
class MaskedWords(Other):
    def __init__(self) -> None:
        super().__init__()
        self.lm = GPT()

    def training_step(self, batch, batch_idx):
        hidden = torch.arange(batch.shape[1]) % 4 == 1
        y = batch.masked_fill(~hidden, -100)
        logits = self.lm(batch.masked_fill(hidden, MASK))
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())


@form(ELSE, "masked words, masked in the batch", lambda: [
    {
        "input_ids": t.masked_fill(torch.arange(LENGTH) % 4 == 1, MASK),
        "labels": t.masked_fill(torch.arange(LENGTH) % 4 != 1, -100),
    }
    for t in whole()
], DOUBT)  # fmt: skip
class MaskedBatch(MaskedWords):
    def training_step(self, batch, batch_idx):
        logits = self.lm(batch["input_ids"])
        return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())


@form(ELSE, "an autoencoder of words", whole, DOUBT)
class WordsAgain(MaskedWords):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch).flatten(0, 1), batch.flatten())


@form(ELSE, "CTC of sound", lambda: [(torch.randn(4, 20, WIDTH), ids(0, length=6))], NONE)
class CTC(Other):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, WORDS)

    def training_step(self, batch, batch_idx):
        x, y = batch
        log_p = self.head(x).log_softmax(-1).transpose(0, 1)
        n = len(x)
        return F.ctc_loss(log_p, y, torch.full((n,), 20), torch.full((n,), 6))


@form(ELSE, "autoencoder", lambda: [torch.randn(6, 16)], NONE, fits=True)
class Autoencoder(Other):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 16))

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch), batch)


@form(ELSE, "variational autoencoder of pixels", lambda: [torch.rand(6, 16)], NONE)
class VAE(Autoencoder):
    def training_step(self, batch, batch_idx):
        loss = F.binary_cross_entropy_with_logits(self.net(batch), batch)
        return loss + self.net(batch).square().mean()


@form(ELSE, "regression", lambda: [(torch.randn(6, 16), torch.randn(6, 1))], NONE)
class Regression(Other):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.net(batch[0]), batch[1])


@form(ELSE, "a number for a text", lambda: [(t, torch.randn(len(t))) for t in whole()], NONE)
class Reward(Other):
    def __init__(self) -> None:
        super().__init__()
        self.lm, self.head = GPT(), nn.Linear(WIDTH, 1)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.head(self.lm.features(batch[0])[:, -1])[:, 0], batch[1])


@form(ELSE, "generator and discriminator", lambda: [torch.randn(6, 16)], NONE, fits=True, trainer={
    "max_steps": 2
})  # fmt: skip
class GAN(Other):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.make, self.tell = nn.Linear(4, 16), nn.Linear(16, 1)

    def training_step(self, batch, batch_idx):
        for optimizer, real in zip(self.optimizers(), (True, False), strict=True):
            made = self.make(torch.randn(len(batch), 4))
            told = self.tell(made if real else torch.cat([made.detach(), batch]))
            loss = F.binary_cross_entropy_with_logits(told, torch.full_like(told, float(real)))
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        told = self.tell(self.make(torch.randn(len(batch), 4)))
        return F.binary_cross_entropy_with_logits(told, torch.ones_like(told))

    def configure_optimizers(self):
        return [torch.optim.SGD(m.parameters(), 0.01) for m in (self.make, self.tell)]
