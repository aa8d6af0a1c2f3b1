"""Listen to the loss calls of a validation step: they say which label belongs to which logits.

``torch.nn.functional.cross_entropy`` and ``nll_loss``, and whatever is built on them
(``torch.nn.CrossEntropyLoss``, chunked losses, the losses of transformers), end in two functions of
torch's C++ library. LScore stands in for these two while it validates, so it hears a caller that
imported ``cross_entropy`` by name as well. It changes nothing for torch.compile: a compiled loss is
not heard, an eager one beside a compiled model is. It also notes the token ids that are looked up
in embeddings, because labels are text if they continue what the model reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..model.sharded import Part, counts_here, is_sharded, whole
from ..model.unseen import unseen
from .first_error import FirstError
from .rows import measure_rows
from .stand_in import Listener, StandIn

IGNORED = -100
"""Label of the rows of a loss call that do not count."""

_NOT_REDUCED = 0  # torch's number of reduction="none"


@dataclass(eq=False)
class LossCall:
    """One call of ``cross_entropy`` or ``nll_loss`` with one label for each row of logits."""

    labels: Tensor
    """Any shape; :data:`IGNORED` where one does not count."""
    classes: int
    """Size of the vocabulary."""
    ignore_index: int
    """What the call was told to ignore."""
    values: Tensor | None = None
    """What the call returned if it was told to reduce nothing, like the labels."""
    measure: Callable[[], Tensor] | None = None
    """Returns the NLL of the rows, and holds their logits until then."""

    @cached_property
    def nll(self) -> Tensor:
        """Like the labels: float64, nats, whatever reduction, smoothing or weights the loss has."""
        measure, self.measure = self.measure, None
        assert measure is not None
        return measure()

    def __str__(self) -> str:
        return f"labels {list(self.labels.shape)} of {self.classes:,} classes"


class LossCalls:
    """What is heard between :meth:`start` and :meth:`forget`.

    The rows of a call are measured at once, and their logits let go. Only the last call in the
    forward of a model that returns its logits anyway may leave that to others.

    Args:
        errors: keeps those of listening.
        ignore_index: of the user; None: the one that each call states.
        compile: see :func:`~lightning_lscore.heldout.nll.row_nll`.
    """

    def __init__(
        self, errors: FirstError, ignore_index: int | None = None, compile: bool = False
    ) -> None:
        self.heard: list[LossCall] = []
        self.read: list[Tensor] = []
        """Token ids that were looked up in an embedding."""
        self.padding = -1
        """Padding index of an embedding that has one, or -1."""
        self.hears_less = False
        """Whether parts of the module are compiled, in which nothing is heard."""
        self.logged: list[Any] = []
        """What the step logged."""
        self._errors = errors
        self._ignore_index = ignore_index
        self._compile = compile
        self._mesh: Any = None
        self._listening = self._measuring = False
        self._inside: list[int] = []  # calls before each forward that is under way
        self._leave: list[Callable[[], None]] = []

    def __getstate__(self) -> dict[str, Any]:
        fresh = LossCalls(self._errors, self._ignore_index, self._compile)
        return vars(fresh)  # a copy does not listen

    def attach(self, module: Any = None, mesh: Any = None) -> None:
        """Listen to this process, and to what a module logs, until :meth:`detach`."""
        self._mesh, self.hears_less = mesh, _has_compiled(module)
        # torch.compile would trace the stand-in for a method of a module that it compiles.
        if hasattr(module, "log") and getattr(module, "_compiler_ctx", None) is None:
            self._listen(module, "log", self._on_log)
            self._listen(module, "log_dict", self._on_log)
        for owner, name, listener in (
            (torch._C._nn, "cross_entropy_loss", self._on_loss),
            (torch._C._nn, "nll_loss_nd", self._on_loss),
            (torch, "embedding", self._on_embedding),
        ):
            self._listen(owner, name, listener)

    def _listen(self, owner: Any, name: str, listener: Listener) -> None:
        self._leave.append(StandIn.of(owner, name).join(unseen(self._errors.keep(listener))))

    def detach(self) -> None:
        """Restore the functions."""
        while self._leave:
            self._leave.pop()()
        self.forget()

    def start(self, measure: bool = True) -> None:
        """Hear what comes from now on; without it nothing is kept.

        Args:
            measure: whether the NLL of the calls will be asked for.
        """
        self.forget()
        self._listening, self._measuring = True, measure

    def forget(self) -> None:
        """Release all tensors, and hear nothing."""
        self.heard, self.read, self.logged, self._inside = [], [], [], []
        self._listening = self._measuring = False

    def enter(self) -> None:
        """Tell that the forward pass of a language model begins."""
        self._inside.append(len(self.heard))

    def leave(self) -> list[LossCall]:
        """Tell that the forward pass ended, and take the calls in it out of those heard."""
        start = self._inside.pop() if self._inside else len(self.heard)
        inside, self.heard = self.heard[start:], self.heard[:start]
        return inside

    def stay(self) -> None:
        """Tell that the forward pass ended, and keep the calls in it."""
        if self._inside:
            self._inside.pop()
            self.settle()

    @property
    def any_heard(self) -> bool:
        """Whether the step computed a loss or read a token."""
        return bool(self.heard or self.read)

    def any_counted(self) -> bool:
        """Whether a label of any call counts; waits for the device."""
        return any(bool((loss.labels != IGNORED).any()) for loss in self.heard)

    def settle(self) -> None:
        """Measure the last call."""
        if self.heard and self.heard[-1].measure is not None:
            _ = self.heard[-1].nll

    def _on_embedding(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._listening or len(args) < 2 or not _is_real(args[1]):
            return
        if args[1].ndim <= 2:
            self.read.append(args[1])
            self.padding = args[2] if len(args) > 2 and args[2] >= 0 else self.padding

    def _on_log(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._listening:
            given = (*args, *kwargs.values())
            for value in given:
                self.logged += value.values() if isinstance(value, Mapping) else [value]

    def _on_loss(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._listening or len(args) < 5:
            return  # torch.nn.functional gives all of them by position
        logits, labels, weight, reduction, ignore = args[:5]
        if not (_is_real(logits) and _is_real(labels)):
            return
        if labels.is_floating_point() or not 1 <= logits.ndim <= 3:
            return  # probabilities of classes; pixels
        rows = logits.transpose(1, 2) if logits.ndim == 3 else logits
        part = Part.of(rows) if is_sharded(rows) else None
        if part is not None and part.logits.shape[:-1] != rows.shape[:-1]:
            return  # rows of other processes
        counted = _what_counts(whole(labels), weight, ignore, self._ignore_index)
        measure = partial(_measure, rows, counted, self._compile) if self._measuring else None
        if not counts_here(self._mesh, part):
            counted = torch.full_like(counted, IGNORED)
        self.settle()
        values = output if reduction == _NOT_REDUCED else None
        self.heard.append(LossCall(counted, rows.shape[-1], ignore, values, measure))
        if not self._inside:
            self.settle()


def _measure(rows: Tensor, labels: Tensor, compile: bool) -> Tensor:
    return measure_rows(rows, labels, IGNORED, compile).nll


def _what_counts(labels: Tensor, weight: Any, ignore: int, given: int | None) -> Tensor:
    """Return labels with :data:`IGNORED` where they do not count."""
    no_word = (labels == ignore) if given is None else (labels == given)
    if given is not None and ignore < 0:
        no_word = no_word | (labels == ignore)
    if isinstance(weight, Tensor):  # a class of weight 0 is ignored, as older code does it
        no_word = no_word | (weight[labels.clamp(0, len(weight) - 1)] == 0)
    return labels.masked_fill(no_word, IGNORED)


def _has_compiled(module: Any) -> bool:
    """Whether torch.compile made a part of a module, or all of it."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    kinds = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    parts = module.modules() if isinstance(module, nn.Module) else ()
    return any(isinstance(p, kinds) or p._compiled_call_impl is not None for p in parts)


def _is_real(x: Any) -> bool:
    """Whether x is a tensor with values: no stand-in of torch.compile, vmap and the like."""
    plain = type(x) in (Tensor, nn.Parameter) or is_sharded(x)
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(x)
