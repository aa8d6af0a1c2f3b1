"""The command ``lscore``. It only parses, and imports what a subcommand needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

RUN_HELP = (
    "a run's folder, the record file in it (lscore.jsonl), or a checkpoint; RUN#ID is one of "
    "several runs that lie there"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns 0, or 2 after an error that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _say(options.command, f"warning: {message}")
            for category in (UserWarning, RuntimeWarning):  # ours, and numpy's of an overflow
                warnings.simplefilter("default", category)
            for text in options.run(options):
                print(printable(text), flush=True)
        return 0
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ModuleNotFoundError) as error:
        _say(options.command, f"error: {error}")
        return 2
    except (ArithmeticError, RecursionError, TypeError) as error:  # of files made by others
        kind = type(error).__name__
        _say(options.command, f"error: a file holds what makes no sense ({kind}: {error}).")
        return 2


def _say(command: str, text: str) -> None:
    line = printable(f"lscore {command}: {text}").replace("\n", " ")
    print(line, file=sys.stderr)


def printable(text: str) -> str:
    """The text without what could steer a terminal: a record may come from anybody."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lscore",
        description="Cost-adjusted perplexity: is a training run still worth what it spends?",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    explain = commands.add_parser(
        "explain",
        help="what L is; with a run, what moved its L; with numbers, their L",
        description="Without arguments: the equation, its letters, what its weights mean, and a "
        "worked example. With RUN: which factor moved that run's L by how much between "
        "validations, when CostEarlyStopping would have stopped it, and what idle time cost. With "
        "--perplexity: L of these numbers.",
    )
    explain.add_argument("records", nargs="*", metavar="RUN", help=f"{RUN_HELP}; one run")
    explain.add_argument("--run", dest="id", metavar="ID", help="of the runs there, this one")
    explain.add_argument("--from", dest="start", type=int, metavar="STEP", help="with RUN")
    explain.add_argument("--to", dest="end", type=int, metavar="STEP", help="with RUN")
    explain.add_argument(
        "--formula", type=Path, metavar="FILE.json", help="explain this one; RUN is scored under it"
    )
    explain.add_argument(
        "--parameters",
        type=float,
        metavar="N",
        help="explain the scaling law's formula for this size",
    )
    explain.add_argument("--perplexity", type=float, metavar="T", help="compute L of this, and of")
    for letter in "DAH":
        explain.add_argument(f"--{letter}", type=float, metavar=f"f({letter})", help="this factor")
    rule = explain.add_argument_group("the rule of CostEarlyStopping, replayed on RUN")
    rule.add_argument("--tolerance", type=float, metavar="NATS", help="0.005: 0.5 %% of L")
    rule.add_argument("--certainty", type=float, metavar="SD", help="standard deviations of noise")
    rule.add_argument("--validations", type=int, metavar="N", help="least without a better L")
    rule.add_argument("--ratio", type=float, help="0.25: stop after 25 %% more spending")
    rule.add_argument(
        "--while-decaying",
        action="store_true",
        default=None,
        help="stop for the price even before a decay of the learning rate",
    )
    explain.set_defaults(run=_explain)

    compare = commands.add_parser(
        "compare",
        help="several runs side by side",
        description="Ranks runs by L where they share a formula or get one by --formula. Otherwise "
        "shows what each perplexity cost, and which runs none beats (the Pareto front). Then holds "
        "each against a baseline: with what share of its spending it reaches the same perplexity, "
        "and which factors make its L differ. Runs on different evaluation sets are refused.",
    )
    compare.add_argument(
        "records", nargs="+", metavar="RUN", help=f"{RUN_HELP}, RUN alone all of them"
    )
    compare.add_argument(
        "--run", dest="ids", action="append", metavar="ID", help="of the runs there, this one too"
    )
    compare.add_argument(
        "--formula", type=Path, metavar="FILE.json", help="score all runs under this one"
    )
    compare.add_argument("--baseline", metavar="RUN", help="default: the first run")
    compare.add_argument(
        "--repeats",
        nargs="+",
        action="append",
        default=[],
        metavar="RUN",
        help="runs that differ in nothing but the seed: their scatter is what counts as noise",
    )
    compare.add_argument(
        "--gain",
        nargs="+",
        metavar="FINISHED",
        help="finished runs, or a CSV file of them as for calibrate: how much compute their law "
        "needs for the perplexity of each RUN, over what it spent (needs numpy)",
    )
    compare.set_defaults(run=_compare)

    show = commands.add_parser(
        "show",
        help="a run's validations as a table, or a line for each of many runs",
        description="Shows the validations of a run: perplexity, factors, L, spending, and what 1 "
        "% more spending bought beside what it has to buy; of several runs a line each. Needs "
        "lightning-lscore[show].",
    )
    show.add_argument("records", nargs="+", metavar="RUN", help=RUN_HELP)
    show.add_argument("-f", "--follow", action="store_true", help="show it anew as it goes on")
    show.add_argument(
        "-n", "--rows", type=int, default=40, metavar="N", help="validations to show (default 40)"
    )
    show.set_defaults(run=_show)

    report = commands.add_parser(
        "report",
        help="a page about a run, or about several side by side",
        description="Writes one page of HTML that needs no network: what was bought for what, "
        "where L came from, whether the next percent is worth it, and what to doubt; of several "
        "runs, which reaches a perplexity for less, and why. Needs lightning-lscore[plots].",
    )
    report.add_argument("records", nargs="+", metavar="RUN", help=RUN_HELP)
    report.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="FILE.html"
    )
    report.add_argument(
        "--over",
        metavar="MEASURE",
        help="spending on the x axis: tokens, device_hours, energy_kwh, cost, ...",
    )
    report.add_argument("--formula", type=Path, metavar="FILE.json", help="score under this one")
    report.add_argument("--baseline", metavar="RUN", help="of several; default: the first")
    report.add_argument("--png", type=Path, metavar="FOLDER", help="write the pictures there too")
    report.add_argument("--svg", type=Path, metavar="FOLDER", help="write the pictures there too")
    report.set_defaults(run=_report)

    _add_import(commands)

    calibrate = commands.add_parser(
        "calibrate",
        help="weights from one's own finished runs",
        description="Measures how much perplexity more parameters and more tokens have bought in "
        "finished runs, and writes the formula whose weights are these rates. Runs that were cut "
        "off before their learning rate had decayed mislead: leave them out.",
    )
    calibrate.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"{RUN_HELP}; or a CSV file with the columns parameters, tokens, loss [nats/token]",
    )
    calibrate.add_argument(
        "-o", "--output", type=Path, metavar="FILE.json", help="write the formula"
    )
    calibrate.add_argument(
        "--share",
        type=float,
        default=0.5,
        help="what machine time takes of the smaller of the two rates, 0 to 1 (default 0.5)",
    )
    calibrate.set_defaults(run=_calibrate)

    doctor = commands.add_parser(
        "doctor",
        help="what a run could measure on this machine",
        description="Tries every device and every measure, and says what a run here would lack and "
        "why. It takes some seconds a device.",
    )
    doctor.add_argument(
        "--precision", default="32-true", help="the Trainer's, for the peak (default 32-true)"
    )
    doctor.add_argument(
        "--seconds", type=float, default=2.0, help="to read each device for (default 2)"
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _add_import(commands: Any) -> None:
    made = commands.add_parser(
        "import",
        help="a record of a run that was made without LScore",
        description="Makes a record out of the log of a finished run: Lightning's metrics.csv, "
        "trainer_state.json of transformers, event files of TensorBoard, or a CSV file with a "
        "column of steps. Then show, explain, compare, report and calibrate serve it. Each value's "
        "provenance says that it was imported; what a log does not say is given here.",
        epilog="example: lscore import lightning_logs/version_3 -o imported/3 --parameters 124e6 "
        "--tokens-per-step 524288 --train-hours 11 --devices 8 --peak-tflops 989",
    )
    made.add_argument("log", type=Path, metavar="LOG", help="file, or the folder that holds it")
    made.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    given = made.add_argument_group("keys of the log; default: usual names")
    given.add_argument("--loss", metavar="KEY", help="held-out loss, mean NLL in nats a token")
    given.add_argument("--perplexity", metavar="KEY", help="held-out perplexity instead")
    given.add_argument("--tokens", metavar="KEY", help="training tokens so far")
    given.add_argument("--seconds", metavar="KEY", help="training time so far")
    facts = made.add_argument_group("what the log does not say")
    for name, text in (
        ("tokens-per-step", "training tokens of an optimiser step, over all devices"),
        ("parameters", "that were trained"),
        ("total-parameters", "default: as many as were trained"),
        ("train-hours", "of the whole log, spread evenly over its steps"),
        ("peak-tflops", "dense peak of one device"),
        ("price", "of an hour of one device"),
        ("planned-steps", "at which the run was set to end; default: where the log ends"),
    ):
        facts.add_argument(f"--{name}", type=float, metavar="X", help=text)
    facts.add_argument("--devices", type=int, default=1, metavar="N", help="default 1")
    facts.add_argument("--device-name", default="a device", metavar="NAME")
    facts.add_argument(
        "--held-out", metavar="NAME", help="of the held-out set: runs with the same one compare"
    )
    facts.add_argument("--formula", type=Path, metavar="FILE.json", help="default: the run's plan")
    made.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> Iterator[str]:
    from .equation.formula import Formula
    from .record.file import RECORD_FILE, append_record
    from .record.foreign_logs import read_log
    from .record.imported import Import, records_of
    from .show.tables import spending_summary

    target = options.output / RECORD_FILE
    if target.exists():
        raise ValueError(f"{target} exists. Choose another folder with -o, or remove it.")
    log = read_log(options.log)
    same = "loss perplexity tokens seconds tokens_per_step parameters total_parameters train_hours"
    same += " peak_tflops planned_steps devices device_name held_out"
    found = records_of(
        log,
        Import(
            **{name: getattr(options, name) for name in same.split()},
            price_per_device_hour=options.price,
            formula=None if options.formula is None else Formula.load(options.formula),
        ),
    )
    for record in found:
        append_record(target, record)
    yield f"Imported {len(found)} validations of {log.kind} ({log.source}) into {target}."
    yield from (f"  {how}" for how in found[-1].assumptions.values())
    yield spending_summary(found)
    missing = {
        f"{name}: {how}"
        for name, how in found[-1].measurements.provenance.items()
        if how.startswith("unavailable: say")
    }
    yield from sorted(missing)


def _explain(options: argparse.Namespace) -> list[str]:
    from .equation.formula import Formula
    from .show.equation_in_words import overview, worked_example
    from .show.explain import explain_run

    factors = {x: getattr(options, x) for x in "DAH" if getattr(options, x) is not None}
    if options.perplexity is not None:
        return [worked_example(options.perplexity, **{x: factors.get(x, 1.0) for x in "DAH"})]
    if factors:
        raise ValueError(f"expected --perplexity with --{' and --'.join(factors)}, got none.")
    formula = None
    if options.formula is not None:
        formula = Formula.load(options.formula)
    elif options.parameters is not None:
        formula = Formula.for_model(options.parameters)
    if not options.records:
        return [overview(formula)]
    from .curve.patience import Patience
    from .record.comparable import rescored
    from .record.runs import one_run

    names = ("tolerance", "certainty", "validations", "ratio", "while_decaying")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    patience = Patience(**given)
    named = "" if options.id is None else f"#{options.id}"
    records = one_run([f"{path}{named}" for path in options.records])
    if formula is not None:
        records = rescored(records, formula)
    return [explain_run(records, options.start, options.end, patience)]


def _compare(options: argparse.Namespace) -> list[str]:
    from .equation.formula import Formula
    from .record.runs import read_runs
    from .show.comparison import comparison

    ids = options.ids or []
    runs = read_runs([f"{path}#{i}" for path in options.records for i in ids] or options.records)
    formula = None if options.formula is None else Formula.load(options.formula)
    text = [comparison(runs, formula, baseline=options.baseline, repeats=options.repeats)]
    if options.gain:
        from .curve.calibrate import calibrate
        from .record.finished_runs import read_finished
        from .show.gain import gains

        of = read_finished(options.gain)
        text += ["", gains(runs, calibrate(of.parameters, of.tokens, of.loss), of.T)]
    return text


def _show(options: argparse.Namespace) -> Iterator[str]:
    import time

    try:
        from rich.console import Console
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "show needs rich: pip install 'lightning-lscore[show]'.", name="rich"
        ) from error

    from .record.runs import read_runs
    from .show.terminal import WIDE, follow, run_table, runs_table

    if options.rows < 2:
        raise ValueError(f"--rows: expected a whole number > 1, got {options.rows}.")

    def table() -> Any:
        runs = {printable(name): records for name, records in read_runs(options.records).items()}
        if len(runs) > 1:
            return runs_table(runs)
        ((name, records),) = runs.items()
        return run_table(name, records, options.rows, console.width)

    console = Console(highlight=False)
    if not console.is_terminal:  # nothing tells the width of what a pipe leads to
        console.width = WIDE
    if not options.follow:
        console.print(table())
        return
    with contextlib.suppress(KeyboardInterrupt):
        for _ in follow(table, console, seconds=1.0, sleep=time.sleep):
            yield from ()


