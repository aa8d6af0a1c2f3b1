#!/usr/bin/env python3
"""Language models in the loops that people write: is the perplexity exact, refused or doubted?

Each causal, sequence-to-sequence and vision-language class of the installed transformers that can
be built small, in several layouts of labels; modules of one's own in some ninety forms; PEFT, and
litGPT and x-transformers where they are installed. Every row is a validation, or a fit, of a real
``Trainer`` with ``LScore()``, and its perplexity is compared with a reference in float64 that
shares no code with the package. None may be wrong without a warning.

    python benchmarks/zoo.py                              # everything, and writes docs/zoo.md
    python benchmarks/zoo.py --only Llama "one's own"     # where group, name or layout has one
    python benchmarks/zoo.py --only nano --json zoo.json

Exits with 1 if a row is WRONG, BROKEN or less than what is due.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
import zoo_counts
import zoo_libraries
import zoo_own
import zoo_transformers
from zoo_judge import Finding, Row, be_quiet, judge
from zoo_page import page

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"


def rows() -> Iterator[Row]:
    """Every row, modules of one's own first."""
    yield from zoo_own.all_rows()
    yield from zoo_libraries.all_rows()
    yield from zoo_counts.all_rows()
    yield from zoo_transformers.all_rows()


def chosen(patterns: list[str]) -> list[Row]:
    """Return the rows whose group, name or layout has one of the patterns; all without any."""
    low = [p.lower() for p in patterns]
    text = "{0.group} {0.name} {0.layout}".format
    return [r for r in rows() if not low or any(p in text(r).lower() for p in low)]


def prepare() -> None:
    """Keep a process quiet and to one thread."""
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    be_quiet()


def judged_together(key: tuple[str, str]) -> list[dict[str, Any]]:
    """Judge all layouts of one class, in a process of its own."""
    prepare()
    return [plain(judge(r)) for r in rows() if (r.group, r.name) == key]


def plain(finding: Finding) -> dict[str, Any]:
    """Return a finding in plain values."""
    values = {f.name: getattr(finding, f.name) for f in dataclasses.fields(finding)}
    row = values.pop("row")
    named = {"group": row.group, "name": row.name, "layout": row.layout}
    return {**named, **values, "due": list(row.due), "holds": finding.holds}


def judged(selected: list[Row], jobs: int) -> Iterator[dict[str, Any]]:
    """Judge rows, class by class, in so many processes."""
    wanted = {(r.group, r.name, r.layout) for r in selected}
    keys = list(dict.fromkeys((r.group, r.name) for r in selected))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn) if jobs > 1 else contextlib.nullcontext() as pool:
        for found in (
            map(judged_together, keys) if pool is None else pool.map(judged_together, keys)
        ):
            yield from (f for f in found if (f["group"], f["name"], f["layout"]) in wanted)


def line(found: dict[str, Any]) -> str:
    """Return a finding as a line of the table."""
    numbers = "{expected:.6g} of {expected_tokens}, got {got:.6g} of {got_tokens}".format(**found)
    if found["verdict"] in ("refused", "BROKEN", "skipped", "none"):
        numbers = found["said"][:60]
    short = "" if found["holds"] else f"  due: {' or '.join(found['due'])}  {found['said'][:200]}"
    name, layout = found["name"][:34], found["layout"][:40]
    return f"{found['verdict']:14} {name:34} {layout:40} {numbers}{short}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="rows with one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--no-page", action="store_true", help="leave docs/zoo.md as it is")
    options = parser.parse_args()
    prepare()
    selected = chosen(options.only)
    findings: list[dict[str, Any]] = []
    start = time.monotonic()
    for found in judged(selected, options.jobs):
        findings.append(found)
        if found["verdict"] != "skipped":
            print(f"{len(findings):5}/{len(selected)} {line(found)}", flush=True)
    verdicts = collections.Counter(f["verdict"] for f in findings)
    seconds = time.monotonic() - start
    print(f"\n{', '.join(f'{n} {v}' for v, n in verdicts.items())} in {seconds:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(findings, indent=1), encoding="utf-8")
    if not options.only and not options.no_page:
        PAGE.write_text(page(findings), encoding="utf-8")
        print(f"wrote {PAGE}")
    short = [f for f in findings if not f["holds"]]
    if short:
        print(f"{len(short)} fall short of what is due:", *map(line, short), sep="\n")
    sys.exit(bool(short))


if __name__ == "__main__":
    main()
