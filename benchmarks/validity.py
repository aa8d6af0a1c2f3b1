"""Do L, its stopping rule, its prediction and its calibration keep their promises on real runs?

    python benchmarks/validity.py          on the public runs in benchmarks/data
    python benchmarks/validity.py --curves mine.csv more.csv --json rows.json --weights 0.05

Curves are CSV files with the columns set, curve, spent and loss, and, where known, parameters,
planned (the end of the plan, in the unit of spent) and learning_rate.

Stopping: each curve is replayed under the default formula (reference: the end of its plan; tokens
and machine time both proportional to ``spent``), once whole ("scratch") and once from its second
half alone ("warm"). A warm curve stands for a run that starts from a trained model: its spending
counts from the half's first validation, and its reference is what remains of the plan.
CostEarlyStopping decides by the code that ships. It knows a logged learning rate to the end of the
run, as it does where a scheduler can be asked; where none was logged the rate is unknown to it. Two
more rows take every rate for unknown, and a decay for still ahead at each validation.

    within     share of curves whose best L up to the stop is within 1 % of the whole curve's
    saved      share of the recorded spending that was saved, mean
    early      share of curves that were stopped before their best L
    lost       lowest loss up to the stop - lowest loss of the whole curve, mean [nats]
    after      spending after the whole curve's best L, as a share of the recorded spending, mean; 0
               where the rule stopped before it

Then comes each set, start and weight in which an EarlyStopping on the loss, or one of Prechelt's
criteria, saves more than CostEarlyStopping and ends within 1 % as often.

Prediction: each curve, whole and its second half alone, is cut at 25, 40, 60 and 80 % of its plan,
and the best L of the whole curve is predicted from the part before the cut, as in a run: nothing is
shown where the learning rate was not logged, is still to decay, or has just begun to.

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
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from public_curves import LEAST, BadFile, Curve, number, read_curves, read_rows
from stopping_rules import OURS, Rule, all_rules

from lightning_lscore import Factor
from lightning_lscore.curve.calibrate import calibrate
from lightning_lscore.curve.forecast import predict
from lightning_lscore.curve.patience import Patience
from lightning_lscore.equation.prediction import Prediction

DATA = Path(__file__).parent / "data"
ONE_PERCENT = math.log(1.01)
CUTS = (0.25, 0.4, 0.6, 0.8)


# ---------------------------------------------------------------------- stopping


def price(curve: Curve, weight: float) -> list[float]:
    """Return ln f(D) + ln f(H) of the default formula, w_D = w_H = weight / 2; f(A) is constant."""
    return [price_at(x, weight) for x in curve.spent]


def price_at(spent: float, weight: float) -> float:
    D, H = Factor("tokens", 1, weight / 2), Factor("capacity_flops", 1, weight / 2)
    return D.ln_f(spent) + H.ln_f(spent)


@dataclass(frozen=True)
class Row:
    """How a rule did on the curves of a set."""

    set: str
    start: str
    weight: float
    rule: str
    within: float
    saved: float
    early: float
    lost: float
    after: float
    curves: int
    logged: int
    """Curves of which the learning rate was logged."""

    def beats(self, other: Row) -> bool:
        """Whether it saves more, and ends within 1 % of the best L as often."""
        return self.within >= other.within and self.saved > other.saved + 1e-9


def row(
    name: str, start: str, weight: float, rule: str, stops: Rule, curves: Sequence[Curve]
) -> Row:
    """Run a rule on curves, and average what it did."""
    done = []
    for curve in curves:
        ln_f = price(curve, weight)
        stop = stops(curve, ln_f)
        ln_L = [loss + p for loss, p in zip(curve.loss, ln_f, strict=True)]
        best, end = ln_L.index(min(ln_L)), curve.spent[-1]
        regret = min(ln_L[: stop + 1]) - ln_L[best]
        done.append(
            (
                regret <= ONE_PERCENT,
                1 - curve.spent[stop] / end,
                stop < best,
                min(curve.loss[: stop + 1]) - min(curve.loss),
                max(0.0, curve.spent[stop] - curve.spent[best]) / end,
            )
        )
    within, saved, early, lost, after = (
        float(np.mean(column)) for column in zip(*done, strict=True)
    )
    logged = sum(c.is_logged for c in curves)
    return Row(name, start, weight, rule, within, saved, early, lost, after, len(curves), logged)


def groups(sets: dict[str, list[Curve]]) -> Iterator[tuple[str, str, list[Curve]]]:
    """Yield the curves of each set, and those of all sets that overfit, from each start."""
    overfitting = [c for curves in sets.values() for c in curves if c.overfits]
    named = {**sets, "all that overfit": overfitting} if overfitting else sets
    for name, whole in named.items():
        for start, curves in (("scratch", whole), ("warm", [c.warm() for c in whole])):
            if kept := [c for c in curves if c]:
                yield name, start, kept


def stopping_tables(
    sets: dict[str, list[Curve]],
    weights: Sequence[float],
    every: Sequence[int],
    rules: dict[str, Rule],
    rows: list[Row],
) -> Iterator[str]:
    """Yield the tables, and add the rows of unthinned curves to ``rows``."""
    for name, start, curves in groups(sets):
        for step in every:
            kept = [t for c in curves if (t := c.thinned(step))]
            if not kept:
                continue
            thin = "" if step == 1 else f", every {step} validations"
            logged = sum(c.is_logged for c in kept)
            yield (
                f"\n{name}, {start}{thin}: {len(kept)} curves, the learning rate of {logged} of "
                "them logged, of the rest unknown"
            )
            yield f"     W  {'rule':35s}  within   saved   early    lost   after"
            for weight in weights:
                for rule, stops in rules.items():
                    r = row(name, start, weight, rule, stops, kept)
                    if step == 1:
                        rows.append(r)
                    yield (
                        f"  {weight:4g}  {rule:35s}  {r.within:6.1%}  {r.saved:6.1%}"
                        f"  {r.early:6.1%}  {r.lost:.4f}  {r.after:6.1%}"
                    )


def losses(rows: Sequence[Row]) -> Iterator[str]:
    """Yield where a rival beats ours."""
    ours = {(r.set, r.start, r.weight): r for r in rows if r.rule == OURS}
    rivals = [r for r in rows if "on loss" in r.rule or "Prechelt" in r.rule]
    found = [(ours[r.set, r.start, r.weight], r) for r in rivals]
    lost = [(mine, r) for mine, r in found if r.beats(mine)]
    yield (
        f"CostEarlyStopping is beaten in {len(lost)} of {len(found)} comparisons: the rival saves "
        "more, and ends within 1 % of the best L as often."
    )
    for mine, r in lost:
        yield (
            f"  {r.set}, {r.start}, W {r.weight:g}: {r.rule} saves {r.saved:.1%} within "
            f"{r.within:.1%}, CostEarlyStopping {mine.saved:.1%} within {mine.within:.1%}"
        )


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


def rate_of(curve: Curve, now: int) -> dict[str, Any]:
    """Where the learning rate stands in its decay, and since what spending."""
    decay = curve.learning_rate(now).decay
    since = next(
        (i + 1 for i in range(now - 1, -1, -1) if curve.learning_rate(i).decay != decay), 0
    )
    return {"decay": decay, "since": curve.spent[since] if since else 0.0}


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
        **rate_of(curve, seen - 1),
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


def read_finished(path: Path) -> dict[str, list[tuple[float, float, float]]]:
    """Return (parameters, tokens, loss) of the finished runs, by set."""
    sets: dict[str, list[tuple[float, float, float]]] = {}
    for line, row in read_rows(path, ("set", "parameters", "tokens", "loss")):
        N, D, loss = (number(path, line, row, c) for c in ("parameters", "tokens", "loss"))
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
    parser.add_argument(
        "--curves",
        type=Path,
        nargs="+",
        default=[DATA / f"{name}.csv" for name in ("curves", "finetune_curves", "schedule_curves")],
        metavar="FILE.csv",
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT.json", help="write a row for each set, start, W and rule"
    )
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
        default=3.0,
        help="Patience's, in standard deviations of noise (%(default)s)",
    )
    parser.add_argument(
        "--only", choices=("stopping", "prediction", "calibration"), help="one part"
    )
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    try:
        curves, short = read_curves(options.curves)
        finished = read_finished(options.finished)
        rules = all_rules(lambda: Patience(options.tolerance, certainty=options.certainty))
        if short:
            print(f"Left out {short} curves of fewer than {LEAST} validations.")
        if options.only in (None, "stopping"):
            tables = stopping_tables(curves, options.weights, options.every, rules, rows)
            _print("Stopping", tables)
            _print("Where CostEarlyStopping is beaten", losses(rows))
        if options.only in (None, "prediction"):
            _print("Prediction", prediction_tables(curves, options.weights))
        if options.only in (None, "calibration"):
            tables = calibration_tables(finished, (4, 6, 10, 20), max(1, options.subsets))
            _print("Calibration", tables)
        if options.json is not None:
            text = json.dumps([asdict(r) for r in rows], indent=1, allow_nan=False)
            options.json.write_text(text + "\n", encoding="utf-8")
    except (BadFile, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