def _report(options: argparse.Namespace) -> Iterator[str]:
    from .equation.formula import Formula
    from .record.runs import read_runs
    from .show.report import report

    formula = None if options.formula is None else Formula.load(options.formula)
    made = report(
        read_runs(options.records),
        over=options.over,
        formula=formula,
        baseline=options.baseline,
    )
    options.output.write_text(made.html, encoding="utf-8")
    yield f"Wrote {options.output} ({len(made.html.encode()) / 1000:.0f} kB)."
    for folder, ending in ((options.png, "png"), (options.svg, "svg")):
        if folder is not None:
            yield from (f"Wrote {path}." for path in made.save_pictures(folder, ending))


def _doctor(options: argparse.Namespace) -> Iterator[str]:
    from .hardware.doctor import examine
    from .record.versions import versions

    if not 0 <= options.seconds <= 3600:
        raise ValueError(f"--seconds: expected a number from 0 to 3600, got {options.seconds:g}.")
    return examine(options.precision, options.seconds, versions=versions())


def _calibrate(options: argparse.Namespace) -> Iterator[str]:
    from .curve.calibrate import calibrate
    from .record.finished_runs import read_finished
    from .show.calibration import explain_calibration

    runs = read_finished(options.runs)
    found = calibrate(runs.parameters, runs.tokens, runs.loss, share=options.share)
    yield f"{explain_calibration(found)}\n"
    if found.unknown:
        raise ValueError("no formula can be made of these runs. " + " ".join(found.unknown))
    if options.output is None:
        yield "Nothing was written: say -o FILE.json for a formula with these weights."
        return
    replace(found.formula(), T=runs.T).save(options.output)
    yield f'Wrote {options.output}. Use it with LScore("{options.output}").'
