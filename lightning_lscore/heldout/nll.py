"""Negative log-likelihood of tokens, from one pass over their logits.

A token with logits x and label t costs -log softmax(x)[t] nats. :func:`row_nll` returns this for
every token, :func:`token_nll` the sum; perplexity = exp(sum nll / tokens). ``rows`` checks the
input, ``softmax`` is the method, ``buffered`` and ``compiled`` are its inner loops.
"""

from __future__ import annotations

from torch import Tensor

from .rows import measure_rows

__all__ = ["row_nll", "token_nll"]


def row_nll(
    logits: Tensor, labels: Tensor, ignore_index: int | None = -100, *, compile: bool = False
) -> Tensor:
    """Return the negative log-likelihood of every label, where logits[i] predict labels[i].

    This shifts nothing: for a causal model shift the labels, rather than copy the logits. Logits
    are read once and not changed, and may be a view. No gradient flows.

    Args:
        logits: [..., V], floating point, unnormalised. Minus infinity masks a word. Of a DTensor
            each process measures its own rows; if the vocabulary is sharded, the processes that
            share a row must call this together, and all get its result.
        labels: [...], integers in [0, V) or ``ignore_index``. For a DTensor: of all its rows, or of
            this process's.
        ignore_index: label of the positions that do not count; None counts every position.
        compile: run the sum as one compiled loop, on a GPU as one kernel. Needs a C++ compiler (on
            a GPU a C compiler and Triton) and some seconds at the first call. Without them the
            result is the same, at the usual speed.

    Returns:
        [...] float64, nats, on the logits' device (the CPU for MPS, which has no float64): 0 where
        ignored, inf where the label's logit is -inf, NaN where a counted row holds NaN or inf.

    Raises:
        TypeError: logits that are not floating point, labels that are not integers.
        ValueError: shapes that do not fit; on a CPU, labels outside [0, V). On other devices these
            labels give NaN, since a check would wait for the device.

    Example:
        >>> import torch
        >>> row_nll(torch.tensor([[0.0, 0.0], [1e4, 1e4]]), torch.tensor([1, -100]))
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    return measure_rows(logits, labels, ignore_index, compile)[0]


def token_nll(
    logits: Tensor, labels: Tensor, ignore_index: int | None = -100, *, compile: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the sum of the negative log-likelihoods in nats, and the number of counted labels.

    Arguments and errors are those of :func:`row_nll`.

    Returns:
        float64 scalar and int64 scalar; 0 and 0 where every label is ignored.

    Example:
        >>> import torch
        >>> token_nll(torch.zeros(2, 3, 8), torch.tensor([[1, 2, 3], [4, -100, -100]]))
        (tensor(8.3178, dtype=torch.float64), tensor(4))
    """
    nll, counted, _ = measure_rows(logits, labels, ignore_index, compile)
    return nll.sum(), counted.sum()
