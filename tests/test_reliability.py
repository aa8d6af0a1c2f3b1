"""Runs that are interrupted, go wrong, or run in an uncommon way."""

from __future__ import annotations

import ast
import errno
import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pynvml
import pytest
import torch
from conftest import PlainLM, loader
from fake_nvml import QUERIES, Draws, FakeGpu, FakeNvml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_lscore import LScore, read_records
from lightning_lscore.cli import main as lscore_command
from lightning_lscore.hardware.sampler import Sampler
from lightning_lscore.record.file import RECORD_FILE, append_record, records_since
from lightning_lscore.record.reader import Reader
from lightning_lscore.record.record import Record

HERE = Path(__file__).parent
STEP = 4 * 12  # tokens

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
    "ignore:The dirpath has changed from",
)


def run_script(script: Path, *arguments: object, timeout: int = 300) -> subprocess.CompletedProcess:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout)


def lines(folder: Path) -> list[Record]:
    """All validations of the record, those that later ones replace included."""
    reader = Reader()
    taken = map(reader.take, (folder / RECORD_FILE).read_bytes().splitlines())
    return [record for record in taken if record is not None]


def state_of(checkpoint: str | Path) -> dict:
    loaded = torch.load(checkpoint, weights_only=True)
    (state,) = (v for k, v in loaded["callbacks"].items() if k.startswith("LScore"))
    return state


@pytest.fixture
def fit(trainer, tmp_path):
    """Fits to a step, validating at each and saving a checkpoint at each, and on the way out."""

    def fit(
        steps, ckpt=None, *, lscore=None, model=None, folder=tmp_path, others=(), every=1, **options
    ):
        lscore = lscore or LScore(directory=folder)
        save = ModelCheckpoint(
            folder / "c", "{step}", save_top_k=-1, every_n_train_steps=every, save_on_exception=True
        )
        t = trainer(
            lscore, save, *others,
            **{"max_steps": steps, "max_epochs": -1, "val_check_interval": 1,
               "default_root_dir": folder, **options},
        )  # fmt: skip
        t.fit(model or PlainLM(), loader(40), loader(4), ckpt_path=ckpt)
        return lscore

    return fit


# ---------------------------------------------------------------------- killed


FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="attempts are forks")
SCRIPT = HERE.parent / "benchmarks" / "crash.py"


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed three times and of one that was not; what was said."""
    folder = tmp_path_factory.mktemp("killed") / "runs"
    done = run_script(SCRIPT, "--kills", 3, "--folder", folder, timeout=120)
    return folder, done


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("crash", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["crash"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["crash"]


@FORKS
def test_a_run_killed_at_random_moments_ends_as_one_that_nobody_killed(killed):
    """Counts, perplexities, device time and what was lost; the script checks them."""
    folder, done = killed
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert len(read_records(folder / "killed")) > 5


def measuring(**values):
    """Every validation measured this instead."""
    return lambda i, r: replace(r, measurements=replace(r.measurements, **values))


SPOILT = {
    "tokens: 5 as": measuring(tokens=5),
    "perplexities as": lambda i, r: replace(r, score=replace(r.score, perplexity=9.0)),
    "lost device time: 0": lambda i, r: replace(r, lost_device_hours=0.0),
    "device time grows": measuring(device_hours=1.0),
    "each validation once": lambda i, r: replace(r, batch=3 if r.batch == 4 else r.batch),
    "one run": lambda i, r: replace(r, run=r.run if i else "another"),
}


@FORKS
@pytest.mark.parametrize("what", ["no torn line", *SPOILT])
def test_the_scripts_checks_can_fail(what, killed, script, tmp_path):
    """Each of them, on a record that was spoilt in one way."""
    folder, _ = killed
    shutil.copytree(folder, tmp_path / "runs")
    path = tmp_path / "runs" / "killed" / RECORD_FILE
    if what in SPOILT:
        spoilt = [SPOILT[what](i, record) for i, record in enumerate(lines(path.parent))]
        path.unlink()
        for record in spoilt:
            append_record(path, record)
    else:
        path.write_bytes(path.read_bytes()[:-1])
    done = script.Interrupted(kills=50, seconds=1e9)
    result = script.checks(tmp_path / "runs" / "whole", path.parent, done, 50)
    assert [name for name, holds in result.items() if name.startswith(what) and not holds]


@FORKS
def test_the_script_goes_back_to_the_checkpoint_before_a_torn_one(killed, script, tmp_path):
    """As a disk without atomic renames would leave it."""
    folder, _ = killed
    shutil.copytree(folder / "killed", tmp_path / "killed")
    newest = script.newest_checkpoint(tmp_path / "killed")
    step = torch.load(newest.path, weights_only=True)["global_step"]
    for path in (tmp_path / "killed").glob(f"*{step}*.ckpt"):
        path.write_bytes(path.read_bytes()[:-100])
    (tmp_path / "killed" / "last.ckpt").write_bytes(b"")
    before = script.newest_checkpoint(tmp_path / "killed")
    assert before.torn >= 2
    assert 0 < torch.load(before.path, weights_only=True)["global_step"] < step
    assert before.device_hours < newest.device_hours


def test_what_a_crash_threw_away_is_counted_apart(fit, tmp_path):
    """Each resume adds what lies between its checkpoint's line and the last one before it."""
    fit(5)
    first, expected = lines(tmp_path), 0.0
    assert {record.lost_device_hours for record in first} == {0.0}
    for start, name, stop in ((2, "step=2", 6), (3, "step=3-v1", 4)):
        hours = {r.step: r.measurements.device_hours for r in lines(tmp_path)}
        expected += hours[5 if start == 2 else 6] - hours[start]
        lscore = fit(stop, str(tmp_path / "c" / f"{name}.ckpt"))
        assert lscore.last_record.lost_device_hours == pytest.approx(expected)
    assert 0 < lines(tmp_path)[5].lost_device_hours < expected
    assert [r.step for r in read_records(tmp_path)] == [1, 2, 3, 4]
    assert state_of(tmp_path / "c" / "step=4-v2.ckpt")["lost_device_hours"] == (
        lscore.last_record.lost_device_hours
    )


