"""Do L, its stopping rule, its prediction and its calibration keep their promises on real runs?

    python benchmarks/validity.py          on the public runs in benchmarks/data
    python benchmarks/validity.py --curves mine.csv --finished mine_too.csv --weights 0.05

Stopping: each curve is replayed under the default formula (reference: the end of its plan; tokens
and machine time both proportional to ``spent``), once whole ("scratch") and once from its second
half alone ("warm"). A warm curve stands for a run that starts from a trained model: its spending
counts from the half's first validation, and its reference is what remains of the plan. Rules:
Lightning's EarlyStopping on L with a patience of 3 validations; 25 % more spending than at the best
L and 2 validations without improvement; Patience.

    first      share of curves whose best L is their first validation
    within     share of curves whose best L up to the stop is within 1 % of the whole curve's
    regret     ln(best L up to the stop / best L of the whole curve), mean and worst [nats]
    lost       lowest loss up to the stop - lowest loss of the whole curve, mean [nats]
    saved      share of the planned spending that was saved
    after      spending after the whole curve's best L, as a share of the plan, mean; 0 where the
               rule stopped before it
    after|25%  the same over the curves on which the 25 % rule also ends within 1 %, since a rule
               that stops before the best point looks thrifty in "after"

Prediction: each curve, whole and its second half alone, is cut at 25, 40, 60 and 80 % of its plan,
and the best L of the whole curve is predicted from the part before the cut.

    shown      share of cases with a prediction
    held       share of the shown cases whose 90 % interval holds the best L; below: it is lower
    error      |ln(predicted / true best L)|, median [nats]; so far: the same with the best L before
               the cut as the prediction
    width      ln(upper / lower end of the interval), median [nats]
    spending   share of the shown cases whose interval holds the spending at the best L

Calibration: weights from random subsets of the finished runs against those from their whole set.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_lscore import Factor
from lightning_lscore.curve.calibrate import calibrate
from lightning_lscore.curve.forecast import predict
from lightning_lscore.curve.patience import Patience
from lightning_lscore.equation.prediction import Prediction

DATA = Path(__file__).parent / "data"
ONE_PERCENT = math.log(1.01)
CUTS = (0.25, 0.4, 0.6, 0.8)
LEAST = 4  # validations in a curve; shorter ones are left out


@dataclass(frozen=True)
class Curve:
    """A run's validations. ``spent`` is a share of the plan, which ends at 1."""

    name: str
    spent: tuple[float, ...]
    loss: tuple[float, ...]

    def warm(self) -> Curve | None:
        """Return the second half of the validations as a run of its own."""
        half = len(self.spent) // 2
        spent, loss = self.spent[half:], self.loss[half:]
        if len(spent) < LEAST:
            return None
        plan = spent[-1] - spent[0]
        return Curve(self.name, tuple((s - spent[0]) / plan for s in spent), loss)

    def thinned(self, every: int) -> Curve | None:
        """Keep every ``every``-th validation, the last, and a first one at no spending."""
        last = len(self.spent) - 1
        first = 0 if self.spent[0] == 0 else every - 1
        keep = sorted({*range(first, last, every), last})
        if len(keep) < LEAST:
            return None
        return Curve(
            self.name, tuple(self.spent[i] for i in keep), tuple(self.loss[i] for i in keep)
        )


# ---------------------------------------------------------------------- stopping

Rule = Callable[[Curve, Sequence[float]], int]
"""(curve, ln f at each validation) -> index of the validation at which the rule stops."""


def early_stopping(curve: Curve, ln_f: Sequence[float]) -> int:
    """Stop as Lightning's EarlyStopping(monitor="L", patience=3) does."""
    return _first(curve, ln_f, lambda waited, now, best: waited >= 3)


def quarter(curve: Curve, ln_f: Sequence[float]) -> int:
    """Stop at 1.25 times the spending at the best L, after two validations without improvement."""
    return _first(curve, ln_f, lambda waited, now, best: waited >= 2 and now >= 1.25 * best)


def _first(curve: Curve, ln_f: Sequence[float], enough: Callable[[int, float, float], bool]) -> int:
    best, at = math.inf, 0
    for i, (loss, price) in enumerate(zip(curve.loss, ln_f, strict=True)):
        if loss + price < best:
            best, at = loss + price, i
        elif enough(i - at, curve.spent[i], curve.spent[at]):
            return i
    return len(curve.loss) - 1


