"""The fits of test_same_numbers.py: each on one process or several, on the same global data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from conftest import PlainLM, Sequences
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, loss_parallel, parallelize_module
from torch.utils.data import DataLoader, IterableDataset

import lightning_lscore.hardware.devices
from lightning_lscore import Factor, Formula, LScore
from lightning_lscore.hardware.peaks import Peak
from lightning_lscore.record.record import Record

BATCH = 8  # sequences that all processes together train on at once
PEAK = 1e12  # FLOP/s, in place of a measurement that takes a second

# Nothing in it depends on the clock, which no two runs read alike.
TIMELESS = Formula(
    D=Factor("tokens", reference=1e3, weight=0.1),
    A=Factor("total_parameters", reference=1e3, weight=0.1),
    H=Factor("model_flops", reference=1e7, weight=0.1),
)


GATHERED: list[int] = []
"""Numbers in each tensor that this process let all others have, since they were last written."""


def note_what_is_gathered() -> None:
    gather = dist.all_gather

    def noted(tensors, tensor, group=None):
        if group is None:  # FSDP1, which gathers its shards in this way too, names a group
            GATHERED.append(tensor.numel())
        return gather(tensors, tensor, group=group)

    dist.all_gather = noted


def with_known_peak() -> None:
    lightning_lscore.hardware.devices.measured_peak = lambda *_, **__: Peak(
        flops=PEAK, source="the test's"
    )


def told_by(record: Record) -> dict[str, Any]:
    """What the tests compare of a record."""
    m = record.measurements
    return {
        "measurements": m.measured(),
        "provenance": dict(m.provenance),
        "score": {"L": record.L},
        "evaluation": asdict(record.evaluation),
        "devices": [asdict(device) for device in record.devices],
    }


class Report(pl.Callback):
    """Each rank writes down what it saw at each validation, to the last bit.

    Args:
        path: of the file, to which the rank is added.
        lscore: the callback before this one, if there is one.
    """

    def __init__(self, path: Path, lscore: LScore | None) -> None:
        self.path = path
        self.lscore = lscore
        self.seen: dict[str, Any] = {"logged": [], "records": [], "collectives": [], "sizes": []}

    def on_train_start(self, trainer, pl_module):
        self._mark("train")

    def on_validation_start(self, trainer, pl_module):
        self._mark("validation")

    def on_validation_end(self, trainer, pl_module):
        if trainer.sanity_checking:
            return
        logged = {k: v.item().hex() for k, v in trainer.callback_metrics.items()}
        self.seen["logged"].append(logged)
        if self.lscore is not None:
            self.seen["records"].append(told_by(self.lscore.last_record))
        self._mark("train")

    def on_train_end(self, trainer, pl_module):
        self._mark("end")
        self.seen["held"] = sum(p.numel() for p in pl_module.parameters())
        if self.lscore is not None:
            self.seen["spent"] = self.lscore.state_dict()["spent"]
        path = self.path.with_name(f"{self.path.name}-{trainer.global_rank}.json")
        path.write_text(json.dumps(self.seen))

    def _mark(self, begins: str) -> None:
        """What begins here, and the collective calls of this process until now.

        gloo numbers them, whoever makes them, in Python or not.
        """
        if dist.is_initialized():
            number = dist.group.WORLD._get_sequence_number_for_group()
            self.seen["collectives"].append([begins, number])
            self.seen["sizes"], GATHERED[:] = self.seen["sizes"] + GATHERED, []


# ------------------------------------------------------------------------------------- data


class Stream(IterableDataset):
    """Sequences without a length, dealt to the ranks by hand.

    Args:
        n: sequences.
        idle: a rank that gets none of them, where there are several; negative counts from the end.
    """

    def __init__(self, n: int, seed: int = 0, idle: int | None = None) -> None:
        self.data, self.idle = Sequences(n, seed), idle

    def __iter__(self):
        here, ranks = 0, [0]
        if dist.is_initialized():
            here, ranks = dist.get_rank(), list(range(dist.get_world_size()))
        if self.idle is not None and len(ranks) > 1:
            del ranks[self.idle]
        if here in ranks:
            for i in range(ranks.index(here), len(self.data), len(ranks)):
                yield self.data[i]


class PartlyLabelled(Sequences):
    """Every fourth sequence has no label, so that the fourth of four ranks has nothing to count."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.rows[index]
        return {"input_ids": ids, "labels": ids if index % 4 != 3 else torch.full_like(ids, -100)}


