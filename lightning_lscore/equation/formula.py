"""The equation: L = perplexity(T) · f(D) · f(A) · f(H).

A :class:`Factor` is one f, a :class:`Formula` holds the three of them, and :meth:`Formula.score`
turns :class:`Measurements` into a :class:`Score`. All of them are pure and frozen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, replace
from typing import Any

from . import formula_json
from .any_factor import AnyFactor, checked_factor, f_of, ln_f_of
from .baseline import Baseline, charge_nothing_at, open_baseline
from .factor import DEFAULT_WEIGHT, Factor
from .law import (
    compute_optimal_tokens,
    frontier_elasticity,
    planned_capacity_flops,
    serving_share,
)
from .measurements import Measurements
from .measures import NOMINAL_BYTES
from .safe_numbers import as_number, short
from .score import Score

_PERPLEXITIES = ("perplexity", "nominal_perplexity")


@dataclass(frozen=True, kw_only=True)
class Formula:
    """L = perplexity(T) · f(D) · f(A) · f(H), the cost-adjusted perplexity. Lower is better.

    ======= ======================================== ===============================
    T       held-out perplexity                      ``Measurements.perplexity``
    f(D)    charge for the data consumed             default measure: tokens
    f(A)    charge for the size of the model         default: trainable_parameters
    f(H)    charge for the machines occupied         default: capacity_flops [FLOP]
    ======= ======================================== ===============================

    Each of D, A and H is a :class:`Factor`, a constant, or a function of the measurements. A factor
    that is left out is 1 and charges nothing. Two values of L compare only under one formula and
    one evaluation set. Across tokenizers, whose tokens differ in length, use the perplexity of a
    nominal token of 4 bytes, exp(4 · nats per byte): ``T="nominal_perplexity"``, which needs
    ``LScore(count_bytes=...)``.

    Raises:
        ValueError: for a factor that is none of the three, a constant that is not a number > 0, a T
            that is not a perplexity, or factors with different levels.

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
    """Where the formula came from, in words, for readers of the record."""
    lscore_formula: InitVar[int] = formula_json.SCHEMA
    """Schema of its JSON, which is thereby a valid configuration of LightningCLI too."""

    def __post_init__(self, lscore_formula: int) -> None:
        if lscore_formula != formula_json.SCHEMA:
            raise ValueError(
                f"Formula: expected lscore_formula {formula_json.SCHEMA}, got "
                f"{short(lscore_formula)}. Was it saved by a newer version?"
            )
        if self.T not in _PERPLEXITIES:
            expected = " or ".join(map(repr, _PERPLEXITIES))
            raise ValueError(f"Formula.T: expected {expected}, got {short(self.T)}.")
        for name in ("T", "origin"):
            object.__setattr__(self, name, str(getattr(self, name)))
        for letter, factor in self._letters.items():
            object.__setattr__(self, letter, checked_factor(letter, factor))
        levels = {f.level for f in self._factors if f.level is not None}
        if len(levels) > 1:
            raise ValueError(f"Formula: expected one level of perplexity, got {sorted(levels)}.")

    # ------------------------------------------------------------------ L

    def score(self, measurements: Measurements) -> Score:
        """Return L and its parts.

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
            f_D=f_of("D", self.D, measurements),
            f_A=f_of("A", self.A, measurements),
            f_H=f_of("H", self.H, measurements),
            missing=tuple(dict.fromkeys(missing)),
        )

    def ln_parts(self, measurements: Measurements) -> dict[str, float | None]:
        """Return ln T, ln f(D), ln f(A) and ln f(H) by letter, whose sum is ln L; None if missing.

        They are finite even where T is beyond a float; -inf where a factor is 0.
        """
        return {"T": self.ln_T(measurements)} | {
            letter: ln_f_of(letter, factor, measurements)
            for letter, factor in self._letters.items()
        }

    def ln_price(self, measurements: Measurements, growth: float = 1.0) -> float | None:
        """Return ln f(D) + ln f(A) + ln f(H), now or once all spending has grown ``growth``-fold.

        With growth = planned / spent this is the price at the end of the plan, if the run goes on
        at its speed so far.

        Returns:
            None if a measure that the formula needs is missing, or a factor that is a function has
            no value so far ahead.

        >>> formula = Formula(D=Factor("tokens", reference=1e9, weight=0.05))
        >>> round(formula.ln_price(Measurements(tokens=10**9)), 3)
        0.0
        >>> round(formula.ln_price(Measurements(tokens=10**9), growth=3), 3)
        0.069
        """
        if growth == 1:
            parts = self.ln_parts(measurements)
        else:
            grown = {name: spent * growth for name, spent in measurements.spending().items()}
            try:
                parts = self.ln_parts(replace(measurements, **grown))  # type: ignore[arg-type]
            except Exception:  # of a user's function: these counts are no whole numbers
                return None
        factors = [ln_f for letter, ln_f in parts.items() if letter != "T" and ln_f is not None]
        return sum(factors) if len(factors) == 3 else None

    def elasticity_needed(self, measurements: Measurements) -> float | None:
        """Return the d ln T / d ln spent below which L falls, where the run is.

        It is -Σ w(1 + c)x/(c + x) over the factors of what grows, x = measure/reference: minus the
        weights where c = 0, and less before the reference where c = 1. Taken as a difference of
        :meth:`ln_price`, so that it holds for factors that are functions too.

        Returns:
            None where :meth:`ln_price` is.

        >>> plan = Formula(D=Factor("tokens", 1e9, 0.05))
        >>> [round(plan.elasticity_needed(Measurements(tokens=int(n))), 4) for n in (1e8, 1e9)]
        [-0.0091, -0.05]
        """
        step = 1e-4
        below, above = (self.ln_price(measurements, math.exp(u)) for u in (-step, step))
        if below is None or above is None or not math.isfinite(above - below):
            return None
        return 0.0 if above == below else (below - above) / (2 * step)

    def ln_T(self, measurements: Measurements) -> float | None:
        """Return ln T, finite even where T is beyond a float; None if it was not measured."""
        if self.T == "perplexity":
            return measurements.nll
        bits = measurements.bits_per_byte
        return None if bits is None else NOMINAL_BYTES * math.log(2) * bits

    # ------------------------------------------------------------------ what it charges for

    @property
    def _letters(self) -> dict[str, AnyFactor]:
        return {"D": self.D, "A": self.A, "H": self.H}

    @property
    def _factors(self) -> list[Factor]:
        return [f for f in self._letters.values() if isinstance(f, Factor)]

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the measures that the formula charges for."""
        return tuple(dict.fromkeys(name for f in self._factors for name in f.measures))

    @property
    def own_measures(self) -> tuple[str, ...]:
        """Those of :attr:`measures` that are the user's own."""
        own = {f.measure for f in self._factors if f.own}
        return tuple(name for name in self.measures if name in own)

    @property
    def level(self) -> float | None:
        """The perplexity that measures ``..._to_level`` wait for; None without such measures."""
        return next((f.level for f in self._factors if f.level is not None), None)

    def spending_measure(self, measurements: Measurements) -> str:
        """Return what to count spending in: the measure of H if it grew, else of D, else tokens."""
        spent = measurements.spending()
        charged = [f.measure for f in (self.H, self.D) if isinstance(f, Factor)]
        return next((name for name in charged if spent.get(name)), "tokens")

    # ------------------------------------------------------------------ where it comes from

    @classmethod
    def for_plan(cls, *, parameters: int, tokens: float | None = None) -> Formula:
        """Return the default formula of a run, whose references are its own plan.

        At the end of its plan L is the perplexity if the machine ran at 40 % of its peak and every
        parameter was trained. It serves decisions within a run. Across runs with different plans
        its L says nothing: each ends near its perplexity, whatever it spent.

        Args:
            parameters: all parameters of the model, trainable or not.
            tokens: tokens that the run is set to process. None (no finite plan): the
                compute-optimal number for the model's size, see :func:`compute_optimal_tokens`.
        """
        origin = f"the run's own plan of {tokens:.4g} tokens" if tokens else ""
        if not tokens:
            tokens = compute_optimal_tokens(parameters)
            origin = f"no finite plan: the compute-optimal {tokens:.4g} tokens"
        w = DEFAULT_WEIGHT
        # c = 1 for A too: what a run trains of its model hardly changes what a step costs.
        return cls._of_plan(parameters, tokens, (w, w, w), origin, c_A=1.0)

    @classmethod
    def for_model(cls, parameters: float) -> Formula:
        """Return the formula for pre-training a model of this size from scratch.

        References are the compute-optimal tokens and the capacity that they take at 40 % of the
        peak. Each weight is half of :func:`frontier_elasticity`. The law's optimum under this
        formula is its own reference, by construction: the formula turns a budget into exchange
        rates, and cannot tell how large a budget should be. Such weights stop a run that starts
        from a trained model at once, since it improves by less: use the default there.

        >>> round(Formula.for_model(1e8).D.weight, 4)
        0.1383
        """
        return cls._of_law(parameters, 0.0, f"the scaling law for {parameters:.4g} parameters")

    @classmethod
    def for_serving(cls, parameters: float, *, tokens_served: float) -> Formula:
        """Return the formula of a model that will serve: compute of training and serving together.

        A model of N parameters that is trained on D tokens and then reads or writes S tokens takes
        6·N·D + 2·N·S FLOP in its life. Where perplexity is lowest for that compute, a smaller
        model is trained for longer, and 1 % more parameters buy 1 + S/(3·D) times what 1 % more
        tokens buy. The references are that optimum for N, and the weights its exchange rates, so
        parameters weigh more and tokens less than under :meth:`for_model`, which this is at S = 0.

        Args:
            parameters: N, of the model.
            tokens_served: S, tokens in and out over the model's life, >= 0.

        Raises:
            ValueError: for a number of tokens that is negative or not finite.

        References:
            Sardana et al. 2024, https://arxiv.org/abs/2401.00448, section 2, for the compute.

        >>> formula = Formula.for_serving(1e9, tokens_served=1e12)
        >>> f"{formula.D.reference:.2g}", round(formula.A.weight / formula.D.weight, 1)
        ('2.4e+11', 3.8)
        """
        served = as_number(tokens_served)
        if served is None or not 0 <= served < math.inf:
            raise ValueError(
                f"tokens_served: expected a finite number >= 0, got {short(tokens_served)}."
            )
        origin = f"the scaling law for {parameters:.4g} parameters that serve {served:.4g} tokens"
        return cls._of_law(parameters, served, origin)

    @classmethod
    def _of_law(cls, parameters: float, served: float, origin: str) -> Formula:
        tokens = compute_optimal_tokens(parameters, served)
        e_N = frontier_elasticity(parameters)
        e_D = e_N / serving_share(tokens, served)
        w_H = e_D / 2  # device time goes as N·D, so it takes from both; e_D is the smaller
        return cls._of_plan(parameters, tokens, (e_D - w_H, e_N - w_H, w_H), origin)

    @classmethod
    def _of_plan(
        cls,
        parameters: float,
        tokens: float,
        weights: tuple[float, float, float],
        origin: str,
        c_A: float = 0.0,
    ) -> Formula:
        w_D, w_A, w_H = weights
        return cls(
            D=Factor("tokens", tokens, w_D),
            A=Factor("trainable_parameters", parameters, w_A, c_A),
            H=Factor("capacity_flops", planned_capacity_flops(parameters, tokens), w_H),
            origin=origin,
        )

    @classmethod
    def from_record(cls, run: Baseline | str | os.PathLike[str]) -> Formula:
        """Freeze a baseline: return the formula under which that run ended with L = perplexity.

        Measures, weights and c are those of the run's formula; references are what it had spent.
        Another run with L below the baseline's perplexity was better for the money.

        Args:
            run: a record of the baseline, or the path of its record file, whose last record counts.

        Raises:
            ValueError: if the record's formula holds a function, or a measure of it was missing.
        """
        baseline = open_baseline(run)
        formula = cls.from_dict(baseline.formula)
        factors: Mapping[str, Any] = {
            letter: charge_nothing_at(factor, baseline.measurements)
            for letter, factor in formula._letters.items()
        }
        origin = f"the baseline run {baseline.run} at step {baseline.step}"
        return replace(formula, **factors, origin=origin)

    # ------------------------------------------------------------------ JSON

    @property
    def id(self) -> str:
        """Eight hexadecimal digits, equal for formulas that give every run the same L."""
        return formula_json.id_of(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the formula as JSON types. A function becomes its name, which cannot be read."""
        return formula_json.to_json(self.T, self.origin, self._letters)

    @classmethod
    def from_dict(cls, data: Any) -> Formula:
        """Return the inverse of :meth:`to_dict`.

        Raises:
            ValueError: if ``data`` is not such a dictionary, or a factor in it was a function.
        """
        return cls(**formula_json.from_json(data))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the formula to a JSON file, whole or not at all.

        Raises:
            ValueError: if a factor is a function, which a file cannot hold.
        """
        data = self.to_dict()
        Formula.from_dict(data)  # refuses functions before anything is touched
        formula_json.write(path, data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Formula:
        """Read a formula from a JSON file.

        Raises:
            ValueError: if the file does not hold a formula; the message names the file.
        """
        try:
            return cls.from_dict(formula_json.read(path))
        except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
            raise ValueError(f"{os.fspath(path)}: {error}") from error