def test_nothing_is_lost_where_a_run_goes_on_from_its_end(fit, tmp_path):
    """The checkpoint is saved after the last validation, as a monitored one is."""
    save = ModelCheckpoint(tmp_path / "end", "end", monitor="L", save_top_k=-1)
    fit(3, others=[save])
    assert (
        fit(
            5, save.best_k_models and max(save.best_k_models, key=os.path.getmtime)
        ).last_record.lost_device_hours
        == 0.0
    )


def test_in_another_folder_only_the_checkpoint_tells_what_was_lost(fit, tmp_path):
    """A logger that begins a new version has no record of the run yet."""
    fit(4)
    fit(3, str(tmp_path / "c" / "step=2.ckpt"))
    (again,) = (tmp_path / "c").glob("step=3-v1.ckpt")
    known = state_of(again)["lost_device_hours"]
    lscore = fit(4, str(again), folder=tmp_path / "version_1")
    assert lscore.last_record.lost_device_hours == known > 0


@pytest.mark.parametrize("content", [b"\x00\xff" * 99 + b"\n", b"[1, 2]\n", b"hello\nworld\n"])
def test_a_foreign_or_corrupt_record_costs_a_warning_not_the_run(content, fit, tmp_path):
    """It is left as it is, and the lines that follow are written behind it."""
    fit(2)
    (tmp_path / RECORD_FILE).write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"cannot tell from .*lscore\.jsonl what the run lost"
    ) as w:
        lscore = fit(3, str(tmp_path / "c" / "step=2.ckpt"))
    assert len([x for x in w if "cannot tell" in str(x.message)]) == 1
    assert lscore.last_record.measurements.tokens == 3 * STEP
    assert (tmp_path / RECORD_FILE).read_bytes().startswith(content)


def test_a_record_that_is_a_folder_costs_warnings_not_the_run(fit, tmp_path):
    fit(2)
    (tmp_path / RECORD_FILE).unlink()
    (tmp_path / RECORD_FILE).mkdir()
    with (
        pytest.warns(UserWarning, match="cannot tell from"),
        pytest.warns(UserWarning, match="cannot write its record"),
    ):
        lscore = fit(3, str(tmp_path / "c" / "step=2.ckpt"))
    assert lscore.last_record.measurements.tokens == 3 * STEP


# ---------------------------------------------------------------------- interrupted


