"""The one table of measures: unit, meaning, how each is joined, shown and logged.

A name in it is also the name of a field of ``Measurements``. To add a measure, add a row here and
a field there.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from .safe_numbers import short

Together: TypeAlias = Literal["sum", "max", "mean", "ratio", "same"]
"""How one measure joins the devices and processes of a run: their sum; the largest; the mean
weighted by time; a ratio of two joined measures; or a value that all of them share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A row of the table: what holds for a measure whatever its value."""

    unit: str
    meaning: str
    together: Together
    shown: str = ",.4g"
    """Format specification of its value for a reader."""
    logged: bool = True
    """Whether loggers receive it, under ``lscore/``; the record holds every measure."""
    grows: bool = False
    """Whether it counts spending, which grows during a run."""
    may_be_infinite: bool = False


def _row(unit: str, meaning: str, together: Together = "ratio", **more: Any) -> Measure:
    return Measure(unit=unit, meaning=meaning, together=together, **more)


OF_A_VALIDATION: dict[str, Measure] = {
    "perplexity": _row(
        "",
        "held-out perplexity, exp(sum of NLL / counted tokens)",
        shown=".4f",
        logged=False,
        may_be_infinite=True,
    ),
    "nll": _row(
        "nats/token",
        "mean negative log-likelihood of a held-out token",
        shown=".4f",
        logged=False,
        may_be_infinite=True,
    ),
    "validation_tokens": _row("tokens", "held-out tokens that were counted", "sum"),
    "bits_per_byte": _row("bits/byte", "held-out NLL per byte of text", shown=".4f"),
    "nominal_perplexity": _row(
        "",
        "perplexity of a nominal token of 4 bytes, exp(4 x NLL per byte): compares tokenizers",
        shown=".4f",
        may_be_infinite=True,
    ),
    "tokens": _row("tokens", "training tokens fed to the model", "sum", grows=True),
    "samples": _row(
        "samples", "training sequences fed to the model", "sum", logged=False, grows=True
    ),
    "steps": _row("steps", "optimiser steps", "same", logged=False, grows=True),
    "epochs": _row("epochs", "passes over the training set", "same", logged=False, grows=True),
    "model_flops": _row(
        "FLOP", "arithmetic that the model needs for its tokens", "sum", grows=True
    ),
    "trainable_parameters": _row("parameters", "parameters with a gradient", "same"),
    "total_parameters": _row("parameters", "all parameters, tied ones once", "same"),
    "active_parameters": _row(
        "parameters", "parameters that a token passes: of experts, those it is routed to", "same"
    ),
    "flops_per_token": _row("FLOP/token", "arithmetic of one training token", logged=False),
    "train_hours": _row(
        "h", "wall time of training, checkpoints included, without validation", "max", grows=True
    ),
    "wall_hours": _row(
        "h", "wall time of training and validation together", "max", logged=False, grows=True
    ),
    "device_hours": _row("h", "training time, summed over the devices", "sum", grows=True),
    "cost": _row(
        "money",
        "device_hours times the price of each, in the currency of the price",
        "sum",
        grows=True,
    ),
    "capacity_flops": _row(
        "FLOP",
        "what the occupied devices could have computed at their dense peak",
        "sum",
        grows=True,
    ),
    "tokens_per_second": _row("tokens/s", "training tokens a second of training"),
    "mfu": _row("", "model FLOPs utilisation: model_flops / capacity_flops", shown=".1%"),
    "busy_fraction": _row(
        "",
        "share of the training time in which the device (GPU, or the CPU's cores) was busy",
        "mean",
        shown=".1%",
    ),
    "sm_clock_mhz": _row(
        "MHz",
        "mean clock of the GPU's compute units over the training time, idle moments included",
        "mean",
        shown=".0f",
    ),
    "throttled_fraction": _row(
        "",
        "share of the training time in which power, heat or a fault held the GPU's clocks down",
        "mean",
        shown=".1%",
    ),
    "throttled_by_power_fraction": _row(
        "",
        "the part of it in which power was a cause, alone or beside others",
        "mean",
        shown=".1%",
        logged=False,
    ),
    "throttled_by_heat_fraction": _row(
        "",
        "the part of it in which heat was a cause, alone or beside others",
        "mean",
        shown=".1%",
        logged=False,
    ),
    "memory_mean_gib": _row(
        "GiB",
        "mean memory in use on one device over the training time",
        "mean",
        shown=".2f",
        logged=False,
    ),
    "memory_peak_gib": _row("GiB", "largest memory in use on one device", "max", shown=".2f"),
    "power_watts": _row("W", "mean power of the devices together, in training", "sum", shown=".1f"),
    "energy_kwh": _row("kWh", "energy of the devices, in training", "sum", shown=".4g", grows=True),
    "emissions_kg": _row(
        "kg", "CO2-equivalent of energy_kwh, at the carbon intensity given", "sum", grows=True
    ),
    "elasticity": _row(
        "", "d ln T / d ln spent since the last validation: what 1 % more spending bought, in %"
    ),
    "elasticity_needed": _row(
        "", "elasticity below which L falls: minus what 1 % more spending adds to the price, in %"
    ),
}
"""The measures of one validation, by name; :data:`MEASURES` adds those ``..._to_level``."""

SIGNED = ("nll", "elasticity", "elasticity_needed")
"""The measures that may be negative."""

GROWING = tuple(name for name, row in OF_A_VALIDATION.items() if row.grows)
"""The measures that count spending."""

TO_LEVEL = {f"{name}_to_level": name for name in GROWING}
"""``tokens_to_level`` -> ``tokens``, and so on for each measure of spending."""

MEASURES: dict[str, Measure] = OF_A_VALIDATION | {
    to_level: replace(
        OF_A_VALIDATION[name],
        meaning=f"{name} when the level of T was first reached",
        grows=False,
    )
    for to_level, name in TO_LEVEL.items()
}
"""Every measure by name, except the user's own."""

NOMINAL_BYTES = 4
"""Bytes of a nominal token: about the length of a token of English text in common tokenizers."""


def check_measure(name: str) -> None:
    """Check that ``name`` is a measure.

    Raises:
        ValueError: if it is not; the message suggests a similar name.
    """
    if not isinstance(name, str) or name not in MEASURES:
        close = difflib.get_close_matches(name, MEASURES, n=1) if isinstance(name, str) else ()
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"expected a measure ({', '.join(OF_A_VALIDATION)}), got {short(name)}.{hint}"
        )
