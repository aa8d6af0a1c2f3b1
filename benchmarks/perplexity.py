#!/usr/bin/env python3
"""Time, memory and accuracy of ways to sum the NLL of logits [N, V].

Every call is timed right after one read of the same logits (``logits.sum()``); the table shows the
median ratio of the two. No method that looks at every logit can go below 1. A pair in which another
process took the cores is left out if enough pairs remain; "!" marks figures where too few did. On a
GPU the time is the GPU's own, with other work queued before it, so the host's time to launch does
not count. Extra memory (on Linux) is what a call adds to the process's peak; on a GPU, to the
allocator's. The error is that of the mean NLL against float64 on the CPU.

    python benchmarks/perplexity.py                  # everything, about ten minutes
    python benchmarks/perplexity.py --quick          # one shape
    python benchmarks/perplexity.py --shapes 512x128256 --dtypes bfloat16 float16 --no-memory
    python benchmarks/perplexity.py --devices cuda --seconds 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES = ["1024x50257", "4096x32000", "2048x151936"]
READ = "one read: logits.sum()"
METHODS = [
    READ,
    "torchmetrics Perplexity",
    "cross_entropy",
    "cross_entropy, .float()",
    "lightning_lscore",
    "lightning_lscore, compile=True",
]
STOLEN = 0.03  # share of a call spent waiting for a core; above it, another process interfered


def method(name: str) -> Callable[[Any, Any], Any]:
    """Return a function of logits [N, V] and labels [N] that returns the summed NLL."""
    import torch.nn.functional as F
    from torchmetrics.text import Perplexity

    from lightning_lscore.heldout.nll import token_nll

    def theirs(x: Any, t: Any) -> Any:
        metric = Perplexity(ignore_index=-100).to(x.device)
        metric.update(x[None], t[None])
        return metric.total_log_probs

    functions: list[Callable[[Any, Any], Any]] = [
        lambda x, t: x.sum(),
        theirs,
        lambda x, t: F.cross_entropy(x, t, reduction="sum"),
        lambda x, t: F.cross_entropy(x.float(), t, reduction="sum"),
        lambda x, t: token_nll(x, t)[0],
        lambda x, t: token_nll(x, t, compile=True)[0],
    ]
    return dict(zip(METHODS, functions, strict=True))[name]


def make(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return normal logits, written in place, which leaves no higher peak of memory, and labels."""
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    n, v = map(int, args.shape.split("x"))
    x = torch.empty(n, v, dtype=getattr(torch, args.dtype), device=args.device)
    for i in range(0, n, 32):
        x[i : i + 32] = torch.randn(min(32, n - i), v, device=args.device) * 2.5
    return x, torch.randint(v, (n,)).to(args.device)


def exact(x: Any, t: Any) -> float:
    """Return the mean NLL in float64, computed a few rows at a time."""
    import torch.nn.functional as F

    parts = zip(x.split(32), t.split(32), strict=True)
    total = sum(F.cross_entropy(a.double().cpu(), b.cpu(), reduction="sum") for a, b in parts)
    return float(total) / len(x)


def waited() -> float:
    """Return the seconds in which this process's threads were ready to run but had no core."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        total += int(task.read_text().split()[1])
    return total * 1e-9


def timed(call: Callable[[], Any], device: str) -> tuple[float, float]:
    """Return the seconds of a call, and the share of them spent waiting for a core."""
    if device == "cuda":
        return gpu_seconds(call), 0.0
    before, start = waited(), time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return seconds, (waited() - before) / seconds


def gpu_seconds(call: Callable[[], Any]) -> float:
    """Return a call's seconds on the GPU, queued behind other work as in a validation."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before = torch.ones(8192, 8192, device="cuda")
    before = before @ before  # takes many milliseconds: the host queues the whole call meanwhile
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def time_worker(args: argparse.Namespace) -> dict[str, Any]:
    """Return every method's median ratio to the read pass, its error, and its memory on a GPU."""
    x, t = make(args)
    true, read, result = exact(x, t), method(READ), {}
    for name in METHODS:
        run = method(name)
        error = abs(float(run(x, t)) / len(x) - true) if name != READ else None
        pairs: list[tuple[float, float, float]] = []
        end = time.monotonic() + args.seconds
        while time.monotonic() < end and sum(p[0] <= STOLEN for p in pairs) < args.runs:
            (base, stolen), (own, too) = (
                timed(lambda f=f: f(x, t), args.device) for f in (read, run)
            )
            pairs.append((max(stolen, too), own / base, own))
        pairs.sort()
        clean = [p for p in pairs if p[0] <= STOLEN]
        used = clean if len(clean) >= 3 else pairs[:3]
        result[name] = {
            "ratio": statistics.median(p[1] for p in used),
            "ms": statistics.median(p[2] for p in used) * 1e3,
            "error": error,
            "clean": len(clean) >= 3,
            "mib": gpu_mib(lambda run=run: run(x, t)) if args.device == "cuda" else None,
        }
    return result