class Interrupted(PlainLM):
    """The fourth training step does not come to its end."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def training_step(self, batch, batch_idx):
        if self.global_step == 3:
            self.by()
        return super().training_step(batch, batch_idx)


def fail():
    raise RuntimeError("the user's own")


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def handlers():
    """Lightning ignores Ctrl-C once it was pressed, for the rest of the process."""
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("by", "ends_with", "steps"),
    [(fail, RuntimeError, 3), (press_ctrl_c, SystemExit, 3), (terminate, SIGTERMException, 4)],
    ids=["exception", "Ctrl-C", "SIGTERM"],
)
def test_an_interrupted_run_goes_on_where_it_was(by, ends_with, steps, fit, tmp_path, handlers):
    """From the checkpoint that Lightning saves on the way out; SIGTERM waits for the step's end."""
    lscore = LScore()
    with pytest.raises(ends_with):
        fit(6, lscore=lscore, model=Interrupted(by), val_check_interval=2, every=100)
    assert not [t for t in threading.enumerate() if "lscore" in t.name]
    (saved,) = (tmp_path / "c").glob("*.ckpt")
    assert state_of(saved)["spent"]["tokens"] == steps * STEP
    resumed = fit(6, str(saved), val_check_interval=2).last_record
    m = resumed.measurements
    assert (m.tokens, m.samples, m.steps, resumed.batch) == (6 * STEP, 24, 6, 6)
    records = read_records(tmp_path)
    assert [r.step for r in records] == [2, 4, 6]
    assert len({r.run for r in records}) == 1


class InterruptedInValidation(PlainLM):
    """The second validation does not come to its end."""

    def validation_step(self, batch, batch_idx):
        if self.global_step == 4 and batch_idx == 1:
            fail()
        return super().validation_step(batch, batch_idx)


def test_an_exception_in_a_validation_costs_that_validation_alone(trainer, tmp_path):
    """Lightning makes up for as many batches as were left, but the first ones: this is said."""
    data, options = (loader(40), loader(8)), {"max_epochs": -1, "val_check_interval": 2}
    save = ModelCheckpoint(
        tmp_path / "c", "{step}", every_n_train_steps=100, save_on_exception=True
    )
    with pytest.raises(RuntimeError, match="the user's own"):
        trainer(LScore(), save, max_steps=6, **options).fit(InterruptedInValidation(), *data)
    assert [r.step for r in read_records(tmp_path)] == [2]
    (saved,) = (tmp_path / "c").glob("*.ckpt")
    assert state_of(saved)["spent"]["tokens"] == 4 * STEP
    with pytest.warns(UserWarning, match="counted other held-out tokens than at the validation"):
        trainer(LScore(), max_steps=6, **options).fit(PlainLM(), *data, ckpt_path=str(saved))
    records = read_records(tmp_path)
    assert [(r.step, r.measurements.tokens) for r in records] == [(n, n * STEP) for n in (2, 4, 6)]
    assert [r.measurements.validation_tokens for r in records] == [88, 44, 88]


class PressesAgain(pl.Callback):
    def on_exception(self, trainer, pl_module, exception):
        press_ctrl_c()


@pytest.mark.parametrize("order", [0, 1])
def test_ctrl_c_twice_is_as_ctrl_c_once(order, fit, tmp_path, handlers):
    """The second while the callbacks are told of the first, before LScore and after it."""
    lscore, again = LScore(), PressesAgain()
    callbacks = [again, lscore] if order else [lscore, again]
    with pytest.raises(SystemExit):
        fit(6, lscore=callbacks[0], others=callbacks[1:], model=Interrupted(press_ctrl_c))
    assert not [t for t in threading.enumerate() if "lscore" in t.name]
    assert [r.step for r in read_records(tmp_path)] == [1, 2, 3]


def test_a_run_stopped_between_the_batches_of_a_step_goes_on_counting(fit, tmp_path):
    """Gradient accumulation: the batches before the stop are in the checkpoint, the step is not."""

    class Stops(PlainLM):
        def training_step(self, batch, batch_idx):
            if batch_idx == 4:
                fail()
            return super().training_step(batch, batch_idx)

    options = {"accumulate_grad_batches": 3, "val_check_interval": 3}
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(3, model=Stops(), every=100, **options)
    (saved,) = (tmp_path / "c").glob("*.ckpt")
    spent = state_of(saved)["spent"]
    assert (spent["batches"], spent["tokens"]) == (4, 4 * STEP)
    record = fit(3, str(saved), **options).last_record
    assert record.measurements.tokens == record.batch * STEP
    records = read_records(tmp_path)
    assert [r.batch for r in records] == sorted({r.batch for r in records})
    assert len({r.run for r in records}) == 1


