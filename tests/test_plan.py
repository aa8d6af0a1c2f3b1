"""The plan of a Trainer, against what Lightning then does."""

from __future__ import annotations

import random

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, Timer
from torch.utils.data import DataLoader, IterableDataset

from lightning_lscore.plan import plan_of

RESUME = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


class OneParameter(pl.LightningModule):
    """Its optimisers step by themselves, or as often in a batch as it is told."""

    def __init__(self, steps=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.automatic_optimization = steps is None
        self.steps = steps or (lambda batch_idx: 1)

    def training_step(self, batch, batch_idx):
        loss = self.weight * batch.sum()
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        optimizers = self.optimizers()
        for i in range(self.steps(batch_idx)):
            optimizers[i % 2].step()
        return None

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        rate = torch.optim.SGD(self.parameters(), 0.1)
        other = torch.optim.SGD(self.parameters(), 0.1)
        return rate if self.automatic_optimization else [rate, other]


class Watch(pl.Callback):
    """Asks for the plan at the start and in each validation, and counts the batches after it."""

    def __init__(self):
        self.done, self.asked = 0, []

    def ask(self, trainer, **options):
        plan = plan_of(trainer, **options)
        in_all = None if plan.to_come is None else self.done + plan.to_come
        self.asked.append((in_all, plan.how))

    def on_train_start(self, trainer, pl_module):
        self.ask(trainer, starting=True)

    def on_train_batch_end(self, *_):
        self.done += 1

    def on_validation_epoch_end(self, trainer, pl_module):
        self.ask(trainer)

    @property
    def plans(self):
        return [in_all for in_all, _ in self.asked]


class Endless(IterableDataset):
    """Rows without a length."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        yield from torch.ones(self.n)


def rows(n, sized=True):
    return DataLoader(torch.ones(n) if sized else Endless(n), batch_size=1)


def fit(data, *callbacks, steps=None, ckpt_path=None, module=None, **options):
    watch = Watch()
    saves = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=saves,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[watch, *callbacks],
        **{"max_epochs": -1, **options},
    )
    trainer.fit(module or OneParameter(steps), data, rows(1), ckpt_path=ckpt_path)
    return watch


def drawn(seed):
    """Options of a Trainer that ends."""
    draw = random.Random(seed)
    n = draw.randint(1, 9)
    options = {"data": rows(n), "accumulate_grad_batches": draw.randint(1, 11)}
    ends = draw.choice(["epochs", "steps", "both"])
    if ends != "steps":
        options["max_epochs"] = draw.randint(1, 4)
    if ends != "epochs":
        options["max_steps"] = draw.randint(1, 9)
    if draw.random() < 0.3:
        options["limit_train_batches"] = draw.choice([1, draw.randint(1, n), 1.0])
    if draw.random() < 0.3:
        options |= {"val_check_interval": draw.randint(1, n), "check_val_every_n_epoch": None}
        options["val_check_interval"] = draw.randint(1, 4)
    if draw.random() < 0.3:
        del options["accumulate_grad_batches"]
        changes = {draw.randint(0, 4): draw.randint(1, 5) for _ in range(3)}
        options["callbacks"] = [GradientAccumulationScheduler(changes)]
    if draw.random() < 0.2:
        options["min_steps"] = draw.randint(1, 30)
    return options


@pytest.mark.parametrize("seed", range(60))
def test_the_plan_is_what_lightning_then_does(seed):
    """At the start and at each validation, whatever limits it and however it accumulates."""
    options = drawn(seed)
    watch = fit(options.pop("data"), *options.pop("callbacks", []), **options)
    assert set(watch.plans) == {watch.done}
    assert all(how.startswith("counted by ") for _, how in watch.asked)


@pytest.mark.parametrize(("steps", "n"), [(lambda i: 2, 5), (lambda i: i % 2, 6), (lambda i: 1, 3)])
def test_under_manual_optimisation_the_ratio_so_far_tells(steps, n):
    """A step of each optimiser counts, and only the module knows when it takes one."""
    watch = fit(rows(n), steps=steps, max_steps=30)
    assert watch.plans[0] is None
    assert watch.asked[0][1].startswith("unknown before the module's optimisers have stepped")
    assert set(watch.plans[1:]) == {watch.done}
    assert all(how.startswith("from the ratio so far") for _, how in watch.asked[1:])


def test_under_manual_optimisation_epochs_are_counted():
    """They do not depend on steps; and of both limits the nearer one counts."""
    assert set(fit(rows(5), steps=lambda i: 2, max_epochs=3).plans) == {15}
    both = fit(rows(5), steps=lambda i: 2, max_epochs=3, max_steps=1000)
    assert both.plans == [None, 15, 15, 15]
    never = fit(rows(5), steps=lambda i: 0, max_epochs=2, max_steps=1000)
    assert never.plans == [None, 10, 10]


def test_data_without_a_length_is_known_by_its_epochs_so_far():
    """Before one has ended, by max_steps, or not at all."""
    epochs = fit(rows(5, sized=False), max_epochs=3)
    assert epochs.plans == [None, 15, 15, 15]
    assert epochs.asked[0][1] == "unknown before an epoch has ended: the data has no length"
    assert epochs.asked[1][1] == "from the ratio so far, of batches to epochs, and max_epochs=3"
    steps = fit(rows(5, sized=False), max_steps=7, accumulate_grad_batches=2, val_check_interval=3)
    assert steps.plans == [14, 14, 12]  # an epoch has three steps, which its end tells
    assert steps.done == 12
    assert steps.asked[0][1].startswith("from max_steps=7, unless the data, of unknown length")
    limited = fit(rows(50, sized=False), max_epochs=2, limit_train_batches=4)
    assert set(limited.plans) == {limited.done} == {8}


@RESUME
@pytest.mark.parametrize("save", [{"every_n_train_steps": 2}, {"every_n_epochs": 1}])
@pytest.mark.parametrize("end", [{"max_epochs": 4}, {"max_steps": 17}])
@pytest.mark.parametrize("n", [4, 5])
def test_a_resumed_fit_knows_what_is_left_of_it(save, end, n, tmp_path):
    """From the middle and from the end of an epoch."""
    part = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", **save)
    fit(rows(n), part, max_epochs=2)
    files = sorted(tmp_path.iterdir())
    assert len(files) >= 2
    for file in files:
        watch = fit(rows(n), ckpt_path=str(file), **end)
        assert set(watch.plans) == {watch.done}, file.name


class Reloaded(OneParameter):
    """Its epochs have 4, 6 and 2 batches."""

    def train_dataloader(self):
        return rows((4, 6, 2)[self.trainer.current_epoch])


def test_loaders_that_are_loaded_again_are_taken_to_keep_their_length():
    """And it is said; each validation knows better."""
    watch = fit(None, module=Reloaded(), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert watch.done == 12
    assert watch.plans == [12, 12, 4 + 6 + 6, 12]
    assert all("loaded again and taken to keep it" in how for _, how in watch.asked)


class OneSecondABatch(Timer):
    """A clock that goes on by the batch."""

    batches = 0

    def on_train_batch_end(self, trainer, *arguments):
        self.batches += 1
        super().on_train_batch_end(trainer, *arguments)

    def time_elapsed(self, stage="train"):
        return float(self.batches)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_max_time_is_known_by_the_batches_so_far(interval):
    """Not before there are enough of them; another limit that comes earlier counts."""
    timer = OneSecondABatch({"seconds": 22}, interval, verbose=False)
    watch = fit(rows(5), timer, max_epochs=100)
    assert watch.done == (22 if interval == "step" else 25)
    assert watch.plans[:2] == [None, None]
    assert set(watch.plans[2:]) == {watch.done}
    assert watch.asked[0][1] == "unknown before 10 batches have passed, as max_time counts"
    timer = OneSecondABatch({"seconds": 22}, interval, verbose=False)
    assert fit(rows(5), timer, max_epochs=4).plans == [None, None, 20, 20, 20]


def test_without_a_limit_there_is_no_plan():
    """And it says so."""

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    watch = fit(rows(3), Stop())
    assert watch.plans == [None, None]
    assert watch.asked[0][1] == "unknown: neither max_epochs nor max_steps ends it"
