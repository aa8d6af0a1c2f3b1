"""Modules of one's own by what the model reads: words in other orders, codes, rows in front."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_forms import (
    ANY,
    DOUBTED,
    GPT,
    LENGTH,
    LM,
    PAD,
    WIDTH,
    WORDS,
    LabelledGPT,
    OwnGPT,
    PaddedGPT,
    PairGPT,
    dictionaries,
    form,
    ids,
    one_more,
    whole,
    with_padding,
    x_and_y,
)
from zoo_judge import UNCOUNTED, Rows, Specimen


@form(LM, "one-hot words, no embedding", x_and_y)
class OneHotInputs(PairGPT):
    def __init__(self) -> None:
        super().__init__()
        self.lm = nn.Sequential(nn.Linear(WORDS, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WORDS))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.lm(F.one_hot(x, WORDS).float()).flatten(0, 1), y.flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(F.one_hot(batch[0], WORDS).float()), batch[1]


@form(LM, "ids moved by three for the embedding", one_more, ANY)
class Offset(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.lm.words = nn.Embedding(WORDS + 3, WIDTH)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1] + 3).flatten(0, 1), batch[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[:, :-1] + 3), batch[:, 1:]


@form(LM, "classes without padding: labels are ids less one, -1 ignored", with_padding, ANY)
class LessOne(PaddedGPT):
    def training_step(self, batch, batch_idx):
        y = batch[:, 1:] - 1
        logits = self.lm(batch[:, :-1])[..., 1:]
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1)

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        y = batch[:, 1:] - 1
        yield self.lm(batch[:, :-1])[..., 1:], y.masked_fill(y < 0, UNCOUNTED)


@form(LM, "words in reverse order", one_more)
class Reversed(OwnGPT):
    def training_step(self, batch, batch_idx):
        t = batch.flip(1)
        return F.cross_entropy(self.lm(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(batch.flip(1))


@form(LM, "the middle moved to the end in the step", one_more)
class FillInTheMiddle(OwnGPT):
    def moved(self, t: Tensor) -> Tensor:
        return torch.cat([t[:, :4], t[:, 8:], t[:, 4:8]], 1)

    def training_step(self, batch, batch_idx):
        t = self.moved(batch)
        return F.cross_entropy(self.lm(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(self.moved(batch))


@form(LM, "a model of each direction (ELMo)", one_more, ANY)
class BothDirections(OwnGPT):
    plain = False

    def __init__(self) -> None:
        super().__init__()
        self.back = GPT()

    def training_step(self, batch, batch_idx):
        t = batch.flip(1)
        back = F.cross_entropy(self.back(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())
        return back + F.cross_entropy(self.lm(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@form(LM, "four codebooks, a loss call each", lambda: [
    torch.stack([ids(i, length=LENGTH + 1) for i in range(4)], 1)
], ANY)  # fmt: skip
class Codebooks(OwnGPT):
    def logits(self, x: Tensor) -> Tensor:
        return self.lm(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    def training_step(self, batch, batch_idx):
        logits, y = self.logits(batch[..., :-1]), batch[..., 1:]
        losses = [F.cross_entropy(logits[:, i].flatten(0, 1), y[:, i].flatten()) for i in range(4)]
        return sum(losses) / 4

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.logits(batch[..., :-1]), batch[..., 1:]


@form(LM, "(mask, labels, ids): the ids last", lambda: [
    (b["attention_mask"], b["labels"], b["input_ids"]) for b in dictionaries()
])  # fmt: skip
class IdsLast(OwnGPT):
    def training_step(self, batch, batch_idx):
        _, y, x = batch
        return F.cross_entropy(self.lm(x)[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[2])[:, :-1], batch[1][:, 1:]


class Bag(SimpleNamespace):
    """A batch that is an object with attributes."""


@form(LM, "objects with attributes", lambda: [Bag(x=x, y=y) for x, y in x_and_y()])
class Attributes(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch.x).flatten(0, 1), batch.y.flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch.x), batch.y


@form(LM, "five words before, the word after: (x [B, 5], y [B])", lambda: [
    (ids(0, 20, 5), ids(1, 20, 1)[:, 0])
], ANY)  # fmt: skip
class NGram(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.lm = nn.Sequential(nn.Embedding(WORDS, 8), nn.Flatten(), nn.Linear(40, WORDS))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[0]), batch[1])

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[0]), batch[1]


@form(LM, "batches of one row", lambda: [t[:1] for t in one_more()])
class OneRow(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[:, :-1])[0], batch[0, 1:])


@form(LM, "one long text [T + 1] without a batch dimension", lambda: [ids(3, 1, 40)[0]])
class OneText(OwnGPT):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.lm(batch[None, :-1])[0], batch[1:])

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.lm(batch[None, :-1])[0], batch[1:]


@form(LM, "pictures as words of 8 bits, predicted row by row", lambda: [
    torch.randint(0, 60, (3, 1, 4, 4), dtype=torch.uint8)
], ANY)  # fmt: skip
class PixelGPT(OwnGPT):
    def training_step(self, batch, batch_idx):
        t = batch.flatten(1).long()
        return F.cross_entropy(self.lm(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(batch.flatten(1).long())


@form(LM, "a begin token put in front in the step, all words predicted", whole)
class BeginInTheStep(OwnGPT):
    def training_step(self, batch, batch_idx):
        x = F.pad(batch[:, :-1], (1, 0), value=1)
        return F.cross_entropy(self.lm(x).flatten(0, 1), batch.flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        begin = torch.ones_like(batch[:, :1])
        yield self.lm(torch.cat([begin, batch[:, :-1]], 1)), batch


@form(LM, "begin and end put around the words in the step", with_padding)
class BeginAndEnd(OwnGPT):
    def both(self, t: Tensor) -> tuple[Tensor, Tensor]:
        x = F.pad(t, (1, 0), value=1)
        y = F.pad(t, (0, 1), value=PAD)
        return x, y.masked_fill(y == PAD, -100)

    def training_step(self, batch, batch_idx):
        x, y = self.both(batch)
        return F.cross_entropy(self.lm(x).transpose(1, 2), y)

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        x, y = self.both(batch)
        yield self.lm(x), y


@form(LM, "a picture's features as a row in front, logits with that row", lambda: [
    {"pixels": torch.randn(len(t), 48), "text": t} for t in whole()
], DOUBTED)  # fmt: skip
class PictureInFront(OwnGPT):
    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Linear(48, WIDTH)

    def logits(self, batch: Any) -> Tensor:
        h = torch.cat([self.see(batch["pixels"])[:, None], self.lm.words(batch["text"])], 1)
        n = h.shape[1]
        return self.lm.head(self.lm.block(h, src_mask=torch.ones(n, n).triu(1).bool()))

    def training_step(self, batch, batch_idx):
        logits = self.logits(batch)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), batch["text"].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.logits(batch)[:, :-1], batch["text"]


@form(LM, "the hidden states of a transformers model, a head of one's own", dictionaries)
class OwnHead(LabelledGPT):
    def __init__(self) -> None:
        super().__init__()
        from zoo_libraries import gpt2

        self.gpt2 = gpt2()

    def logits(self, batch: Any) -> Tensor:
        h = self.gpt2.transformer(batch["input_ids"]).last_hidden_state
        return self.gpt2.lm_head(h)

    def training_step(self, batch, batch_idx):
        logits, y = self.logits(batch), batch["labels"]
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), y[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        yield self.logits(batch)[:, :-1], batch["labels"][:, 1:]


@form(LM, "a transformers model with labels, and text that it generates", dictionaries)
class GeneratesToo(OwnHead):
    def training_step(self, batch, batch_idx):
        return self.gpt2(**batch).loss

    def validation_step(self, batch, batch_idx):
        loss = self.training_step(batch, batch_idx)
        self.gpt2.generate(batch["input_ids"][:, :3], max_new_tokens=3, pad_token_id=PAD)
        return loss


@form(LM, "transformers' LabelSmoother by hand", dictionaries, ("exact", "refused"))
class SmoothedByHand(OwnHead):
    plain = False

    def training_step(self, batch, batch_idx):
        y = batch["labels"][:, 1:]
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        log_p = -self.gpt2(**inputs).logits[:, :-1].log_softmax(-1)
        nll = log_p.gather(-1, y.clamp(min=0)[..., None])[..., 0].masked_fill(y == -100, 0)
        smooth = log_p.sum(-1).masked_fill(y == -100, 0)
        n = (y != -100).sum()
        return 0.9 * nll.sum() / n + 0.1 * smooth.sum() / n / WORDS


@form(LM, "a compiled transformers model with labels", dictionaries, ANY)
class CompiledTransformers(OwnHead):
    def __init__(self) -> None:
        super().__init__()
        self.run = torch.compile(self.gpt2, backend="eager")

    def training_step(self, batch, batch_idx):
        return self.run(**batch).loss


@form(LM, "chosen and rejected texts (DPO) beside a loss of the chosen ones", lambda: [
    {"chosen": ids(0), "rejected": ids(1)}
], ANY)  # fmt: skip
class Preferred(OwnGPT):
    plain = False

    def training_step(self, batch, batch_idx):
        a, b = self.lm(batch["chosen"]), self.lm(batch["rejected"])
        logp = [
            x[:, :-1].log_softmax(-1).gather(-1, t[:, 1:, None]).sum((1, 2))
            for x, t in ((a, batch["chosen"]), (b, batch["rejected"]))
        ]
        loss = F.cross_entropy(a[:, :-1].flatten(0, 1), batch["chosen"][:, 1:].flatten())
        return loss - F.logsigmoid(0.1 * (logp[0] - logp[1])).mean()

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        return super().truth(batch["chosen"])


@form(LM, "a codebook's entries of a picture, found in the step", lambda: [
    torch.randn(3, 12, 8)
], ANY)  # fmt: skip
class Codes(Specimen):
    def __init__(self) -> None:
        super().__init__()
        self.lm, self.book = GPT(), nn.Parameter(torch.randn(WORDS, 8))

    def codes(self, batch: Tensor) -> Tensor:
        return torch.cdist(batch, self.book).argmin(-1)

    def training_step(self, batch, batch_idx):
        t = self.codes(batch)
        return F.cross_entropy(self.lm(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten())

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        t = self.codes(batch)
        yield self.lm(t[:, :-1]), t[:, 1:]