def test_a_run_that_slurm_requeues_goes_on_where_it_was(trainer, tmp_path, monkeypatch, handlers):
    """Lightning saves in the signal's handler, in the middle of a step, and resumes by itself."""
    (tmp_path / "bin").mkdir()
    requeue = tmp_path / "bin" / "scontrol"
    requeue.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/requeued\n")
    requeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{requeue.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    class Stopped(PlainLM):
        def training_step(self, batch, batch_idx):
            if self.global_step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
                raise RuntimeError("the job is over")
            return super().training_step(batch, batch_idx)

    def fit(model):
        lscore = LScore()
        slurm = SLURMEnvironment(auto_requeue=True, requeue_signal=signal.SIGUSR1)
        options = {"max_steps": 6, "max_epochs": -1, "val_check_interval": 2}
        t = trainer(lscore, plugins=[slurm], **options)
        t.fit(model, loader(40), loader(4))
        return lscore

    with pytest.raises(RuntimeError, match="the job is over"):
        fit(Stopped())
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    m = fit(PlainLM()).last_record.measurements
    assert (m.tokens, m.steps) == (6 * STEP, 6)
    assert [r.step for r in read_records(tmp_path)] == [2, 4, 6]


# ---------------------------------------------------------------------- checkpoints


def test_a_checkpoint_without_lscore_is_counted_from_there_and_said(fit, trainer, tmp_path):
    """Added later, or removed and added again."""
    save = ModelCheckpoint(tmp_path / "without", "{step}", every_n_train_steps=1)
    trainer(save, max_steps=2, max_epochs=-1).fit(PlainLM(), loader(40), loader(4))
    with pytest.warns(UserWarning, match="was not part of the run before step 2"):
        lscore = fit(5, str(tmp_path / "without" / "step=2.ckpt"))
    m = lscore.last_record.measurements
    assert (m.tokens, m.steps) == (3 * STEP, 5)


def test_a_checkpoint_with_lscore_goes_on_without_it(fit, trainer, tmp_path):
    fit(2)
    t = trainer(max_steps=4, max_epochs=-1)
    t.fit(PlainLM(), loader(40), loader(4), ckpt_path=str(tmp_path / "c" / "step=2.ckpt"))
    assert t.global_step == 4


def test_the_weights_of_a_checkpoint_begin_a_new_run(fit, tmp_path):
    """Lightning refuses to resume from weights alone; loaded by hand, they are a start."""
    save = ModelCheckpoint(tmp_path / "w", "{step}", every_n_train_steps=2, save_weights_only=True)
    fit(2, others=[save])
    weights = str(tmp_path / "w" / "step=2.ckpt")
    with pytest.raises(KeyError, match="checkpoint contains only the model"):
        fit(4, weights)
    model = PlainLM()
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    lscore = fit(3, model=model, folder=tmp_path / "new")
    assert lscore.last_record.measurements.tokens == 3 * STEP


@pytest.mark.parametrize("key", ["run", "spent", "planned_batches", "formula", "logged"])
def test_a_state_that_lacks_something_is_named(key, fit, tmp_path):
    """An edited checkpoint: continuing with half of the counts would be worse."""
    fit(2)
    path = tmp_path / "c" / "step=2.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (name,) = (k for k in checkpoint["callbacks"] if k.startswith("LScore"))
    del checkpoint["callbacks"][name][key]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=f"expected the state that LScore saves, got .* {key}"):
        fit(3, str(path))


def test_a_run_goes_on_with_more_devices_and_with_fewer(fit, tmp_path):
    """1, then 2 processes, then 1: tokens, steps, time, and what was lost, on every rank."""
    fit(5)
    checkpoint = tmp_path / "c" / "step=2.ckpt"
    done = run_script(HERE / "crash_run.py", tmp_path, checkpoint, 4)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["lost_device_hours"] > 0
    # Two steps of one process, and two of two.
    assert (ranks[0]["tokens"], ranks[0]["steps"]) == ((2 + 2 * 2) * STEP, 4)
    (two,) = (tmp_path / "two").glob("step=4.ckpt")
    last = fit(6, str(two)).last_record
    m = last.measurements
    assert (m.tokens, m.steps, last.batch) == ((2 + 2 * 2 + 2) * STEP, 6, 6)
    assert last.lost_device_hours == ranks[0]["lost_device_hours"]
    records = read_records(tmp_path)
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    hours = [r.measurements.device_hours for r in records]
    assert hours == sorted(hours)