# ------------------------------------------------------------------------------------- models


class Still(PlainLM):
    """Learns nothing, so that any number of processes evaluates the same weights.

    In float64: products of another shape round differently.
    """

    def __init__(self) -> None:
        super().__init__(lr=0.0)
        self.double()


class Larger(Still):
    """Other numbers of parameters and words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(200, 64).double()
        self.head = torch.nn.Linear(64, 200).double()

    def training_step(self, batch, batch_idx):
        return self(batch["input_ids"]).logsumexp(-1).mean()


class FullySharded(Still):
    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        fully_shard(self.head, mesh=mesh)
        fully_shard(self, mesh=mesh)


class Flattened(Still):
    """For FSDP1: the layer that learns has 561 parameters, so its shards are padded."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding.requires_grad_(False)
        self.head = torch.nn.Linear(16, 33).double()

    def training_step(self, batch, batch_idx):
        return self(batch["input_ids"]).logsumexp(-1).mean()

    def configure_optimizers(self):
        # With momentum, as FSDPStrategy restores no optimizer that has no state.
        return torch.optim.SGD(self.trainer.model.parameters(), lr=0.0, momentum=0.9)


class FlattenedLate(Flattened):
    """Its layers are made when Lightning asks for them, after it has set up the callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.late = [self.embedding, self.head]
        del self.embedding, self.head

    def configure_model(self):
        if self.late:
            self.head, self.embedding = self.late.pop(), self.late.pop()


class Parallel(Still):
    """The last layer's words are spread over the tensor-parallel processes."""

    layout, local = Shard(-1), False

    def configure_model(self):
        plan = ColwiseParallel(output_layouts=self.layout, use_local_output=self.local)
        parallelize_module(self.head, self.device_mesh["tensor_parallel"], plan)
        fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        logits = self(batch["input_ids"])
        logits = logits.full_tensor() if hasattr(logits, "full_tensor") else logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
        )


class ParallelLoss(Parallel):
    """Of these words nobody ever holds all logits, the loss included."""

    def training_step(self, batch, batch_idx):
        logits, labels = self(batch["input_ids"])[:, :-1], batch["labels"][:, 1:]
        with loss_parallel():
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    def backward(self, *arguments):
        with loss_parallel():
            super().backward(*arguments)


class Copied(Parallel):
    """Every one of these processes gets all logits, as a plain tensor."""

    layout, local = Replicate(), True


# ------------------------------------------------------------------------------------- strategies


class FSDP1(FSDPStrategy):
    """On CPU, which Lightning refuses to FSDPStrategy itself, though not to its subclasses."""

    def _setup_model(self, model):
        # Lightning has made float32 of the weights. That changed none, as they were made in it.
        return FullyShardedDataParallel(
            model.double(), device_id=torch.device("cpu"), **self.kwargs
        )


def flattened(use_orig_params: bool) -> Callable[..., Strategy]:
    """The last layer is sharded by itself, in a model whose rest is too."""
    return lambda *_: FSDP1(auto_wrap_policy={torch.nn.Linear}, use_orig_params=use_orig_params)


# ------------------------------------------------------------------------------------- fits


