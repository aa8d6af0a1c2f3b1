"""Records of runs that were made without LScore, out of the logs that they left."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ..equation.evidence import EvaluationSet, OccupiedDevice
from ..equation.formula import Formula
from ..equation.law import FLOPS_PER_PARAMETER
from ..equation.learning_rate import LearningRate
from ..equation.measurements import Measurements
from .foreign_logs import ForeignLog
from .record import Record

LOSSES = (
    "eval_loss",
    "val_loss",
    "valid_loss",
    "validation_loss",
    "val/loss",
    "eval/loss",
    "loss/val",
)
PERPLEXITIES = (
    "perplexity",
    "val_perplexity",
    "eval_perplexity",
    "val/perplexity",
    "val_ppl",
    "ppl",
)
TOKENS = ("num_input_tokens_seen", "tokens", "train_tokens", "total_tokens", "tokens_seen")
RATES = ("learning_rate", "lr")
SECONDS = ("wall_seconds", "train_seconds", "time", "seconds")
"""Keys that are looked for where none is given, the first that is there."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """What a log does not say, or says under a name that cannot be guessed.

    Args:
        loss: key of the held-out loss, mean negative log-likelihood in nats a token.
        perplexity: key of the held-out perplexity, in place of the loss.
        tokens: key of the training tokens so far.
        tokens_per_step: where no key has them.
        parameters: trainable ones.
        total_parameters: Default: as many.
        train_hours: of the whole log, without validation, spread evenly over its steps.
        seconds: key of the training time so far.
        devices: how many were occupied.
        device_name: of each.
        peak_tflops: dense peak of one device, TFLOP/s.
        price_per_device_hour: of one device.
        planned_steps: at which the run was set to end. Default: where the log ends.
        held_out: name of the held-out set: runs that are imported with the same name compare.
        formula: under which L is scored. Default: the run's own plan.

    Raises:
        ValueError: for numbers that are not finite and > 0, and a loss beside a perplexity.
    """

    loss: str | None = None
    perplexity: str | None = None
    tokens: str | None = None
    tokens_per_step: float | None = None
    parameters: float | None = None
    total_parameters: float | None = None
    train_hours: float | None = None
    seconds: str | None = None
    devices: int = 1
    device_name: str = "a device"
    peak_tflops: float | None = None
    price_per_device_hour: float | None = None
    planned_steps: float | None = None
    held_out: str | None = None
    formula: Formula | None = None

    def __post_init__(self) -> None:
        numbers = (
            "tokens_per_step parameters total_parameters train_hours devices peak_tflops "
            "price_per_device_hour planned_steps"
        )
        for name in numbers.split():
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a finite number > 0, got {value!r}.")
        if self.loss is not None and self.perplexity is not None:
            raise ValueError("expected the key of a loss or of a perplexity, got both.")


def records_of(log: ForeignLog, options: Import) -> list[Record]:
    """Return a record for each validation in a log; each measure's provenance says "imported".

    Raises:
        ValueError: if the held-out loss is not found, or a key that was given is not there.
    """
    found = _Found.of(log, options)
    steps = [step for step, values in log.values.items() if found.T in values and step >= 0]
    measured = [found.measurements(step) for step in steps]
    # Told apart by what they measured: one log with other facts given is another run.
    values = repr([(step, m.measured()) for step, m in zip(steps, measured, strict=True)])
    run = f"imported-{hashlib.sha256(values.encode()).hexdigest()[:12]}"
    formula = options.formula or _of_plan(steps[-1], measured[-1], options, log)
    with_rates = [
        _with_elasticity(m, before, formula)
        for m, before in zip(measured, [None, *measured], strict=False)
    ]
    return [
        _record(run, step, m, formula, options, log, found)
        for step, m in zip(steps, with_rates, strict=True)
    ]


def _with_elasticity(
    m: Measurements, before: Measurements | None, formula: Formula
) -> Measurements:
    """Return the measurements with what the spending since those before bought, and has to buy."""
    spent = formula.spending_measure(m)
    value, now, then = None, m.get(spent), None if before is None else before.get(spent)
    if before is not None and now and then and now > then:
        slope = ((m.nll or math.nan) - (before.nll or math.nan)) / math.log(now / then)
        value = slope if math.isfinite(slope) else None
    return replace(m, elasticity=value, elasticity_needed=formula.elasticity_needed(m))


@dataclass(frozen=True)
class _Found:
    """Where each quantity is in a log."""

    log: ForeignLog
    options: Import
    T: str
    is_loss: bool
    tokens: str | None
    seconds: str | None
    rate: str | None

    @classmethod
    def of(cls, log: ForeignLog, options: Import) -> _Found:
        keys = log.keys
        given = options.loss or options.perplexity
        for key in (given, options.tokens, options.seconds):
            if key is not None and key not in keys:
                raise ValueError(
                    f"expected a key of the log ({', '.join(sorted(keys))}), got {key!r}."
                )
        T, is_loss = given, options.loss is not None
        if T is None:
            T = _first(LOSSES, keys)
            is_loss = T is not None
            T = T or _first(PERPLEXITIES, keys)
        if T is None:
            raise ValueError(
                f"expected a held-out loss or perplexity in {log.source}, got "
                f"{', '.join(sorted(keys))}. Name its key with --loss or --perplexity."
            )
        rate = _first(RATES, keys) or next((k for k in keys if k.startswith("lr-")), None)
        return cls(
            log,
            options,
            T,
            is_loss,
            options.tokens or (None if options.tokens_per_step else _first(TOKENS, keys)),
            options.seconds or (None if options.train_hours else _first(SECONDS, keys)),
            rate,
        )

    def measurements(self, step: int) -> Measurements:
        """Return what the log says at a validation, and how."""
        o, how = self.options, {}
        values: dict[str, Any] = {
            "nll" if self.is_loss else "perplexity": self.log.values[step][self.T]
        }
        how["nll"] = how["perplexity"] = f"imported: {self.T} of {self.log.source}"

        def put(name: str, value: float | None, text: str, missing: str) -> None:
            if value is not None and math.isfinite(value) and value >= 0:
                values[name], how[name] = value, f"imported: {text}"
            else:
                how[name] = f"unavailable: {missing}"

        tokens, told = self._tokens(step)
        put("tokens", None if tokens is None else round(tokens), told, "say --tokens-per-step")
        put("steps", step, "the log's step", "")
        total = o.total_parameters or o.parameters
        for name, n in (("trainable_parameters", o.parameters), ("total_parameters", total)):
            put(name, None if n is None else round(n), "as given", "say --parameters")
        hours, told = self._hours(step)
        put("train_hours", hours, told, "say --train-hours")
        device_hours = None if hours is None else hours * o.devices
        put("device_hours", device_hours, f"{told} x {o.devices} devices", "say --train-hours")
        paid = o.price_per_device_hour
        cost = None if device_hours is None or paid is None else device_hours * paid
        put("cost", cost, f"{told}, at the price given", "say --train-hours and --price")
        peak = None if o.peak_tflops is None or device_hours is None else o.peak_tflops * 1e12
        capacity = None if peak is None or device_hours is None else device_hours * 3600 * peak
        put(
            "capacity_flops",
            capacity,
            f"{told} x the peak given",
            "say --train-hours and --peak-tflops",
        )
        flops, told = self._flops(step, tokens)
        put("model_flops", flops, told, "say --parameters and --tokens-per-step")
        mfu = None if not capacity or flops is None else flops / capacity
        put("mfu", mfu, "model_flops / capacity_flops", "it takes model_flops and capacity_flops")
        return Measurements(**values, provenance=how)

    def rate_at(self, step: int) -> float | None:
        return None if self.rate is None else self.log.until(step, self.rate)

    def _share(self, step: int) -> float:
        return step / max(self.log.values)

    def _tokens(self, step: int) -> tuple[float | None, str]:
        if self.options.tokens_per_step is not None:
            return step * self.options.tokens_per_step, "steps x the tokens of a step given"
        if self.tokens is None:
            return None, ""
        return self.log.until(step, self.tokens), f"{self.tokens} of {self.log.source}"

    def _hours(self, step: int) -> tuple[float | None, str]:
        given, whole = self.options.train_hours, self.log.facts.get("train_runtime")
        if given is not None:
            return given * self._share(step), "hours given, spread evenly over the steps"
        if self.seconds is not None:
            seconds = self.log.until(step, self.seconds)
            text = f"{self.seconds} of {self.log.source}"
            if self.seconds == "wall_seconds":
                text = "times of the log's events, validation included"
            return None if seconds is None else seconds / 3600, text
        if whole is not None:
            text = "train_runtime, validation included, spread evenly over the steps"
            return whole / 3600 * self._share(step), text
        return None, ""

    def _flops(self, step: int, tokens: float | None) -> tuple[float | None, str]:
        whole = self.log.facts.get("total_flos")
        if whole:
            return whole * self._share(step), "total_flos, spread evenly over the steps"
        if self.options.parameters is None or tokens is None:
            return None, ""
        flops = FLOPS_PER_PARAMETER * self.options.parameters * tokens
        return flops, f"{FLOPS_PER_PARAMETER} x parameters x tokens"


def _first(names: Sequence[str], keys: dict[str, int]) -> str | None:
    return next((name for name in names if name in keys), None)


def _of_plan(step: int, m: Measurements, options: Import, log: ForeignLog) -> Formula:
    planned = _planned_steps(options, log)
    tokens = None if m.tokens is None or not step else m.tokens / step * planned
    if m.trainable_parameters is None:
        return Formula(origin="nothing is charged: say --parameters and --tokens-per-step")
    parameters = m.total_parameters or m.trainable_parameters
    formula = Formula.for_plan(parameters=parameters, tokens=tokens)
    if m.tokens is None:
        formula = replace(formula, D=1.0, origin=f"{formula.origin}; D is not in the log")
    if m.capacity_flops is None:
        formula = replace(formula, H=1.0, origin=f"{formula.origin}; H is not in the log")
    return formula


def _planned_steps(options: Import, log: ForeignLog) -> float:
    return options.planned_steps or log.facts.get("max_steps") or max(log.values)


def _record(
    run: str,
    step: int,
    m: Measurements,
    formula: Formula,
    options: Import,
    log: ForeignLog,
    found: _Found,
) -> Record:
    name = options.held_out
    fingerprints = () if name is None else (f"imported {name}",)
    peak = None if options.peak_tflops is None else options.peak_tflops * 1e12
    devices = tuple(
        OccupiedDevice(
            key=f"imported {i}",
            name=options.device_name,
            kind="unknown",
            dtype="unknown",
            peak_flops=peak,
            peak_source="imported: as given",
        )
        for i in range(options.devices)
    )
    return Record(
        run=run,
        batch=step,
        step=step,
        epoch=int(log.until(step, "epoch") or 0),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        measurements=m,
        score=formula.score(m),
        formula=formula.to_dict(),
        evaluation=EvaluationSet(
            tokens=(),
            perplexities=(m.perplexity if m.perplexity is not None else math.nan,),
            source=f"imported: {found.T} of {log.source}",
            fingerprints=fingerprints,
        ),
        planned=_planned_steps(options, log),
        learning_rate=LearningRate(now=found.rate_at(step)),
        devices=devices,
        assumptions={
            "loss": f"{found.T} is the mean NLL of a token in nats"
            if found.is_loss
            else f"{found.T} is the perplexity of a token",
            "plan": f"{_planned_steps(options, log):g} steps",
        },
    )
