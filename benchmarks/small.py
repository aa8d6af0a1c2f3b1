"""What the benchmarks of a step and of a validation train: as cheap as it can be."""

from __future__ import annotations

import logging
import warnings

import lightning.pytorch as pl
import torch

WORDS = 64


class Small(pl.LightningModule):
    """Batches are ([B, T] token numbers,), so that what a callback adds shows beside them."""

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
    """No words of Lightning's between the figures, and one thread."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
