"""The equation: L = perplexity(T) · f(D) · f(A) · f(H).

A :class:`Factor` is one f, a :class:`Formula` the three of them, and ``Formula.score`` turns
:class:`Measurements` into a :class:`Score`. All of it is pure and frozen, and knows no torch.
"""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from .measurements import (
    MEASURES,
    NOMINAL_BYTES,
    Measurements,
    as_number,
    check_measure,
    exp,
    short,
)

if TYPE_CHECKING:
    from ..record.record import Record

# These stay the same while a run goes on; everything else grows with it.
_OF_THE_MODEL = ("trainable_parameters", "total_parameters", "flops_per_token")
# These are training time, of which the devices' idle share is known.
TRAINING_TIME = ("train_hours", "device_hours", "cost", "capacity_flops")

_PERPLEXITIES = ("perplexity", "nominal_perplexity")

# loss = E + A / N^alpha + B / D^beta for N parameters and D tokens: the constants that Besiroglu et
# al. 2024 (https://arxiv.org/abs/2404.10102) fitted to the runs of Hoffmann et al. 2022.
LAW_A, LAW_B, LAW_ALPHA, LAW_BETA = 482.01, 2085.43, 0.3478, 0.3658

DEFAULT_WEIGHT = 0.025
"""Weight of each factor in the default formula. Tokens and time together weigh 0.05: twice of both
must buy 1 - 2^-0.05 = 3.4 % lower perplexity, the compute-optimal rate of a model of about 12B
parameters (from the law in Besiroglu et al. 2024, https://arxiv.org/abs/2404.10102)."""

PLANNED_MFU = 0.4
"""Utilisation at which the default formula's machine time charges nothing. Large runs report 0.3 to
0.5 (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, table 3)."""

FLOPS_PER_PARAMETER = 6
"""Training FLOP per parameter and token: 2 forward, 4 backward (Kaplan et al. 2020,
https://arxiv.org/abs/2001.08361, section 2.1)."""