def by_patience(tolerance: float, certainty: float) -> Rule:
    """Return the package's rule."""

    def rule(curve: Curve, ln_f: Sequence[float]) -> int:
        patience = Patience(tolerance, certainty=certainty)
        for i, (loss, price) in enumerate(zip(curve.loss, ln_f, strict=True)):
            verdict = patience.update(
                ln_T=loss, ln_f=price, spent=curve.spent[i], planned=1, ln_f_at_end=0
            )
            if verdict.stop:
                return i
        return len(curve.loss) - 1

    return rule


def price(curve: Curve, weight: float) -> list[float]:
    """Return ln f(D) + ln f(H) of the default formula, w_D = w_H = weight / 2; f(A) is constant."""
    return [price_at(x, weight) for x in curve.spent]


def price_at(spent: float, weight: float) -> float:
    D, H = Factor("tokens", 1, weight / 2), Factor("capacity_flops", 1, weight / 2)
    return D.ln_f(spent) + H.ln_f(spent)


@dataclass(frozen=True)
class Outcome:
    """How a rule did on one curve."""

    regret: float
    lost: float
    saved: float
    after: float

    @property
    def within(self) -> bool:
        return self.regret <= ONE_PERCENT


def outcome(curve: Curve, ln_f: Sequence[float], stop: int) -> Outcome:
    ln_L = [loss + price for loss, price in zip(curve.loss, ln_f, strict=True)]
    best = ln_L.index(min(ln_L))
    return Outcome(
        regret=min(ln_L[: stop + 1]) - ln_L[best],
        lost=min(curve.loss[: stop + 1]) - min(curve.loss),
        saved=1 - curve.spent[stop],
        after=max(0.0, curve.spent[stop] - curve.spent[best]),
    )


def stopping_tables(
    sets: dict[str, list[Curve]], weights: Sequence[float], every: Sequence[int], patience: Rule
) -> Iterator[str]:
    rules = {"EarlyStopping(3)": early_stopping, "25 %": quarter, "Patience": patience}
    for name, whole in sets.items():
        for start, curves in (("scratch", whole), ("warm", [c.warm() for c in whole])):
            for step in every:
                kept = [t for c in curves if c and (t := c.thinned(step))]
                if not kept:
                    continue
                thin = "" if step == 1 else f", every {step} validations"
                yield f"\n{name}, {start}{thin}: {len(kept)} curves"
                yield (
                    "     W  first  rule               within   regret mean / worst     lost"
                    "   saved   after  after|25%"
                )
                for weight in weights:
                    yield from _rows(kept, weight, rules)


def _rows(curves: Sequence[Curve], weight: float, rules: dict[str, Rule]) -> Iterator[str]:
    prices = [price(c, weight) for c in curves]
    first = np.mean(
        [int(np.argmin(np.add(c.loss, p))) == 0 for c, p in zip(curves, prices, strict=True)]
    )
    done = {
        name: [outcome(c, p, rule(c, p)) for c, p in zip(curves, prices, strict=True)]
        for name, rule in rules.items()
    }
    also = [o.within for o in done["25 %"]]
    for name, results in done.items():
        fair = [o for o, fine in zip(results, also, strict=True) if fine]
        yield (
            f"  {weight:4g}  {first:5.1%}  {name:17s}  {_mean(results, 'within'):6.1%}"
            f"      {_mean(results, 'regret'):.4f} / {max(o.regret for o in results):.4f}"
            f"  {_mean(results, 'lost'):.4f}  {_mean(results, 'saved'):6.1%}"
            f"  {_mean(results, 'after'):6.1%}     {_mean(fair, 'after'):6.1%}"
        )


def _mean(outcomes: Sequence[Outcome], what: str) -> float:
    return float(np.mean([getattr(o, what) for o in outcomes])) if outcomes else math.nan


# ---------------------------------------------------------------------- prediction


@dataclass(frozen=True)
class Forecast:
    """A prediction from the first part of a curve, and what came."""

    weight: float
    cut: float
    ln_L: float
    """Lowest of the whole curve."""
    ln_L_so_far: float
    growth: float
    """Spending at the lowest L, as a multiple of that at the cut."""
    found: Prediction | None

    @property
    def error(self) -> float:
        assert self.found
        return math.log(self.found.best_L) - self.ln_L

    @property
    def so_far(self) -> float:
        return self.ln_L_so_far - self.ln_L

    @property
    def width(self) -> float:
        assert self.found
        return math.log(self.found.best_L_high / self.found.best_L_low)

    @property
    def held(self) -> bool:
        assert self.found
        low, high = math.log(self.found.best_L_low), math.log(self.found.best_L_high)
        return low - 1e-9 <= self.ln_L <= high + 1e-9  # a value already reached comes back rounded

    @property
    def below(self) -> bool:
        return not self.held and self.error > 0

    @property
    def spending(self) -> bool:
        assert self.found
        low, high = self.found.growth_low, self.found.growth_high
        return low * (1 - 1e-9) <= self.growth <= high * (1 + 1e-9)


