"""Several processes measure what one would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_lscore import read_records

SCRIPT = Path(__file__).with_name("ddp_run.py")


def fit(folder: Path, devices: int) -> list[list[dict[str, float]]]:
    """What each rank saw at each validation."""
    folder.mkdir()
    command = [sys.executable, str(SCRIPT), str(folder), str(devices)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{r}.json").read_text()) for r in range(devices)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    return folder, fit(folder / "one", 1), fit(folder / "two", 2)


def test_all_ranks_see_the_same_numbers_to_the_last_bit(runs):
    _, _, (first, second) = runs
    assert first == second
    assert "L" in first[0]


def test_two_processes_measure_the_perplexity_of_one(runs):
    """Seven samples on two ranks: the sampler repeats one, which must not count."""
    _, (one,), (two, _) = runs
    assert two[0]["lscore/validation_tokens"] == one[0]["lscore/validation_tokens"] == 7 * 11
    assert two[0]["perplexity"] == pytest.approx(one[0]["perplexity"], rel=1e-9)


def test_two_processes_know_the_evaluation_set_of_one(runs):
    """The fingerprint is that of the set, however it was divided, and L compares."""
    folder, _, _ = runs
    one, two = (read_records(folder / name)[0].evaluation for name in ("one", "two"))
    assert one["fingerprints"] == two["fingerprints"] != ["0000000000"]
    assert one["longest"] == two["longest"] == [11]


def test_two_processes_spend_what_one_does(runs):
    folder, (one,), (two, _) = runs
    for key in ("tokens", "model_flops", "trainable_parameters", "total_parameters"):
        assert two[1][f"lscore/{key}"] == one[1][f"lscore/{key}"]
    record = read_records(folder / "two")[0]
    assert len(record.devices) == 1, "both ranks compute on this host's CPU"
    assert record.measurements.device_hours == record.measurements.train_hours


def test_rank_zero_writes_each_validation_once_and_early_stopping_agrees(runs):
    folder, (one,), (two, _) = runs
    assert len(read_records(folder / "two")) == len(two) == len(one) == 2
