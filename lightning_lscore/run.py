"""A run's memory: who it is, what it spent, the formula in force; and from these, measurements.

Everything that a checkpoint must keep is here, as plain numbers, strings and dictionaries.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .formula import Factor, Formula
from .measurements import Measurements, exp
from .parameters import FLOPS_CONVENTION, ParameterCount
from .spending import Spending

SCHEMA = 1
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Evaluation:
    """One pass over the held-out set: NLL and counted tokens of each loader, over all ranks."""

    nll_sums: tuple[float, ...]
    tokens: tuple[int, ...]
    source: str
    """How logits and labels were found."""

    @property
    def total_tokens(self) -> int:
        """Counted tokens of all loaders."""
        return sum(self.tokens)

    @property
    def nll(self) -> float:
        """Mean NLL over all tokens of all loaders, in nats; NaN without a token."""
        return _mean(math.fsum(self.nll_sums), self.total_tokens)

    @property
    def perplexity(self) -> float:
        """Over all tokens of all loaders."""
        return exp(self.nll)

    @property
    def perplexities(self) -> tuple[float, ...]:
        """Of each loader by itself."""
        return tuple(exp(_mean(s, n)) for s, n in zip(self.nll_sums, self.tokens, strict=True))

    def provenance(self) -> str:
        """Where the perplexity came from and what, if anything, is wrong with it."""
        if not self.total_tokens:
            return f"measured: {self.source}; NaN because no held-out token was counted"
        if math.isnan(self.nll):
            return f"measured: {self.source}; NaN because a logit was NaN or +infinity"
        if math.isinf(self.nll):
            return f"measured: {self.source}; infinite because a held-out token has probability 0"
        return f"measured: {self.source}"


@dataclass
class Run:
    """What one training run keeps from its first step to its last, across resumes."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    spent: Spending = field(default_factory=Spending)
    """By all ranks, at the last time that they were asked, in this process and those before."""
    planned_batches: float | None = None
    """Micro-batches that the first fit was set to process on each rank; None: no finite plan."""
    formula: Formula | None = None
    """The one in force; None until the first validation, when tokens a batch are known."""
    logged: dict[str, float] = field(default_factory=dict)
    """What the last validation logged."""
    last_point: tuple[float, str, float] | None = None
    """NLL, and a measure of spending with its value, at the last validation: for the elasticity."""

    def settle_formula(self, parameters: ParameterCount) -> Formula:
        """The formula in force; made from the run's own plan if none was given."""
        if self.formula is None:
            planned, spent = self.planned_batches, self.spent
            tokens = planned * spent.tokens / spent.batches if planned and spent.batches else None
            self.formula = Formula.for_plan(parameters=parameters.total, tokens=tokens)
        return self.formula

    def with_elasticity(self, measurements: Measurements) -> Measurements:
        """Adds d ln T / d ln spent since the last validation, in the measure of H, else of D."""
        assert self.formula is not None
        charged = [f.measure for f in (self.formula.H, self.formula.D) if isinstance(f, Factor)]
        measure = next((m for m in charged if measurements.get(m)), "tokens")
        nll, spent = measurements.nll, measurements.get(measure)
        before, self.last_point = self.last_point, None
        value, how = None, "unavailable: it takes two validations with a finite perplexity"
        if nll is not None and math.isfinite(nll) and spent:
            self.last_point = (nll, measure, spent)
            if before is not None and before[1] == measure and spent > before[2]:
                value = (nll - before[0]) / math.log(spent / before[2])
                how = f"measured: since the last validation, spending in {measure}"
        provenance = {**measurements.provenance, "elasticity": how}
        return replace(measurements, elasticity=value, provenance=provenance)

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
            "planned_batches": self.planned_batches,
            "formula": None if self.formula is None else self.formula.to_dict(),
            "logged": dict(self.logged),
            "last_point": None if self.last_point is None else list(self.last_point),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], given: Formula | None) -> Run:
        """The inverse of :meth:`to_dict`.

        Args:
            state: from a checkpoint.
            given: the user's formula, which counts before the one in the checkpoint.

        Raises:
            ValueError: if the state is of another schema, or its formula holds a function and
                ``given`` is None.
        """
        if state.get("schema") != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, got {state.get('schema')!r}")
        saved = state["formula"]
        formula = given if given is not None or saved is None else Formula.from_dict(saved)
        point = state["last_point"]
        return cls(
            id=state["run"],
            spent=Spending.from_dict(state["spent"]),
            planned_batches=state["planned_batches"],
            formula=formula,
            logged=dict(state["logged"]),
            last_point=None if point is None else (point[0], point[1], point[2]),
        )


