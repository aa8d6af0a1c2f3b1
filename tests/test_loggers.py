"""What loggers stored, read back with their own readers: keys, steps, hyper-parameters."""

from __future__ import annotations

import csv

import pytest
import yaml
from conftest import PlainLM, loader
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lightning_lscore import Factor, Formula, LScore

FORMULA = Formula(D=Factor("tokens", 100.0, 0.1), A=0.9, origin="a study")
KEYS = {"L", "perplexity", "f_D", "f_A", "f_H", "lscore/tokens", "lscore/validation_tokens"}
NAMED = {
    "lscore/formula/id": FORMULA.id,
    "lscore/formula/origin": "a study",
    "lscore/formula/T": "perplexity",
    "lscore/formula/D_measure": "tokens",
    "lscore/formula/D_reference": 100.0,
    "lscore/formula/D_weight": 0.1,
    "lscore/formula/D_c": 1.0,
    "lscore/formula/A": 0.9,
    "lscore/formula/H": 1.0,
}


def fit(trainer, loggers, *, lscore=None, model=None, **options):
    lscore = LScore(FORMULA) if lscore is None else lscore
    options = {"logger": loggers, "max_epochs": 2, **options}
    trainer(lscore, **options).fit(model or PlainLM(), loader(8), loader(4))
    return lscore


def scalars(folder):
    """Key -> [(step, value)] of TensorBoard's event files, and key -> text."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    values = {k: [(e.step, e.value) for e in events.Scalars(k)] for k in tags["scalars"]}
    texts = {k: events.Tensors(k)[0].tensor_proto.string_val[0].decode() for k in tags["tensors"]}
    return values, texts


def test_several_loggers_store_the_same_keys_at_the_same_steps(trainer, tmp_path):
    """The values are those of the record, and the formula is among the hyper-parameters."""
    loggers = [CSVLogger(tmp_path, "csv", ""), TensorBoardLogger(tmp_path, "tb", "")]
    lscore = fit(trainer, loggers)
    with open(tmp_path / "csv" / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["L"]]
    assert rows[0].keys() >= KEYS
    values, texts = scalars(tmp_path / "tb")
    assert values.keys() >= KEYS
    for key in KEYS:
        stored = [(int(row["step"]), float(row[key])) for row in rows]
        assert [s for s, _ in stored] == [s for s, _ in values[key]]
        assert [v for _, v in stored] == pytest.approx([v for _, v in values[key]], rel=1e-6)
    assert float(rows[-1]["L"]) == pytest.approx(lscore.last_record.L)
    told = yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())
    assert told == NAMED
    (text,) = (text for key, text in texts.items() if key.startswith("lscore/formula"))
    assert f"| id | {FORMULA.id} |" in text
    assert loggers[1].hparams == NAMED
    assert "hp_metric" not in values


class WithHyperparameters(PlainLM):
    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_the_users_own_hyperparameters_stay(trainer, tmp_path):
    loggers = [CSVLogger(tmp_path, "csv", ""), TensorBoardLogger(tmp_path, "tb", "")]
    fit(trainer, loggers, model=WithHyperparameters())
    told = yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())
    assert told == {"width": 7, **NAMED}
    assert loggers[1].hparams == {"width": 7, **NAMED}


class Refuses(Logger):
    """Takes hyper-parameters at the start alone, as some do."""

    name, version = "refuses", 0

    def log_hyperparams(self, params, *args, **kwargs):
        raise RuntimeError("too late")

    def log_metrics(self, metrics, step=None):
        pass


def test_a_logger_that_refuses_costs_a_warning_not_the_run(trainer, tmp_path):
    """Said once, and the other loggers are not asked again."""
    with pytest.warns(UserWarning, match="gives up its formula in the loggers .*too late") as seen:
        lscore = fit(trainer, [Refuses()])
    assert sum("too late" in str(w.message) for w in seen) == 1
    assert lscore.last_record.L is not None


def test_the_formula_of_a_runs_own_plan_is_told_once_it_is_settled(trainer, tmp_path):
    """Its id is that of the record, so runs can be grouped by it."""
    logger = CSVLogger(tmp_path, "csv", "")
    lscore = fit(trainer, logger, lscore=LScore(prefix="my_"))
    told = yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())
    assert told["my_lscore/formula/id"] == lscore.formula_in_force.id
    assert told["my_lscore/formula/origin"].startswith("the run's own plan of")
    function = fit(trainer, logger, lscore=LScore(Formula(D=lambda m: 1.0)))
    told = yaml.safe_load((tmp_path / "csv" / "hparams.yaml").read_text())
    assert told["lscore/formula/D"] == "a function"
    assert function.last_record.L is not None


def test_weights_and_biases_stores_it_in_a_run_without_network(trainer, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="a")
    lscore = fit(trainer, logger)
    assert {k: logger.experiment.config[k] for k in NAMED} == NAMED
    assert logger.experiment.summary["L"] == pytest.approx(lscore.last_record.L)
    wandb.finish()


def test_mlflow_stores_it_in_files(trainer, tmp_path):
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    logger = MLFlowLogger("a", tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    lscore = fit(trainer, logger)
    run = logger.experiment.get_run(logger.run_id)
    assert {k: run.data.params[k] for k in NAMED} == {k: str(v) for k, v in NAMED.items()}
    history = logger.experiment.get_metric_history(logger.run_id, "L")
    assert history[-1].value == pytest.approx(lscore.last_record.L)
