"""FLOP that one training step executes, for models whose structure does not reveal them."""

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
    """Count the FLOP that one training step executes, with PyTorch's formulas for its kernels.

    Use it as a context manager, or ``start`` and ``stop`` it from the hooks around a batch. It
    slows the step down, but changes nothing in it and does not wait for the device. Products that
    torch.compile fuses into other kernels are not counted. In versions of PyTorch where counting
    would keep torch.compile from ever compiling a module, nothing is counted.

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
        """Whether it was started and not yet stopped."""
        return self._mode is not None

    def start(self) -> None:
        """Start counting from 0."""
        self.flops = 0
        if _LeavesCompileAlone is not None:
            counter = FlopCounterMode(display=False, custom_mapping=_kernels())
            # The counter itself also hooks into all modules, and torch.compile warns about that.
            self._mode = _LeavesCompileAlone(counter)
            self._mode.__enter__()

    def stop(self) -> None:
        """Stop counting. Safe to call when it is not counting, after a failed step for example."""
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
        """Return the FLOP that were counted per token of the step.

        Args:
            tokens_by_length: tokens of the step, by the length of their sequences.
            estimate: returned, with a remark, if no products or no tokens were counted.
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
        """PyTorch's mode, but functions first called while it counts are compiled nevertheless."""

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
            # PyTorch's mode refuses most of these, and would fail a step with flex_attention.
            return func(*args, **(kwargs or {}))


# Formulas by the shapes of a kernel's arguments, where PyTorch has none, or one that also counts
# the scores that attention's backward pass recomputes. Like PyTorch's and 12 L H Q T they include
# the products that a causal mask hides.

Shape = Sequence[int]


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward_flops(
    grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    return 2 * _attention_flops(query, key, value)


def _grouped_flops(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    """Products of all experts; an argument that is not stacked holds rows or columns of each."""
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
