"""The model that the benchmarks of a step, a start and a validation train: as cheap as possible."""

from __future__ import annotations

import logging
import warnings

import lightning.pytorch as pl
import torch

WORDS = 64


class Small(pl.LightningModule):
    """Batches are ([B, T] token numbers,). Its steps are short, so that a callback's cost shows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(WORDS, 32)
        self.head = torch.nn.Linear(32, WORDS)

    def forward(self, ids):
        return self.head(self.embedding(ids))

    def training_step(self, batch, batch_idx):
        (ids,) = batch
        logits = self(ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def be_quiet() -> None:
    """Keep Lightning's messages out of the figures, and torch to one thread."""
    warnings.filterwarnings("ignore")
    # Whichever of the two packages is imported last writes the messages of both.
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def accelerators() -> list[str]:
    """Return what to measure on unless told otherwise."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
