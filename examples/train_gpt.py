"""Train a small byte-level language model until more spending no longer pays.

A GPT of about 0.9M parameters reads a few pages of Python's own standard library, which every
machine with Python has, again and again. It soon knows them by heart: its perplexity on other pages
turns long before the plan ends, and there CostEarlyStopping ends the run.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import sys
import sysconfig
import warnings
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_lscore import CostEarlyStopping, LScore, read_records
from lightning_lscore.equation.safe_numbers import percent
from lightning_lscore.record.record import Record
from lightning_lscore.show.plots import plot_run
from lightning_lscore.show.tables import spending_summary, validation_table

CONTEXT = 256  # bytes
BATCH = 8  # sequences
PAGES = 128  # sequences to learn from: few, so that the model learns them by heart


class GPT(lightning.LightningModule):
    """A transformers language model; LScore finds its logits and labels by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=256,
                hidden_size=128,
                intermediate_size=352,
                num_hidden_layers=4,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                tie_word_embeddings=True,
            )
        )

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3, betas=(0.9, 0.95))
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.03, total_iters=30)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}


def read_files(text: Path | None) -> list[bytes]:
    """Return the files of the corpus: of a file or folder, or of the standard library's source."""
    if text is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
        paths = [p for p in root.rglob("*.py") if not skip & set(p.relative_to(root).parts)]
    elif text.is_dir():
        paths = [p for p in text.rglob("*") if p.is_file()]
    else:
        paths = [text]
    files = [data for p in sorted(paths) if (data := p.read_bytes())]
    if len(files) == 1:  # one file: split it into its paragraphs
        files = [part for part in files[0].split(b"\n\n") if part]
    return files


def make_set(files: list[bytes]) -> TensorDataset:
    """Return sequences of CONTEXT bytes."""
    data = torch.frombuffer(bytearray(b"\n".join(files)), dtype=torch.uint8)
    rows = data[: len(data) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    return TensorDataset(rows)


def collate(samples: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    ids = torch.stack([row for (row,) in samples]).long()
    return {"input_ids": ids, "labels": ids}


def count_bytes_read(batch: dict[str, torch.Tensor]) -> int:
    """Every byte counts: spaces at the end of a row are no padding."""
    return batch["input_ids"].numel()


def make_loaders(text: Path | None, seed: int) -> tuple[DataLoader, DataLoader]:
    """Return training and validation loaders; no file is in both."""
    files = read_files(text)
    random.Random(seed).shuffle(files)
    held_out = max(1, len(files) // 10)
    parts = files[held_out:], files[:held_out]
    if any(sum(map(len, part)) < BATCH * CONTEXT for part in parts):
        sys.exit(
            f"expected text of at least {20 * BATCH * CONTEXT} bytes in ten or more files or "
            f"paragraphs, got {sum(map(len, files))} bytes in {len(files)}. Give more with --text."
        )
    train, validation = map(make_set, parts)
    validation.tensors = (validation.tensors[0][:128],)
    pages = train.tensors[0]
    pages = pages[torch.randperm(len(pages))[:PAGES]]
    train.tensors = (pages,)
    return (
        DataLoader(train, BATCH, shuffle=True, drop_last=True, collate_fn=collate),
        DataLoader(validation, 32, collate_fn=collate),
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--text", type=Path, help="file or folder to learn (default: the standard library's source)"
    )
    add("--max-steps", type=int, default=1000, help="limit of the run (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, split and order (default: %(default)s)")
    add("--accelerator", default="cpu", help="cpu, gpu, auto, ... (default: %(default)s)")
    add("--devices", type=int, default=1, help="how many of them (default: %(default)s)")
    add("--out", type=Path, default=Path("runs"), help="folder to write to (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.text is not None and not arguments.text.exists():
        parser.error(f"--text: expected a file or folder, and there is no {arguments.text}")
    for name in ("max_steps", "devices"):
        if getattr(arguments, name) < 1:
            option = name.replace("_", "-")
            parser.error(f"--{option}: expected at least 1, got {getattr(arguments, name)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    # Worker processes would not speed up reading from memory; the other warning is Lightning's.
    warnings.filterwarnings("ignore", ".*does not have many workers.*|.*LeafSpec.* is deprecated")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(arguments.seed, verbose=False)
    train, validation = make_loaders(arguments.text, arguments.seed)

    csv = CSVLogger(arguments.out, name="train_gpt")
    tensorboard = TensorBoardLogger(arguments.out, name="train_gpt", version=csv.version)
    name = "step={step}-perplexity={perplexity:.4f}-L={L:.4f}"
    named = {"filename": name, "auto_insert_metric_name": False}
    stopping = CostEarlyStopping()  # when to stop: as soon as more spending no longer pays
    weights = ModelCheckpoint(monitor="perplexity", **named)  # to keep: the money is spent
    best = ModelCheckpoint(monitor="L", **named)  # where stopping would have been best
    trainer = lightning.Trainer(
        max_steps=arguments.max_steps,
        max_epochs=math.ceil(arguments.max_steps / len(train)),
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        logger=[csv, tensorboard],
        callbacks=[LScore(count_tokens=count_bytes_read), stopping, weights, best],
        gradient_clip_val=1.0,
        val_check_interval=25,
        check_val_every_n_epoch=None,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    trainer.fit(GPT(), train, validation)

    if trainer.is_global_zero:
        folder = Path(csv.log_dir)
        records = read_records(folder)
        plot_run(records, folder / "lscore.png")
        print(f"\n{validation_table(records)}\n\n{spending_summary(records)}")
        print(f"\npicture: {folder / 'lscore.png'}\n")
        print("\n".join(decision(records, arguments.max_steps, stopping)))
        print(f"weights  {weights.best_model_path}")


def decision(records: list[Record], planned: int, stopping: CostEarlyStopping) -> list[str]:
    """Say in four lines where the run stopped, why, what that saved and what it cost."""
    last, best = records[-1], min(records, key=lambda r: r.measurements.perplexity)
    left = 1 - last.step / planned
    verdict = stopping.verdict
    if verdict is None or not verdict.stop:
        why = "its plan is at an end, and spending still paid"
    else:
        why = verdict.reason
    hours = last.measurements.device_hours / last.step * (planned - last.step)
    T, lowest = last.measurements.perplexity, best.measurements.perplexity
    rise = f"nothing: perplexity had risen by {percent(T / lowest - 1)} since step {best.step}"
    return [
        f"stopped  at step {last.step} of {planned}",
        f"because  {why}",
        f"saved    {percent(left)} of the plan, about {3600 * hours:.0f} s of device time",
        f"cost     {rise if T > lowest else 'what perplexity may still have fallen'}",
    ]


if __name__ == "__main__":
    main()