def test_a_rank_that_dies_ends_the_run_and_leaves_a_whole_record(tmp_path):
    """Nothing that LScore does on the way out waits for the others."""
    done = run_script(HERE / "crash_run.py", tmp_path, "", 4, "dies")
    assert done.returncode != 0
    assert [r.step for r in read_records(tmp_path)] == [1, 2]


# ---------------------------------------------------------------------- the disk and the loggers


def test_a_disk_that_fills_up_in_the_middle_of_a_line_tears_only_that_line(fit, tmp_path):
    """The write itself is cut short, by a limit on the size of files."""
    fit(2)
    path = tmp_path / RECORD_FILE
    first, second = read_records(path)
    path.unlink()
    append_record(path, first)
    whole = path.stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 500, limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            append_record(path, second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.stat().st_size == whole + 500
    assert read_records(path) == [first]
    assert records_since(path, first.run, 0) == [first]
    append_record(path, second)
    assert read_records(path) == [first, second]


def test_a_full_disk_costs_the_record_not_the_run(fit, tmp_path, monkeypatch):
    """One warning for all lines that were not written, and what came before stays."""
    fit(2)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lightning_lscore.record.file.os.fsync", full)
    with pytest.warns(UserWarning, match="cannot write its record .*No space left") as warned:
        lscore = fit(5, str(tmp_path / "c" / "step=2.ckpt"))
    assert len([w for w in warned if "cannot write" in str(w.message)]) == 1
    assert lscore.last_record.measurements.tokens == 5 * STEP
    assert [r.step for r in read_records(tmp_path)][:2] == [1, 2]


class BrokenLogger(Logger):
    name, version = "broken", 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("the logger's server is gone")


def test_a_logger_that_raises_ends_the_run_and_nothing_of_lscore_stays(fit, tmp_path):
    """Lightning lets it through; the record has the validation that could not be logged."""
    with pytest.raises(ConnectionError, match="server is gone"):
        fit(4, logger=BrokenLogger(), log_every_n_steps=2)
    assert not [t for t in threading.enumerate() if "lscore" in t.name]
    assert [r.step for r in read_records(tmp_path)] == [1]


# ---------------------------------------------------------------------- the hardware and the clock


def test_a_gpu_that_falls_off_the_bus_costs_its_readings_not_the_run(fit, tmp_path, monkeypatch):
    """One warning; the record says which share of the time was covered."""
    driver = FakeNvml().install_for_fits(monkeypatch)

    def await_call(name):
        driver.await_call(name, beyond=driver.calls[name])

    class Loses(PlainLM):
        def training_step(self, batch, batch_idx):
            if self.global_step == 1:
                await_call("nvmlDeviceGetMemoryInfo")
            if self.global_step == 2:
                driver.faults = dict.fromkeys(QUERIES.values(), pynvml.NVML_ERROR_GPU_IS_LOST)
                await_call("nvmlDeviceGetUtilizationRates")
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="no longer answers: .*lost") as warned:
        fit(6, model=Loses(), lscore=LScore(directory=tmp_path, sample_interval=0.01))
    assert len([w for w in warned if "no longer answers" in str(w.message)]) == 1
    last = read_records(tmp_path)[-1].measurements
    assert last.tokens == 6 * STEP
    covered = re.search(r"over (\d+)% of device time", last.provenance["busy_fraction"])
    assert int(covered[1]) < 100


