"""One row of the zoo: a module, its held-out batches, and what its perplexity really is.

The reference uses nothing of ``lightning_lscore``: logits and the label that belongs to each row go
through a float64 log-sum-exp in NumPy.
"""

from __future__ import annotations

import logging
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from lightning_lscore import LScore

VERDICTS = {
    "exact": "ln(perplexity) within 1e-6 of the reference, and the same number of tokens",
    "exact, doubted": "the same, with a warning that it may be wrong",
    "refused": "an error of LScore that says what to do",
    "doubtful": "another number, with a warning",
    "none": "there is no perplexity, and LScore gives none",
    "WRONG": "another number, or one where there is none, without a warning",
    "BROKEN": "an error of another kind",
    "skipped": "the row does not exist here",
}

EXACT = 1e-6
"""By how much ln(perplexity) may differ."""

UNCOUNTED = -100
"""What a reference's label is where the module counts none."""

Rows = tuple[Tensor, Tensor]
"""Logits [..., V] and, for each row of them, the label that it predicts [...]."""


@dataclass(frozen=True)
class Row:
    """A module in a loop.

    Args:
        group: heading of its table.
        name: of the model.
        layout: how labels reach the loss.
        make: returns the module and its batches; it raises :class:`NotBuilt` where it cannot.
        due: verdicts that will do.
        options: arguments of ``LScore``.
        trainer: arguments of the ``Trainer``.
        fits: run a fit of one step around the validation, and not the validation alone.
        contradicts: the loop contradicts itself, so that even its own number must not stand unsaid.
        judge: another judge than that of perplexity.
        loader: batches -> what the Trainer validates on. Default: a DataLoader of them.
    """

    group: str
    name: str
    layout: str
    make: Callable[[], tuple[Specimen, Sequence[Any]]]
    due: tuple[str, ...] = ("exact", "refused", "doubtful")
    options: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    fits: bool = False
    contradicts: bool = False
    judge: Callable[[Row], Finding] | None = None
    loader: Callable[[Sequence[Any]], Any] | None = None


class NotBuilt(Exception):
    """A model that is not there, or not small, with the reason."""


class Specimen(pl.LightningModule):
    """A module that knows the truth about its own validation."""

    rate = 1e-3
    plain = True
    """Whether a batch's loss is the mean NLL of the labels that count, and nothing else."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        raise NotImplementedError

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_step(batch, batch_idx)

    def truth(self, batch: Any) -> Iterable[Rows] | None:
        """Return what a batch's perplexity is made of; None where there is no perplexity."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.rate)


@dataclass(frozen=True)
class Finding:
    """What came of a row."""

    row: Row
    verdict: str
    """One of ``VERDICTS``."""
    expected: float = math.nan
    got: float = math.nan
    expected_tokens: int = 0
    got_tokens: int = 0
    source: str = ""
    """How LScore says that it found labels and logits."""
    said: str = ""
    """Its warning or error, or why the row was skipped."""

    @property
    def holds(self) -> bool:
        """Whether this verdict will do."""
        return self.verdict == "skipped" or self.verdict in self.row.due


def float64_nll(logits: Tensor, labels: Tensor) -> tuple[float, int]:
    """Return the summed NLL of the labels that count, and how many they are."""
    x = logits.detach().double().cpu().numpy().reshape(-1, logits.shape[-1])
    y = labels.detach().cpu().numpy().reshape(-1)
    assert len(x) == len(y), (logits.shape, labels.shape)
    counted = y != UNCOUNTED
    x, y = x[counted], y[counted]
    top = x.max(axis=-1, keepdims=True) if len(x) else x[:, :1]
    total = np.log(np.exp(x - top).sum(axis=-1)) + top[:, 0] - x[np.arange(len(y)), y]
    return math.fsum(total), len(y)


def labels_by_gradient(loss: Tensor, logits: Tensor) -> Tensor:
    """Return the label that a loss compares with each row of logits, by its gradient alone.

    The derivative of a cross-entropy by the logits is softmax minus one-hot: in each row that
    counts the label has the lowest, whatever weights, smoothing or other terms the loss has.
    """
    (slope,) = torch.autograd.grad(loss, logits)
    lowest, label = slope.float().min(-1)
    return torch.where(lowest < 0, label, UNCOUNTED)


