"""A run's memory: who it is, what it spent, the formula in force; and from these, measurements.

Everything that a checkpoint must keep is here, as plain numbers, strings and dictionaries.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..curve.forecast import predict, thinned
from ..equation.formula import Formula
from ..equation.level import first_reached, with_level
from ..equation.measurements import Measurements
from ..equation.measures import MEASURES
from ..equation.prediction import Prediction, Unpredictable
from ..heldout.evaluation import Evaluation
from ..model.parameters import ParameterCount
from ..record.records import Record
from .spending import Spending

SCHEMA = 1
CURVE_POINTS = 512  # of a curve in a checkpoint; a prediction asks for fewer
NO_VALIDATION = (
    "no validation ran; give the Trainer's fit val_dataloaders, and one that comes in time"
)


@dataclass
class Run:
    """What one training run keeps from its first step to its last, across resumes."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    spent: Spending = field(default_factory=Spending)
    """By all ranks, at the last time that they were asked, in this process and those before."""
    lost_device_hours: float = 0.0
    """Spent in training that was thrown away, see ``Record``; no part of ``spent``."""
    planned_batches: float | None = None
    """Micro-batches that the first fit was set to process on each rank; None: no finite plan."""
    formula: Formula | None = None
    """The one in force; None until the first validation, when tokens a batch are known."""
    logged: dict[str, float] = field(default_factory=dict)
    """What the last validation logged."""
    fingerprints: tuple[str, ...] = ()
    """Of the set that the last validation counted."""
    previous: dict[str, float] = field(default_factory=dict)
    """``ln_T`` and what had been spent at the last validation with a finite perplexity."""
    reached: dict[str, float] = field(default_factory=dict)
    """What had been spent when T first fell to the formula's level; empty before."""
    reached_how: str = ""
    curve: list[list[float]] = field(default_factory=list)
    """Batches and ln T at each validation, or the means of several, and of how many."""
    best: list[float] = field(default_factory=list)
    """Lowest ln L so far and the batches at it; empty before."""

    def settle_formula(self, parameters: ParameterCount) -> Formula:
        """The formula in force; made from the run's own plan if none was given."""
        if self.formula is None:
            planned, spent = self.planned_batches, self.spent
            tokens = planned * spent.tokens / spent.batches if planned and spent.batches else None
            self.formula = Formula.for_plan(parameters=parameters.total, tokens=tokens)
        return self.formula

    def with_history(self, measurements: Measurements) -> Measurements:
        """Adds what takes more than one validation: the elasticity, and the spending to a level."""
        assert self.formula is not None
        ln_T = self.formula.ln_T(measurements)
        before, self.previous = self.previous, {}
        if ln_T is not None and math.isfinite(ln_T):
            self.previous = {**measurements.spending(), "ln_T": ln_T}
        measurements = self._with_elasticity(measurements, before)
        return self._with_level(measurements, before)

    def _with_elasticity(
        self, measurements: Measurements, before: dict[str, float]
    ) -> Measurements:
        """d ln T / d ln spent since the last validation, in the measure of H, else of D."""
        assert self.formula is not None
        now = self.previous
        measure = self.formula.spending_measure(measurements)
        value, how = None, "unavailable: it takes two validations with a finite perplexity"
        if now.get(measure, 0) > before.get(measure, math.inf) > 0:
            change = now["ln_T"] - before["ln_T"]
            value = change / math.log(now[measure] / before[measure])
            how = f"measured: since the last validation, spending in {measure}"
        provenance = {**measurements.provenance, "elasticity": how}
        return replace(measurements, elasticity=value, provenance=provenance)

    def _with_level(self, measurements: Measurements, before: dict[str, float]) -> Measurements:
        assert self.formula is not None
        level = self.formula.level
        if level is None:
            return measurements
        if not self.reached and self.previous:
            self.reached = first_reached(before, self.previous, math.log(level))
            between = before and before["ln_T"] > math.log(level)
            self.reached_how = (
                f"measured: perplexity {level:g} reached, interpolated between two validations"
                if between
                else f"estimated: at most, perplexity {level:g} was reached before a validation"
            )
        return with_level(measurements, level, self.reached, self.reached_how)

    def predict(
        self, measurements: Measurements, planned_batches: float | None
    ) -> Prediction | Unpredictable:
        """The best L to come, if the learning rate's schedule goes on as in what was seen.

        Args:
            measurements: the newest validation's. It joins the curve, so call this once for each.
            planned_batches: at the end of the Trainer's plan; None: no finite plan.
        """
        formula = self.formula
        assert formula is not None
        ln_T, ln_f = formula.ln_T(measurements), formula.ln_price(measurements)
        if ln_T is None or ln_f is None:
            return Unpredictable(reason="There is no L.")
        batches = float(self.spent.batches)
        if self.curve and not math.isfinite(self.curve[-1][1]):
            self.curve.pop()  # it said no more than how far the run was
        self.curve.append([batches, ln_T, 1])
        if len(self.curve) > CURVE_POINTS:
            self.curve = thinned(self.curve)
        if not self.best or ln_T + ln_f < self.best[0]:  # not so where it is NaN
            self.best = [ln_T + ln_f, batches]
        if not math.isfinite(self.best[0]):
            self.best = []
            return Unpredictable(reason="L has not been a finite number yet.")
        spent, loss, counts = zip(*self.curve, strict=True)
        return predict(
            spent,
            loss,
            lambda growth: _number(formula.ln_price(measurements, growth)),
            best_ln_L=self.best[0],
            best_spent=self.best[1],
            planned=planned_batches,
            counts=counts,
        )

    def go_on_after(self, written: Sequence[Record]) -> None:
        """Counts as lost what was spent after the checkpoint that the run goes on from.

        Args:
            written: the run's lines since then, see ``records_since``. What was spent after the
                newest is not known, so that the loss is a lower bound.
        """
        if not written:
            return
        newest, oldest = written[0], written[-1]
        if oldest.batch == self.spent.batches:
            # The checkpoint was saved before the validation of the same batch, which stays in the
            # record: so does the time until then, or a later validation would have spent less.
            self.spent = self.spent.at_least(oldest.measurements)
        again = (newest.measurements.device_hours or 0.0) - self.spent.device_seconds / 3600
        # A checkpoint newer than the newest line knows of losses that the line does not.
        lost = newest.lost_device_hours + max(0.0, again)
        self.lost_device_hours = max(self.lost_device_hours, lost)

    # ------------------------------------------------------------------ checkpoint

    def to_dict(self, spent: Spending) -> dict[str, Any]:
        """For a checkpoint: only what ``weights_only`` loading accepts.

        Args:
            spent: up to this moment.
        """
        return {
            "schema": SCHEMA,
            "run": self.id,
            "spent": spent.to_dict(),
            "lost_device_hours": self.lost_device_hours,
            "planned_batches": self.planned_batches,
            "formula": None if self.formula is None else self.formula.to_dict(),
            "logged": dict(self.logged),
            "fingerprints": list(self.fingerprints),
            "previous": dict(self.previous),
            "reached": dict(self.reached),
            "reached_how": self.reached_how,
            "curve": [list(point) for point in self.curve],
            "best": list(self.best),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], given: Formula | None) -> Run:
        """The inverse of :meth:`to_dict`.

        Args:
            state: from a checkpoint.
            given: the user's formula, which counts before the one in the checkpoint.

        Raises:
            ValueError: if the state is of another schema or incomplete, or its formula holds a
                function and ``given`` is None.
        """
        if state.get("schema") != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {state.get('schema')!r}")
        required = {"run", "spent", "planned_batches", "formula", "logged"}
        if not required <= state.keys():
            lacking = ", ".join(sorted(required - state.keys()))
            raise ValueError(
                f"expected the state that LScore saves, got one without {lacking}. Was the "
                "checkpoint edited? Without LScore's state, the run is counted from here on."
            )
        saved = state["formula"]
        run = cls(
            id=state["run"],
            spent=Spending.from_dict(state["spent"]),
            lost_device_hours=state.get("lost_device_hours", 0.0),
            planned_batches=state["planned_batches"],
            formula=given if given is not None or saved is None else Formula.from_dict(saved),
            logged=dict(state["logged"]),
            fingerprints=tuple(state.get("fingerprints", ())),
        )
        if given is None or given.to_dict() == saved:  # else it may ask for another T or level
            run.previous = dict(state.get("previous", {}))
            run.reached = dict(state.get("reached", {}))
            run.reached_how = state.get("reached_how", "")
            # Without a count, as it was before points were means, each is one validation.
            run.curve = [[*point, 1][:3] for point in state.get("curve", ())]
            run.best = list(state.get("best", ()))
        return run


