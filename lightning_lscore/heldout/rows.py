"""Rows of logits and their labels: check them, measure them, and mark those that count."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.sharded import Part, is_sharded
from . import numerics
from .softmax import nll_of_part, nll_of_rows


class Rows(NamedTuple):
    """NLL of rows of logits; each tensor has the shape of the labels."""

    nll: Tensor
    """float64, nats; 0 where ignored."""
    counted: Tensor
    """Whether the label counts."""
    invalid: Tensor
    """Whether a label that counts is outside the vocabulary."""


def measure_rows(logits: Tensor, labels: Tensor, ignore_index: int | None, compile: bool) -> Rows:
    """Measure logits [..., V], see :func:`~lightning_lscore.heldout.nll.row_nll`."""
    with torch.no_grad():
        v = logits.shape[-1] if logits.ndim else 0
        part = Part.of(logits) if is_sharded(logits) else None
        if part is not None:
            logits, labels = part.logits, part.own(labels)
        _check(logits, labels, v)
        x, t = logits.detach(), labels.long()
        counted = _counted(t, ignore_index)
        wrong = counted & ((t < 0) | (t >= v))
        if numerics.may_look(x) and bool(wrong.any()):
            raise outside(v, ignore_index, f"{int(t[wrong][0])}")
        if part is not None and part.groups:
            nll = nll_of_part(x, t.clamp(0, v - 1), part)
        else:
            nll = nll_of_rows(x, t.clamp(0, v - 1), counted, compile)
        counted, wrong = counted.to(nll.device), wrong.to(nll.device)
        nll = nll.masked_fill(~counted, 0.0).masked_fill(wrong, math.nan)
        return Rows(nll, counted, wrong)


def given_rows(nll: Tensor, labels: Tensor, ignore_index: int | None) -> Rows:
    """Return rows of known NLL: [...] like the labels, or a scalar, the mean over counted labels.

    Raises:
        TypeError: NLL that is not floating point.
        ValueError: NLL of another shape.
    """
    if nll.shape not in (torch.Size(), labels.shape):
        raise ValueError(
            f"expected NLL of shape {list(labels.shape)}, as its labels, or a scalar mean,"
            f" got {list(nll.shape)}; give logits to update."
        )
    if not nll.is_floating_point():
        raise TypeError(f"expected floating point NLL, got {nll.dtype}; give nats.")
    nll = numerics.wide(nll.detach())
    counted = _counted(labels, ignore_index).to(nll.device)
    nll = nll.expand(counted.shape).masked_fill(~counted, 0.0)
    return Rows(nll, counted, torch.zeros_like(counted))


def _counted(labels: Tensor, ignore_index: int | None) -> Tensor:
    return (labels == labels) if ignore_index is None else (labels != ignore_index)


def _check(logits: Tensor, labels: Tensor, vocabulary: int) -> None:
    if logits.shape[:-1] != labels.shape or vocabulary == 0:
        raise ValueError(
            "expected logits [..., vocabulary] and labels [...], got shapes"
            f" {list(logits.shape)} and {list(labels.shape)}. Where logits predict the next token,"
            " move the labels by one (and set the last one to ignore_index)."
        )
    if not logits.is_floating_point():
        raise TypeError(
            f"expected floating point logits, got {logits.dtype}. Are the two arguments swapped?"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"expected integer labels, got {labels.dtype}. Give token ids.")
    if logits.device != labels.device:
        raise ValueError(
            f"expected logits and labels on one device, got {logits.device} and {labels.device}."
        )


def outside(vocabulary: int | str, ignore_index: int | None, found: str) -> ValueError:
    return ValueError(
        f"expected targets in [0, {vocabulary}) or ignore_index={ignore_index}, got {found}."
        " Set padding to ignore_index; check that tokenizer and model have one vocabulary."
    )
