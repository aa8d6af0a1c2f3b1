#!/usr/bin/env python3
"""Run what needs an NVIDIA GPU, tests and benchmarks, and write docs/gpu.md about it.

    make gpu
    python benchmarks/gpu.py            with a Python whose torch sees the GPU; installs nothing
    python benchmarks/gpu.py --minutes 15 --page /tmp/gpu.md

The page is replaced at the end, in one step; Ctrl-C leaves it as it was. A part that fails, or runs
out of time, is shown as such, and the exit status is 1. Without a GPU nothing runs or is written,
and the exit status is 0.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {
    "torch": "torch",
    "lightning": "lightning",
    "torchmetrics": "torchmetrics",
    "pynvml": "nvidia-ml-py",
    "pytest": "pytest",
    "psutil": "psutil",
}
"""What the parts import, and the package that brings it."""
VERSIONS = ("torch", "triton", "lightning", "torchmetrics", "nvidia-ml-py", "transformers")
AT_LEAST = 10.0  # seconds; with less left, a part does not begin


@dataclass(frozen=True)
class Part:
    """One command and how its output is shown."""

    title: str
    about: str
    command: str
    """Python's arguments, without spaces in them."""
    seconds: float
    """At most."""
    tests: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a part."""

    part: Part
    failure: str
    """Why it failed, in words; empty if it did not."""
    output: str
    errors: str
    seconds: float


def parts() -> list[Part]:
    tests = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    )
    return [
        Part(
            "Tests",
            "They show what a CPU cannot: that nothing waits for the GPU, that perplexity is exact "
            "on it, which device is read, and that its readings are true.",
            # Warnings are no errors here: a GPU's owner may have other versions than the tested.
            "-m pytest -m gpu -v -rfEsP -W default -p no:cacheprovider -p no:logging "
            + " ".join(tests),
            seconds=210,
            tests=True,
        ),
        Part(
            "What a run can measure",
            "Each device and measure, tried. For 16-bit training:",
            "-m lightning_lscore doctor --precision bf16-mixed",
            seconds=60,
        ),
        Part(
            "The start of a fit",
            "From the call of `fit` to its first batch.",
            "benchmarks/startup.py --accelerators cuda",
            seconds=60,
        ),
        Part(
            "A training step",
            "What a callback adds to one, beside a step of a model that is as small as possible.",
            "benchmarks/overhead.py --accelerators cuda --rounds 150 --seconds 10",
            seconds=90,
        ),
        Part(
            "Perplexity",
            "Ways to sum the NLL of logits, rows x vocabulary, against one read of them. LScore's "
            "is `lightning_lscore`, and `compile=True` its option.",
            "benchmarks/perplexity.py --devices cuda --shapes 1024x50257 2048x151936 "
            "--threads 8 --seconds 3",
            seconds=150,
        ),
    ]


# ---------------------------------------------------------------------- running a part


def run(part: Part, seconds: float) -> Outcome:
    """Run a part, showing what it prints; end it, with all that it started, when time is up."""
    begin = time.monotonic()
    if seconds < AT_LEAST:
        return Outcome(part, "left out: no time was left", "", "", 0.0)
    limit = min(part.seconds, seconds)
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, *part.command.split()],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",  # pytest cuts reasons off at this width
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    texts: tuple[list[str], list[str]] = ([], [])
    streams = (process.stdout, sys.stdout), (process.stderr, sys.stderr)
    threads = [
        threading.Thread(target=relay, args=(source, to, kept), daemon=True)
        for (source, to), kept in zip(streams, texts, strict=True)
    ]
    for thread in threads:
        thread.start()
    failure = ""
    try:
        if status := process.wait(limit):
            failure = f"exit status {status}"
    except subprocess.TimeoutExpired:
        failure = f"not done after {limit:.0f} s, and stopped"
    finally:
        end(process)
        for thread in threads:
            thread.join(5)
    return Outcome(part, failure, *map("".join, texts), time.monotonic() - begin)


def relay(source: IO[str], to: IO[str], kept: list[str]) -> None:
    with source:
        for line in source:
            kept.append(line)
            with contextlib.suppress(OSError):  # the terminal is gone
                to.write(line)
                to.flush()


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process and those that it started; no effect on one that has ended."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)


# ---------------------------------------------------------------------- the page


def machine() -> dict[str, str]:
    """Describe device, driver and versions, by the page's rows."""
    import torch

    device, count = torch.cuda.get_device_properties(0), torch.cuda.device_count()
    name = f"{device.name}, {device.total_memory / 2**30:.1f} GiB"
    name += f", {device.multi_processor_count} multiprocessors"
    name += f", compute capability {device.major}.{device.minor}"
    found = {}
    for package in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    found["torch"] = torch.__version__  # tells its CUDA too
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": name if count == 1 else f"{name}; the first of {count}",
        "driver": driver_version(),
        "CUDA": f"{torch.version.cuda}, as torch was built for",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "packages": ", ".join(f"{package} {version}" for package, version in found.items()),
        "processors": f"{os.cpu_count()}, load {os.getloadavg()[0]:.1f} before the first part",
        **({"commit": commit} if (commit := commit_here()) else {}),
    }


