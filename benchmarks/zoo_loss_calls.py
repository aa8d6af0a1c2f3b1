"""Modules of one's own that call a loss of PyTorch, and what they count."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as bound_early
from zoo_forms import (
    ANY,
    DOUBTED,
    LENGTH,
    LM,
    PAD,
    WORDS,
    LabelledGPT,
    Named,
    OwnGPT,
    PaddedGPT,
    PairGPT,
    dictionaries,
    form,
    labelled,
    one_more,
    padded,
    whole,
    with_padding,
    x_and_y,
)
from zoo_judge import UNCOUNTED, Rows


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


# ---------------------------------------------------------------- what counts is decided late


@form(LM, "each word's loss, of which the step keeps those behind a prompt", one_more, ANY)
class SlicedAfterwards(OwnGPT):
    def training_step(self, batch, batch_idx):
        losses = F.cross_entropy(
            self.lm(batch[:, :-1]).transpose(1, 2), batch[:, 1:], reduction="none"
        )
        return losses[:, 4:].mean()

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[:, :-1])[:, 4:], batch[:, 5:]


@form(LM, "each word's loss times (labels != pad), over their number", with_padding, ANY)
class TimesMask(PaddedGPT):
    def training_step(self, batch, batch_idx):
        y = batch[:, 1:].reshape(-1)
        losses = nn.CrossEntropyLoss(reduction="none")(self.lm(batch[:, :-1]).flatten(0, 1), y)
        keep = (y != PAD).float()
        loss = (losses * keep).sum() / keep.sum()
        self.log("val_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)


@form(LM, "focal loss of each word", one_more, DOUBTED)
class Focal(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        losses = F.cross_entropy(
            self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
        )
        return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


@form(LM, "labels to a model that scores all, a loss of completions returned", dictionaries, ANY)
class TwoMasks(LabelledGPT):
    def training_step(self, batch, batch_idx):
        t = batch["input_ids"]
        logits = self.lm(t)[:, :-1].flatten(0, 1)
        self.log("all", F.cross_entropy(logits, t[:, 1:].flatten()))
        return F.cross_entropy(logits, batch["labels"][:, 1:].flatten())


@form(LM, "a batch without a label that counts", lambda: [
    labelled(padded(0)), {**labelled(padded(1)), "labels": torch.full((4, LENGTH), -100)}
])  # fmt: skip
class NothingCounts(LabelledGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        y = batch["labels"][:, 1:].flatten()
        return F.cross_entropy(self.lm(batch["input_ids"])[:, :-1].flatten(0, 1), y)


# ---------------------------------------------------------------- ways to call


@form(LM, "cross_entropy with keywords alone", one_more)
class Keywords(OwnGPT):
    def training_step(self, batch, batch_idx):
        logits = self.lm(batch[:, :-1]).flatten(0, 1)
        return F.cross_entropy(target=batch[:, 1:].flatten(), input=logits)


@form(LM, "functools.partial of cross_entropy, made in the constructor", with_padding)
class Partial(PaddedGPT):
    def __init__(self) -> None:
        super().__init__()
        self.loss = partial(F.cross_entropy, ignore_index=PAD)

    def training_step(self, batch, batch_idx):
        return self.loss(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, "torch.ops' own cross_entropy_loss", one_more, ANY)
class Operator(OwnGPT):
    def training_step(self, batch, batch_idx):
        logits = self.lm(batch[:, :-1]).flatten(0, 1)
        return torch.ops.aten.cross_entropy_loss(logits, batch[:, 1:].flatten())


class _Loss(nn.Module):
    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y)


@form(LM, "a scripted loss", one_more, ANY)
class Scripted(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.loss = torch.jit.script(_Loss())

    def training_step(self, batch, batch_idx):
        return self.loss(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, "logits kept, the loss once at the end of the epoch", one_more, ANY)
class AtTheEnd(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def validation_step(self, batch, batch_idx):
        self.kept = [*getattr(self, "kept", []), (self.lm(batch[:, :-1]), batch[:, 1:])]

    def on_validation_epoch_end(self):
        for logits, y in self.kept:
            F.cross_entropy(logits.flatten(0, 1), y.flatten())


@form(LM, "the batch is cut on its way to the device", one_more)
class CutOnTheWay(OwnGPT):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[:, :-1], batch[:, 1:]

    def training_step(self, batch, batch_idx):
        batch = batch if isinstance(batch, tuple) else (batch[:, :-1], batch[:, 1:])
        return F.cross_entropy(self.lm(batch[0]).flatten(0, 1), batch[1].flatten())
