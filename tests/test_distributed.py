"""Several processes measure what one would, whichever way they are started."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ranks_fits import PEAK

from lightning_lscore import read_records

SCRIPT = Path(__file__).with_name("ddp_run.py")
# Hosts x processes on each; torchrun takes this machine for the two.
LAUNCHED = {
    "lightning 1 x 2": 2,
    "lightning 1 x 4": 4,
    "torchrun 2 x 1": 2,
    "torchrun 1 x 4": 4,
    "torchrun 2 x 2": 4,
    "spawn 2": 2,
    "spawn 4": 4,
}
TWO_HOSTS = {"2 x 1": 2, "2 x 2": 4}
"""Here the second one has another name."""


def script(folder: Path, launcher: str, nodes: int, devices: int) -> list[str]:
    return [str(SCRIPT), str(folder), launcher, str(nodes), str(devices)]


def torchrun(folder: Path, nodes: int, devices: int) -> list[list[str]]:
    """What is run on each node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--master-addr=127.0.0.1"]
    command += [f"--master-port={port}", f"--nnodes={nodes}", f"--nproc-per-node={devices}"]
    arguments = script(folder, "torchrun", nodes, devices)
    return [[*command, f"--node-rank={node}", *arguments] for node in range(nodes)]


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
    """All runs: some at once, as a launcher does its own imports before its processes do theirs."""
    folder = tmp_path_factory.mktemp("ddp")
    two, four = ([sys.executable, *script(folder, "lightning", 1, n)] for n in (2, 4))
    finish(two, *torchrun(folder, 2, 1))
    finish(four, [sys.executable, *script(folder, "spawn", 1, 4)])
    finish(*torchrun(folder, 1, 4))
    finish(*torchrun(folder, 2, 2))
    return folder


@pytest.fixture
def logged(folder):
    """What a rank saw at each validation."""

    def read(run: str, rank: int = 0) -> list[dict[str, float]]:
        seen = json.loads((folder / run / f"rank-{rank}.json").read_text())["logged"]
        return [{key: float.fromhex(value) for key, value in each.items()} for each in seen]

    return read


@pytest.mark.parametrize(
    ("run", "n"), [*LAUNCHED.items(), *((f"two hosts {k}", n) for k, n in TWO_HOSTS.items())]
)
def test_all_ranks_see_the_same_numbers_to_the_last_bit(folder, logged, run, n):
    assert len(list((folder / run).glob("rank-*.json"))) == n
    first, *others = (logged(run, rank) for rank in range(n))
    assert others == [first] * (n - 1)
    assert "L" in first[0]


@pytest.mark.parametrize("run", LAUNCHED)
def test_several_processes_measure_the_perplexity_of_one(logged, run):
    """Seven samples on two or four ranks: the sampler repeats one, which must not count."""
    one, several = logged("one"), logged(run)
    for alone, together in zip(one, several, strict=True):
        tokens = together["lscore/validation_tokens"]
        assert tokens == alone["lscore/validation_tokens"] == 7 * 11
        assert together["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-9, abs=0)


@pytest.mark.parametrize("run", LAUNCHED)
def test_several_processes_know_the_evaluation_set_of_one(folder, run):
    """The fingerprint is that of the set, however it was divided, and L compares."""
    one, several = (read_records(folder / name)[0].evaluation for name in ("one", run))
    assert one.fingerprints == several.fingerprints != ("0000000000",)
    assert one.longest == several.longest == (11,)


@pytest.mark.parametrize("run", LAUNCHED)
def test_several_processes_spend_what_one_does(folder, logged, run):
    for alone, together in zip(logged("one"), logged(run), strict=True):
        for key in ("tokens", "model_flops", "trainable_parameters", "total_parameters"):
            assert together[f"lscore/{key}"] == alone[f"lscore/{key}"]
    for record in read_records(folder / run):
        assert len(record.devices) == 1, "all ranks compute on this host's CPU"
        assert_capacity(record.measurements, hosts=1)


def assert_capacity(measured, hosts: int) -> None:
    assert measured.device_hours == pytest.approx(hosts * measured.train_hours, rel=1e-12)
    capacity = measured.train_hours * 3600 * hosts * PEAK
    assert measured.capacity_flops == pytest.approx(capacity, rel=1e-12)


@pytest.mark.parametrize("run", LAUNCHED)
def test_the_plan_and_so_the_default_formula_is_that_of_one_process(folder, logged, run):
    one, several = (read_records(folder / name)[0].formula for name in ("one", run))
    assert several == one
    for alone, together in zip(logged("one"), logged(run), strict=True):
        assert {k: together[k] for k in ("f_D", "f_A")} == {k: alone[k] for k in ("f_D", "f_A")}
        # No two runs take as long, and L is the same but for that.
        timeless = alone["L"] / alone["f_H"]
        assert together["L"] / together["f_H"] == pytest.approx(timeless, rel=1e-9, abs=0)


@pytest.mark.parametrize("run", LAUNCHED)
def test_rank_zero_writes_each_validation_once_and_early_stopping_agrees(folder, logged, run):
    assert len(read_records(folder / run)) == len(logged(run)) == len(logged("one")) == 2


@pytest.mark.parametrize("hosts", TWO_HOSTS)
def test_each_host_adds_its_cpu(folder, hosts):
    for record in read_records(folder / f"two hosts {hosts}"):
        keys = {device.key for device in record.devices}
        assert len(keys) == len(record.devices) == 2
        assert record.hardware.keys() == keys
        assert all(seen.memory_peak_gib > 0 for seen in record.hardware.values())
        assert_capacity(record.measurements, hosts=2)


@pytest.mark.parametrize("hosts", TWO_HOSTS)
def test_another_host_changes_nothing_else(logged, hosts):
    """Of what does not depend on the clock."""
    same = ("perplexity", "f_D", "f_A", "lscore/tokens", "lscore/validation_tokens")
    one_host, two_hosts = logged(f"torchrun {hosts}"), logged(f"two hosts {hosts}")
    for one, two in zip(one_host, two_hosts, strict=True):
        assert {k: two[k] for k in same} == {k: one[k] for k in same}
