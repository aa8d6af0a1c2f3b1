"""A run's memory: who it is, what it spent, the formula in force. What a checkpoint keeps.

Plain numbers, strings, lists and dictionaries only: what ``torch.load(weights_only=True)`` accepts.
"""

from __future__ import annotations

import numbers
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..equation.formula import Formula
from ..equation.safe_numbers import as_number, positive, short
from ..model.epoch_shape import EpochShape
from ..model.parameters import ParameterCount
from ..record.json_numbers import hours
from ..record.record import Record
from .plan import Plan, growth
from .progress import Progress
from .spending import Spending

SCHEMA = 1
FITS = 64  # of a run that was resumed more often, the newest
_REQUIRED = frozenset({"run", "spent", "planned_batches", "formula", "logged"})


@dataclass
class RunState:
    """What one training run keeps from its first step to its last, across resumes."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    spending: Spending = field(default_factory=Spending)
    """By all processes, at their last exchange, in this process and those before."""
    lost_device_hours: float = 0.0
    """Spent in training that was thrown away, see ``Record``; no part of ``spent``."""
    planned_batches: float | None = None
    """Micro-batches that the first fit was set to process on each rank; None: no finite plan."""
    planned_tokens: float | None = None
    """What they hold, over all processes; None until that is settled."""
    shape: EpochShape | None = None
    """Of the epochs of the fit that goes on."""
    formula: Formula | None = None
    """The one in force; None until the first validation, when tokens a batch are known."""
    logged: dict[str, float] = field(default_factory=dict)
    """What the last validation logged."""
    fingerprints: tuple[str, ...] = ()
    """Of the set that the last validation counted."""
    progress: Progress = field(default_factory=Progress)
    fits: tuple[str, ...] = ()
    """Of the run so far, this one last."""
    record: str | None = None
    """The file that its newest lines lie in; None before the first fit with a record."""

    def begin_fit(self) -> None:
        """Give the fit that begins a name."""
        self.fits = (*self.fits, uuid.uuid4().hex[:8])[-FITS:]

    def settle_formula(self, parameters: ParameterCount, plan: Plan) -> Formula:
        """Return the formula in force; make it from the run's first plan if none was given."""
        if self.formula is None:
            self.planned_tokens = plan.tokens or self.tokens_of_plan(self.spending)
            self.formula = Formula.for_plan(parameters=parameters.total, tokens=self.planned_tokens)
        return self.formula

    def tokens_of_plan(self, spending: Spending) -> float | None:
        """Return the tokens of the first fit's plan over all processes; None: not known.

        Its batches times the tokens of a batch so far, unless a fit before has settled them: that
        may have had another number of processes.
        """
        planned, done = self.planned_batches, spending.batches
        if self.planned_tokens is not None or not planned or not done:
            return self.planned_tokens
        return spending.tokens * growth(done, planned, self.shape)

    def count_lost(self, written: Sequence[Record]) -> None:
        """Count as lost what was spent after the checkpoint that the run goes on from.

        Args:
            written: the run's lines since then, see ``records_since``. What was spent after the
                newest is not known, so the loss is a lower bound.
        """
        if not written:
            return
        newest, oldest = written[0], written[-1]
        if oldest.batch == self.spending.batches:
            # The checkpoint was saved before the validation of the same batch, which stays in the
            # record: so does the time until then, or a later validation would have spent less.
            self.spending = self.spending.at_least(oldest.measurements)
        again = (newest.measurements.device_hours or 0.0) - self.spending.device_seconds / 3600
        # A checkpoint newer than the newest line knows of losses that the line does not.
        lost = newest.lost_device_hours + max(0.0, again)
        self.lost_device_hours = max(self.lost_device_hours, lost)

    def to_dict(self, spending: Spending) -> dict[str, Any]:
        """Return the state for a checkpoint, with what was spent up to this moment."""
        state = {
            "schema": SCHEMA,
            "run": self.id,
            "spent": spending.to_dict(),
            "lost_device_hours": self.lost_device_hours,
            "planned_batches": self.planned_batches,
            "planned_tokens": self.tokens_of_plan(spending),
            "formula": None if self.formula is None else self.formula.to_dict(),
            "logged": self.logged,
            "fingerprints": self.fingerprints,
            "fits": self.fits,
            "record": self.record,
            **self.progress.to_dict(),
        }
        return {name: _plain(value) for name, value in state.items()}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], given: Formula | None) -> RunState:
        """The inverse of :meth:`to_dict`.

        Args:
            state: from a checkpoint.
            given: the user's formula, which counts before the one in the checkpoint.

        Raises:
            ValueError: if it is anything but a state that ``to_dict`` returned, or its formula
                holds a function and ``given`` is None.
        """
        if not isinstance(state, Mapping) or state.get("schema") != SCHEMA:
            schema = state.get("schema") if isinstance(state, Mapping) else state
            raise ValueError(f"expected schema {SCHEMA}, got {short(schema)}")
        if not state.keys() >= _REQUIRED:
            raise _no_state(f"without {', '.join(sorted(_REQUIRED - state.keys()))}")
        saved = state["formula"]
        # Under another formula the course so far means nothing: its T or level may differ.
        same = given is None or given.to_dict() == saved
        formula = given if given is not None or saved is None else Formula.from_dict(saved)
        planned, tokens = state["planned_batches"], state.get("planned_tokens")
        try:
            return cls(
                id=_text(state["run"]),
                spending=Spending.from_dict(state["spent"]),
                lost_device_hours=hours(state.get("lost_device_hours", 0.0)),
                planned_batches=None if planned is None else positive(planned, "planned_batches"),
                planned_tokens=None if tokens is None else positive(tokens, "planned_tokens"),
                formula=formula,
                logged={_text(key): float(value) for key, value in state["logged"].items()},
                fingerprints=tuple(map(_text, state.get("fingerprints", ()))),
                progress=Progress.from_dict(state) if same else Progress(),
                fits=tuple(map(_text, state.get("fits", ()))),
                record=None if state.get("record") is None else _text(state["record"]),
            )
        except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
            raise _no_state(f"that cannot be read ({error})") from error


def _no_state(what: str) -> ValueError:
    return ValueError(
        f"expected the state that LScore saves, got one {what}. Was the checkpoint edited? Without "
        "LScore's state, the run is counted from here on."
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {short(value)}")
    return value


def _plain(value: Any) -> Any:
    """A copy of the value in Python's own types, which alone a checkpoint can hold."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, numbers.Integral):  # of numpy
        return int(value)
    number = as_number(value)
    return str(value) if number is None else number