def test_energy_and_capacity_go_on_from_the_checkpoint_on_another_gpu(fit, tmp_path, monkeypatch):
    """With another peak, and a counter that stands elsewhere: neither is taken for spending."""

    def on(name, millijoules):
        gpu = FakeGpu(energy_millijoules=millijoules)
        return Draws(FakeNvml([gpu]).install_for_fits(monkeypatch, name))

    seen = []
    of = Sampler.by_device
    monkeypatch.setattr(Sampler, "by_device", lambda *a: seen.append(of(*a)) or seen[-1])

    fit(5, model=on("NVIDIA H100 80GB HBM3", 10**9))
    checkpoint = tmp_path / "c" / "step=3.ckpt"
    before = state_of(checkpoint)["spent"]
    first = read_records(tmp_path)[2].measurements
    model = on("NVIDIA A100-SXM4-80GB", 7)
    last = fit(6, str(checkpoint), model=model).last_record
    peak = last.devices[0].peak_flops
    assert peak != read_records(tmp_path)[0].devices[0].peak_flops
    # The checkpoint of a step is saved before its validation, whose time counts as well.
    m = last.measurements
    seconds = 3600 * (m.device_hours - max(first.device_hours, before["device_seconds"] / 3600))
    earlier = max(first.capacity_flops, before["capacity_flops"])
    assert m.capacity_flops == pytest.approx(earlier + seconds * peak)
    joules = 3.6e6 * m.energy_kwh
    ((key, saved),) = before["devices"].items()
    assert saved["energy_joules"] > 0
    since = pytest.approx(joules - saved["energy_joules"], rel=1e-9)
    assert since in [totals[key].energy_joules for totals in seen], "what the sampler saw, exactly"
    assert saved["energy_joules"] < joules <= saved["energy_joules"] + 3 * 5 * (1 + 1e-9)


def test_a_system_clock_that_jumps_changes_no_measure(fit, tmp_path, monkeypatch):
    """By a year back and forth, as after a suspended machine or a wrong time server."""
    year = 365 * 24 * 3600.0
    clock = time.time

    class Jumps(PlainLM):
        def training_step(self, batch, batch_idx):
            offset = year * (-1) ** self.global_step
            monkeypatch.setattr(time, "time", lambda: clock() + offset)
            return super().training_step(batch, batch_idx)

    fit(5, model=Jumps())
    hours = [r.measurements.wall_hours for r in read_records(tmp_path)]
    assert hours == sorted(hours)
    assert 0 < hours[-1] < 1


# ---------------------------------------------------------------------- ways of running


def test_a_run_that_is_never_validated_still_leaves_what_it_spent(trainer, tmp_path, capsys):
    """One line at the end, and one warning: counts and factors, no perplexity, no L."""
    lscore = LScore()
    t = trainer(lscore, max_epochs=2, limit_val_batches=0)
    with pytest.warns(UserWarning, match="has no L to log: perplexity: .*no validation ran") as w:
        t.fit(PlainLM(), loader(8), loader(4))
    assert len([x for x in w if "LScore" in str(x.message)]) == 1
    (record,) = read_records(tmp_path)
    assert record == lscore.last_record
    m, score = record.measurements, record.score
    assert (m.tokens, m.steps) == (4 * STEP, 4)
    assert m.train_hours > 0
    assert (m.perplexity, m.nll, m.validation_tokens, record.L) == (None, None, None, None)
    assert m.provenance["perplexity"].startswith("unavailable: no validation ran")
    assert score.f_D == 1.0
    assert score.f_H > 0
    assert lscore_command(["compare", str(tmp_path)]) == 0
    assert lscore_command(["explain", str(tmp_path)]) == 2
    assert "no validation ran" in capsys.readouterr().err