def judge(row: Row) -> Finding:
    """Run a row under LScore and compare."""
    if row.judge is not None:
        try:
            return row.judge(row)
        except NotBuilt as reason:
            return Finding(row, "skipped", said=str(reason))
    try:
        torch.manual_seed(0)
        module, batches = row.make()
    except NotBuilt as reason:
        return Finding(row, "skipped", said=str(reason))
    try:
        values, source, said = run(row, module, batches)
    except Exception as error:
        verdict = "refused" if isinstance(error, ValueError) and _from_lscore(error) else "BROKEN"
        if _fails_alone(row):
            verdict = "skipped"
        return Finding(row, verdict, said=f"{type(error).__name__}: {' '.join(str(error).split())}")
    torch.manual_seed(0)
    twin, _ = row.make()  # nothing that ran beside LScore reaches the reference
    twin.load_state_dict(module.state_dict())
    expected, expected_tokens = reference(row, twin, batches)
    got = values.get("perplexity", math.nan)
    got_tokens = int(values.get("lscore/validation_tokens", 0))
    known = (expected, got, expected_tokens, got_tokens, source, " | ".join(said))
    return Finding(row, _verdict(row, *known[:4], doubted=bool(said)), *known)


def _verdict(row: Row, expected: float, got: float, n: int, got_n: int, doubted: bool) -> str:
    if n == 0 and math.isnan(got):
        return "none"
    if n and n == got_n and abs(math.log(got) - math.log(expected)) <= EXACT:
        return "exact, doubted" if doubted else "WRONG" if row.contradicts else "exact"
    return "doubtful" if doubted else "WRONG"


def reference(row: Row, module: Specimen, batches: Sequence[Any]) -> tuple[float, int]:
    """Return the perplexity of all batches and how many labels count, by ``Specimen.truth``."""
    nll, n = 0.0, 0
    precision = pl.plugins.precision.Precision()
    if "precision" in row.trainer:
        precision = pl.Trainer(**quiet(row.trainer)).precision_plugin
    precision.convert_module(module).eval()
    for batch in batches:
        # As in a validation: with gradients other kernels run, which round in other ways.
        with precision.val_step_context(), torch.inference_mode():
            rows = list(module.truth(batch) or ())
        for logits, labels in rows:
            more, count = float64_nll(logits, labels)
            nll, n = nll + more, n + count
    return (math.exp(nll / n) if n else math.nan), n


# What LScore says about the held-out set, and not about the devices or the plan.
_DOUBT = re.compile("held-out|label|logit|ignore_index|shift|perplexity|loss", re.I)


def run(
    row: Row, module: Specimen, batches: Sequence[Any]
) -> tuple[dict[str, float], str, list[str]]:
    """Return what was logged, how LScore found it, and its doubts."""
    score = LScore(**row.options)
    trainer = pl.Trainer(callbacks=[score], **quiet(row.trainer))
    train = loader_of(batches)
    data = train if row.loader is None else row.loader(batches)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if row.fits:
            trainer.fit(module.train(), train, data)
        else:
            trainer.validate(module, data, verbose=False)
    messages = (str(w.message) for w in caught)
    said = [m for m in messages if m.startswith("LScore") and _DOUBT.search(m)]
    values = {key: float(value) for key, value in trainer.callback_metrics.items()}
    source = getattr(getattr(score, "_capture", None), "source", "")
    return values, str(source), list(dict.fromkeys(said))


def quiet(options: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a Trainer for one step that writes and prints nothing."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 1,
        "limit_train_batches": 1,
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tempfile.gettempdir(),
        "barebones": False,
        **options,
    }


def _fails_alone(row: Row) -> bool:
    """Whether a row ends in an error without LScore, too."""
    module, batches = row.make()
    module.log = lambda *_, **__: None
    try:
        if row.fits and module.automatic_optimization:
            module.train().training_step(batches[0], 0).backward()
        with torch.inference_mode():
            for i, batch in enumerate(batches):
                module.eval().validation_step(batch, i)
    except Exception:
        return True
    return False


def _from_lscore(error: BaseException) -> bool:
    trace = error.__traceback__
    last = ""
    while trace is not None:
        last = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return last.startswith("lightning_lscore")


def loader_of(batches: Sequence[Any]) -> Any:
    """Return a loader of batches as they are."""
    return torch.utils.data.DataLoader(Listed(batches), batch_size=None)


class Listed(torch.utils.data.Dataset[Any]):
    """The batches as they are."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


def be_quiet() -> None:
    """Keep the messages of Lightning and transformers out of the table."""
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    for name in (*names, "lightning_lscore"):
        logging.getLogger(name).setLevel(logging.ERROR)
