"""Modules of one's own that call several losses in a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from zoo_forms import ANY, GPT, LM, WIDTH, WORDS, OwnGPT, PairGPT, form, one_more, x_and_y
from zoo_judge import Rows


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
