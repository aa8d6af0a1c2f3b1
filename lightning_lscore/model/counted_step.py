"""FLOP that one training step executes, for models whose structure does not reveal them."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from .flops import FlopsModel
from .kernels import dims_of, kernels

# Namespaces of operators that PyTorch defines; products in those of others may have no formula.
_OF_PYTORCH = frozenset(
    ["aten", "prim", "prims", "c10d", "_c10d_functional", "profiler", "fsdp", "inductor"]
)


class CountedStep:
    """Count the FLOP that one training step executes, with PyTorch's formulas for its kernels.

    Use it as a context manager, or ``start`` and ``stop`` it from the hooks around a batch. It
    slows the step down, but changes nothing in it and does not wait for the device. Products that
    torch.compile fuses into other kernels are not counted. In versions of PyTorch where counting
    would keep torch.compile from ever compiling a module, nothing is counted.

    Two kinds of products teach the model nothing and do not count: those that activation
    checkpointing computes again, and those behind the last backward pass, of the optimizer.

    >>> import torch
    >>> with CountedStep() as step:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> step.flops
    48
    """

    def __init__(self) -> None:
        self._reset()
        self._mode: Any = None

    def _reset(self) -> None:
        self._products = Counter[tuple[int, ...]]()
        """FLOP, by those dimensions of a product that may be the length of a sequence."""
        self._since_backward = Counter[tuple[int, ...]]()
        self._backward = 0  # FLOP of the products that are the backward pass's
        self.had_backward = False
        """Whether there was a backward pass among it."""
        self._others: dict[str, None] = {}  # operators that may hold products, in order

    @property
    def flops(self) -> int:
        """FLOP executed between start and stop."""
        return self._products.total()

    @property
    def is_counting(self) -> bool:
        """Whether it was started and not yet stopped."""
        return self._mode is not None

    def start(self) -> None:
        """Start counting from 0."""
        self._reset()
        if _LeavesCompileAlone is not None:
            # The counter itself also hooks into all modules, and torch.compile warns about that.
            self._mode = _LeavesCompileAlone(_Counter(self))
            self._mode.__enter__()

    def stop(self) -> None:
        """Stop counting. Safe to call when it is not counting, after a failed step for example."""
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)
            if not self.had_backward:
                self._products, self._since_backward = self._since_backward, Counter()
            elif _compiles():
                self._leave_out_what_is_rebuilt()

    def __enter__(self) -> CountedStep:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(self, flops: int, dims: tuple[int, ...]) -> None:
        """Count a product where it is computed: forward, backward, or once more."""
        is_backward = torch._C._current_graph_task_id() != -1
        if is_backward and torch.is_grad_enabled():
            return  # a backward pass that rebuilds a part of the graph: checkpointing
        self._since_backward[dims] += flops
        if is_backward:
            self.had_backward = True
            self._backward += flops
            self._products += self._since_backward
            self._since_backward.clear()

    def _leave_out_what_is_rebuilt(self) -> None:
        """Take no more for the backward pass than two products for each of the forward pass.

        A compiled backward pass does not show which of its products checkpointing asks for.
        """
        forward = self.flops - self._backward
        share = min(1.0, 3 * forward / self.flops) if forward else 1.0
        self._products = Counter({dims: int(n * share) for dims, n in self._products.items()})

    def note(self, operator: str) -> None:
        """Remember an operator whose products, if it has any, are not counted."""
        self._others[operator] = None

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
        positions = sum(length * n for length, n in tokens_by_length.items())
        growing = sum(f for dims, f in self._products.items() if _grow(dims, tokens_by_length))
        return FlopsModel(
            per_token=(self.flops - growing) / tokens,
            per_position={math.inf: growing / positions} if growing else {},
            convention=self._convention(tokens, tokens_by_length, growing > 0),
        )

    def _convention(self, tokens: int, lengths: Mapping[int, int], grows: bool) -> str:
        words = [
            f"products counted in one step of {tokens} tokens (sequences of "
            f"{', '.join(map(str, sorted(lengths)))}), without those of activation checkpointing "
            "and of the optimizer"
        ]
        if not self.had_backward:
            words.append("without a backward pass")
        if grows:
            words.append("attention's grow with the length")
        if _compiles():
            words.append(
                "of compiled parts no more for the backward pass than twice the forward one, and "
                "not what torch.compile fuses with other operations"
            )
        if self._others:
            words.append(f"what {', '.join(self._others)} may multiply is not counted")
        return "; ".join(words)


def _compiles() -> bool:
    """Whether anything was compiled in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")  # importing it takes long
    return dynamo is not None and bool(dynamo.counters["stats"]["unique_graphs"])


def _grow(dims: tuple[int, ...], lengths: Mapping[int, int]) -> bool:
    """Whether both sides of a product are a sequence: then its FLOP per token go with the length.

    A step may cut the last token off its input, or put one in front.
    """
    near = {length + i for length in lengths if length > 1 for i in (-1, 0, 1)}
    return sum(dim in near for dim in dims) >= 2


class _Counter(FlopCounterMode):
    """PyTorch's counter, with our formulas; gives each product to the step."""

    def __init__(self, step: CountedStep) -> None:
        super().__init__(display=False, custom_mapping=kernels())
        self.step = step

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        formula = self.flop_registry.get(func_packet)
        if formula is not None:
            try:
                flops = formula(*args, **kwargs, out_val=out)
                self.step.add(int(flops), dims_of(func_packet, args))
            except Exception:  # a formula of another version of PyTorch must not end the training
                self.step.note(str(func_packet))
        return out


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
            counter: Any = self.counter
            if isinstance(func, HigherOrderOperator):
                # PyTorch's mode refuses most of these, and would fail a step with flex_attention.
                out = func(*args, **(kwargs or {}))
                if func in counter.flop_registry:
                    return counter._count_flops(func, out, args, {})
                counter.step.note(str(func))
                return out
            if func.namespace not in _OF_PYTORCH:
                counter.step.note(str(func._overloadpacket))
            return super().__torch_dispatch__(  # type: ignore[no-untyped-call]
                func, types, args, kwargs
            )