def measure(
    evaluation: Evaluation,
    spent: Spending,
    parameters: ParameterCount,
    *,
    steps: int,
    epochs: float | None,
    devices: Sequence[Mapping[str, Any]],
    reasons: Mapping[str, str],
) -> Measurements:
    """One validation's measurements, each with where it came from.

    Args:
        evaluation: over all ranks.
        spent: over all ranks, since the run began.
        parameters: of the whole model.
        steps: optimiser steps since the run began.
        epochs: passes over the training set, None if it has no length.
        devices: what the run computes on.
        reasons: why the sampler could not read something, by its name in a ``Reading``.
    """
    seconds, hardware, n = spent.train_seconds, spent.hardware, len(devices)
    tokens = spent.tokens if not spent.uncounted_batches else None
    model_flops = None if tokens is None else spent.model_flops
    capacity = spent.capacity_flops or None
    watts = hardware.power_watts
    peaks = " + ".join(dict.fromkeys(str(d["peak_source"]) for d in devices))

    held_out = evaluation.provenance()
    clock = "measured: monotonic clock, validation excluded"
    sampled = f"measured: sampled over {_share(hardware.observed_seconds, spent)}"
    energy = "measured: energy counter" if hardware.energy_is_counter else "estimated: from power"
    energy += f", over {_share(hardware.energy_known_seconds, spent)}"
    no_tokens = (
        f"no integer tensor in {spent.uncounted_batches} training batch(es); give "
        "LScore(count_tokens=function)"
    )
    no_reading = "no reading yet"
    no_energy = reasons.get("energy_joules", no_reading)

    # measure: value, how it was obtained, why it is missing if it is None
    found: dict[str, tuple[Any, str, str]] = {
        "perplexity": (evaluation.perplexity, held_out, ""),
        "nll": (evaluation.nll, held_out, ""),
        "validation_tokens": (evaluation.total_tokens, held_out, ""),
        "bits_per_byte": (None, "", "the bytes of the held-out text are not known"),
        "tokens": (tokens, "measured: counted in the batches", no_tokens),
        "samples": (None if tokens is None else spent.samples, "measured: counted", no_tokens),
        "steps": (steps, "measured: the Trainer's global_step", ""),
        "epochs": (epochs, "measured: batches / batches an epoch", "the data has no length"),
        "model_flops": (model_flops, f"estimated: {FLOPS_CONVENTION}", no_tokens),
        "trainable_parameters": (parameters.trainable, "measured: counted", ""),
        "total_parameters": (parameters.total, "measured: counted", ""),
        "flops_per_token": (parameters.flops_per_token, f"estimated: {FLOPS_CONVENTION}", ""),
        "train_hours": (seconds / 3600, clock, ""),
        "device_hours": (spent.device_seconds / 3600, f"{clock}; {n} device(s) now", ""),
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
        "gpu_busy_fraction": (
            hardware.busy_fraction,
            sampled,
            reasons.get("busy", no_reading),
        ),
        "gpu_memory_peak_gib": (
            hardware.memory_peak_bytes / 2**30 or None,
            sampled,
            reasons.get("memory_used_bytes", no_reading),
        ),
        "power_watts": (None if watts is None else watts * n, energy, no_energy),
        "energy_kwh": (
            None if watts is None else hardware.energy_joules / JOULES_PER_KWH,
            energy,
            no_energy,
        ),
    }
    values = {name: value for name, (value, _, _) in found.items()}
    provenance = {
        name: f"unavailable: {why}" if value is None else how
        for name, (value, how, why) in found.items()
    }
    return Measurements(**values, provenance=provenance)


def _share(seconds: float, spent: Spending) -> str:
    return f"{seconds / spent.device_seconds:.0%} of device time" if spent.device_seconds else "-"


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
