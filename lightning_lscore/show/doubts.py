"""What a reader of a run must know before trusting it, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..equation.factor import Factor
from ..equation.formula import Formula
from ..equation.safe_numbers import expm1
from ..record.comparable import best_record, comparable_with_last
from ..record.record import Record
from .equation_in_words import must_buy, percent
from .explain import idle_cost
from .headline import is_plateau, noise_of
from .tables import expectation

_EXPECTED = ("energy_kwh", "mfu", "busy_fraction", "cost", "bits_per_byte")


def in_words(records: Sequence[Record]) -> list[str]:
    """Return what the rates of a run's formula mean where it stands, and what idle time costs."""
    last, found = records[-1], []
    try:
        formula = Formula.from_dict(last.formula)
    except ValueError:
        return ["The formula holds a function, whose rates are not known."]
    m = last.measurements
    rate = must_buy(formula, "DH", m)
    if rate:
        text = f"Doubling data and machine time from here must buy {percent(rate)} lower perplexity"
        if m.elasticity is not None and m.elasticity < 0:
            by_now = -100 * expm1(m.elasticity * math.log(2))
            text += f"; at the pace since the last validation it would buy about {percent(by_now)}"
        found.append(f"{text}.")
    if isinstance(formula.A, Factor) and (f_A := last.score.f_A) not in (None, 1.0):
        change = 100 * (f_A - 1)
        found.append(
            f"The size of what is trained makes L {abs(change):.2g} % "
            f"{'lower' if change < 0 else 'higher'} than at the formula's reference."
        )
    found.append(idle_cost(formula, last))
    if said := expectation(last):
        found.append(f"{said[0].upper()}{said[1:]}{'' if said.endswith('.') else '.'}")
    return found


def doubts(records: Sequence[Record]) -> list[str]:
    """Return what is noise, what does not compare, and what was not measured."""
    last, alike = records[-1], comparable_with_last(records)
    m, found = last.measurements, []
    if left_out := len(records) - len(alike):
        found.append(
            f"{left_out} validations were scored under another formula or on another held-out set, "
            "and are left out."
        )
    if str(last.formula.get("origin", "")).startswith("the run's own plan"):
        found.append(
            "The formula is this run's own plan: at the end of any plan L is about the perplexity, "
            "so this L does not compare with that of runs with other plans."
        )
    noise, best = noise_of(alike), best_record(records)
    if noise is None:
        found.append("There are too few validations to tell noise from change.")
    elif best is not last and is_plateau(alike):
        found.append(
            f"L has risen since its lowest by less than noise can ({282 * noise:.2g} %): the "
            "lowest point is a plateau."
        )
    measured = {d.name: d.peak_source for d in last.devices if d.peak_source.startswith("measured")}
    found += [
        f"The peak of {name} was measured, not published: {how}." for name, how in measured.items()
    ]
    if last.lost_device_hours:
        found.append(
            f"At least {last.lost_device_hours:.3g} h of device time were lost in crashes, and are "
            "in no figure above."
        )
    found += [f"{name}: {m.why_missing(name)}." for name in _EXPECTED if m.get(name) is None]
    return found
