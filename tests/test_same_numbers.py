"""A fit on one, two and four processes measures the same numbers.

Where ranks get unequally many validation batches, what needs every rank in every batch hangs in
Lightning itself: a model with buffers under DDP, which sends them round, and FSDP. LScore asks the
others only once, when each has had its last batch, so that it works wherever Lightning does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from ranks_fits import BARE, CASES, PEAK, RESUMED

SCRIPT = Path(__file__).with_name("ranks_forked.py")
SEVERAL = [(name, n) for name in CASES for n in (2, 4)]
UNSHARED = [(name, n) for name, n in SEVERAL if CASES[name].peers == 1]
SHARED = [(name, n) for name, n in SEVERAL if CASES[name].peers > 1]

EXACT = (
    "validation_tokens",
    "steps",
    "epochs",
    "trainable_parameters",
    "total_parameters",
    "flops_per_token",
)
OF_BATCHES = ("tokens", "samples", "model_flops")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forked")
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def ranks(folder):
    """What each rank saw."""

    def read(name: str, processes: int) -> list[dict]:
        files = [folder / f"{processes} {name}-{rank}.json" for rank in range(processes)]
        return [json.loads(file.read_text()) for file in files]

    return read


def measurements(rank: dict) -> list[dict[str, float]]:
    return [record["measurements"] for record in rank["records"]]


@pytest.mark.parametrize(("name", "n"), SEVERAL)
def test_all_ranks_log_the_same_numbers_to_the_last_bit(ranks, name, n):
    """Ranks that differed in L would wait for each other forever in EarlyStopping."""
    first, *others = ranks(name, n)
    assert [rank["logged"] for rank in others] == [first["logged"]] * (n - 1)
    assert [measurements(rank) for rank in others] == [measurements(first)] * (n - 1)
    assert {"L", "perplexity", "f_D", "f_A", "f_H"} <= first["logged"][0].keys()


@pytest.mark.parametrize(("name", "n"), SEVERAL)
def test_the_perplexity_is_that_of_one_process(ranks, name, n):
    (one,), several = ranks(name, 1), ranks(name, n)[0]
    assert len(several["records"]) == len(one["records"]) >= 2
    for alone, together in zip(one["records"], several["records"], strict=True):
        expected = alone["measurements"]["perplexity"]
        assert together["measurements"]["perplexity"] == pytest.approx(expected, rel=1e-9, abs=0)
        for key in ("tokens", "fingerprints", "longest"):
            assert together["evaluation"][key] == alone["evaluation"][key], key
        perplexities = alone["evaluation"]["perplexities"]
        assert together["evaluation"]["perplexities"] == pytest.approx(perplexities, rel=1e-9)


@pytest.mark.parametrize(("name", "n"), SEVERAL)
def test_the_run_is_as_long_as_on_one_process_and_its_model_as_large(ranks, name, n):
    (one,), several = ranks(name, 1), ranks(name, n)[0]
    for alone, together in zip(measurements(one), measurements(several), strict=True):
        assert {k: together.get(k) for k in EXACT} == {k: alone.get(k) for k in EXACT}


@pytest.mark.parametrize(("name", "n"), [each for each in SEVERAL if "FSDP1" in each[0]])
def test_FSDP1_leaves_each_process_a_part_of_the_model_alone(ranks, name, n):
    """Else its cases would show nothing: FSDP2's DTensors know their whole size, these do not."""
    (one,) = ranks(name, 1)
    held = sum(rank["held"] for rank in ranks(name, n))
    assert one["held"] <= held < one["held"] + 2 * n, "once, and the padding of its two units"


@pytest.mark.parametrize(("name", "n"), UNSHARED)
def test_the_batches_of_all_ranks_are_counted(ranks, name, n):
    assert_same_batches(ranks, name, n)


@pytest.mark.parametrize(("name", "n"), SHARED)
def test_a_batch_that_tensor_parallel_peers_share_is_counted_once(ranks, name, n):
    assert_same_batches(ranks, name, n)


