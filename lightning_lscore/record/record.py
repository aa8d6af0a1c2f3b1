"""One validation of a run, as the record keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..equation.evidence import DeviceUse, EvaluationSet, OccupiedDevice
from ..equation.formula_json import id_of
from ..equation.learning_rate import LearningRate
from ..equation.measurements import Measurements
from ..equation.measures import MEASURES
from ..equation.prediction import Prediction, Unpredictable
from ..equation.score import Score


def _nothing() -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One validation: what was measured, the formula in force, the score, and where it ran.

    A record that was read from a file parses its line when first asked for more than its run and
    batch: of a thousand runs one seldom looks at every validation.
    """

    run: str
    """Identifies the run; a resumed run keeps it."""
    batch: int
    """Micro-batches of one process so far: the order of a run's validations."""
    step: int
    """Optimiser steps so far (the Trainer's ``global_step``)."""
    epoch: int
    time: str
    """When the line was written, ISO 8601, UTC."""
    measurements: Measurements
    score: Score
    formula: Mapping[str, Any]
    """As ``Formula.to_dict()``; read it back with ``Formula.from_dict``."""
    evaluation: EvaluationSet | None = field(default_factory=_nothing)
    """What T was measured on; None without a validation."""
    lost_device_hours: float = field(default_factory=float)
    """Spent in training that was thrown away, where the run went on from an earlier checkpoint; in
    no measure above. A lower bound: nothing records the time between the last validation before a
    crash and the crash."""
    planned: float | None = field(default_factory=_nothing)
    """Micro-batches of one process at the end of the plan, as known then; None: no finite plan."""
    learning_rate: LearningRate = field(default_factory=LearningRate)
    """At this validation, and where it stood in its decay."""
    prediction: Prediction | Unpredictable | None = field(default_factory=_nothing)
    """The best L expected, or why there is no forecast."""
    devices: tuple[OccupiedDevice, ...] = field(default_factory=tuple)
    """What the run computes on now."""
    hardware: Mapping[str, DeviceUse] = field(default_factory=dict)
    """What each device did in training since the run began, by its key; also of the devices that
    the run computed on before a resume."""
    versions: Mapping[str, str] = field(default_factory=dict)
    assumptions: Mapping[str, str] = field(default_factory=dict)
    """What LScore took for granted about the loop, by subject: its plan, its tokens, its labels."""
    fits: tuple[str, ...] = field(default_factory=tuple)
    """The run's fits so far, of which the last one wrote this. A run that went on from one
    checkpoint twice has two ends, told apart by them."""

    @classmethod
    def parsed_later(cls, run: str, batch: int, parse: Callable[[], Record]) -> Record:
        """Return a record of which ``parse`` gives all that is not named here."""
        made = object.__new__(cls)
        made.__dict__.update(run=run, batch=batch, _parse=parse)
        return made

    def __getattr__(self, name: str) -> Any:
        # Called for what is not there yet: no field has a default in the class.
        parse = self.__dict__.get("_parse")
        if parse is None or name not in Record.__dataclass_fields__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.__dict__.update(parse().__dict__)
        self.__dict__.pop("_parse", None)
        return self.__dict__[name]

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Record.__dataclass_fields__}

    def __repr__(self) -> str:
        return f"Record(run={self.run!r}, step={self.step}, {repr(self.score)[6:-1]}, ...)"

    @property
    def formula_id(self) -> str:
        """That of :attr:`formula`, equal for formulas that give every run the same L."""
        return id_of(self.formula)

    @property
    def L(self) -> float | None:
        """The cost-adjusted perplexity of this validation."""
        return self.score.L

    def logged_values(self) -> dict[str, float]:
        """Return what loggers get, by key; what has no value is absent."""
        score, measured = self.score, self.measurements.measured()
        values = {
            "L": score.L,
            "perplexity": self.measurements.perplexity,
            "f_D": score.f_D,
            "f_A": score.f_A,
            "f_H": score.f_H,
            "lscore/best_L_expected": getattr(self.prediction, "best_L", None),
            **{f"lscore/{k}": v for k, v in measured.items() if MEASURES[k].logged},
            **{f"lscore/{k}": v for k, v in self.measurements.own.items()},
        }
        return {key: value for key, value in values.items() if value is not None}
