"""Run by test_environment.py: two processes, of which one, both or none find a language model."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from datetime import timedelta
from operator import attrgetter

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from conftest import PlainLM, loader
from lightning.fabric.plugins.environments import LightningEnvironment
from ranks_fits import Stream, with_known_peak
from torch.utils.data import DataLoader

from lightning_lscore.environment import EnvironmentLScore

ALL = (0, 1)


class Partly(PlainLM):
    """Returns logits on some ranks, from some validation on."""

    def __init__(self, ranks: tuple[int, ...], from_step: int = 0) -> None:
        super().__init__()
        self.ranks, self.from_step = ranks, from_step

    def validation_step(self, batch, batch_idx):
        found = super().validation_step(batch, batch_idx)
        hides = self.global_rank in self.ranks and self.global_step >= self.from_step
        return None if hides else found


class Fails(EnvironmentLScore):
    """Meets an error on one rank, in one of the tracker's methods."""

    def __init__(self, method: str, rank: int) -> None:
        super().__init__()
        self.method, self.rank = method, rank

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        if trainer.global_rank == self.rank:
            *path, name = self.method.split(".")
            owner = attrgetter(*path)(self.tracker) if path else self.tracker
            assert hasattr(owner, name)
            setattr(owner, name, self.fail)

    def fail(self, *args, **kwargs):
        raise ZeroDivisionError("a mistake")


def stream(idle: int):
    return DataLoader(Stream(8, 1, idle), batch_size=4)


# What the LScore is, on which ranks validation shows no model, from which step on, over what data,
# with how many batches of a sanity check; and whether it is to give up.
CASES = {
    "none": (EnvironmentLScore, (), 0, None, 1, False),
    "both": (EnvironmentLScore, ALL, 0, None, 0, True),
    "both, seen before": (EnvironmentLScore, ALL, 0, None, 1, True),
    "first": (EnvironmentLScore, (0,), 0, None, 0, True),
    "second": (EnvironmentLScore, (1,), 0, None, 0, True),
    "second, seen before": (EnvironmentLScore, (1,), 0, None, 1, True),
    "second, later": (EnvironmentLScore, (1,), 3, None, 1, True),
    "first, the other idle": (EnvironmentLScore, ALL, 0, 1, 0, True),
    "second, the other idle": (EnvironmentLScore, ALL, 0, 0, 0, True),
    **{
        f"{method} on {rank}": (lambda m=method, r=rank: Fails(m, r), (), 0, None, 0, True)
        for method in ("_architecture.begin", "count", "pause", "_note_the_set")
        for rank in ALL
    },
}


def fit(name: str) -> None:
    make, ranks, step, idle, sanity, gives_up = CASES[name]
    lscore = make()
    t = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        plugins=[LightningEnvironment()],
        default_root_dir=tempfile.mkdtemp(),
        callbacks=[lscore],
        max_epochs=3,
        num_sanity_val_steps=sanity,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    t.fit(Partly(ranks, step), loader(16), loader(8) if idle is None else stream(idle))
    assert t.global_step == 6, t.global_step
    assert lscore.stays_out == gives_up, name
    assert len(lscore._said) == gives_up, lscore._said


def rank(here: int, folder: str) -> None:
    os.environ.update(LOCAL_RANK=str(here), NODE_RANK="0")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=here,
        world_size=2,
        timeout=timedelta(seconds=30),
    )
    try:
        for name in CASES:
            fit(name)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    dist.destroy_process_group()


def main() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning_lscore").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with_known_peak()
    fork, folder = multiprocessing.get_context("fork"), tempfile.mkdtemp()
    ranks = [fork.Process(target=rank, args=(r, folder)) for r in ALL]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit("a process failed")
    print("all ended")


if __name__ == "__main__":
    main()
