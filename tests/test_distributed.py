"""Several processes measure what one would, whichever way they are started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import ddp_run
import pytest
from ranks_fits import PEAK

from lightning_lscore import read_records

SCRIPT = ddp_run.__file__
LAUNCHERS = ("lightning", "torchrun", "spawn")


def torchrun(node: int, port: int) -> list[str]:
    """One of two nodes with a process each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    return [*command, f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"]


def finish(*commands: list[str]) -> None:
    """Runs these side by side."""
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        for process in started:
            said, _ = process.communicate(timeout=300)
            assert process.returncode == 0, said
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    finish([sys.executable, SCRIPT, str(folder), "lightning"])
    finish(*([*torchrun(node, port), SCRIPT, str(folder), "torchrun"] for node in (0, 1)))
    ddp_run.fit(folder / "one", 1, devices=1)
    ddp_run.fit(folder / "spawn", 2, devices=2, strategy="ddp_spawn")
    return folder


@pytest.fixture
def logged(folder):
    """What a rank saw at each validation."""

    def read(run: str, rank: int = 0) -> list[dict[str, float]]:
        seen = json.loads((folder / run / f"rank-{rank}.json").read_text())["logged"]
        return [{key: float.fromhex(value) for key, value in each.items()} for each in seen]

    return read


@pytest.mark.parametrize("launcher", [*LAUNCHERS, "two hosts"])
def test_all_ranks_see_the_same_numbers_to_the_last_bit(logged, launcher):
    first, second = logged(launcher, 0), logged(launcher, 1)
    assert first == second
    assert "L" in first[0]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_measure_the_perplexity_of_one(logged, launcher):
    """Seven samples on two ranks: the sampler repeats one, which must not count."""
    one, two = logged("one"), logged(launcher)
    assert two[0]["lscore/validation_tokens"] == one[0]["lscore/validation_tokens"] == 7 * 11
    assert two[0]["perplexity"] == pytest.approx(one[0]["perplexity"], rel=1e-9)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_know_the_evaluation_set_of_one(folder, launcher):
    """The fingerprint is that of the set, however it was divided, and L compares."""
    one, two = (read_records(folder / name)[0].evaluation for name in ("one", launcher))
    assert one["fingerprints"] == two["fingerprints"] != ["0000000000"]
    assert one["longest"] == two["longest"] == [11]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_spend_what_one_does(folder, logged, launcher):
    one, two = logged("one"), logged(launcher, 1)
    for key in ("tokens", "model_flops", "trainable_parameters", "total_parameters"):
        assert two[1][f"lscore/{key}"] == one[1][f"lscore/{key}"]
    record = read_records(folder / launcher)[0]
    assert len(record.devices) == 1, "both ranks compute on this host's CPU"
    assert record.measurements.device_hours == record.measurements.train_hours


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_plan_and_so_the_default_formula_is_that_of_one_process(folder, logged, launcher):
    one, two = (read_records(folder / name)[0].formula for name in ("one", launcher))
    assert two == one
    for alone, together in zip(logged("one"), logged(launcher), strict=True):
        assert {k: together[k] for k in ("f_D", "f_A")} == {k: alone[k] for k in ("f_D", "f_A")}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_rank_zero_writes_each_validation_once_and_early_stopping_agrees(folder, logged, launcher):
    assert len(read_records(folder / launcher)) == len(logged(launcher)) == len(logged("one")) == 2


def test_each_host_adds_its_cpu(folder):
    """By torchrun on two hosts; here the name of the second is made up."""
    for record in read_records(folder / "two hosts"):
        measured = record.measurements
        assert len({device["key"] for device in record.devices}) == len(record.devices) == 2
        assert measured.device_hours == pytest.approx(2 * measured.train_hours, rel=1e-12)
        capacity = measured.train_hours * 3600 * 2 * PEAK
        assert measured.capacity_flops == pytest.approx(capacity, rel=1e-12)


def test_another_host_changes_nothing_else(logged):
    """Of what does not depend on the clock."""
    same = ("perplexity", "f_D", "f_A", "lscore/tokens", "lscore/validation_tokens")
    for one_host, two_hosts in zip(logged("torchrun"), logged("two hosts"), strict=True):
        assert {k: two_hosts[k] for k in same} == {k: one_host[k] for k in same}
