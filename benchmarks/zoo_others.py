"""Modules that are no language models, though some read words and call the same losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_forms import (
    DOUBT,
    ELSE,
    GPT,
    LENGTH,
    MASK,
    NONE,
    PAD,
    WIDTH,
    WORDS,
    form,
    ids,
    whole,
    with_padding,
)
from zoo_judge import Rows, Specimen


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


@form(ELSE, "a class for each frame of a sound", lambda: [
    (torch.randn(4, 9, WIDTH), torch.randint(0, 5, (4, 9)))
], NONE, fits=True)  # fmt: skip
class Frames(Other):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(WIDTH, 5)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x).flatten(0, 1), y.flatten())


@form(ELSE, "the same, transposed, and returned", lambda: [
    {"features": torch.randn(4, 9, WIDTH), "labels": torch.randint(0, 5, (4, 9))}
], DOUBT)  # fmt: skip
class FramesReturned(Frames):
    def training_step(self, batch, batch_idx):
        logits = self.net(batch["features"])
        loss = F.cross_entropy(logits.transpose(1, 2), batch["labels"])
        return {"loss": loss, "logits": logits, "labels": batch["labels"]}


@form(ELSE, "tags as classes of words, padded with -100", lambda: [
    (t, (t % 5).masked_fill(t == PAD, -100)) for t in with_padding()
], NONE)  # fmt: skip
class TagsIgnored(SequenceClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 5)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.head(self.lm.features(x)).transpose(1, 2), y)


@form(ELSE, "a table of categories whose last column is the class", lambda: [
    torch.cat([ids(0, 20, 6), torch.arange(20)[:, None] % 3], 1)
], DOUBT)  # fmt: skip
class Table(Other):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(WORDS, 8), nn.Flatten(), nn.Linear(48, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[:, :-1]), batch[:, -1])


@form(ELSE, "classes of pictures of 8 bits", lambda: [
    (torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), torch.arange(6) % 10)
], NONE)  # fmt: skip
class BytesClassifier(Other):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x.float() / 255), y)


@form(ELSE, "a word's neighbour (word2vec)", lambda: [(ids(0, 30, 1)[:, 0], ids(1, 30, 1)[:, 0])],
      DOUBT)  # fmt: skip
class SkipGram(Other):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(WORDS, 8), nn.Linear(8, WORDS))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])


@form(ELSE, "masked diffusion: all words as labels, masked ones weighted afterwards", whole, DOUBT)
class Diffusion(Other):
    def __init__(self) -> None:
        super().__init__()
        self.lm = GPT()

    def training_step(self, batch, batch_idx):
        hidden = (torch.arange(batch.shape[1]) % 3 == 1).expand_as(batch)
        logits = self.lm(batch.masked_fill(hidden, MASK))
        losses = F.cross_entropy(logits.transpose(1, 2), batch, reduction="none")
        return (losses * hidden).sum() / hidden.sum() / 0.3


@form(ELSE, "masked words picked before the loss", whole, DOUBT)
class MaskedPicked(Diffusion):
    def training_step(self, batch, batch_idx):
        hidden = (torch.arange(batch.shape[1]) % 4 == 1).expand_as(batch)
        logits = self.lm(batch.masked_fill(hidden, MASK))
        return F.cross_entropy(logits[hidden], batch[hidden])


@form(ELSE, "masked words, a tenth of them left as they are", whole, DOUBT)
class MaskedLeft(Diffusion):
    def training_step(self, batch, batch_idx):
        place = torch.arange(batch.shape[1])
        y = batch.masked_fill(place % 4 != 1, -100)
        x = batch.masked_fill((place % 4 == 1) & (place != 5), MASK)
        return F.cross_entropy(self.lm(x).flatten(0, 1), y.flatten())


@form(ELSE, "is a word replaced? (ELECTRA)", whole, NONE)
class Replaced(SequenceClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 2)

    def training_step(self, batch, batch_idx):
        swapped = torch.arange(batch.shape[1]) % 5 == 2
        x = torch.where(swapped, batch.roll(1, 0), batch)
        logits = self.head(self.lm.features(x))
        return F.cross_entropy(logits.transpose(1, 2), (x != batch).long())


@form(ELSE, "the order of sentences", whole, NONE)
class Order(SequenceClassifier):
    def training_step(self, batch, batch_idx):
        y = torch.arange(len(batch)) % 2
        x = torch.where(y[:, None] == 1, batch.roll(6, 1), batch)
        return F.cross_entropy(self.head(self.lm.features(x)[:, -1]), y)
