"""Logits and models that two processes share are measured as in one process."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import HuggingFaceLM, PlainLM, loader, reference_perplexity
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from test_capture import fused
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from lightning_lscore import LScore
from lightning_lscore.heldout.capture import Capture
from lightning_lscore.heldout.nll import row_nll
from lightning_lscore.heldout.perplexity import Perplexity


def in_two_processes(work: Callable[[int], dict], folder: Path) -> list[dict]:
    """What work(rank) returns in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = mp.start_processes(_rank, (work, folder, port), nprocs=2, join=False)
    try:
        end = time.monotonic() + 240
        while not ranks.join(timeout=5):
            assert time.monotonic() < end, "the ranks hang"
    finally:
        for process in ranks.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def _rank(rank: int, work: Callable[[int], dict], folder: Path, port: str) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=port, LOCAL_RANK=str(rank), NODE_RANK="0"
    )
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


# ------------------------------------------------------------------------------------- DTensors

ROWS, COLUMNS = [Shard(0)], [Shard(-1)]
CASES = {
    # name: shape, placements, and the mesh if it has two dimensions
    "words": ((4, 5, 40), COLUMNS),
    "words, one more here than there": ((4, 5, 33), COLUMNS),
    "a process without a word": ((4, 5, 1), COLUMNS),
    "sequences": ((4, 5, 40), ROWS),
    "sequences, one more here than there": ((3, 5, 40), ROWS),
    "a process without a sequence": ((1, 5, 40), ROWS),
    "time": ((4, 6, 40), [Shard(1)]),
    "copies": ((4, 5, 40), [Replicate()]),
    "words and copies": ((4, 5, 40), [Replicate(), Shard(-1)], (1, 2)),
    "sequences and words": ((4, 5, 40), [Shard(0), Shard(-1)], (1, 2)),
    "sequences and one part of words": ((4, 5, 40), [Shard(0), Shard(-1)], (2, 1)),
    "one prediction a sample": ((4, 40), COLUMNS),
}