def driver_version() -> str:
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return f"unknown: {error}"
    return version.decode() if isinstance(version, bytes) else str(version)


def commit_here() -> str:
    """Return the commit, and whether files differ from it; empty outside of a git checkout."""
    git = ["git", "-C", str(ROOT)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        options: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **options).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], **options).stdout.strip()
        return commit + (", with changes" if changed else "")
    return ""


def page(rows: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    failed = [o.part.title for o in outcomes if o.failure]
    verdict = f"**Failed: {', '.join(failed)}.**" if failed else "Nothing failed."
    seconds = sum(o.seconds for o in outcomes)
    lines = [
        "# On a GPU",
        "",
        "`make gpu` runs what needs an NVIDIA GPU, tests and benchmarks, and writes this page. "
        f"{verdict}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {cell(value)} |" for name, value in rows.items()),
        f"| took | {seconds / 60:.1f} minutes |",
    ]
    for outcome in outcomes:
        lines += ["", *section(outcome)]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def section(outcome: Outcome) -> Iterator[str]:
    part = outcome.part
    # The tests' files and pytest's options for output say nothing to a reader.
    command = "python -m pytest -m gpu" if part.tests else f"python {part.command}"
    yield f"## {part.title}"
    yield ""
    yield part.about
    yield ""
    took = f" ({outcome.seconds:.0f} s)" if outcome.seconds else ""
    yield f"`{command}`{took}"
    if outcome.failure:
        yield ""
        yield f"**Failed: {outcome.failure}.**"
    if part.tests:
        yield from test_results(outcome.output)
    elif outcome.output.strip():
        yield from block(outcome.output)
    if outcome.failure and outcome.errors.strip():
        yield ""
        yield "The last of its messages:"
        yield from block("\n".join(outcome.errors.rstrip().splitlines()[-15:]))


def block(text: str) -> list[str]:
    clean = [line.rstrip() for line in text.strip("\n").splitlines()]
    return ["", "```text", *clean, "```"]


def test_results(output: str) -> Iterator[str]:
    """Count the tests of pytest -v by outcome; name those that did not pass, and what was measured.

    Read line by line, so that a run that was stopped is told as far as it came.
    """
    seen = re.findall(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", output, re.MULTILINE)
    counts = {
        word: sum(result == word.upper() for _, result in seen)
        for word in ("passed", "failed", "error", "skipped")
    }
    counted = ", ".join(f"{n} {word}" for word, n in counts.items() if n or word == "passed")
    yield ""
    yield f"{counted}."
    reasons = re.findall(r"^(FAILED|ERROR|SKIPPED) (?:\[(\d+)\] )?(.*)$", output, re.MULTILINE)
    if reasons:
        yield ""
    for word, count, what in reasons:
        times = f" {count} times" if count not in ("", "1") else ""
        yield f"- {word.lower()}{times}: `{what.strip()}`"
    figures = re.findall(r"^measured: (.*)$", output, re.MULTILINE)
    if figures:
        yield ""
        yield "What they measured:"
        yield ""
        yield from (f"- {figure}" for figure in figures)


def replace(path: Path, text: str) -> None:
    """Write a file beside the old one, and put it in its place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


# ---------------------------------------------------------------------- command


def missing_gpu() -> str:
    """Say in a sentence why there is no GPU to use; empty where there is one."""
    import torch

    if torch.version.hip is None and torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} of {sys.executable} is built without CUDA (to use another "
            "Python's torch: make gpu PYTHON=...)"
        )
    return f"torch {torch.__version__} sees no NVIDIA GPU"


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=6, help="at most (%(default)s)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "gpu.md", metavar="FILE.md")
    options = parser.parse_args(arguments)
    lacking = [package for name, package in NEEDED.items() if not importlib.util.find_spec(name)]
    if "torch" not in lacking and (why := missing_gpu()):
        print(f"Skipped: {why}; {shown(options.page)} stays as it is.")
        return 0
    if lacking:
        print(
            f"error: expected {sys.executable} to have {', '.join(NEEDED.values())}, got it "
            f"without {', '.join(lacking)}; install them, or run make gpu PYTHON=... with a Python "
            "that has them.",
            file=sys.stderr,
        )
        return 2

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the part that runs, too
    deadline = time.monotonic() + 60 * options.minutes
    rows, outcomes = machine(), []
    print(*(f"{name}: {value}" for name, value in rows.items()), sep="\n")
    try:
        for part in parts():
            print(f"\n=== {part.title}: python {part.command}", flush=True)
            outcomes.append(run(part, deadline - time.monotonic()))
            ended = f"FAILED, {outcomes[-1].failure}" if outcomes[-1].failure else "done"
            print(f"=== {part.title}: {ended}, {outcomes[-1].seconds:.0f} s", flush=True)
    except KeyboardInterrupt:
        print(f"\nStopped: {shown(options.page)} stays as it was.", file=sys.stderr)
        return 130
    replace(options.page, page(rows, outcomes))
    print(f"\nWrote {shown(options.page)}.")
    return int(any(outcome.failure for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
