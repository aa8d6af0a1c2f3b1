"""The equation: L = perplexity(T) · f(D) · f(A) · f(H).

A :class:`Factor` is one f, a :class:`Formula` the three of them, and ``Formula.score`` turns
:class:`Measurements` into a :class:`Score`. All of it is pure and frozen, and knows no torch.
"""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .factor import DEFAULT_WEIGHT, AnyFactor, Factor
from .formula_json import factor_from_json, factor_to_json
from .law import FLOPS_PER_PARAMETER, LAW_A, LAW_ALPHA, compute_optimal_tokens
from .measurements import Measurements
from .measures import NOMINAL_BYTES
from .safe_numbers import as_number, short
from .score import Score

if TYPE_CHECKING:
    from ..record.records import Record

_PERPLEXITIES = ("perplexity", "nominal_perplexity")

PLANNED_MFU = 0.4
"""Utilisation at which the default formula's machine time charges nothing. Large runs report 0.3 to
0.5 (Chowdhery et al. 2022, https://arxiv.org/abs/2204.02311, table 3)."""


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
            from ..record.records import read_run

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
        factors = {letter: factor_to_json(getattr(self, letter)) for letter in "DAH"}
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
        factors = {x: factor_from_json(x, data[x]) for x in "DAH" if x in data}
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


def _positive(value: Any, what: str) -> float:
    number = as_number(value)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"{what}: expected a finite number > 0, got {short(value)}.")
    return number
