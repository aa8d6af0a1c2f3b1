"""FLOP that one training step executes, where the structure of a model tells too little."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .flops import FlopsModel


class CountedStep:
    """Counts the FLOP that one training step executes, with PyTorch's formulas for its kernels.

    Use it as a context manager, or ``start`` and ``stop`` it from the hooks around a batch. It
    slows the step down, changes nothing in it and does not wait for the device. What torch.compile
    fuses with a product is not counted, and in versions of PyTorch whose torch.compile would give
    up a module for good because it was once counted, nothing is.

    >>> import torch
    >>> with CountedStep() as step:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> step.flops
    48
    """

    def __init__(self) -> None:
        self.flops = 0
        """FLOP executed between start and stop."""
        self._mode: Any = None

    @property
    def is_counting(self) -> bool:
        """Whether it has started and not stopped."""
        return self._mode is not None

    def start(self) -> None:
        """Counts from 0 on."""
        self.flops = 0
        if _LeavesCompileAlone is not None:
            counter = FlopCounterMode(display=False, custom_mapping=_kernels())
            # Not the counter itself: it also hooks into all modules, of which torch.compile warns.
            self._mode = _LeavesCompileAlone(counter)
            self._mode.__enter__()

    def stop(self) -> None:
        """Counts up to here; nothing if it does not count, as when a step has failed."""
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)
            self.flops = mode.counter.get_total_flops()

    def __enter__(self) -> CountedStep:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def flops_model(self, tokens_by_length: Mapping[int, int], estimate: FlopsModel) -> FlopsModel:
        """What was counted, for each of the step's tokens.

        Args:
            tokens_by_length: the tokens of the step, by the length of their sequences.
            estimate: what to fall back on if no products or no tokens were counted.
        """
        tokens = sum(tokens_by_length.values())
        if not self.flops or not tokens:
            what = "no product, as may be under torch.compile" if not self.flops else "no token"
            return FlopsModel(
                per_token=estimate.per_token,
                per_position=estimate.per_position,
                convention=f"{estimate.convention} (a counted step showed {what})",
            )
        lengths = ", ".join(map(str, sorted(tokens_by_length)))
        return FlopsModel(
            per_token=self.flops / tokens,
            convention=f"products counted in one step of {tokens} tokens (sequences of {lengths}): "
            "those of padding, of activation checkpointing and of the optimizer too, those of "
            "kernels that PyTorch has no formula for not",
        )


_LeavesCompileAlone: Any = None
if hasattr(flop_counter, "_FlopCounterMode") and hasattr(
    TorchDispatchMode, "ignore_compile_internals"
):

    class _LeavesCompileAlone(  # type: ignore[no-redef, no-untyped-call]
        flop_counter._FlopCounterMode
    ):
        """As PyTorch's, but what is first called while it counts is compiled nevertheless."""

        @classmethod
        def ignore_compile_internals(cls) -> bool:
            return True

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if not isinstance(func, HigherOrderOperator):
                return super().__torch_dispatch__(  # type: ignore[no-untyped-call]
                    func, types, args, kwargs
                )
            # PyTorch's refuses most of these, and so stops a step with flex_attention.
            return func(*args, **(kwargs or {}))


# Formulas by the shapes of a kernel's arguments, where PyTorch has none, or one that counts in
# attention's backward pass the scores that the kernel computes again. They count the products that
# a causal mask hides, as PyTorch and 12 L H Q T do.

Shape = Sequence[int]


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward_flops(
    grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    return 2 * _attention_flops(query, key, value)


def _grouped_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Of all experts' products; what is not stacked has rows, or columns, for each of them."""
    return 2 * math.prod(a if len(b) == 3 else a[-2:]) * b[-1]


def _kernels() -> dict[Any, Any]:
    formulas: dict[str, Callable[..., int]] = {"_grouped_mm": _grouped_flops}
    for kernel in ("flash", "efficient", "cudnn"):
        for device in ("", "_for_cpu"):
            name = f"_scaled_dot_product_{kernel}_attention"
            formulas[f"{name}{device}"] = _attention_flops
            formulas[f"{name}{device}_backward"] = _attention_backward_flops
    known = ((getattr(torch.ops.aten, name, None), f) for name, f in formulas.items())
    return {kernel: formula for kernel, formula in known if kernel is not None}
