"""Modules of one's own that are no plain GPT, compiled ones, and other precisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_forms import (
    ANY,
    DOUBTED,
    EOS,
    LM,
    PAD,
    WIDTH,
    WORDS,
    OwnGPT,
    form,
    ids,
    one_more,
    padded,
    whole,
)
from zoo_judge import UNCOUNTED, Rows, Specimen


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