def test_a_module_without_a_validation_loop_is_recorded_too(trainer, tmp_path):
    class OnlyTrains(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.lm = PlainLM()

        def training_step(self, batch, batch_idx):
            return self.lm.training_step(batch, batch_idx)

        def configure_optimizers(self):
            return self.lm.configure_optimizers()

    with pytest.warns(UserWarning, match="no validation ran"):
        trainer(LScore()).fit(OnlyTrains(), loader(8))
    assert read_records(tmp_path)[0].measurements.tokens == 2 * STEP


def test_a_run_validated_once_gets_no_line_for_its_end(fit, trainer, tmp_path):
    """A last line without perplexity would hide what was measured."""
    fit(4)
    fit(5, str(tmp_path / "c" / "step=4.ckpt"), limit_val_batches=0)
    assert [r.step for r in read_records(tmp_path)] == [1, 2, 3, 4]


def test_an_exception_before_the_first_validation_leaves_no_line(fit, tmp_path):
    """To ask the other ranks on the way out could wait for ever."""
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(6, model=Interrupted(fail), limit_val_batches=0)
    assert not (tmp_path / RECORD_FILE).exists()


def test_the_tuner_leaves_the_counters_alone(trainer, tmp_path):
    """What is tried out before a fit is no part of it."""

    class Tunable(PlainLM):
        def __init__(self):
            super().__init__()
            self.batch_size = 2

        def train_dataloader(self):
            return loader(16, batch=self.batch_size)

        def val_dataloader(self):
            return loader(4)

    lscore, model = LScore(), Tunable()
    t = trainer(lscore)
    size = Tuner(t).scale_batch_size(model, mode="power", max_trials=2, steps_per_trial=1)
    Tuner(t).lr_find(model, num_training=4, min_lr=1e-3, max_lr=0.1)
    t.fit(model)
    m = lscore.last_record.measurements
    assert (m.tokens, m.steps, m.epochs) == (4 * STEP, 16 // size, 1.0)
    assert len(read_records(tmp_path)) == 1


def test_a_run_that_was_tuned_is_fitted_and_resumed(fit, trainer, tmp_path):
    """Trying rates saves a checkpoint and goes back to it, LScore's state and all."""
    save = ModelCheckpoint(tmp_path / "c", "{step}", every_n_train_steps=1, save_top_k=-1)
    model, data = PlainLM(), (loader(40), loader(4))
    t = trainer(LScore(), save, max_steps=3, max_epochs=-1, val_check_interval=1)
    Tuner(t).lr_find(model, *data, num_training=4, min_lr=1e-3, max_lr=0.1)
    t.fit(model, *data)
    last = fit(5, str(tmp_path / "c" / "step=3.ckpt")).last_record
    assert (last.measurements.tokens, last.batch) == (5 * STEP, 5)
    records = read_records(tmp_path)
    assert [r.step for r in records] == [1, 2, 3, 4, 5]
    assert len({r.run for r in records}) == 1


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_validations_before_and_between_fits_are_no_part_of_the_run(
    with_checkpoint, trainer, tmp_path
):
    save = ModelCheckpoint(tmp_path / "c", "{step}", every_n_train_steps=1, save_top_k=-1)
    lscore, model, data = LScore(), PlainLM(), (loader(8), loader(4))
    t = trainer(lscore, save)
    (before,) = t.validate(model, data[1], verbose=False)
    assert "L" not in before
    t.fit(model, *data)
    path = str(tmp_path / "c" / "step=1.ckpt") if with_checkpoint else None
    (between,) = t.validate(model, data[1], ckpt_path=path, verbose=False)
    at_the_end = lscore.last_record.score.perplexity
    assert (between["perplexity"] != at_the_end) == with_checkpoint
    assert before["perplexity"] not in (between["perplexity"], at_the_end)
    t.fit_loop.max_epochs = 2
    t.fit(model, *data)
    records = read_records(tmp_path)
    assert [r.measurements.tokens for r in records] == [2 * STEP, 4 * STEP]
    assert [r.batch for r in records] == [2, 4]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"limit_val_batches": 1.0}, 88),
        ({"limit_val_batches": 0.5}, 44),
        ({"limit_val_batches": 1}, 44),
        ({"fast_dev_run": True}, 44),
        (
            {
                "barebones": True,
                "default_root_dir": None,
                "log_every_n_steps": None,
                "num_sanity_val_steps": None,
            },
            88,
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_was_validated_is_counted_whatever_the_limits(
    options, tokens, trainer, tmp_path, monkeypatch
):
    """A trial and a bare run are scored, and leave no file."""
    monkeypatch.chdir(tmp_path)
    lscore = LScore()
    trainer(lscore, **options).fit(PlainLM(), loader(8), loader(8))
    assert lscore.last_record.measurements.validation_tokens == tokens
    assert lscore.last_record.L is not None
    written = "limit_val_batches" in options
    assert [p.name for p in tmp_path.rglob("*.jsonl")] == [RECORD_FILE] * written
    assert len([*tmp_path.iterdir()]) == written


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"val_check_interval": 3}, [3, 6, 9]),
        ({"val_check_interval": 0.5}, [5, 10]),
        ({"check_val_every_n_epoch": None, "val_check_interval": 8, "max_epochs": 2}, [8, 16]),
        ({"max_epochs": 4, "check_val_every_n_epoch": 2}, [20, 40]),
        ({"limit_train_batches": 4, "max_epochs": 2}, [4, 8]),
        ({"overfit_batches": 2, "max_epochs": 2}, [2, 4]),
        ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, [10, 20]),
        ({"gradient_clip_val": 0.1, "detect_anomaly": True}, [10]),
        ({"profiler": "simple"}, [10]),
        ({"use_distributed_sampler": False, "deterministic": True}, [10]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_a_line_is_written_at_each_validation_with_the_counts_of_its_step(
    options, steps, trainer, tmp_path
):
    trainer(LScore(), **options).fit(PlainLM(), loader(40), loader(8, seed=1))
    records = read_records(tmp_path)
    assert [r.step for r in records] == steps
    assert [r.measurements.tokens for r in records] == [s * STEP for s in steps]


def test_a_run_that_ends_by_time_is_recorded_to_its_last_validation(trainer, tmp_path):
    t = trainer(LScore(), max_epochs=-1, max_time={"seconds": 1}, val_check_interval=1)
    t.fit(PlainLM(), loader(40), loader(4))
    last = read_records(tmp_path)[-1]
    assert last.step == t.global_step
    assert last.measurements.tokens == t.global_step * STEP


def test_several_optimisers_stepped_by_hand_count_each_batch_once(trainer, tmp_path):
    """The Trainer counts a step for each optimiser; tokens and batches are what passed."""

    class ByHand(PlainLM):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizers = self.optimizers()
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self):
            parts = (self.embedding, self.head)
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

    trainer(LScore(), max_epochs=2).fit(ByHand(), loader(8), loader(4))
    last = read_records(tmp_path)[-1]
    assert (last.measurements.tokens, last.batch, last.step) == (4 * STEP, 4, 8)
    assert last.measurements.epochs == 2.0