def measure(
    evaluation: Evaluation | None,
    spent: Spending,
    parameters: ParameterCount,
    *,
    flops: str,
    steps: int,
    epochs: float | None,
    devices: Sequence[Mapping[str, Any]],
    reasons: Mapping[str, str],
    own: Mapping[str, float] | None = None,
) -> Measurements:
    """One validation's measurements, each with where it came from.

    Args:
        evaluation: over all ranks; None if no validation ran.
        spent: over all ranks, since the run began.
        parameters: of the whole model.
        flops: how those in ``spent`` were found, see ``FlopsModel.convention``.
        steps: optimiser steps since the run began.
        epochs: passes over the training set, None if it has no length.
        devices: what the run computes on.
        reasons: why the sampler could not read something, by its name in a ``Reading``.
        own: the user's own measures; NaN where they have no value.
    """
    seconds, hardware, n = spent.train_seconds, spent.hardware, len(devices)
    tokens = spent.tokens if not spent.uncounted_batches else None
    model_flops = None if tokens is None else spent.model_flops
    capacity = spent.capacity_flops or None
    watts = hardware.power_watts
    peaks = " + ".join(dict.fromkeys(str(d["peak_source"]) for d in devices))

    no_validation = NO_VALIDATION if evaluation is None else ""
    held_out = "" if evaluation is None else evaluation.provenance()
    bits_per_byte = None if evaluation is None else evaluation.bits_per_byte
    clock = "measured: monotonic clock, validation excluded"
    sampled = f"measured: sampled over {_share(hardware.observed_seconds, spent)}"
    energy = "measured: energy counter" if hardware.energy_is_counter else "estimated: from power"
    energy += f", over {_share(hardware.energy_known_seconds, spent)}"
    no_tokens = (
        f"no integer tensor in {spent.uncounted_batches} training batch(es); give "
        "LScore(count_tokens=function)"
    )
    no_bytes = (
        no_validation
        or "the bytes of the held-out text are not known; say LScore(count_bytes=tokenizer)"
    )
    no_reading = "no reading yet"
    no_energy = reasons.get("energy_joules", no_reading)
    throttled = (
        f"measured: sampled over {_share(hardware.throttled_known_seconds, spent)}",
        reasons.get("throttled", no_reading),
    )
    memory = hardware.memory_mean_bytes

    counted = "measured: counted in the batches, without the padding that an attention_mask shows"
    # measure: value, how it was obtained, why it is missing if it is None
    found: dict[str, tuple[Any, str, str]] = {
        "perplexity": (evaluation and evaluation.perplexity, held_out, no_validation),
        "nll": (evaluation and evaluation.nll, held_out, no_validation),
        "validation_tokens": (evaluation and evaluation.total_tokens, held_out, no_validation),
        "bits_per_byte": (bits_per_byte, held_out, no_bytes),
        "nominal_perplexity": (None, held_out, no_bytes),
        "tokens": (tokens, counted, no_tokens),
        "samples": (None if tokens is None else spent.samples, "measured: counted", no_tokens),
        "steps": (steps, "measured: the Trainer's global_step", ""),
        # A sum over resumes rounds in its last digits, where a run without them does not.
        "epochs": (
            None if epochs is None else round(epochs, 9),
            "measured: batches / batches an epoch",
            "the data has no length",
        ),
        "model_flops": (model_flops, f"estimated: {flops}", no_tokens),
        "trainable_parameters": (parameters.trainable, "measured: counted", ""),
        "total_parameters": (parameters.total, "measured: counted", ""),
        "flops_per_token": (_ratio(model_flops, tokens), f"estimated: {flops}", no_tokens),
        "train_hours": (seconds / 3600, clock, ""),
        "wall_hours": (spent.wall_seconds / 3600, "measured: monotonic clock", ""),
        "device_hours": (spent.device_seconds / 3600, f"{clock}; {n} device(s) now", ""),
        "cost": (
            None if spent.unpriced_seconds else spent.cost,
            f"{clock}; at the price given",
            "no price was given for all of the run; say LScore(price_per_device_hour=...)",
        ),
        "capacity_flops": (
            capacity,
            f"estimated: device time x dense peak ({peaks})",
            f"no time spent yet, or no peak ({peaks})",
        ),
        "tokens_per_second": (_ratio(tokens, seconds), clock, no_tokens),
        "mfu": (
            _ratio(model_flops, capacity),
            "estimated: model_flops / capacity_flops",
            "it takes model_flops and capacity_flops",
        ),
        "busy_fraction": (
            hardware.busy_fraction,
            sampled,
            reasons.get("busy", no_reading),
        ),
        "sm_clock_mhz": (
            hardware.sm_clock_mhz,
            f"measured: sampled over {_share(hardware.sm_clock_known_seconds, spent)}",
            reasons.get("sm_clock_mhz", no_reading),
        ),
        "throttled_fraction": (hardware.throttled_fraction, *throttled),
        "throttled_by_power_fraction": (hardware.throttled_by_power_fraction, *throttled),
        "throttled_by_heat_fraction": (hardware.throttled_by_heat_fraction, *throttled),
        "memory_mean_gib": (
            None if memory is None else memory / 2**30,
            f"measured: sampled over {_share(hardware.memory_known_seconds, spent)}",
            reasons.get("memory_used_bytes", no_reading),
        ),
        "memory_peak_gib": (
            hardware.memory_peak_bytes / 2**30 or None,
            sampled,
            reasons.get("memory_used_bytes", no_reading),
        ),
        "power_watts": (None if watts is None else watts * n, energy, no_energy),
        "energy_kwh": (
            None if watts is None else hardware.energy_kwh,
            energy,
            no_energy,
        ),
        "emissions_kg": (
            None if watts is None or spent.unrated_joules else spent.emissions_kg,
            f"{energy}; at the carbon intensity given",
            no_energy
            if watts is None
            else "no carbon intensity was given for all of the run; say "
            "LScore(carbon_intensity=...)",
        ),
    }
    for name, value in (own or {}).items():
        known = None if math.isnan(value) else value
        found[name] = (known, "measured: the given function", "the given function returned none")
    values = {name: value for name, (value, _, _) in found.items() if value is not None}
    provenance = {
        name: f"unavailable: {why}" if value is None else how
        for name, (value, how, why) in found.items()
    }
    if bits_per_byte is not None:
        provenance["nominal_perplexity"] = held_out
    mine = {name: values.pop(name) for name in [*values] if name not in MEASURES}
    return Measurements(**values, own=mine, provenance=provenance)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _share(seconds: float, spent: Spending) -> str:
    return f"{seconds / spent.device_seconds:.0%} of device time" if spent.device_seconds else "-"


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