def gpu_mib(call: Callable[[], Any]) -> float:
    """Return the MiB by which a call raises the allocator's peak."""
    import torch

    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return float(torch.cuda.max_memory_allocated() - held) / 2**20


def memory_worker(args: argparse.Namespace) -> dict[str, Any]:
    """Return the MiB by which one call of one method raises the peak of the CPU's memory.

    In a process of its own, which no other method has left memory to.
    """
    x, t = make(args)
    run = method(args.method)
    few = x[:2, :5000].contiguous()  # loads and compiles the kernels before the measurement
    run(few, t[:2] % few.shape[1])
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    run(x, t)
    return {"mib": resident("VmHWM") - held}


def resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def child(args: argparse.Namespace, **more: str) -> dict[str, Any]:
    """Return the result of one worker in a process of its own; empty if it failed."""
    options = {"threads": args.threads, "runs": args.runs, "seconds": args.seconds, **more}
    command = [sys.executable, __file__]
    command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    return {} if done.returncode else result


def show(args: argparse.Namespace, **case: str) -> bool:
    """Measure and print one table. Return whether every method ran."""
    threads = f", {args.threads} threads" if case["device"] == "cpu" else ""
    print(f"\n{case['shape']} {case['dtype']} on {case['device']}{threads}")
    print(f"{'':<32}{'x read':>8}{'ms':>9}{'extra MiB':>11}{'error, nats':>13}")
    times = child(args, worker="time", **case)
    for name in METHODS:
        row = times.get(name)
        if row is None:
            print(f"{name:<32}{'failed':>8}", flush=True)
            continue
        mib = row["mib"] if args.memory and name != READ else None
        if args.memory and name != READ and case["device"] == "cpu":
            mib = child(args, worker="memory", method=name, **case).get("mib")
        cells = f"{row['ratio']:>8.2f}{row['ms']:>9.{2 if case['device'] == 'cuda' else 1}f}"
        cells += f"{'' if mib is None else format(mib, '.1f'):>11}"
        cells += f"{'' if row['error'] is None else format(row['error'], '.0e'):>13}"
        print(f"{name:<32}{cells}{'' if row['clean'] else ' !'}", flush=True)
    return all(name in times for name in METHODS)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x vocabulary")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--devices", nargs="+", help="cpu, cuda (all there are)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--runs", type=int, default=9, help="undisturbed pairs for each method (%(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="at most, for each method (%(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="the first shape and 3 pairs only")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="time only")
    for internal in ("worker", "shape", "dtype", "device", "method"):
        parser.add_argument(f"--{internal}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker = {"time": time_worker, "memory": memory_worker}[args.worker]
        print(json.dumps(worker(args)))
        return 0
    if args.quick:
        args.shapes, args.runs, args.seconds = args.shapes[:1], 3, 3.0
    complete = True
    for device in args.devices or devices():
        args.memory = args.memory and (device == "cuda" or sys.platform == "linux")
        for shape in args.shapes:
            for dtype in args.dtypes:
                complete &= show(args, shape=shape, dtype=dtype, device=device)
    return int(not complete)


def devices() -> list[str]:
    """Return what to measure on unless told otherwise."""
    # In another process: this one does without torch, and so holds little beside its workers.
    found = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.cuda.is_available())"],
        capture_output=True,
        text=True,
    ).stdout
    return ["cpu", "cuda"] if "True" in found else ["cpu"]


if __name__ == "__main__":
    sys.exit(main())
