"""Both names of Lightning: each with its own Trainer, command line and checkpoint."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch
from conftest import VOCABULARY, loader, run_python

from lightning_lscore import CostEarlyStopping, Factor, Formula, LScore

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
FORMULA = Formula(D=Factor("tokens", 500, 0.1))
RESUME = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


@pytest.fixture(params=PACKAGES)
def package(request):
    return importlib.import_module(request.param)


def make(package):
    """A module and a data module of that package."""

    class LM(package.LightningModule):
        def __init__(self, width: int = 16) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(VOCABULARY, width)
            self.head = torch.nn.Linear(width, VOCABULARY)

        def training_step(self, batch, batch_idx):
            logits = self.head(self.embedding(batch["input_ids"]))[:, :-1]
            labels = batch["labels"][:, 1:]
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

        def validation_step(self, batch, batch_idx):
            logits = self.head(self.embedding(batch["input_ids"]))
            return {"logits": logits, "labels": batch["labels"]}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Data(package.LightningDataModule):
        def train_dataloader(self):
            return loader(8)

        def val_dataloader(self):
            return loader(4)

    return LM, Data


def options(folder, **others):
    return {
        "accelerator": "cpu",
        "default_root_dir": str(folder),
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        **others,
    }


@RESUME
def test_a_run_is_scored_saved_and_resumed(package, tmp_path):
    LM, Data = make(package)
    save = package.callbacks.ModelCheckpoint(tmp_path / "c", monitor="L", save_last=True)

    def fit(epochs, *others, ckpt_path=None):
        lscore = LScore(FORMULA)
        callbacks = [lscore, package.callbacks.EarlyStopping("L"), CostEarlyStopping(), *others]
        trainer = package.Trainer(callbacks=callbacks, **options(tmp_path, max_epochs=epochs))
        trainer.fit(LM(), Data(), ckpt_path=ckpt_path)
        return trainer, lscore

    trainer, lscore = fit(2, save)
    assert float(trainer.callback_metrics["L"]) == lscore.last_record.L
    assert lscore.last_record.measurements.tokens == 2 * 8 * 12
    _, resumed = fit(3, ckpt_path=save.last_model_path)
    assert resumed.last_record.measurements.tokens == 3 * 8 * 12
    assert resumed.last_record.run == lscore.last_record.run


def test_they_are_callbacks_of_the_package(package):
    assert isinstance(LScore(), package.Callback)
    assert isinstance(CostEarlyStopping(), package.Callback)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Lightning and jsonargparse
def test_the_command_line_takes_them_with_typed_arguments(package, tmp_path, monkeypatch):
    """Formula and all."""
    monkeypatch.setattr(sys, "argv", ["train.py"])  # else it complains of the tests' own
    cli = importlib.import_module(f"{package.__name__}.cli")
    LM, Data = make(package)
    factor = {"measure": "tokens", "reference": 500, "weight": 0.1}
    formula = {"D": {"class_path": "lightning_lscore.Factor", "init_args": factor}}
    arguments = {"formula": {"class_path": "lightning_lscore.Formula", "init_args": formula}}
    callbacks = [
        {"class_path": "lightning_lscore.LScore", "init_args": {**arguments, "from_loss": True}},
        {"class_path": "lightning_lscore.CostEarlyStopping", "init_args": {"tolerance": 0.01}},
    ]
    trainer = options(tmp_path, max_epochs=2, callbacks=callbacks, enable_checkpointing=False)
    made = cli.LightningCLI(
        LM,
        Data,
        args={"subcommand": "fit", "fit": {"trainer": trainer, "seed_everything": 0}},
        save_config_callback=None,
    )
    assert made.trainer.callback_metrics["L"] > 0
    (lscore,) = (c for c in made.trainer.callbacks if isinstance(c, LScore))
    assert lscore.formula == FORMULA


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_lscore_changes_nothing_in_the_process(package, tmp_path):
    """Nor does it import the other package, which would send all messages to its own logger."""
    program = (
        f"import logging, os, sys, warnings, {package}\n"
        "import lightning_utilities.core.rank_zero as rank_zero\n"
        "def loggers():\n"
        "    known = logging.root.manager.loggerDict\n"
        "    return {n: (str(one), getattr(one, 'handlers', 0)) for n, one in known.items()}\n"
        "def state(): return [rank_zero.log, *warnings.filters, dict(os.environ), loggers(),\n"
        "    sys.meta_path[:], sys.path[:], {n.partition('.')[0] for n in sys.modules}]\n"
        "before = state()\n"
        "from lightning_lscore import CostEarlyStopping, LScore, Tracker\n"
        "before[-1].add('lightning_lscore')\n"
        "assert state() == before, [pair for pair in zip(state(), before) if pair[0] != pair[1]]\n"
        f"assert isinstance(LScore(), {package}.Callback)\n"
        f"assert isinstance(CostEarlyStopping(), {package}.callbacks.EarlyStopping)"
    )
    run_python("-c", program, folder=tmp_path)


def test_a_package_that_is_imported_later_takes_the_callbacks_too(tmp_path):
    """In a Trainer, as the classes that a command line looks for, and out of a pickle."""
    program = (
        "import pickle, sys\n"
        "from lightning_lscore import CostEarlyStopping, LScore\n"
        "early = LScore()\n"
        "assert 'pytorch_lightning' not in sys.modules\n"
        "import lightning_lscore, pytorch_lightning\n"
        "for name in ('CostEarlyStopping', 'LScore'):\n"
        "    assert issubclass(getattr(lightning_lscore, name), pytorch_lightning.Callback)\n"
        "made = [early, pickle.loads(pickle.dumps(early)), CostEarlyStopping()]\n"
        "assert all(isinstance(one, pytorch_lightning.Callback) for one in made)\n"
        "trainer = pytorch_lightning.Trainer(callbacks=early, accelerator='cpu', logger=False)\n"
        "assert early in trainer.callbacks"
    )
    run_python("-c", program, folder=tmp_path)
