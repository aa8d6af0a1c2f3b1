"""The zoo's findings as a page: docs/zoo.md."""

from __future__ import annotations

import collections
import platform
from typing import Any

import torch
import transformers
from zoo_judge import VERDICTS

Findings = list[dict[str, Any]]

_SIGNS = {
    "exact": "✓",
    "exact, doubted": "✓ doubted",
    "refused": "refused",
    "doubtful": "doubtful",
    "none": "none",
    "WRONG": "**WRONG**",
    "BROKEN": "**BROKEN**",
    "skipped": "–",  # noqa: RUF001
}


def page(findings: Findings) -> str:
    """Return the page."""
    groups = list(dict.fromkeys(f["group"] for f in findings))
    tables = [g for g in groups if g.startswith("transformers: ")]
    parts = [_head(findings), _summary(findings, groups)]
    parts += [_rows(g, [f for f in findings if f["group"] == g]) for g in groups if g not in tables]
    parts += [_grid(g, [f for f in findings if f["group"] == g]) for g in tables]
    parts.append(_absent([f for f in findings if f["group"] in tables]))
    return "\n\n".join(parts) + "\n"


def _head(findings: Findings) -> str:
    classes = {f["name"] for f in findings if f["verdict"] != "skipped"}
    legend = "\n".join(f"- **{v}**: {meaning}" for v, meaning in VERDICTS.items())
    return f"""\
# Whose perplexity is exact

`python benchmarks/zoo.py` wrote this page: {len(classes)} models, each in a validation or a fit of
a real `Trainer` with `LScore()`, without an argument unless the row names one. The reference is a
float64 log-sum-exp in NumPy. Which label belongs to which logits is stated by hand for modules of
one's own, and read off the gradient of the loss for transformers models.
torch {torch.__version__}, transformers {transformers.__version__},
Python {platform.python_version()}.

{legend}"""


def _summary(findings: Findings, groups: list[str]) -> str:
    seen = [v for v in VERDICTS if any(f["verdict"] == v for f in findings)]
    lines = [_line("", *seen), _line("---", *["---:"] * len(seen))]
    for group in groups:
        counts = collections.Counter(f["verdict"] for f in findings if f["group"] == group)
        lines.append(_line(group, *(str(counts[v] or "") for v in seen)))
    return "\n".join(lines)


def _rows(group: str, findings: Findings) -> str:
    lines = [f"## {group[0].upper()}{group[1:]}\n", _line("module", "its loop", "verdict")]
    lines.append(_line("---", "---", "---"))
    for f in findings:
        lines.append(_line(f["name"], f["layout"], _SIGNS[f["verdict"]]))
    return "\n".join(lines)


def _grid(group: str, findings: Findings) -> str:
    there = [f for f in findings if f["name"] not in _missing(findings)]
    layouts = list(dict.fromkeys(f["layout"] for f in there))
    found = {(f["name"], f["layout"]): _SIGNS[f["verdict"]] for f in there}
    lines = [f"## {group[0].upper()}{group[1:]}\n", _line("class", *layouts)]
    lines.append(_line("---", *["---"] * len(layouts)))
    for name in dict.fromkeys(f["name"] for f in there):
        lines.append(_line(f"`{name}`", *(found.get((name, one), "") for one in layouts)))
    return "\n".join(lines)


def _missing(findings: Findings) -> dict[str, str]:
    """Return the classes without any row, with the reason."""
    there = {f["name"] for f in findings if f["verdict"] != "skipped"}
    return {f["name"]: f["said"] for f in findings if f["name"] not in there}


def _absent(findings: Findings) -> str:
    lines = ["## Classes that are not here\n", _line("class", "reason"), _line("---", "---")]
    for name, reason in _missing(findings).items():
        lines.append(_line(f"`{name}`", reason.replace("|", "/").replace("<", "&lt;")))
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
