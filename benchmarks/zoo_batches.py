"""Modules of one's own by the form of their batches and loaders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from zoo_forms import (
    ANY,
    LM,
    PAD,
    LabelledGPT,
    OwnGPT,
    PaddedGPT,
    Slots,
    dictionaries,
    form,
    ids,
    one_more,
    shifted_dictionaries,
    tuples,
    whole,
    with_padding,
    x_and_y,
)
from zoo_judge import UNCOUNTED, Rows, loader_of


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


# ---------------------------------------------------------------- loaders


@form(LM, "two validation loaders in turn", one_more, loader=lambda b: [
    loader_of(b[:1]), loader_of(b[1:])
])  # fmt: skip
class TwoLoaders(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val_loss", self.training_step(batch, batch_idx))


def _side_by_side(batches: Sequence[dict[str, Tensor]]) -> Any:
    names = ("a", "b")
    loaders = {n: loader_of([b[n] for b in batches if n in b]) for n in names}
    return CombinedLoader(loaders, "max_size_cycle")


@form(LM, "two loaders side by side, the shorter one repeated", lambda: [
    {"a": ids(0), "b": ids(1)}, {"a": ids(2)}
], ANY, loader=_side_by_side)  # fmt: skip
class SideBySide(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        return sum(
            F.cross_entropy(self.lm(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())
            for t in batch.values()
        )

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        for t in batch.values():
            yield self.lm(t[:, :-1]), t[:, 1:]


@form(LM, "overfit_batches: the training set is the validation set", lambda: [ids(0)], ANY,
      fits=True, trainer={"overfit_batches": 1, "limit_train_batches": None})  # fmt: skip
class Overfitted(TwoLoaders):
    pass