@dataclass(frozen=True)
class Factor:
    """One factor: f(x; w, c) = ((c + x) / (c + 1)) ^ (w · (1 + c)), with x = measure / reference.

    ========= =================================================================================
    x         the measure in units of ``reference``; f(1) = 1, below it f < 1, above it f > 1
    w         ``weight``: d ln f / d ln x at the reference. "Doubling x must buy about
              1 - 2^-w lower perplexity." 0 switches the factor off
    c         softness at small x. 0 is the plain power x^w of MnasNet (Tan et al. 2019,
              https://arxiv.org/abs/1807.11626); 1 keeps f from going to 0 as x does, so that the
              first validation of a run is not its best merely because little was spent
    ========= =================================================================================

    Args:
        measure: name of a measure, such as ``"tokens"``; ``"tokens_to_level"``, what had been
            spent when a stated perplexity was first reached; or one of your own.
        reference: the amount at which the factor charges nothing, in the measure's unit, > 0.
        weight: w >= 0.
        c: >= 0. Default: 1 for what grows during a run, 0 for what is fixed by the model.
        idle_price: what an hour of idle device costs beside a busy one, >= 0; for measures of time.
            Priced is time · (busy + idle_price · (1 - busy)), with the share of time that the
            device was busy. 1: a rented device costs the same idle. 0: idle time is given back.
        level: the T of a measure ``..._to_level``, > 0. Before it is reached there is no L, so let
            EarlyStopping be ``strict=False``, and ModelCheckpoint monitor the perplexity.
        own: whether the measure is one of ``LScore(measures={name: function})``.

    Raises:
        ValueError: for an unknown measure, a reference <= 0, a negative weight or c, NaN, infinity,
            an idle price of what is not time, a level of what has none or the reverse.

    >>> f = Factor("tokens", reference=1e9, weight=0.1)
    >>> f.f(1.0), round(f.f(2.0), 4)
    (1.0, 1.0845)
    """

    measure: str
    reference: float
    weight: float = DEFAULT_WEIGHT
    c: float | None = None
    idle_price: float = 1.0
    level: float | None = None
    own: bool = False

    def __post_init__(self) -> None:
        self._check_measure()
        if self.c is None:
            object.__setattr__(self, "c", 0.0 if self.measure in _OF_THE_MODEL else 1.0)
        bounds = {"reference": "> 0", "weight": ">= 0", "c": ">= 0", "idle_price": ">= 0"}
        for name, least in (bounds if self.level is None else {**bounds, "level": "> 0"}).items():
            value = as_number(getattr(self, name))
            if value is None or not 0 <= value < math.inf or (least == "> 0" and value == 0):
                raise ValueError(
                    f"Factor.{name} of {self.measure!r}: expected a finite number {least}, "
                    f"got {short(getattr(self, name))}."
                )
            object.__setattr__(self, name, value)
        if self.idle_price != 1 and self.measure not in TRAINING_TIME:
            raise ValueError(
                "Factor.idle_price: expected a measure of training time "
                f"({', '.join(TRAINING_TIME)}), got {self.measure!r}."
            )

    def _check_measure(self) -> None:
        if not isinstance(self.own, bool):
            raise ValueError(f"Factor.own: expected True or False, got {short(self.own)}.")
        name = self.measure
        if self.own and not (
            isinstance(name, str) and name.isidentifier() and name not in MEASURES
        ):
            raise ValueError(
                "Factor.measure: expected a name of letters, digits and _ that no other measure "
                f"has for one of your own, got {short(name)}."
            )
        try:
            if not self.own:
                check_measure(self.measure)
        except ValueError as error:
            raise ValueError(
                f"Factor.measure: {error} For one of your own say own=True, and give "
                "LScore(measures={name: function})."
            ) from None
        if (self.level is not None) != (not self.own and self.measure.endswith("_to_level")):
            raise ValueError(
                "Factor.level: expected the perplexity to be reached for a measure ..._to_level, "
                f"and None for any other, got {short(self.level)} for {self.measure!r}."
            )

    def ln_f(self, x: float) -> float:
        """ln f at x = measure / reference >= 0; -inf where f is 0."""
        assert self.c is not None
        if self.weight == 0:
            return 0.0
        if self.c + x == 0:
            return -math.inf
        step = (x - 1) / (self.c + 1)
        # log1p is exact near the reference and for large c, log where x is tiny.
        ln = math.log1p(step) if step > -0.5 else math.log((self.c + x) / (self.c + 1))
        return self.weight * (1 + self.c) * ln

    def f(self, x: float) -> float:
        """f at x = measure / reference >= 0."""
        return exp(self.ln_f(x))

    def __call__(self, measurements: Measurements) -> float | None:
        """f of what was measured, None if the measure is missing."""
        ln = self.ln(measurements)
        return None if ln is None else exp(ln)

    def ln(self, measurements: Measurements) -> float | None:
        """ln f of what was measured, None if the measure is missing."""
        if self.weight == 0:
            return 0.0
        priced = self.priced(measurements)
        return None if priced is None else self.ln_f(priced / self.reference)

    def priced(self, measurements: Measurements) -> float | None:
        """What is charged for, in the measure's unit: the measure, or time less idle time."""
        if self.own:
            return measurements.own.get(self.measure)
        value = measurements.get(self.measure)
        if self.level not in (None, measurements.level):
            return None
        if self.idle_price == 1:
            return value
        busy = measurements.get("busy_fraction")
        if value is None or busy is None:
            return None
        return value * (busy + self.idle_price * (1 - busy))

    def missing(self, measurements: Measurements) -> list[str]:
        """Why there is no f: "measure: reason" for each that it needs and has not."""
        if self.priced(measurements) is not None:
            return []
        if self.own:
            return [f"{self.measure}: {measurements.why_missing(self.measure)}"]
        if self.level not in (None, measurements.level):
            return [f"{self.measure}: unavailable: not measured for a level of {self.level:g}"]
        return [
            f"{name}: {measurements.why_missing(name)}"
            for name in self.measures
            if measurements.get(name) is None
        ]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures that it needs; none where its weight is 0."""
        if self.weight == 0:
            return ()
        return (self.measure,) if self.idle_price == 1 else (self.measure, "busy_fraction")


AnyFactor: TypeAlias = Factor | float | Callable[[Measurements], float]
"""A :class:`Factor`, a constant > 0, or a function of the measurements to a number > 0."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """L and its parts. ``None``: a measure that the formula needs is missing (see ``missing``)."""

    perplexity: float | None
    """T: of a token, or of a nominal one of 4 bytes where the formula says so."""
    f_D: float | None
    f_A: float | None
    f_H: float | None
    missing: tuple[str, ...] = ()

    @property
    def L(self) -> float | None:
        """The cost-adjusted perplexity; lower is better."""
        T, D, A, H = self.perplexity, self.f_D, self.f_A, self.f_H
        if T is None or D is None or A is None or H is None:
            return None
        # Smallest first: a factor of 0 must not meet a product that has overflowed.
        return math.prod(sorted((T, D, A, H)))


@dataclass(frozen=True, kw_only=True)
class Formula:
    """L = perplexity(T) · f(D) · f(A) · f(H), the cost-adjusted perplexity. Lower is better.

    ======= ======================================== ===============================
    T       held-out perplexity                      ``Measurements.perplexity``
    f(D)    charge for the data consumed             default measure: tokens
    f(A)    charge for the size of the model         default: trainable_parameters
    f(H)    charge for the machines occupied         default: capacity_flops [FLOP]
    ======= ======================================== ===============================

    Each of D, A and H is a :class:`Factor`, a constant, or a function of the measurements; one that
    is left out is 1 and charges nothing. Two values of L compare only under one formula and one
    evaluation set. Across tokenizers, whose tokens differ in length, take the perplexity of a
    nominal token of 4 bytes, exp(4 · nats per byte), with ``T="nominal_perplexity"``; it needs
    ``LScore(count_bytes=...)``.

    Raises:
        ValueError: for a factor that is none of the three, a constant that is no number > 0, a T
            that is no perplexity, or factors that ask for different levels.

    >>> score = Formula(D=0.95, A=0.90, H=0.85).score(Measurements(perplexity=20.0))
    >>> round(score.L, 3)
    14.535
    """

    D: AnyFactor = 1.0
    A: AnyFactor = 1.0
    H: AnyFactor = 1.0
    T: str = "perplexity"
    """``"perplexity"`` of a token, or ``"nominal_perplexity"``, of 4 bytes."""
    origin: str = "given"
    """Where the formula came from, in words, for whoever reads the record."""

    def __post_init__(self) -> None:
        if self.T not in _PERPLEXITIES:
            expected = " or ".join(map(repr, _PERPLEXITIES))
            raise ValueError(f"Formula.T: expected {expected}, got {short(self.T)}.")
        for letter in "DAH":
            factor = getattr(self, letter)
            if isinstance(factor, numbers.Real):
                object.__setattr__(self, letter, _positive(factor, f"Formula.{letter}"))
            elif not callable(factor):
                raise ValueError(
                    f"Formula.{letter}: expected a Factor, a number > 0 or a function of the "
                    f"measurements, got {short(factor)}."
                )
        levels = {f.level for f in self._factors if f.level is not None}
        if len(levels) > 1:
            raise ValueError(f"Formula: expected one level of perplexity, got {sorted(levels)}.")

    @property
    def _factors(self) -> list[Factor]:
        return [f for f in (self.D, self.A, self.H) if isinstance(f, Factor)]

    @property
    def level(self) -> float | None:
        """The perplexity that measures ``..._to_level`` wait for, if there are such."""
        return next((f.level for f in self._factors if f.level is not None), None)

    def score(self, measurements: Measurements) -> Score:
        """L and its parts from what was measured.

        A perplexity of NaN or infinity makes L NaN or infinite; a missing measure makes L None.

        Raises:
            ValueError: if a factor that is a function returns anything but a finite number > 0.
        """
        T = measurements.get(self.T)
        missing = [] if T is not None else [f"{self.T}: {measurements.why_missing(self.T)}"]
        for factor in self._factors:
            missing += factor.missing(measurements)
        return Score(
            perplexity=T,
            f_D=self._factor("D", measurements),
            f_A=self._factor("A", measurements),
            f_H=self._factor("H", measurements),
            missing=tuple(dict.fromkeys(missing)),
        )

    def ln_parts(self, measurements: Measurements) -> dict[str, float | None]:
        """ln T, ln f(D), ln f(A) and ln f(H) by letter, whose sum is ln L; None where missing.

        Finite also where T is beyond a float; -inf where a factor is 0.
        """
        return {"T": self.ln_T(measurements)} | {
            letter: self._ln_factor(letter, measurements) for letter in "DAH"
        }

    def ln_price(self, measurements: Measurements, growth: float = 1.0) -> float | None:
        """ln f(D) + ln f(A) + ln f(H), now or once everything that grows has grown ``growth``-fold.

        With growth = planned / spent it is the price at the end of the plan, if the run goes on at
        the speed it had so far.

        Returns:
            None if a measure that the formula needs is missing, or a factor that is a function has
            no value so far ahead.

        >>> formula = Formula(D=Factor("tokens", reference=1e9, weight=0.05))
        >>> round(formula.ln_price(Measurements(tokens=10**9)), 3)
        0.0
        >>> round(formula.ln_price(Measurements(tokens=10**9), growth=3), 3)
        0.069
        """
        grown = {name: spent * growth for name, spent in measurements.spending().items()}
        try:
            parts = self.ln_parts(replace(measurements, **grown))  # type: ignore[arg-type]
        except (ValueError, ArithmeticError):
            if growth == 1:
                raise
            return None
        factors = [ln_f for letter, ln_f in parts.items() if letter != "T" and ln_f is not None]
        return sum(factors) if len(factors) == 3 else None

    def ln_T(self, measurements: Measurements) -> float | None:
        """ln T, finite also where T is beyond a float; None where it was not measured."""
        if self.T == "perplexity":
            return measurements.nll
        bits = measurements.bits_per_byte
        return None if bits is None else NOMINAL_BYTES * math.log(2) * bits

    def _ln_factor(self, letter: str, measurements: Measurements) -> float | None:
        factor = getattr(self, letter)
        if isinstance(factor, Factor):
            return factor.ln(measurements)
        value = self._factor(letter, measurements)
        return None if value is None else math.log(value)

    def _factor(self, letter: str, measurements: Measurements) -> float | None:
        factor = getattr(self, letter)
        if isinstance(factor, Factor):
            return factor(measurements)
        if isinstance(factor, float):
            return factor
        return _positive(factor(measurements), f"the function given as Formula.{letter}")

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures that the formula charges for."""
        return tuple(dict.fromkeys(name for f in self._factors for name in f.measures))

    def spending_measure(self, measurements: Measurements) -> str:
        """What to count spending in: the measure of H if it has grown, else of D, else tokens."""
        spent = measurements.spending()
        charged = [f.measure for f in (self.H, self.D) if isinstance(f, Factor)]
        return next((name for name in charged if spent.get(name)), "tokens")

    @property
    def own_measures(self) -> tuple[str, ...]:
        """Those of them that are the user's own."""
        own = {f.measure for f in self._factors if f.own}
        return tuple(name for name in self.measures if name in own)

    @classmethod
    def for_plan(cls, *, parameters: int, tokens: float | None = None) -> Formula:
        """The default formula of a run: at the end of its plan L is the perplexity.

        With every parameter trained and the machine at 40 % of its peak, that is; cheaper runs
        score below their perplexity and dearer ones above.

        Args:
            parameters: all parameters of the model, trainable or not.
            tokens: what the run is set to process. None (no finite plan): the compute-optimal
                number for the model's size, see :func:`compute_optimal_tokens`.
        """
        origin = f"the run's own plan of {tokens:.4g} tokens" if tokens else ""
        if not tokens:
            tokens = compute_optimal_tokens(parameters)
            origin = f"no finite plan: the compute-optimal {tokens:.4g} tokens"
        return cls._of_plan(parameters, tokens, DEFAULT_WEIGHT, origin)

    @classmethod
    def for_model(cls, parameters: float) -> Formula:
        """The formula for pre-training a model of this size from scratch, by the scaling law.

        References are the compute-optimal tokens and what they take at 40 % of the peak; each
        weight is half the elasticity of perplexity on the compute-optimal frontier,
        e(N) = alpha·A·N^-alpha, with N taken as 10M at least. Such rates stop a run that starts
        from a trained model at once, since that improves by less: use the default there.

        >>> round(Formula.for_model(1e8).D.weight, 4)
        0.1383
        """
        e = LAW_ALPHA * LAW_A * max(parameters, 1e7) ** -LAW_ALPHA
        tokens = compute_optimal_tokens(parameters)
        origin = f"the scaling law for {parameters:.4g} parameters"
        return cls._of_plan(parameters, tokens, e / 2, origin)

    @classmethod
    def _of_plan(cls, parameters: float, tokens: float, weight: float, origin: str) -> Formula:
        flops = FLOPS_PER_PARAMETER * parameters * tokens / PLANNED_MFU
        return cls(
            D=Factor("tokens", tokens, weight),
            A=Factor("trainable_parameters", parameters, weight),
            H=Factor("capacity_flops", flops, weight),
            origin=origin,
        )

    @classmethod
    def from_record(cls, run: Record | str | os.PathLike[str]) -> Formula:
        """Freezes a baseline: the formula under which that run ended with L = its perplexity.

        Measures, weights and c are those of the run's formula, references what it had spent. Under
        it, L of another run below the baseline's perplexity means better for the money.

        Args:
            run: a record of the baseline, or the path of its record file, of which the last counts.

        Raises:
            ValueError: if the record's formula holds a function, or a measure of it was missing.
        """
        if isinstance(run, (str, os.PathLike)):
            from ..record.file import read_run

            run = read_run(run)[-1]
        formula = cls.from_dict(run.formula)
        factors = {letter: getattr(formula, letter) for letter in "DAH"}
        for letter, factor in factors.items():
            if isinstance(factor, Factor) and factor.weight > 0:
                spent = factor.priced(run.measurements)
                if not spent:
                    why = run.measurements.why_missing(factor.measure)
                    raise ValueError(
                        f"expected a baseline with a value of {factor.measure!r}, "
                        f"got {spent}: {why}"
                    )
                factors[letter] = replace(factor, reference=spent)
        return replace(formula, **factors, origin=f"the baseline run {run.run} at step {run.step}")

    # ------------------------------------------------------------------ JSON

    def to_dict(self) -> dict[str, Any]:
        """The formula as JSON types. A function is written as its name and cannot be read back."""
        factors = {letter: _factor_to_json(getattr(self, letter)) for letter in "DAH"}
        T = {} if self.T == "perplexity" else {"T": self.T}
        return {"lscore_formula": 1, "origin": self.origin, **T, **factors}

    @classmethod
    def from_dict(cls, data: Any) -> Formula:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: if ``data`` is not such a dictionary, or a factor in it was a function.
        """
        if not isinstance(data, Mapping) or data.get("lscore_formula") != 1:
            raise ValueError(
                f'expected a formula ({{"lscore_formula": 1, "D": ...}}), got {short(data)}.'
            )
        unknown = set(data) - {"lscore_formula", "origin", "T", "D", "A", "H"}
        if unknown:
            raise ValueError(
                f"expected T, D, A, H and origin in a formula, got {short(unknown)} too."
            )
        factors = {x: _factor_from_json(x, data[x]) for x in "DAH" if x in data}
        T = data.get("T", "perplexity")
        return cls(T=T, origin=str(data.get("origin", "given")), **factors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the formula to a JSON file, whole or not at all.

        Raises:
            ValueError: if a factor is a function, which a file cannot hold.
        """
        Formula.from_dict(self.to_dict())  # refuses functions before anything is touched
        beside = f"{os.fspath(path)}.{os.getpid()}.tmp"
        with open(beside, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=2)
            file.write("\n")
        os.replace(beside, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Formula:
        """Reads a formula from a JSON file.

        Raises:
            ValueError: if the file does not hold a formula; the message names the file.
        """
        try:
            with open(path, encoding="utf-8") as file:
                return cls.from_dict(json.load(file))
        except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def compute_optimal_tokens(parameters: float) -> float:
    """Training tokens D* at which more data and more parameters buy equally much.

    Solves beta·B·D^-beta = alpha·A·N^-alpha, the optimum at fixed compute of the scaling law
    loss = E + A/N^alpha + B/D^beta (constants of Besiroglu et al. 2024).

    >>> f"{compute_optimal_tokens(1e9):.1e}"
    '2.3e+10'
    """
    ratio = LAW_BETA * LAW_B / (LAW_ALPHA * LAW_A)
    return float((ratio * max(parameters, 1) ** LAW_ALPHA) ** (1 / LAW_BETA))


def _positive(value: Any, what: str) -> float:
    number = as_number(value)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"{what}: expected a finite number > 0, got {short(value)}.")
    return number


def _factor_to_json(factor: AnyFactor) -> Any:
    if isinstance(factor, Factor):
        values = asdict(factor)
        seldom = {"level": None, "own": False}
        return {k: v for k, v in values.items() if k not in seldom or v != seldom[k]}
    if isinstance(factor, float):
        return factor
    name = getattr(factor, "__qualname__", type(factor).__qualname__)
    return {"function": f"{getattr(factor, '__module__', '?')}.{name}"}


def _factor_from_json(letter: str, data: Any) -> Any:
    if isinstance(data, Mapping) and set(data) == {"function"}:
        raise ValueError(
            f"{letter} of this formula is the function {short(data['function'])}, which no file "
            "can hold. Build the formula in Python, where the function is."
        )
    if not isinstance(data, Mapping):
        return data  # a constant: Formula checks it
    if not {"measure", "reference", "weight"} <= set(data) <= {*Factor.__dataclass_fields__}:
        raise ValueError(
            f"{letter} of a formula: expected measure, reference, weight and c, got {short(data)}."
        )
    return Factor(**data)
