"""Runs side by side: ranked by L where they share a formula, else by what their perplexity cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..equation.formula import Formula
from ..record.comparable import why_other_set
from ..record.record import Record
from .against_baseline import against_baseline
from .pareto_front import without_a_formula
from .ranked_by_L import ranked_by_L

__all__ = ["comparison"]


def comparison(
    runs: Mapping[str, Sequence[Record]],
    formula: Formula | None = None,
    *,
    baseline: str | None = None,
    repeats: Sequence[Collection[str]] = (),
) -> str:
    """Show runs side by side, then each against a baseline.

    Runs that share a formula, or get one here, are ranked by L. Otherwise no formula is chosen for
    them: the Pareto front of perplexity against spending needs none.

    Args:
        runs: the validations of each by its name, at least one of each.
        formula: under which all are scored again. Default: the one that all runs have.
        baseline: name of the run to hold the others against. Default: the first.
        repeats: groups of names of runs that differ in nothing but the seed: their scatter is the
            noise of a perplexity. Default: the scatter of each curve.

    Raises:
        ValueError: if a run was evaluated on another set than the first, for a name that is not
            among the runs, or one run.
    """
    baseline = next(iter(runs)) if baseline is None else baseline
    for name in [baseline, *(n for group in repeats for n in group)]:
        if name not in runs:
            raise ValueError(
                f"expected the name of one of the runs ({', '.join(runs)}), got {name}."
            )
    shared = formula or shared_formula(runs)
    T = common_T(runs, shared)
    if shared is not None:
        parts = [ranked_by_L(runs, shared, repeats).in_terminal()]
    else:
        parts = [without_a_formula(runs, T).in_terminal(left=2)]
    if len(runs) > 1:
        parts.append(against_baseline(runs, baseline, shared, T, repeats))
    return "\n\n".join(parts)


def shared_formula(runs: Mapping[str, Sequence[Record]]) -> Formula | None:
    """Return the formula that the last validation of each run was scored with, if it is one."""
    first, *others = (records[-1].formula for records in runs.values())
    charged = {k: v for k, v in first.items() if k != "origin"}
    alike = all({k: v for k, v in f.items() if k != "origin"} == charged for f in others)
    return Formula.from_dict(first) if alike else None


def common_T(runs: Mapping[str, Sequence[Record]], formula: Formula | None) -> str:
    """Return the T in which the runs compare.

    Raises:
        ValueError: if there is none.
    """
    (first_name, first), *others = runs.items()
    reasons: list[str] = []
    for T in ("perplexity", "nominal_perplexity") if formula is None else (formula.T,):
        nominal = T == "nominal_perplexity"
        known = not nominal or all(
            r[-1].measurements.nominal_perplexity is not None for r in runs.values()
        )
        other = [
            f"{name}: {why[0]} than {first_name}"
            for name, records in others
            if (why := why_other_set(records[-1], first[-1], nominal=nominal))
        ]
        if known and not other:
            return T
        reasons += other
    raise ValueError(
        f"expected runs on one evaluation set, got {reasons[0]}. Evaluate both on the same set, or "
        "across tokenizers on the same text, with LScore(count_bytes=tokenizer) and a formula with "
        'T="nominal_perplexity".'
    )
