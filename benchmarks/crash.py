#!/usr/bin/env python3
"""Kill a training run at random moments, resume it each time, and check what LScore kept.

The run trains a tiny model on the CPU. It validates every 2 steps and saves a checkpoint every 3,
so each kill loses some training. Its record must end like that of an uninterrupted run: the same
counts and perplexities, no torn line, no line twice, and lost time counted apart from the rest. The
exit status is 1 if it does not.

    python benchmarks/crash.py
    python benchmarks/crash.py --kills 200 --signal TERM

It needs os.fork, which Windows lacks: torch is imported once, and each attempt is a fork.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import math
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lscore import LScore, Record, read_records
from lightning_lscore.record.reader import Reader

RECORD_FILE = "lscore.jsonl"
VALIDATE_EVERY, SAVE_EVERY = 2, 3  # steps
STEPS_A_KILL = 2 * SAVE_EVERY  # the most that an attempt takes before it is killed
BATCHES_AN_EPOCH = 25
VOCABULARY = 32


class Batches:
    """Batches of unequal size that depend on their number alone, and can be resumed."""

    def __init__(self, n: int) -> None:
        self.n, self.next, self.resumed = n, 0, False

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[torch.Tensor]:
        if not self.resumed:
            self.next = 0
        self.resumed = False
        while self.next < self.n:
            self.next += 1
            random_numbers = torch.Generator().manual_seed(self.next)
            shape = (1 + self.next % 3, 6 + self.next % 5)
            yield torch.randint(VOCABULARY, shape, generator=random_numbers)

    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # At an epoch's end the next batch is the first one of the next epoch.
        self.next, self.resumed = state["next"] % self.n, True


class Tiny(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 8)
        self.head = torch.nn.Linear(8, VOCABULARY)

    def training_step(self, ids, batch_idx):
        logits = self.head(self.embedding(ids[:, :-1]))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    def validation_step(self, ids, batch_idx):
        return {"logits": self.head(self.embedding(ids)), "labels": ids}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Pulse(pl.Callback):
    """Reports through a pipe that a step begins."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def on_train_batch_start(self, *_: Any) -> None:
        os.write(self.pipe, b".")


def fit(folder: Path, steps: int, checkpoint: str | None, pipe: int) -> None:
    pl.seed_everything(0, verbose=False)
    save = ModelCheckpoint(
        folder, "{step}", "step", mode="max", save_top_k=3, save_last=True,
        every_n_train_steps=SAVE_EVERY,
    )  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=VALIDATE_EVERY,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[LScore(directory=folder), save, Pulse(pipe)],
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Tiny(), Batches(BATCHES_AN_EPOCH), Batches(3), ckpt_path=checkpoint)


def start(folder: Path, steps: int, checkpoint: str | None) -> tuple[int, int]:
    """Fork a process that trains. Return its id, and the pipe through which it reports steps."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child:
        os.close(theirs)
        return child, ours
    os.close(ours)
    try:
        fit(folder, steps, checkpoint, theirs)
    except (KeyboardInterrupt, SystemExit):
        os._exit(1)
    except BaseException as error:
        if "SIGTERM" not in type(error).__name__:
            traceback.print_exc()
            os._exit(2)
        os._exit(1)
    os._exit(0)


def ends(child: int, pipe: int, after: int, delay: float, how: signal.Signals) -> int | None:
    """Return an attempt's exit status; None if it was killed ``delay`` seconds into a step."""
    for _ in range(after):
        if not os.read(pipe, 1):
            break
    else:
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, how)
    while os.read(pipe, 4096):  # until its other end is closed
        pass
    os.close(pipe)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None


@dataclass
class Restored:
    """The newest checkpoint that loads."""

    path: str | None = None
    device_hours: float = 0.0
    torn: int = 0
    """How many newer ones did not load."""


def newest_checkpoint(folder: Path) -> Restored:
    found, torn = {}, 0
    for path in folder.glob("*.ckpt"):
        try:
            checkpoint = torch.load(path, weights_only=True)
        except Exception:
            path.unlink()
            torn += 1
            continue
        (state,) = (v for k, v in checkpoint["callbacks"].items() if k.startswith("LScore"))
        step, hours = checkpoint["global_step"], state["spent"]["device_seconds"] / 3600
        # A validation of the same step came after the checkpoint, and stays in the record.
        same = [line for line in lines(folder) if line.step == step][-1:]
        found[str(path)] = step, max([hours, *(x.measurements.device_hours for x in same)])
    if not found:
        return Restored(torn=torn)
    path = max(found, key=lambda p: (*found[p], p.endswith("last.ckpt")))
    return Restored(path, found[path][1], torn)


def lines(folder: Path) -> list[Record]:
    """Return the validations of the record's whole lines, those that later ones replace too."""
    path = folder / RECORD_FILE
    whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    reader = Reader()
    return [record for line in whole if (record := reader.take(line)) is not None]


