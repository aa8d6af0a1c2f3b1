"""Run by test_tracker.py: one loop twice, by the Trainer with LScore and by hand with a Tracker."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from conftest import PlainLM, loader
from ranks_fits import with_known_peak
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lscore import LScore, Tracker

EPOCHS = 8
with_known_peak()


def shard(data: DataLoader, shuffled: bool) -> DataLoader:
    """This process's part, as Lightning deals it: shuffled for training on several processes."""
    if not dist.is_initialized():
        return data
    sampler = DistributedSampler(data.dataset, shuffle=shuffled)
    return DataLoader(data.dataset, batch_size=data.batch_size, sampler=sampler)


def by_trainer(folder: Path, processes: int) -> None:
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp" if processes > 1 else "auto",
        devices=processes,
        max_epochs=EPOCHS,
        default_root_dir=folder,
        logger=False,
        callbacks=[LScore(price_per_device_hour=2.0)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(PlainLM(lr=0.5), loader(16, batch=2), loader(8, seed=1))


def by_hand(folder: Path, processes: int) -> None:
    pl.seed_everything(0, verbose=False)
    model = PlainLM(lr=0.5)
    train = shard(loader(16, batch=2), shuffled=True)
    valid = shard(loader(8, seed=1), shuffled=False)
    tokens = EPOCHS * 16 * 12
    tracker = Tracker(model, planned_tokens=tokens, directory=folder, price_per_device_hour=2.0)
    wrapped = DistributedDataParallel(model) if processes > 1 else model
    optimizer = model.configure_optimizers()
    for epoch in range(EPOCHS):
        if processes > 1:
            train.sampler.set_epoch(epoch)
        with tracker.training():
            for batch in train:
                logits = wrapped(batch["input_ids"])
                targets = batch["labels"][:, 1:]
                cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten()).backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.count(batch)
        with tracker.evaluation() as held_out, torch.no_grad():
            for batch in valid:
                logits = model(batch["input_ids"])
                held_out.update(logits[:, :-1], batch["labels"][:, 1:])
        tracker.score()
    tracker.close()


if __name__ == "__main__":
    root, n = Path(sys.argv[1]), int(sys.argv[2])
    by_trainer(root / "trainer", n)
    if n > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    by_hand(root / "hand", n)
    if dist.is_initialized():
        dist.destroy_process_group()
