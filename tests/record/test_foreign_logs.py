from __future__ import annotations

import json
import math

import pytest

from lightning_lscore.record.foreign_logs import read_log

METRICS = """\
epoch,step,train_loss,val_loss,lr-AdamW
0,9,3.5,,0.1
0,9,,3.25,
1,19,2.5,,0.05
1,19,,nan,
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def trainer_state(folder, *history, **facts):
    state = {"max_steps": 100, "epoch": 1.0, "log_history": list(history), **facts}
    return write(folder / "trainer_state.json", json.dumps(state))


def test_lightnings_rows_of_one_step_are_one_and_its_first_step_is_0(tmp_path):
    log = read_log(write(tmp_path / "metrics.csv", METRICS))
    assert list(log.values) == [10, 20]
    assert log.values[10] == {"epoch": 0, "train_loss": 3.5, "val_loss": 3.25, "lr-AdamW": 0.1}
    assert math.isnan(log.values[20]["val_loss"])
    assert log.keys["val_loss"] == 2
    assert read_log(tmp_path).values[10] == log.values[10]  # the folder does as well


def test_the_history_of_transformers_is_read_with_its_facts(tmp_path):
    """From the newest checkpoint where the run has no state of its own."""
    first = ({"step": 10, "loss": 3.0}, {"step": 10, "eval_loss": 2.9, "epoch": 0.5})
    end = {"step": 20, "train_runtime": 60.0, "total_flos": 1e15, "train_loss": 3.0}
    trainer_state(tmp_path / "checkpoint-9", *first)
    trainer_state(tmp_path / "checkpoint-20", *first, {"step": 20, "eval_loss": 2.5}, end)
    log = read_log(tmp_path)
    assert log.values[10] == {"loss": 3.0, "eval_loss": 2.9, "epoch": 0.5}
    assert (log.facts["max_steps"], log.facts["train_runtime"]) == (100, 60.0)
    assert log.facts["total_flos"] == 1e15


def test_event_files_of_tensorboard_are_read_with_their_times(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        writer.add_scalar("val_loss", 3.25, 10, walltime=100.0)
        writer.add_scalar("val_loss", 3.0, 20, walltime=160.0)
        writer.add_text("remark", "no number", 20)
    log = read_log(tmp_path)
    assert [log.values[s]["val_loss"] for s in (10, 20)] == [3.25, 3.0]
    spent = [log.values[s]["wall_seconds"] for s in (10, 20)]
    assert spent[1] - spent[0] == 60.0


def test_the_newest_value_before_a_step_counts(tmp_path):
    log = read_log(write(tmp_path / "log.csv", "step,tokens,loss\n1,10,3\n2,,2\n3,30,1\n"))
    assert [log.until(s, "tokens") for s in (0, 1, 2, 3)] == [None, 10.0, 10.0, 30.0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("log.csv", "a,b\n1,2\n", "expected a column of steps"),
        ("log.csv", "", "got nothing"),
        ("log.csv", "step,loss\nx,1\n", "expected values at one step at least"),
        ("trainer_state.json", "[]", "expected a trainer_state.json"),
        ("study.json", "{}", "with a log_history whose entries have a step"),
        ("trainer_state.json", "{", "expected a trainer_state.json"),
        ("trainer_state.json", '{"log_history": [{"loss": 1}]}', "expected a trainer_state.json"),
        ("trainer_state.json", '{"log_history": []}', "expected values at one step at least"),
        ("notes.txt", "hello", "got none of these"),
    ],
)
def test_what_is_no_log_is_said(name, text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_log(write(tmp_path / name, text))


def test_a_folder_without_a_log_and_a_missing_one_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="got none of these"):
        read_log(tmp_path)
    with pytest.raises(FileNotFoundError, match="no log at"):
        read_log(tmp_path / "nowhere")
