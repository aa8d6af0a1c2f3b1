"""Perplexity as a metric: NLL added up over batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from .rows import Rows, given_rows, measure_rows, outside

__all__ = ["Perplexity"]


class Perplexity(Metric):
    """Perplexity exp(sum nll / tokens) of aligned logits and targets, over all batches and ranks.

    A drop-in replacement for ``torchmetrics.text.Perplexity`` that sums in float64 and counts in
    int64 (casting the module changes neither), is exact for logits of any floating point dtype, and
    ignores -100 by default.

    Args:
        ignore_index: target that is not counted; None counts every target.
        compile: see :func:`row_nll`.
        kwargs: passed to ``torchmetrics.Metric``.

    Attributes:
        nll_sum: sum of the negative log-likelihoods; float64 scalar, nats.
        count: counted targets; int64 scalar.
        invalid: targets outside the vocabulary, found on a GPU; int64 scalar.

    Example:
        >>> import torch
        >>> metric = Perplexity()
        >>> metric.update(torch.zeros(2, 3, 8), torch.tensor([[1, 2, 3], [4, -100, -100]]))
        >>> metric.compute(), metric.nll()
        (tensor(8.0000, dtype=torch.float64), tensor(2.0794, dtype=torch.float64))
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 1.0
    nll_sum: Tensor
    count: Tensor
    invalid: Tensor

    def __init__(
        self, ignore_index: int | None = -100, *, compile: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if ignore_index is not None and not isinstance(ignore_index, int):
            raise ValueError(f"expected `ignore_index` to be an int or None, got {ignore_index!r}.")
        self.ignore_index = ignore_index
        self.compiled = compile
        for name, dtype in (
            ("nll_sum", torch.float64),
            ("count", torch.int64),
            ("invalid", torch.int64),
            # A MetricCollection lets metrics share their states if these have the same names and,
            # after the first batch, nearly the same values. Stays 0: the name is what differs.
            (_name_of_settings(ignore_index, compile), torch.int64),
        ):
            self.add_state(name, torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch of logits.

        Args:
            preds: logits [B, T, V], a DTensor as in :func:`row_nll`.
            target: [B, T], already shifted by one for a causal model.

        Raises:
            TypeError, ValueError: those of :func:`row_nll`, and for other shapes.
        """
        if preds.ndim != 3:
            raise ValueError(
                "expected `preds` to have 3 dimensions, [batch, tokens, vocabulary], got shape"
                f" {list(preds.shape)}; give a single sequence as preds[None], target[None], and"
                " NLL to update_nll."
            )
        self._add(measure_rows(preds, target, self.ignore_index, self.compiled))

    def update_nll(self, nll: Tensor, target: Tensor) -> None:
        """Add a batch whose NLL is already known.

        Args:
            nll: nats, floating point: [B, T], or a scalar, the mean over the targets that count.
            target: [B, T]; only whether a target counts matters.

        Raises:
            TypeError: NLL that is not floating point.
            ValueError: NLL of another shape, logits for example.
        """
        self.add_rows(given_rows(nll, target, self.ignore_index))

    def add_rows(self, rows: Rows) -> None:
        """Add measured rows of any shape."""
        # The wrapper that torchmetrics puts around ``update`` does this too.
        self._computed = None
        self._update_count += 1
        self._add(rows)

    def _add(self, rows: Rows) -> None:
        # Not in place: a state made in inference_mode cannot be changed outside of it.
        self.nll_sum = self.nll_sum + rows.nll.sum().to(self.nll_sum.device)
        self.count = self.count + rows.counted.sum().to(self.count.device)
        self.invalid = self.invalid + rows.invalid.sum().to(self.invalid.device)

    def compute(self) -> Tensor:
        """Return the perplexity, a float64 scalar: NaN if nothing was counted, inf beyond float64.

        Raises:
            ValueError: an update on a GPU had targets outside the vocabulary.
        """
        return torch.exp(self._mean())

    def nll(self) -> Tensor:
        """Return the mean NLL over all ranks, in nats per token; call it on every rank.

        A float64 scalar, finite even where the perplexity overflows.
        """
        own = not self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=own and self._to_sync, should_unsync=own
        ):
            return self._mean()

    def _mean(self) -> Tensor:
        if int(self.invalid):
            found = f"{int(self.invalid)} others"
            raise outside("the size of the vocabulary", self.ignore_index, found)
        return self.nll_sum / self.count

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the computed value, or the given ones, with matplotlib; return figure and axes."""
        return self._plot(val, ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        """Move the states as ``fn`` does, but keep their dtypes, whatever the model is cast to."""

        def move(state: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=state.device)).device
            if device.type == "mps":  # has no float64
                return state.cpu()
            moved = fn(state)
            return moved if moved.dtype == state.dtype else state.to(device)

        return super()._apply(move, exclude_state)


def _name_of_settings(ignore_index: int | None, compile: bool) -> str:
    ignored = "none" if ignore_index is None else str(ignore_index).replace("-", "minus_")
    return f"_ignores_{ignored}" + "_compiled" * compile
