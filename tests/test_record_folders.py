"""Where the record of a run lies: in a folder of its own, whatever the Trainer logs to."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import fsspec
import pytest
from conftest import PlainLM, loader
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger

from lightning_lscore import LScore, read_records, read_run
from lightning_lscore.artifacts import attach
from lightning_lscore.cli import main
from lightning_lscore.record.file import RECORD_FILE

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    "ignore:The dirpath has changed from",
)


class Named(Logger):
    """A logger that says what it is told to, and keeps nothing, as those of web services do."""

    def __init__(self, name, version, save_dir=None):
        super().__init__()
        self._named = name, version, save_dir

    name = property(lambda self: self._named[0])
    version = property(lambda self: self._named[1])
    save_dir = property(lambda self: self._named[2])

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def records_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{RECORD_FILE}"))


@pytest.mark.parametrize(
    ("logger", "place"),
    [
        (lambda d: CSVLogger(d), "lightning_logs/version_0"),
        (lambda d: TensorBoardLogger(d, name="a", version="b", sub_dir="c"), "a/b"),
        (lambda d: [CSVLogger(d / "x"), CSVLogger(d / "y")], "x/lightning_logs/version_0"),
        (lambda d: Named("project", "3ru5pu9k"), "project/3ru5pu9k"),
        (lambda d: Named("7", "e1f", str(d / "mlruns")), "mlruns/7/e1f"),
        (lambda d: Named("sweep", 4), "sweep/version_4"),
    ],
)
def test_the_record_lies_beside_the_runs_checkpoints(logger, place, trainer, tmp_path):
    """In the parent of the folder that ModelCheckpoint finds for them."""
    lscore, save = LScore(), ModelCheckpoint(monitor="L")
    trainer(lscore, save, logger=logger(tmp_path)).fit(PlainLM(), loader(8), loader(4))
    assert records_below(tmp_path) == [f"{place}/{RECORD_FILE}"]
    assert lscore.tracker.record_path == str(tmp_path / place / RECORD_FILE)
    assert save.dirpath == str(tmp_path / place / "checkpoints")
    for given in (place, f"{place}/checkpoints", f"{place}/checkpoints/any.ckpt"):
        assert read_run(tmp_path / given) == [lscore.last_record]


@pytest.mark.parametrize("logger", [False, Named("all", None), Named("all", "")])
def test_where_runs_share_a_folder_each_has_one_of_its_own_in_it(logger, trainer, tmp_path, capsys):
    """All can be read, compared and told apart."""
    made = [LScore(), LScore()]
    for lscore in made:
        trainer(lscore, logger=logger).fit(PlainLM(), loader(8), loader(4))
    runs = [lscore.tracker.run for lscore in made]
    assert records_below(tmp_path) == sorted(f"lscore/{run}/{RECORD_FILE}" for run in runs)
    assert [r.run for r in read_records(tmp_path)] == runs
    for lscore, run in zip(made, runs, strict=True):
        for named in (f"{tmp_path}#{run}", f"{tmp_path}#{run[:9]}", tmp_path / "lscore" / run):
            assert read_run(named) == [lscore.last_record]
    assert main(["compare", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert all(f"{tmp_path}#{run}" in out for run in runs)
    assert main(["explain", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "expected one run, got 2" in error
    assert all(f"#{run} (1 validations" in error for run in runs)
    assert main(["explain", str(tmp_path), "--run", runs[0][:9]]) == 0
    assert f"Run {runs[0]}" in capsys.readouterr().out


def test_a_folder_that_is_asked_for_is_taken(trainer, tmp_path):
    for lscore in (LScore(directory=tmp_path / "here"), LScore(directory=str(tmp_path / "here"))):
        trainer(lscore, logger=CSVLogger(tmp_path)).fit(PlainLM(), loader(8), loader(4))
        assert read_run(tmp_path / "here") == [lscore.last_record]
    assert records_below(tmp_path) == [f"here/{RECORD_FILE}"]
    with pytest.raises(
        ValueError, match="directory: expected the path of a folder, or None, got 3"
    ):
        LScore(directory=3)


# ------------------------------------------------------------- a run that goes on elsewhere


@pytest.fixture
def went_on(trainer, tmp_path):
    """A run of versions 0 and 1, which went on from its second validation, and of another end."""

    def fit(steps, ckpt=None):
        lscore = LScore()
        save = ModelCheckpoint(filename="{step}", every_n_train_steps=1, save_top_k=-1)
        options = {"max_steps": steps, "max_epochs": -1, "val_check_interval": 1}
        t = trainer(lscore, save, logger=CSVLogger(tmp_path, name=""), **options)
        t.fit(PlainLM(), loader(40), loader(4), ckpt_path=ckpt)
        return lscore

    fit(4)
    checkpoint = str(tmp_path / "version_0" / "checkpoints" / "step=2.ckpt")
    return tmp_path, fit(5, checkpoint), lambda: fit(3, checkpoint)


def test_a_run_that_went_on_in_another_folder_is_one_curve(went_on, capsys):
    """From either folder, from both, and in a comparison; what was lost is known too."""
    folder, lscore, _ = went_on
    first, second = (folder / f"version_{i}" for i in (0, 1))
    before, whole = read_run(first), read_run(second)
    assert [r.step for r in whole] == [1, 2, 3, 4, 5]
    assert whole[:2] == before[:2]
    assert len({r.run for r in before + whole}) == 1
    hours = [r.measurements.device_hours for r in before]
    assert whole[-1].lost_device_hours == pytest.approx(hours[3] - hours[1])
    assert main(["explain", str(first), str(second)]) == 0
    assert "5 validations up to step 5" in capsys.readouterr().out
    assert main(["compare", str(second), str(first)]) == 0
    out = capsys.readouterr().out
    assert f"\n{second} " in out
    assert f"\n{first} " not in out
    assert lscore.last_record == whole[-1]


def test_two_ends_of_one_run_are_two_curves(went_on, capsys):
    """As annealing twice from one checkpoint gives; neither hides the other."""
    folder, _, again = went_on
    again()
    one, other = (folder / f"version_{i}" for i in (1, 2))
    assert [r.step for r in read_run(other)] == [1, 2, 3]
    assert main(["compare", str(one), str(other), str(folder / "version_0")]) == 0
    out = capsys.readouterr().out
    assert f"\n{one} " in out
    assert f"\n{other} " in out
    assert f"\n{folder / 'version_0'} " not in out


# ---------------------------------------------------------------------- a remote folder


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty store in memory; what is kept on this machine lies in ``cache``."""
    monkeypatch.setenv("LSCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def test_a_remote_folder_gets_the_record_and_this_machine_none(bucket, trainer, tmp_path, capsys):
    """Of the root, of a logger, and as the folder asked for; read from there again."""
    for logger in (False, CSVLogger("memory://bucket/csv")):
        trainer(LScore(), logger=logger, default_root_dir="memory://bucket/run", max_epochs=2).fit(
            PlainLM(), loader(8), loader(4)
        )
    lscore = LScore(directory="memory://bucket/asked")
    trainer(lscore, max_epochs=2).fit(PlainLM(), loader(8), loader(4))
    assert [p for p in tmp_path.rglob("*") if p.is_file() and "peak" not in p.name] == []
    for place in ("run", "csv/lightning_logs/version_0", "asked", f"asked/{RECORD_FILE}"):
        assert len(read_run(f"memory://bucket/{place}")) == 2
        assert main(["explain", f"memory://bucket/{place}"]) == 0
    with pytest.raises(FileNotFoundError, match="no record at memory://bucket/none"):
        read_run("memory://bucket/none")


def test_a_run_goes_on_in_a_remote_folder(bucket, trainer, tmp_path):
    """Also on another machine, which has nothing of it but the checkpoint."""
    options = {"max_epochs": -1, "val_check_interval": 1, "enable_checkpointing": False}
    for steps, ckpt in ((4, None), (5, tmp_path / "a.ckpt")):
        lscore = LScore(directory="memory://bucket/run")
        t = trainer(lscore, max_steps=steps, **options)
        t.fit(PlainLM(), loader(40), loader(4), ckpt_path=ckpt)
        if ckpt is None:
            t.save_checkpoint(tmp_path / "a.ckpt")
    assert [r.step for r in read_run("memory://bucket/run")] == [1, 2, 3, 4, 5]


def test_a_store_that_fails_costs_one_warning_and_no_line(bucket, trainer, tmp_path, monkeypatch):
    """What could not be sent is kept here, and sent as soon as the store answers again."""
    broken, pipe = [True], type(bucket).pipe_file

    def pipe_file(self, *args, **kwargs):
        if broken:
            raise ConnectionError("no route to host")
        return pipe(self, *args, **kwargs)

    monkeypatch.setattr(type(bucket), "pipe_file", pipe_file)
    lscore = LScore(directory="memory://bucket/run")
    with pytest.warns(UserWarning, match=r"cannot write its record to memory:.*no route") as said:
        trainer(lscore, max_epochs=2).fit(PlainLM(), loader(8), loader(4))
    (told,) = [str(w.message) for w in said if "LScore" in str(w.message)]
    (kept,) = (tmp_path / "cache" / "records").glob("*.jsonl")
    assert str(kept) in told
    assert len(read_run(kept)) == 2
    broken.clear()
    lscore.tracker._ledger.close()
    assert len(read_run("memory://bucket/run")) == 2
    assert not kept.exists()


def test_two_processes_of_one_remote_folder_lose_no_line(bucket, trainer):
    for _ in range(2):
        trainer(LScore(directory="memory://bucket/all")).fit(PlainLM(), loader(8), loader(4))
    assert len({r.run for r in read_records("memory://bucket/all")}) == 2


# ---------------------------------------------------------------------- loggers that take files


class WandbLogger:
    """Of its namesake, what is asked for."""

    def __init__(self, refuses=False):
        self.taken = []
        self.experiment = SimpleNamespace(log_artifact=self._take)
        self._refuses = refuses

    def _take(self, artifact):
        if self._refuses:
            raise RuntimeError("the run is finished")
        self.taken.append(artifact)


class MLFlowLogger:
    run_id = "e1f"

    def __init__(self):
        self.taken = []
        self.experiment = SimpleNamespace(log_artifact=lambda *given: self.taken.append(given))


class Artifact:
    def __init__(self, name, type):
        self.name, self.type, self.files = name, type, []

    def add_file(self, path):
        self.files.append(path)


def test_loggers_that_take_files_get_the_record(monkeypatch, tmp_path):
    """What they refuse costs a warning; the others get nothing."""
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Artifact=Artifact))
    path, said = tmp_path / RECORD_FILE, []
    loggers = [WandbLogger(refuses=True), CSVLogger(tmp_path), MLFlowLogger(), WandbLogger()]
    attach(str(path), "run", loggers, said.append)
    assert (loggers[2].taken, loggers[3].taken) == ([], [])  # there is no such file
    path.touch()
    attach(str(path), "run", loggers, said.append)
    assert loggers[2].taken == [("e1f", str(path))]
    (artifact,) = loggers[3].taken
    assert (artifact.name, artifact.type, artifact.files) == ("lscore-run", "lscore", [str(path)])
    (message,) = said
    assert "cannot give its record to the WandbLogger (the run is finished)" in message