def logits_and_tokens(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*shape, generator=generator) * 3 + 1e3  # an offset costs careless digits
    tokens = torch.randint(shape[-1], shape[:-1], generator=generator)
    if shape[-1] > 2:  # all words that the first process holds are masked
        logits[0, ..., : shape[-1] // 2 + 1] = -torch.inf
        tokens[0] = shape[-1] - 1
    return logits, tokens


def captured(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[float, int]:
    """NLL and count that this process contributes."""
    perplexity, capture = Perplexity(sync_on_compute=False), Capture(labels_are_shifted=False)

    class NeverEmpty:
        def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
            assert labels.numel(), "nothing to count"
            assert not isinstance(logits, DTensor), "each process measures what it holds"
            perplexity.update(logits, labels)

        def update_nll(self, nll: torch.Tensor, labels: torch.Tensor) -> None:
            assert labels.numel(), "nothing to count"
            perplexity.update_nll(nll, labels)

    capture.start_batch({"input_ids": tokens}, NeverEmpty())
    capture.end_batch(None, {"logits": logits, "labels": tokens}, {"input_ids": tokens})
    return float(perplexity.nll_sum), int(perplexity.count)


def _measure_dtensors(rank: int) -> dict:
    reduced, reduce = [], dist.all_reduce
    dist.all_reduce = lambda x, *args, **kwargs: (
        reduced.append(x.numel()),
        reduce(x, *args, **kwargs),
    )
    gather = DTensor.full_tensor

    def small_only(self, **kwargs):
        assert not self.is_floating_point(), "the logits are gathered"
        return gather(self, **kwargs)

    DTensor.full_tensor = small_only
    result = {}
    for name, (shape, placements, *meshes) in CASES.items():
        mesh = init_device_mesh("cpu", *(meshes or [(2,)]))
        logits, tokens = logits_and_tokens(*shape)
        reduced.clear()
        spread = distribute_tensor(logits, mesh, placements)
        nll = row_nll(spread, tokens)
        sums = captured(spread, tokens)
        assert captured(spread, distribute_tensor(tokens, mesh, [Replicate()] * mesh.ndim)) == sums
        if placements == ROWS:  # labels of one's own sequences will do
            local = tokens.chunk(2)[rank] if rank < len(tokens.chunk(2)) else tokens[:0]
            assert captured(spread, local) == sums
        result[name] = {"nll": nll, "sums": sums, "reduced": max(reduced, default=0)}
    mesh = init_device_mesh("cpu", (2,))
    errors = {
        "partial sums": (DTensor.from_local(torch.zeros(2, 3, 4), mesh, [Partial()]), (2, 3)),
        "own labels in time": (DTensor.from_local(torch.zeros(2, 3, 4), mesh, [Shard(1)]), (2, 3)),
    }
    for name, (logits, shape) in errors.items():
        try:
            captured(logits, torch.zeros(shape, dtype=torch.int64))
        except ValueError as error:
            result[name] = str(error)
    return result


@pytest.fixture(scope="module")
def dtensors(tmp_path_factory):
    return in_two_processes(_measure_dtensors, tmp_path_factory.mktemp("dtensors"))


@pytest.mark.parametrize("name", CASES)
def test_spread_logits_count_once_and_as_in_one_process(dtensors, name):
    """The sums of the two processes are those of one that holds all logits."""
    logits, tokens = logits_and_tokens(*CASES[name][0])
    expected = captured(logits, tokens)
    sums = [rank[name]["sums"] for rank in dtensors]
    assert sum(count for _, count in sums) == expected[1]
    assert sum(nll for nll, _ in sums) == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_each_process_gets_the_nll_of_its_rows(dtensors, name):
    logits, tokens = logits_and_tokens(*CASES[name][0])
    expected = row_nll(logits, tokens)
    dim = next((p.dim for p in CASES[name][1] if p.is_shard() and p.dim >= 0), None)
    if name in ("sequences and words",):  # its first dimension has one process
        dim = None
    for rank, found in enumerate(dtensors):
        own = expected
        if dim is not None:
            parts = expected.chunk(2, dim)
            own = parts[rank] if rank < len(parts) else expected[:0]
        torch.testing.assert_close(found[name]["nll"], own, rtol=1e-9, atol=1e-6)


def test_processes_tell_each_other_two_numbers_a_row(dtensors):
    """The logits, 40 numbers a row, stay where they are."""
    assert all(rank["words"]["reduced"] == 2 * 4 * 5 for rank in dtensors)
    assert all(rank["sequences"]["reduced"] == 0 for rank in dtensors)


def test_other_layouts_are_refused(dtensors):
    for rank in dtensors:
        assert "Partial" in rank["partial sums"]
        assert "redistribute" in rank["partial sums"]
        assert "one label for each row" in rank["own labels in time"]


# ------------------------------------------------------------------------------------- strategies


class Parallel(PlainLM):
    """The last layer's words are spread over a tensor-parallel group."""

    def __init__(self, layout, local: bool) -> None:
        super().__init__()
        self.layout, self.local = layout, local

    def configure_model(self):
        plan = ColwiseParallel(output_layouts=self.layout, use_local_output=self.local)
        parallelize_module(self.head, self.device_mesh["tensor_parallel"], plan)


class FullySharded(HuggingFaceLM):
    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.model.model.layers[0], mesh=mesh)
        fully_shard(self.model, mesh=mesh)


class WithoutLogits(FullySharded):
    def __init__(self) -> None:
        super().__init__()
        fused(self.model)


def tensor_parallel() -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)


STRATEGIES = {
    "DDP": (lambda: "ddp", HuggingFaceLM),
    "FSDP2": (lambda: ModelParallelStrategy(2, 1), FullySharded),
    "FSDP2 of a model without logits": (lambda: ModelParallelStrategy(2, 1), WithoutLogits),
    "words as a DTensor": (tensor_parallel, lambda: Parallel(Shard(-1), False)),
    "copies as a DTensor": (tensor_parallel, lambda: Parallel(Replicate(), False)),
    "copies as plain tensors": (tensor_parallel, lambda: Parallel(Replicate(), True)),
}


def _validate_all(rank: int) -> dict:
    result = {}
    for name, (strategy, make) in STRATEGIES.items():
        pl.seed_everything(0, verbose=False)
        trainer = pl.Trainer(
            accelerator="cpu",
            strategy=strategy(),
            devices=2,
            plugins=[LightningEnvironment()],
            logger=False,
            callbacks=[LScore()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            (logged,) = trainer.validate(make(), loader(7, batch=2), verbose=False)
            result[name] = {key: float(value) for key, value in logged.items()}
        except Exception:
            result[name] = traceback.format_exc()
    return result


@pytest.fixture(scope="module")
def validations(tmp_path_factory):
    return in_two_processes(_validate_all, tmp_path_factory.mktemp("strategies"))


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_measure_what_one_process_does(validations, name):
    """Each held-out token counts once, also where both processes compute the same."""
    first, second = (rank[name] for rank in validations)
    assert first == second
    assert isinstance(first, dict), first
    pl.seed_everything(0, verbose=False)
    transformers = isinstance(STRATEGIES[name][1], type)
    model = HuggingFaceLM().model if transformers else PlainLM()
    assert first["lscore/validation_tokens"] == 7 * 11
    assert first["perplexity"] == pytest.approx(reference_perplexity(model, loader(7)), rel=1e-6)