@dataclass(frozen=True)
class Case:
    train: Callable[[int], Any]
    """Batch size -> loader."""
    held_out: Callable[[int], Any]
    options: dict[str, Any] = field(default_factory=dict)
    model: type[Still] = Still
    peers: int = 1
    """Tensor-parallel processes that share each batch."""
    strategy: Callable[[int, int], Strategy | str] = lambda *_: "ddp"
    """On several processes: ranks with batches of their own, peers -> strategy."""
    alone: type[Still] = Still
    """What ``model`` is on one process."""

    def ranks(self, processes: int) -> int:
        """That get batches of their own."""
        return max(1, processes // self.peers)


def sized(data: Callable[..., Any], n: int, seed: int = 0, batch: int | None = None, **options):
    """Makes loaders over data, of this batch size or of the one that training has."""
    return lambda size: DataLoader(data(n, seed), batch_size=batch or size, **options)


def streamed(n: int, seed: int = 0, idle: int | None = None, batch: int | None = None):
    return lambda size: DataLoader(Stream(n, seed, idle), batch_size=batch or size)


TRAIN = sized(Sequences, 24)
UNEVEN = sized(Sequences, 7, 1, 2)
FEW = sized(Sequences, 3, 2, 2)  # fewer than four ranks: one of them gets a repeat and nothing else

CASES = {
    "a larger model": Case(TRAIN, sized(Sequences, 40, 1), model=Larger, alone=Larger),
    "uneven": Case(TRAIN, lambda size: [UNEVEN(size), FEW(size)]),
    "between validations": Case(TRAIN, UNEVEN, {"val_check_interval": 2}),
    "accumulation": Case(sized(Sequences, 32), UNEVEN, {"accumulate_grad_batches": 3}),
    "drop_last": Case(sized(Sequences, 19, drop_last=True), sized(Sequences, 9, 1, drop_last=True)),
    "limited": Case(TRAIN, sized(Sequences, 12, 1), {"limit_val_batches": 1}),
    "streams": Case(streamed(32), streamed(8, 1), {"val_check_interval": 2}),
    "unequal streams": Case(TRAIN, streamed(7, 1, batch=1)),
    "an idle last rank": Case(TRAIN, streamed(7, 1, idle=-1)),
    "an idle first rank": Case(TRAIN, streamed(7, 1, idle=0)),
    "a rank without labels": Case(TRAIN, sized(PartlyLabelled, 8, 1)),
    "FSDP1": Case(
        TRAIN, UNEVEN, model=Flattened, strategy=flattened(use_orig_params=True), alone=Flattened
    ),
    "FSDP1 without the original parameters": Case(
        TRAIN, UNEVEN, model=Flattened, strategy=flattened(use_orig_params=False), alone=Flattened
    ),
    **{
        f"FSDP1 of a late model, use_orig_params={original}": Case(
            TRAIN,
            UNEVEN,
            model=FlattenedLate,
            strategy=flattened(original),
            alone=FlattenedLate,
        )
        for original in (True, False)
    },
    "FSDP2": Case(TRAIN, UNEVEN, model=FullySharded, strategy=ModelParallelStrategy),
    "tensor parallel": Case(
        TRAIN,
        UNEVEN,
        {"val_check_interval": 2},
        model=Parallel,
        peers=2,
        strategy=ModelParallelStrategy,
    ),
    "vocabulary-parallel loss": Case(
        TRAIN, UNEVEN, model=ParallelLoss, peers=2, strategy=ModelParallelStrategy
    ),
    "tensor parallel copies": Case(
        TRAIN, UNEVEN, model=Copied, peers=2, strategy=ModelParallelStrategy
    ),
}

BARE = ("uneven", "unequal streams", "accumulation", "FSDP1", "FSDP2")
"""These are done without LScore as well."""

RESUMED = ("uneven", "FSDP1")
"""These go on from a checkpoint of one process."""


def fit(name: str, processes: int, folder: Path, lscore: LScore | None) -> None:
    """One fit of a case in this process, which is one of so many; with LScore or without."""
    case = CASES[name]
    path = folder / f"{processes} {name}{'' if lscore else ' bare'}"
    strategy = case.strategy(case.ranks(processes), case.peers)
    trainer = make_trainer(processes, path, lscore, strategy, **case.options)
    model = case.model if processes > 1 else case.alone
    size = BATCH // case.ranks(processes)
    trainer.fit(model(), case.train(size), case.held_out(size))


def fit_resumed(name: str, processes: int, folder: Path) -> None:
    """The second epoch on so many processes, each with batches as large; the first on one."""
    case = CASES[name]
    checkpoint = folder / f"{name}.ckpt"
    if processes == 1:
        trainer = make_trainer(1, folder / f"1 {name} begun", LScore(TIMELESS), max_epochs=1)
        trainer.fit(case.alone(), case.train(BATCH), case.held_out(BATCH))
        trainer.save_checkpoint(checkpoint)
    path, strategy = folder / f"{processes} {name} resumed", case.strategy(processes, 1)
    trainer = make_trainer(processes, path, LScore(TIMELESS), strategy)
    model = case.model if processes > 1 else case.alone
    trainer.fit(model(), case.train(BATCH), case.held_out(BATCH), ckpt_path=checkpoint)


def make_trainer(
    processes: int, path: Path, lscore: LScore | None, strategy: Any = "ddp", **options
) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    where: dict[str, Any] = {"devices": 1}
    if processes > 1:
        where = {"devices": processes, "strategy": strategy, "plugins": [LightningEnvironment()]}
    callbacks = [] if lscore is None else [lscore]
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 2,
            "default_root_dir": path,
            "logger": False,
            "callbacks": [*callbacks, Report(path, lscore)],
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **where,
            **options,
        }
    )