@dataclass
class Interrupted:
    kills: int = 0
    torn: int = 0
    seconds: float = 0.0
    """Wall time of all attempts."""
    lost_device_hours: float = 0.0
    """From the lines and checkpoints that each attempt left, independent of LScore's own count."""


def run_with_kills(
    folder: Path, steps: int, kills: int, how: signal.Signals, seed: int
) -> Interrupted:
    rng, done, restored = random.Random(seed), Interrupted(), Restored()
    begin = time.monotonic()
    while True:
        left = done.kills < kills
        before = len(lines(folder))
        # If it were killed before its first checkpoint, another run would begin.
        least = 1 if restored.path else SAVE_EVERY + 1
        after = rng.randint(least, STEPS_A_KILL) if left else steps + 1
        # A step takes a few milliseconds, and more if it validates or saves a checkpoint.
        delay = rng.uniform(0, 0.02)
        child, pipe = start(folder, steps, restored.path)
        status = ends(child, pipe, after, delay, how)
        done.seconds = time.monotonic() - begin
        if status == 0:
            return done
        if status == 2:
            raise SystemExit("an attempt failed without being killed")
        done.kills += 1
        spent = restored.device_hours
        if written := lines(folder)[before:]:
            spent = written[-1].measurements.device_hours
        restored = newest_checkpoint(folder)
        done.torn += restored.torn
        done.lost_device_hours += max(0.0, spent - restored.device_hours)
        if done.kills % 10 == 0:
            at = lines(folder)[-1].step if lines(folder) else 0
            print(f"{done.kills} kills, step {at} of {steps}", flush=True)


def checks(whole: Path, killed: Path, done: Interrupted, kills: int) -> dict[str, bool]:
    """Return what must hold, in words, and whether it does."""
    expected, found, raw = read_records(whole), read_records(killed), lines(killed)
    last, hours = found[-1], [r.measurements.device_hours or 0.0 for r in found]
    lost = [line.lost_device_hours for line in raw]
    result = {f"{kills} kills": done.kills == kills}
    for name in ("tokens", "samples", "steps", "epochs"):
        a, b = (r[-1].measurements.get(name) for r in (expected, found))
        result[f"{name}: {b} as without kills, {a}"] = a == b
    result["batches as without kills"] = last.batch == expected[-1].batch
    curve = {r.batch: r.score.perplexity for r in expected}
    result["each validation once, in order"] = [r.batch for r in found] == [
        batch for batch in curve if batch in {r.batch for r in found}
    ]
    # Lightning saves a checkpoint before the validation of the same step, and resumes after it.
    skipped = curve.keys() - {r.batch for r in found}
    result[f"no validation is missing but {len(skipped)} that Lightning skips on resuming"] = all(
        batch % VALIDATE_EVERY == batch % SAVE_EVERY == 0 for batch in skipped
    )
    result["perplexities as without kills, to the last bit"] = all(
        r.score.perplexity == curve.get(r.batch) for r in found
    )
    result["no torn line"] = (killed / RECORD_FILE).read_bytes().endswith(b"\n")
    result["one run"] = len({record.run for record in raw}) == 1
    result["device time grows from validation to validation"] = all(
        a < b for a, b in itertools.pairwise(hours)
    )
    result["lost device time never falls"] = lost == sorted(lost)
    # A few kills may all come right after a checkpoint, and lose nothing.
    result[f"lost device time: {lost[-1] * 3600:.3f} s"] = lost[-1] > 0 or kills < 10
    result[f"as the lines and checkpoints say: {done.lost_device_hours * 3600:.3f} s"] = (
        math.isclose(lost[-1], done.lost_device_hours, rel_tol=1e-9)
    )
    both = (hours[-1] + lost[-1]) * 3600
    result[f"kept and lost: {both:.1f} s, in {done.seconds:.1f} s"] = both < done.seconds
    return result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="(%(default)s)")
    parser.add_argument("--signal", choices=["KILL", "TERM", "INT"], default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep the files here; must be empty or new")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    how = signal.Signals[f"SIG{arguments.signal}"]
    # Enough for every kill, even if each comes as late as it can.
    steps = STEPS_A_KILL * (arguments.kills + 1)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        whole.mkdir(parents=True)
        killed.mkdir()
        # In this process, which imports what Lightning imports late; the forks inherit it.
        with open(os.devnull, "wb") as pipe:
            fit(whole, steps, None, pipe.fileno())
        done = run_with_kills(killed, steps, arguments.kills, how, arguments.seed)
        result = checks(whole, killed, done, arguments.kills)
    print(f"SIG{arguments.signal}, seed {arguments.seed}: {done.torn} torn checkpoints passed over")
    for what, holds in result.items():
        print(f"{'ok' if holds else 'FAILED':>6}  {what}")
    return 0 if all(result.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