def forecast(curve: Curve, weight: float, cut: float) -> Forecast | None:
    """Predict from what lies before the cut; None if nothing was spent there."""
    ln_L = [y + p for y, p in zip(curve.loss, price(curve, weight), strict=True)]
    seen = sum(s <= cut for s in curve.spent)
    if not seen or curve.spent[seen - 1] == 0:
        return None
    now, so_far = curve.spent[seen - 1], min(ln_L[:seen])
    found = predict(
        curve.spent[:seen],
        curve.loss[:seen],
        lambda growth: price_at(now * growth, weight),
        best_ln_L=so_far,
        best_spent=curve.spent[ln_L.index(so_far)],
        planned=1,
    )
    return Forecast(
        weight=weight,
        cut=cut,
        ln_L=min(ln_L),
        ln_L_so_far=so_far,
        growth=curve.spent[ln_L.index(min(ln_L))] / now,
        found=found if isinstance(found, Prediction) else None,
    )


def prediction_tables(sets: dict[str, list[Curve]], weights: Sequence[float]) -> Iterator[str]:
    for name, whole in sets.items():
        for start, curves in (("scratch", whole), ("warm", [c.warm() for c in whole])):
            kept = [c for c in curves if c]
            made = [forecast(c, w, cut) for c in kept for w in weights for cut in CUTS]
            done = [f for f in made if f]
            if not done:
                continue
            yield f"\n{name}, {start}: {len(kept)} curves"
            yield (
                "                 cases   shown    held   below     error  so far   width  spending"
            )
            for weight in weights:
                yield _forecast_row(f"W {weight:g}", [f for f in done if f.weight == weight])
            for cut in CUTS:
                yield _forecast_row(f"cut at {cut:.0%}", [f for f in done if f.cut == cut])


def _forecast_row(title: str, cases: Sequence[Forecast]) -> str:
    shown = [f for f in cases if f.found]
    if not shown:
        return f"  {title:14s} {len(cases):6d}    0.0%"
    held, below, spending = (
        np.mean([getattr(f, what) for f in shown]) for what in ("held", "below", "spending")
    )
    error, so_far, width = (
        np.median([abs(getattr(f, what)) for f in shown]) for what in ("error", "so_far", "width")
    )
    return (
        f"  {title:14s} {len(cases):6d}  {len(shown) / len(cases):6.1%}  {held:6.1%}  {below:6.1%}"
        f"    {error:.4f}  {so_far:.4f}  {width:.4f}    {spending:6.1%}"
    )


# ---------------------------------------------------------------------- calibration


def calibration_tables(
    sets: dict[str, list[tuple[float, float, float]]], sizes: Sequence[int], subsets: int
) -> Iterator[str]:
    names = ("w_D", "w_A", "w_H")
    for name, runs in sets.items():
        table = np.array(runs)
        truth = calibrate(*table.T)
        yield (
            f"\n{name}: {truth.runs} runs, e_N {truth.e_N:.3f}, e_D {truth.e_D:.3f} at "
            f"N = {truth.parameters:.2g}, D = {truth.tokens:.2g}; "
            + ", ".join(f"{w} {getattr(truth, w):.3f}" for w in names)
        )
        yield (
            "  runs   median error of "
            + "  ".join(f"{w:>5s}" for w in names)
            + ("    90 % interval holds it " + "  ".join(f"{w:>5s}" for w in names) + "    all")
        )
        rng = np.random.default_rng(0)
        for size in (n for n in sizes if n < len(runs)):
            error: dict[str, list[float]] = {w: [] for w in names}
            held: dict[str, list[bool]] = {w: [] for w in names}
            for trial in range(subsets):
                part = table[rng.choice(len(runs), size, replace=False)]
                found = calibrate(
                    *part.T,
                    reference_parameters=truth.parameters,
                    reference_tokens=truth.tokens,
                    resamples=300,
                    seed=trial,
                )
                for w in names:
                    error[w].append(abs(getattr(found, w) / getattr(truth, w) - 1))
                    held[w].append(getattr(truth, w) in getattr(found, f"{w}_interval"))
            shares = [float(np.mean(held[w])) for w in names]
            yield (
                f"  {size:4d}                   "
                + "  ".join(f"{np.median(error[w]):5.0%}" for w in names)
                + "                           "
                + "  ".join(f"{s:5.0%}" for s in shares)
                + f"  {np.mean(shares):5.0%}"
            )


