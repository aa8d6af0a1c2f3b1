"""A real model of 135M parameters, from a wheel, against an independent computation in float64."""

from __future__ import annotations

import math
import sysconfig
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_lscore import LScore

CONTEXT = 128


def python_source(tokenizer) -> list[dict[str, torch.Tensor]]:
    """Batches of real text, the last one padded and shorter."""
    text = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_text()[2000:6000]
    ids = torch.tensor(tokenizer(text)["input_ids"])
    rows = [ids[i : i + CONTEXT] for i in range(0, len(ids), CONTEXT)]
    batches = []
    for start in range(0, len(rows), 3):
        part = rows[start : start + 3]
        tokens = torch.nn.utils.rnn.pad_sequence(part, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=-100)
        mask = (labels != -100).long()
        batches.append({"input_ids": tokens, "attention_mask": mask, "labels": labels})
    return batches


def float64_nll(model, batches) -> tuple[float, int]:
    """Sum of NLL and number of tokens: the log-softmax written out, in float64, token by token."""
    total, count = 0.0, 0
    for batch in batches:
        with torch.inference_mode():
            logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for row, labels in zip(logits.double(), batch["labels"].tolist(), strict=True):
            for position, label in enumerate(labels[1:]):
                if label != -100:
                    x = row[position]
                    x = x - x.max()
                    total -= float(x[label] - x.exp().sum().log())
                    count += 1
    return total, count


class Evaluated(pl.LightningModule):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def validation_step(self, batch, batch_idx):
        return self.model(**batch).loss


@pytest.mark.filterwarnings("ignore")  # of the GGUF reader, which is not ours to judge
def test_perplexity_of_a_real_model_is_exact(smollm2, trainer):
    model, tokenizer = smollm2
    batches = python_source(tokenizer)
    assert len({len(b["input_ids"]) for b in batches}) > 1, "batches of unequal size are the point"
    data = DataLoader(batches, batch_size=None)
    (result,) = trainer(LScore()).validate(Evaluated(model), data, verbose=False)
    total, count = float64_nll(model, batches)
    assert result["lscore/validation_tokens"] == count
    expected = math.exp(total / count)
    assert 2 < expected < 50, "a real model on real text"
    assert result["perplexity"] == pytest.approx(expected, rel=1e-6)
