"""A model's pass over the windows of a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .causality import check_is_causal
from .next_token_logits import next_token_logits
from .nll import token_nll
from .text_windows import Window


def nll_sum(
    model: nn.Module, ids: Sequence[int], batches: Iterator[list[Window]], progress: bool
) -> float:
    from tqdm import tqdm  # type: ignore[import-untyped]  # comes with lightning

    tokens = torch.tensor(ids, device=_device(model))
    total = torch.zeros((), dtype=torch.float64)
    bar = tqdm(total=len(ids) - 1, unit="token", disable=not progress)
    with bar, _evaluating(model), torch.no_grad():
        for i, batch in enumerate(batches):
            if i == 0:
                check_is_causal(model, tokens[: batch[0].end])
            nll = _batch_nll(model, tokens, batch)
            total = total.to(nll.device) + nll
            bar.update(sum(window.new for window in batch))
    return total.item()


def _batch_nll(model: nn.Module, tokens: Tensor, batch: list[Window]) -> Tensor:
    """Return the summed NLL of the new tokens of windows of equal shape, in nats."""
    new = batch[0].new
    inputs = torch.stack([tokens[window.begin : window.end] for window in batch])
    labels = torch.stack([tokens[window.end - new + 1 : window.end + 1] for window in batch])
    logits = next_token_logits(model, inputs, new)
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[1] < new:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"expected the model to return logits [{len(batch)}, {inputs.shape[1]}, vocabulary],"
            f" or an object with them as `logits`, got {found}. Wrap it in a module that does."
        )
    # A model that keeps only the new rows returns no others.
    return token_nll(logits[:, -new:], labels.to(logits.device), ignore_index=None)[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, then restore the mode of each module: frozen ones may differ."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _device(model: nn.Module) -> torch.device:
    """Return the device of a model's input: that of its first weights that are not offloaded."""
    devices = (weight.device for weight in (*model.parameters(), *model.buffers()))
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))
