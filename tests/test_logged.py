"""What LScore logs beside what the module, its metrics and other callbacks log."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import PlainLM, loader
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning_utilities.core import rank_zero
from torchmetrics import MeanMetric, MetricCollection

from lightning_lscore import CostEarlyStopping, Factor, Formula, LScore
from lightning_lscore.run.names import KEYS

USERS = 7.0
"""What the modules here log, which is nobody's perplexity."""


class Logs(PlainLM):
    """Logs names in one of its hooks."""

    def __init__(self, hook: str, *names: str, value: object = USERS, **how: object) -> None:
        super().__init__()
        self.hook, self.names, self.value, self.how = hook, names, value, how

    def log_own(self, hook: str) -> None:
        if hook == self.hook:
            self.log_dict(dict.fromkeys(self.names, self.value), **self.how)

    def training_step(self, batch, batch_idx):
        self.log_own("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log_own("validation_step")
        return super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        self.log_own("on_validation_epoch_end")

    def on_train_epoch_end(self):
        self.log_own("on_train_epoch_end")


class Folder(Logger):
    """Keeps a file for each name, as MLflow's files do: ``a`` and ``a/b`` cannot both be kept."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    name, version = "folder", 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            with open(self.path / name, "a") as file:
                file.write(f"{value}\n")

    def values(self) -> dict[str, list[float]]:
        found = sorted(file for file in self.path.rglob("*") if file.is_file())
        return {
            str(file.relative_to(self.path)): [float(x) for x in file.read_text().split()]
            for file in found
        }


@pytest.fixture
def fit(trainer, tmp_path):
    """Fits two epochs; returns what the logger has and what could be monitored."""

    def fit(model, *callbacks, loaders=1, **options):
        logger = Folder(tmp_path / "logged")
        callbacks = callbacks or (LScore(),)
        t = trainer(*callbacks, **{"logger": logger, "max_epochs": 2, **options})
        held_out = [loader(6, seed=i + 1) for i in range(loaders)]
        t.fit(model, loader(16), held_out[0] if loaders == 1 else held_out)
        assert "log" not in vars(t.fit_loop.epoch_loop.val_loop._results), "nothing is left"
        return logger.values(), {k: float(v) for k, v in t.callback_metrics.items()}

    return fit


HOWS = [{}, {"prog_bar": True}, {"sync_dist": True}, {"logger": False}]


@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("hook", ["validation_step", "on_validation_epoch_end"])
def test_a_perplexity_of_the_modules_own_stays_as_it_is(hook, how, sanity, fit):
    """LScore's has another name from the first validation on, sanity check or not."""
    lscore = LScore()
    logged, monitored = fit(
        Logs(hook, "perplexity", batch_size=1, **how), lscore, num_sanity_val_steps=sanity
    )
    T = lscore.last_record.measurements.perplexity
    assert logged.get("perplexity", [USERS] * 2) == [USERS] * 2
    assert monitored["perplexity"] == USERS
    assert len(logged["lscore/perplexity"]) == 2
    assert logged["lscore/perplexity"][-1] == monitored["lscore/perplexity"] == pytest.approx(T)
    assert lscore.name_of("perplexity") == "lscore/perplexity"
    assert (lscore.name_of("L"), len(logged["L"])) == ("L", 2)


@pytest.mark.parametrize("hook", ["validation_step", "on_validation_epoch_end"])
def test_every_name_of_ours_may_be_taken(hook, fit):
    lscore = LScore()
    names = [*KEYS, "lscore/capacity_flops"]
    logged, _ = fit(Logs(hook, *names, batch_size=1), lscore)
    assert all(logged[name] == [USERS] * 2 for name in names)
    record = lscore.last_record
    assert logged[lscore.name_of("L")][-1] == pytest.approx(record.L)
    assert logged[lscore.name_of("lscore/tokens")][-1] == record.measurements.tokens


def test_a_name_of_the_training_step_is_the_modules(fit):
    lscore = LScore()
    logged, _ = fit(Logs("training_step", "perplexity", on_step=True, on_epoch=True), lscore)
    assert set(logged["perplexity_step"] + logged["perplexity_epoch"]) == {USERS}
    assert "perplexity" not in logged
    assert len(logged["lscore/perplexity"]) == 2


def test_a_name_that_is_logged_only_after_the_first_validation_is_the_modules_from_then_on(fit):
    """At the end of a training epoch, which the validation precedes."""
    lscore = LScore()
    logged, _ = fit(Logs("on_train_epoch_end", "perplexity"), lscore)
    assert logged["perplexity"][1:] == [USERS] * 2
    assert len(logged["lscore/perplexity"]) == 1


def test_a_torchmetric_keeps_its_name(fit):
    model = Logs("on_validation_epoch_end", "perplexity")
    model.metric = model.value = MeanMetric()
    model.metric.update(USERS)
    model.metric.reset = lambda: None
    logged, _ = fit(model)
    assert logged["perplexity"] == [USERS] * 2
    assert len(logged["lscore/perplexity"]) == 2


def test_a_collection_of_torchmetrics_keeps_its_names(fit):
    model = PlainLM()
    model.metrics = MetricCollection({"perplexity": MeanMetric(), "L": MeanMetric()})

    def validation_step(batch, batch_idx):
        model.metrics.update(USERS)
        model.log_dict(model.metrics, batch_size=1)
        return PlainLM.validation_step(model, batch, batch_idx)

    model.validation_step = validation_step
    logged, _ = fit(model)
    assert logged["perplexity"] == logged["L"] == [USERS] * 2
    assert len(logged["lscore/perplexity"]) == len(logged["lscore/L"]) == 2


def test_with_several_loaders_no_name_lies_in_the_path_of_another(fit):
    """The logger would raise."""
    logged, _ = fit(PlainLM(), loaders=2)
    assert {"perplexity", "lscore/perplexity_0", "lscore/perplexity_1"} <= {*logged}


def test_a_name_of_the_modules_for_each_loader_stays(fit):
    logged, _ = fit(Logs("validation_step", "perplexity", batch_size=1), loaders=2)
    assert logged["perplexity/dataloader_idx_1"] == [USERS] * 2


@pytest.mark.parametrize("name", ["perplexity/val", "lscore", "L/val"])
def test_a_name_may_be_a_folder_of_the_modules_or_the_other_way_round(name, fit):
    logged, _ = fit(Logs("on_validation_epoch_end", name))
    assert logged[name] == [USERS] * 2


def test_callbacks_and_a_second_lscore_keep_their_names(fit):
    """Also one that logs after LScore in the same hook."""

    class Other(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            self.log("perplexity", USERS, prog_bar=True)

    first, second = LScore(), LScore(prefix="L/")
    logged, _ = fit(PlainLM(), first, Other(), second)
    assert logged["perplexity"] == [USERS] * 2
    assert len(logged["lscore/perplexity"]) == 2
    assert logged[first.name_of("L")][-1] == pytest.approx(first.last_record.L)
    assert logged[second.name_of("L/L")][-1] == pytest.approx(second.last_record.L)


def test_it_is_said_once_and_before_the_first_step_where_a_sanity_check_shows_it(trainer, caplog):
    said_at = []

    class Note(logging.Handler):
        def emit(self, record):
            if "'lscore/perplexity'" in record.getMessage():
                said_at.append(t.global_step)

    log = rank_zero.log  # that of whichever package of Lightning was imported last
    handler = Note()
    log.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, logger=log.name):
            lscore = LScore()
            t = trainer(lscore, max_epochs=3, num_sanity_val_steps=1)
            model = Logs("on_validation_epoch_end", "perplexity")
            t.fit(model, loader(16), loader(4))
    finally:
        log.removeHandler(handler)
    assert said_at == [0]
    assert lscore.last_record.assumptions["names"].startswith("someone else logs under these")


class LIsRising(Logs):
    """Its own "L" gets better for ever, while LScore's only rises."""

    def __init__(self) -> None:
        super().__init__("on_validation_epoch_end", "L")
        self.lr = 0.0

    def on_validation_epoch_end(self):
        self.value = -float(self.global_step)
        super().on_validation_epoch_end()


def test_whoever_monitors_ours_finds_it_under_its_other_name(fit, trainer, tmp_path):
    """CostEarlyStopping by itself, Lightning's callbacks by the name that is said."""
    dear = Formula(D=Factor("tokens", 48, weight=0.1, c=0))
    stopping = CostEarlyStopping(certainty=0)
    lscore = LScore(dear)
    fit(LIsRising(), stopping, lscore, max_epochs=20)
    assert stopping.stopped_epoch == 2
    assert stopping.monitor == "L"
    save = ModelCheckpoint(tmp_path / "c", monitor="lscore/L", filename="best")
    early = EarlyStopping("lscore/L", patience=2)
    t = trainer(early, save, LScore(dear), max_epochs=20)
    t.fit(LIsRising(), loader(16), loader(4))
    assert (early.stopped_epoch, t.current_epoch) == (2, 3)
    assert float(save.best_model_score) == pytest.approx(float(early.best_score))


@pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch",
    "ignore:Be aware that when using `ckpt_path`",
)
def test_a_resumed_run_knows_its_other_names(trainer, tmp_path):
    """Where no sanity check shows them, and Lightning looks for L before any validation."""
    save = ModelCheckpoint(tmp_path, save_last=True)
    lscore = LScore()
    model = Logs("on_validation_epoch_end", "perplexity")
    trainer(lscore, save).fit(model, loader(16), loader(4))
    seen = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update(trainer.callback_metrics)

    t = trainer(LScore(), Look(), max_epochs=2)
    t.fit(model, loader(16), loader(4), ckpt_path=save.last_model_path)
    assert "perplexity" not in seen
    states = torch.load(save.last_model_path, weights_only=True)["callbacks"]
    assert float(seen["lscore/perplexity"]) == states[lscore.state_key]["logged"]["perplexity"]