def test_a_callback_used_by_two_trainers_counts_each_run_from_zero(trainer, tmp_path):
    lscore = LScore()
    for name in ("first", "second"):
        t = trainer(lscore, default_root_dir=tmp_path / name)
        t.fit(PlainLM(), loader(8), loader(4))
    first, second = (read_records(tmp_path / name)[0] for name in ("first", "second"))
    assert first.run != second.run
    assert first.measurements.tokens == second.measurements.tokens == 2 * STEP


def test_testing_a_checkpoint_logs_nothing_and_leaves_the_counters_alone(fit, trainer, tmp_path):
    class Tested(PlainLM):
        def test_step(self, batch, batch_idx, dataloader_idx=0):  # noqa: PT028
            return self.validation_step(batch, batch_idx)

    fit(3)
    before = (tmp_path / RECORD_FILE).read_bytes()
    checkpoint = str(tmp_path / "c" / "step=2.ckpt")
    lscore = LScore()
    t = trainer(lscore)
    for several in (loader(4), [loader(4), loader(8)]):
        tested = t.test(Tested(), several, ckpt_path=checkpoint, verbose=False)
        assert not any(tested)
    (validated,) = t.validate(Tested(), loader(4), ckpt_path=checkpoint, verbose=False)
    at_2 = read_records(tmp_path)[1]
    assert validated["perplexity"] == pytest.approx(at_2.score.perplexity)
    assert lscore.last_record is None
    assert (tmp_path / RECORD_FILE).read_bytes() == before
    trainer(lscore, default_root_dir=tmp_path / "new").fit(PlainLM(), loader(8), loader(4))
    assert lscore.last_record.measurements.tokens == 2 * STEP


def test_nothing_that_could_run_code_is_loaded():
    """State and records are plain numbers and text: Lightning alone opens checkpoints."""
    for file in (HERE.parent / "lightning_lscore").rglob("*.py"):
        tree = ast.parse(file.read_text())
        names = {n.name.split(".")[0] for x in ast.walk(tree) if isinstance(x, ast.Import)
                 for n in x.names}  # fmt: skip
        names |= {x.module for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)}
        assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}, file
        called = [ast.unparse(x.func) for x in ast.walk(tree) if isinstance(x, ast.Call)]
        assert not {"torch.load", "eval", "exec", "load_checkpoint"} & {*called}, file


# ---------------------------------------------------------------------- the page


def test_each_fault_on_the_page_names_a_test_that_exists():
    page = (HERE.parent / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    named = [re.findall(r"`(test_\w+)::(test_\w+)`", row) for row in rows]
    heads = [row for row in rows if row.startswith("| what | what LScore does | shown by |")]
    assert sum(not names for names in named) == len(heads) > 0
    for name, test in (name for names in named for name in names):
        (file,) = HERE.rglob(f"{name}.py")
        assert f"def {test}(" in file.read_text(), test
