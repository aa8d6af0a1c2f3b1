"""torch.compile never compiles what listens, nor compiles a module again because of it."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from conftest import PlainLM, loader
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from lightning_lscore import LScore


class Recurrent(nn.Module):
    """Graphs break at it, so what lies around it runs in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]


class Stacked(PlainLM):
    """An embedding, something and a head, with a loss call in both steps."""

    def __init__(self, middle: nn.Module, wrap=lambda inner: inner) -> None:
        super().__init__()
        self.inner = wrap(nn.Sequential(self.embedding, middle, self.head))

    def loss(self, batch):
        ids = batch["input_ids"]
        return F.cross_entropy(self.inner(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        return self.loss(batch)


class Frames(pl.Callback):
    """How many frames torch.compile has begun with, at each validation."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_validation_end(self, trainer, pl_module):
        stats = counters["stats"]
        self.seen.append(counters["frames"]["total"] + stats["unique_graphs"])


def whole(module):
    return torch.compile(module, backend="eager")


def in_one_graph(module):
    return torch.compile(module, backend="eager", fullgraph=True)


COMPILED = {
    "an inner module": lambda: Stacked(nn.Tanh(), whole),
    "an inner module in one graph": lambda: Stacked(nn.Tanh(), in_one_graph),
    "all of the module": lambda: whole(Stacked(nn.Tanh())),
    "a recurrent inner module": lambda: Stacked(Recurrent(), whole),
    "all of a recurrent module": lambda: whole(Stacked(Recurrent())),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", COMPILED)
def test_a_run_with_lscore_compiles_what_one_without_it_does(name, trainer):
    """Only an embedding that runs in Python is looked at on its own while it is heard, once."""

    def run(*callbacks):
        torch.compiler.reset()
        counters.clear()
        frames = Frames()
        # A module is compiled for training, for evaluation, and no more than that.
        fit = trainer(*callbacks, frames, max_epochs=3, num_sanity_val_steps=0)
        fit.fit(COMPILED[name](), loader(32), loader(8))
        assert frames.seen[0] == frames.seen[-1]
        return frames.seen[-1]

    lscore = LScore()
    without, with_it = run(), run(lscore)
    assert 0 <= with_it - without <= (2 if "recurrent" in name else 0)
    unheard = name == "all of the module"
    assert lscore.last_record.measurements.tokens == 3 * 32 * (12 if unheard else 11)
    assert lscore.last_record.measurements.validation_tokens == 8 * 11