def test_validating_alone_leaves_the_modules_names_alone(trainer):
    lscore = LScore()
    model = Logs("on_validation_epoch_end", "perplexity")
    (values,) = trainer(lscore).validate(model, loader(4), verbose=False)
    assert values["perplexity"] == USERS
    assert values["lscore/perplexity"] > 1


def test_a_module_may_change_the_names_that_anyone_logs(fit):
    class Prefixed(PlainLM):
        def log(self, name, *args, **kwargs):
            super().log(f"mine/{name}", *args, **kwargs)

    logged, _ = fit(Prefixed())
    assert len(logged["mine/L"]) == 2


def test_a_prefix_may_hold_a_slash(fit, trainer, tmp_path):
    """In names for loggers, and in the names of files."""
    logged, _ = fit(PlainLM(), LScore(prefix="strict/"), LScore())
    assert len(logged["strict/L"]) == len(logged["L"]) == 2
    assert {path.name for path in tmp_path.rglob("*.jsonl")} == {
        "strict_lscore.jsonl",
        "lscore.jsonl",
    }
    save = ModelCheckpoint(
        tmp_path, "{step}-{strict/L:.3f}", "strict/L", auto_insert_metric_name=False
    )
    trainer(LScore(prefix="strict/"), save).fit(PlainLM(), loader(16), loader(4))
    (path,) = tmp_path.glob("*.ckpt")
    assert path.name == f"4-{float(save.best_model_score):.3f}.ckpt"