def assert_same_batches(ranks, name, n):
    (one,), several = ranks(name, 1), ranks(name, n)[0]
    for alone, together in zip(measurements(one), measurements(several), strict=True):
        assert {k: together[k] for k in OF_BATCHES} == {k: alone[k] for k in OF_BATCHES}
    for alone, together in zip(one["records"], several["records"], strict=True):
        assert together["score"]["L"] == pytest.approx(alone["score"]["L"], rel=1e-9, abs=0)


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", ["between validations", "tensor parallel"])
def test_a_checkpoint_between_validations_counts_what_one_process_would(ranks, name, n):
    """Nobody is asked then: each rank takes the others to have gone on as it did."""
    (one,), several = ranks(name, 1), ranks(name, n)
    counted = (*OF_BATCHES, "batches")
    expected = {key: one["spent"][key] for key in counted}
    assert expected["tokens"] > one["records"][-1]["measurements"]["tokens"]
    for rank in several:
        assert {key: rank["spent"][key] for key in counted} == expected


@pytest.mark.parametrize(("name", "n"), SEVERAL)
def test_the_processes_of_a_host_occupy_its_cpu_once(ranks, name, n):
    for record in ranks(name, n)[0]["records"]:
        measured = record["measurements"]
        assert [device["peak_flops"] for device in record["devices"]] == [PEAK]
        assert measured["device_hours"] == measured["train_hours"] > 0
        seconds = measured["device_hours"] * 3600
        assert measured["capacity_flops"] == pytest.approx(seconds * PEAK, rel=1e-12)


@pytest.mark.parametrize("n", [2, 4])
def test_the_record_says_how_T_was_measured_though_its_writer_had_no_data(ranks, n):
    for record in ranks("an idle first rank", n)[0]["records"]:
        assert record["provenance"]["perplexity"] != "measured: "


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_where_one_process_left_it(ranks, name, n):
    """With as large batches on each rank, so that all of them together have larger ones."""
    parts = (("begun", 1), ("resumed", 1), ("resumed", n))
    (begun,), (alone,), together = (ranks(f"{name} {part}", m) for part, m in parts)
    (before,), (one,) = measurements(begun), measurements(alone)
    assert [measurements(rank) for rank in together] == [measurements(together[0])] * n
    (several,) = measurements(together[0])
    assert before["epochs"] == 1
    assert one["epochs"] == 2
    for key in ("perplexity", *OF_BATCHES):
        assert several[key] == pytest.approx(one[key], rel=1e-9), key
    for key in (*OF_BATCHES, "train_hours", "device_hours", "capacity_flops"):
        assert several[key] > before[key] > 0, key


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", RESUMED)
def test_epochs_go_on_though_there_are_fewer_batches_in_each(ranks, name, n):
    (several,) = measurements(ranks(f"{name} resumed", n)[0])
    assert several["epochs"] == 2


# ------------------------------------------------------------------------------------- exchange


def calls(rank: dict) -> dict[str, list[int]]:
    """Collective calls in each validation, and in each stretch of training."""
    found: dict[str, list[int]] = {}
    for (what, start), (_, end) in pairwise(rank["collectives"]):
        found.setdefault(what, []).append(end - start)
    return found


@pytest.mark.parametrize("name", BARE)
def test_one_exchange_a_validation_and_none_in_training(ranks, name):
    with_lscore = [calls(rank) for rank in ranks(name, 2)]
    without = [calls(rank) for rank in ranks(f"{name} bare", 2)]
    for ours, bare in zip(with_lscore, without, strict=True):
        assert len(ours["validation"]) == len(bare["validation"]) == 2
        assert ours["validation"] == [n + 1 for n in bare["validation"]]
        assert sum(bare["train"]) > 0, "DDP's own are not seen"
        assert ours["train"] == bare["train"]


@pytest.mark.parametrize("n", [2, 4])
def test_the_exchange_is_as_large_for_any_model_and_data(ranks, n):
    """A few dozen numbers for one validation loader, five more for each further one."""
    sizes = {name: rank["sizes"] for name in CASES for rank in ranks(name, n)}
    usual = sizes.pop("between validations")[-1]
    assert usual < 100
    for name, each in sizes.items():
        more = 5 if name == "uneven" else 0
        assert each[-2:] == [usual + more] * 2, name
