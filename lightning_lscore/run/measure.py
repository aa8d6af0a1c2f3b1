"""One validation's measurements, part by part, each with where it came from.

Every part maps measures to a value, or None, and a sentence: how the value was obtained, or why
there is none. :func:`together` makes one :class:`Measurements` of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from ..equation.evidence import OccupiedDevice
from ..equation.measurements import Measurements
from ..equation.measures import MEASURES
from ..hardware.gauges import GAUGES
from ..heldout.evaluation import Evaluation
from ..model.parameters import ParameterCount
from .segment import Segment
from .spending import Spending

NO_VALIDATION = (
    "no validation ran; give the Trainer's fit val_dataloaders, and one that comes in time"
)


class Found(NamedTuple):
    """A value and its provenance."""

    value: Any
    provenance: str


Part: TypeAlias = dict[str, Found]


def _found(value: Any, how: str, why_missing: str = "") -> Found:
    return Found(value, f"unavailable: {why_missing}" if value is None else how)


def together(*parts: Part) -> Measurements:
    """All parts as one record. Measures that the table does not know are the user's own."""
    found = {name: one for part in parts for name, one in part.items()}
    values = {name: one.value for name, one in found.items() if one.value is not None}
    own = {name: values.pop(name) for name in [*values] if name not in MEASURES}
    provenance = {name: one.provenance for name, one in found.items()}
    return Measurements(**values, own=own, provenance=provenance)


def everything(
    evaluation: Evaluation | None,
    spending: Spending,
    segment: Segment,
    parameters: ParameterCount,
    *,
    steps: int,
    own_values: Mapping[str, float],
) -> Measurements:
    """All that one validation measured; ``evaluation`` and ``spending`` are over all processes."""
    devices = segment.devices.described
    return together(
        held_out(evaluation),
        data(spending, steps, spending.epochs if segment.epochs.known else None),
        model(spending, parameters, segment.arithmetic.convention),
        time(spending, devices),
        hardware(spending, devices, segment.missing()),
        own(own_values),
    )


def held_out(evaluation: Evaluation | None) -> Part:
    """T. ``evaluation`` is over all processes; None if no validation ran."""
    no_bytes = "the bytes of the held-out text are unknown; say LScore(count_bytes=tokenizer)"
    if evaluation is None:
        names = ("perplexity", "nll", "validation_tokens", "bits_per_byte", "nominal_perplexity")
        return {name: _found(None, "", NO_VALIDATION) for name in names}
    how, bits = evaluation.provenance(), evaluation.bits_per_byte
    return {
        "perplexity": _found(evaluation.perplexity, how),
        "nll": _found(evaluation.nll, how),
        "validation_tokens": _found(evaluation.total_tokens, how),
        "bits_per_byte": _found(bits, how, no_bytes),
        # Measurements computes the value from bits_per_byte.
        "nominal_perplexity": Found(None, how if bits is not None else f"unavailable: {no_bytes}"),
    }


def data(spending: Spending, steps: int, epochs: float | None) -> Part:
    """D.

    Args:
        spending: over all processes, since the run began.
        steps: optimiser steps since the run began.
        epochs: passes over the training set, None if it has no length.
    """
    counted = "measured: counted in the batches, without padding; see the assumption about tokens"
    tokens, uncounted = _tokens(spending), _uncounted(spending)
    return {
        "tokens": _found(tokens, counted, uncounted),
        "samples": _found(
            None if tokens is None else spending.samples, "measured: counted", uncounted
        ),
        "steps": _found(steps, "measured: counted by the loop"),
        # A sum over resumes rounds in its last digits, where a run without them does not.
        "epochs": _found(
            None if epochs is None else round(epochs, 9),
            "measured: batches / batches of each epoch",
            "the data has no length",
        ),
    }


def model(spending: Spending, parameters: ParameterCount, convention: str) -> Part:
    """A. ``convention`` says how FLOP were counted, see ``FlopsModel.convention``."""
    tokens, uncounted = _tokens(spending), _uncounted(spending)
    flops, how = None if tokens is None else spending.model_flops, f"estimated: {convention}"
    counted, unknown = "measured: counted", ", ".join(parameters.unknown)
    if unknown:
        counted += f"; packed weights of {unknown} by their elements, as their packing is unknown"
    return {
        "model_flops": _found(flops, how, uncounted),
        "flops_per_token": _found(_ratio(flops, tokens), how, uncounted),
        "trainable_parameters": _found(parameters.trainable, "measured: counted"),
        "total_parameters": _found(parameters.total, counted),
        "active_parameters": _found(
            parameters.active,
            f"{counted}, of experts the share that a token is routed to",
            "the structure of the model does not tell which parameters are experts",
        ),
    }


