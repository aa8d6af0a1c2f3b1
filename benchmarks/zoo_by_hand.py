"""Modules of one's own whose loss is written by hand, or is another than cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from zoo_forms import ANY, LM, WIDTH, WORDS, OwnGPT, form, one_more
from zoo_judge import Rows


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