# ---------------------------------------------------------------------- files


class BadFile(Exception):
    """An unusable file; the message says where it is wrong and what to do."""


def _read(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [c for c in columns if c not in (reader.fieldnames or [])]
            if missing:
                raise BadFile(
                    f"{path}: expected the columns {', '.join(columns)}, got "
                    f"{', '.join(reader.fieldnames or ['nothing'])}. Add {', '.join(missing)}."
                )
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path}: expected a readable CSV file in UTF-8, got: {error}.") from error


def _cell(path: Path, line: int, row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise BadFile(
            f"{path}, line {line}: expected a finite number >= 0 in {column}, got "
            f"{row[column]!r}. Leave out the row."
        )
    return value


def read_curves(path: Path) -> tuple[dict[str, list[Curve]], int]:
    """Return the curves by set, and how many were too short."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line, row in _read(path, ("set", "curve", "spent", "loss")):
        curve = points.setdefault((row["set"], row["curve"]), [])
        spent, loss = (_cell(path, line, row, c) for c in ("spent", "loss"))
        if curve and spent <= curve[-1][0]:
            raise BadFile(
                f"{path}, line {line}: expected spent to grow along curve {row['curve']!r}, got "
                f"{spent:g} after {curve[-1][0]:g}. Sort the rows, and drop repeated validations."
            )
        curve.append((spent, loss))
    sets: dict[str, list[Curve]] = {}
    short = 0
    for (group, name), curve in points.items():
        if len(curve) < LEAST:
            short += 1
            continue
        plan = curve[-1][0]
        sets.setdefault(group, []).append(
            Curve(name, tuple(s / plan for s, _ in curve), tuple(y for _, y in curve))
        )
    if not sets:
        raise BadFile(f"{path}: expected curves of at least {LEAST} validations, got none.")
    return sets, short


def read_finished(path: Path) -> dict[str, list[tuple[float, float, float]]]:
    """Return (parameters, tokens, loss) of the finished runs, by set."""
    sets: dict[str, list[tuple[float, float, float]]] = {}
    for line, row in _read(path, ("set", "parameters", "tokens", "loss")):
        N, D, loss = (_cell(path, line, row, c) for c in ("parameters", "tokens", "loss"))
        sets.setdefault(row["set"], []).append((N, D, loss))
    if not sets:
        raise BadFile(f"{path}: expected finished runs, got no rows.")
    return sets


# ---------------------------------------------------------------------- command


def _numbers(kind: Callable[[str], float], least: float) -> Callable[[str], list[float]]:
    def parse(text: str) -> list[float]:
        try:
            values = [kind(t) for t in text.split(",")]
        except ValueError:
            values = []
        if not values or not all(least <= v < math.inf for v in values):
            raise argparse.ArgumentTypeError(
                f"expected numbers >= {least:g} separated by commas, got {text!r}"
            )
        return values

    return parse


def _print(title: str, lines: Iterator[str]) -> None:
    print(f"\n== {title} ==", flush=True)
    for line in lines:
        print(line, flush=True)
        if line.startswith("\n") and not sys.stdout.isatty():
            print(f"working on: {line.strip()}"[:79], file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curves", type=Path, default=DATA / "curves.csv", metavar="FILE.csv")
    parser.add_argument("--finished", type=Path, default=DATA / "finished.csv", metavar="FILE.csv")
    parser.add_argument(
        "--weights",
        type=_numbers(float, 0),
        default=[0.03, 0.05, 0.07, 0.1],
        help="W, separated by commas",
    )
    parser.add_argument(
        "--every", type=_numbers(int, 1), default=[1], help="thin the validations, e.g. 1,2,5"
    )
    parser.add_argument("--subsets", type=int, default=200, help="random subsets of finished runs")
    parser.add_argument(
        "--tolerance", type=float, default=0.005, help="Patience's, in nats (%(default)s)"
    )
    parser.add_argument(
        "--certainty",
        type=float,
        default=4.0,
        help="Patience's, in standard deviations of noise (%(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        curves, short = read_curves(options.curves)
        finished = read_finished(options.finished)
        if short:
            print(f"Left out {short} curves of fewer than {LEAST} validations.")
        rule = by_patience(options.tolerance, options.certainty)
        _print("Stopping", stopping_tables(curves, options.weights, options.every, rule))
        _print("Prediction", prediction_tables(curves, options.weights))
        sizes = (4, 6, 10, 20)
        _print("Calibration", calibration_tables(finished, sizes, max(1, options.subsets)))
    except (BadFile, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