def time(spending: Spending, devices: Sequence[OccupiedDevice]) -> Part:
    """How long the devices were occupied, what that cost, and what they could have computed."""
    clock = "measured: monotonic clock, validation excluded"
    tokens, capacity = _tokens(spending), spending.capacity_flops or None
    peaks = " + ".join(dict.fromkeys(device.peak_source for device in devices))
    return {
        "train_hours": _found(spending.train_seconds / 3600, clock),
        "wall_hours": _found(spending.wall_seconds / 3600, "measured: monotonic clock"),
        "device_hours": _found(
            spending.device_seconds / 3600, f"{clock}; {len(devices)} device(s) now"
        ),
        "cost": _found(
            None if spending.unpriced_seconds else spending.cost,
            f"{clock}; at the price given",
            "no price was given for all of the run; say LScore(price_per_device_hour=...)",
        ),
        "capacity_flops": _found(
            capacity,
            f"estimated: device time x dense peak ({peaks})",
            f"no time spent yet, or no peak ({peaks})",
        ),
        "tokens_per_second": _found(
            _ratio(tokens, spending.train_seconds), clock, _uncounted(spending)
        ),
        "mfu": _found(
            _ratio(None if tokens is None else spending.model_flops, capacity),
            "estimated: model_flops / capacity_flops",
            "it takes model_flops and capacity_flops",
        ),
    }


def hardware(
    spending: Spending, devices: Sequence[OccupiedDevice], missing: Mapping[str, str]
) -> Part:
    """H: what the devices did meanwhile.

    Args:
        spending: over all processes, since the run began.
        devices: those that the run computes on now.
        missing: why the sampler could not read something, by its name in a ``Reading``.
    """
    totals = spending.hardware
    use = totals.use()

    def sampled(seconds: float) -> str:
        return f"measured: sampled over {_coverage(seconds, spending)}"

    def why(reading: str) -> str:
        return missing.get(reading, "no reading yet")

    averaged = {
        gauge.measure: _found(
            getattr(use, gauge.measure), sampled(getattr(totals, gauge.known)), why(gauge.reading)
        )
        for gauge in GAUGES
    }
    energy = "measured: energy counter" if totals.energy_is_counter else "estimated: from power"
    energy += f", over {_coverage(totals.energy_known_seconds, spending)}"
    no_energy = no_emissions = why("energy_joules")
    emissions = None if use.energy_kwh is None or spending.unrated_joules else spending.emissions_kg
    if use.energy_kwh is not None:
        no_emissions = (
            "no carbon intensity was given for all of the run; say LScore(carbon_intensity=...)"
        )
    watts = None if use.power_watts is None else use.power_watts * len(devices)
    return {
        **averaged,
        "memory_peak_gib": _found(
            use.memory_peak_gib, sampled(totals.observed_seconds), why("memory_used_bytes")
        ),
        "power_watts": _found(watts, energy, no_energy),
        "energy_kwh": _found(use.energy_kwh, energy, no_energy),
        "emissions_kg": _found(emissions, f"{energy}; at the carbon intensity given", no_emissions),
    }


def own(values: Mapping[str, float]) -> Part:
    """The user's own measures; NaN where they have no value."""
    return {
        name: _found(
            None if math.isnan(value) else value,
            "measured: the given function",
            "the given function returned none",
        )
        for name, value in values.items()
    }


def _tokens(spending: Spending) -> int | None:
    return spending.tokens if not spending.uncounted_batches else None


def _uncounted(spending: Spending) -> str:
    return (
        f"no integer tensor in {spending.uncounted_batches} training batch(es); give "
        "LScore(count_tokens=function)"
    )


def _coverage(seconds: float, spending: Spending) -> str:
    return (
        f"{seconds / spending.device_seconds:.0%} of device time"
        if spending.device_seconds
        else "-"
    )


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
