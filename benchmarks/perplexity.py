#!/usr/bin/env python3
"""Time, memory and accuracy of ways to get the summed NLL of logits [N, V].

Every call is timed right after one read of the same logits (``logits.sum()``), and the ratio of the
two is shown as the median over the pairs: 1 is the bound for anything that looks at every logit. A
pair during which another process took the cores does not count while there are enough others; "!"
marks figures without. On a GPU it is the GPU's own time, behind other work, so that the host's time
to launch does not count. Extra memory (Linux) is the growth of a process's peak over what it held
before the call; on a GPU it is the allocator's. The error is that of the mean NLL against float64.

    python benchmarks/perplexity.py                  # all, about ten minutes
    python benchmarks/perplexity.py --quick          # one shape
    python benchmarks/perplexity.py --shapes 512x128256 --dtypes bfloat16 float16 --no-memory
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
STOLEN = 0.03  # share of a call spent waiting for a core, above which the machine was not ours


def method(name: str) -> Callable[[Any, Any], Any]:
    """A function of logits [N, V] and labels [N] that returns the summed NLL."""
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
    """Normal logits, written in place so that making them leaves no higher peak of memory."""
    import torch

    torch.set_grad_enabled(False)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    n, v = map(int, args.shape.split("x"))
    x = torch.empty(n, v, dtype=getattr(torch, args.dtype), device=args.device)
    for i in range(0, n, 32):
        x[i : i + 32] = torch.randn(min(32, n - i), v) * 2.5
    return x, torch.randint(v, (n,)).to(args.device)


def exact(x: Any, t: Any) -> float:
    """Mean NLL in float64, a few rows at a time."""
    import torch.nn.functional as F

    parts = zip(x.split(32), t.split(32), strict=True)
    total = sum(F.cross_entropy(a.double().cpu(), b.cpu(), reduction="sum") for a, b in parts)
    return float(total) / len(x)


def waited() -> float:
    """Seconds that this process's threads were ready to run and had no core."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        total += int(task.read_text().split()[1])
    return total * 1e-9


def timed(call: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds of a call, and the share of them spent waiting for a core."""
    if device == "cuda":
        return gpu_seconds(call), 0.0
    before, start = waited(), time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    return seconds, (waited() - before) / seconds


def gpu_seconds(call: Callable[[], Any]) -> float:
    """Seconds that a call takes of the GPU, queued behind other work as it is in a validation."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before = torch.ones(8192, 8192, device="cuda")
    before = before @ before  # many milliseconds, in which the host queues the whole call
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def time_worker(args: argparse.Namespace) -> dict[str, Any]:
    """Median ratio to the read pass, and error, of every method."""
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
        }
    return result


def memory_worker(args: argparse.Namespace) -> dict[str, Any]:
    """MiB by which one call of one method raises the peak of memory."""
    import torch

    x, t = make(args)
    run = method(args.method)
    if args.device == "cuda":
        run(x, t)
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run(x, t)
        return {"mib": (torch.cuda.max_memory_allocated() - held) / 2**20}
    few = x[:2, :5000].contiguous()  # kernels are loaded, and compiled, before the measurement
    run(few, t[:2] % few.shape[1])
    held = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    run(x, t)
    return {"mib": resident("VmHWM") - held}


def resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def child(args: argparse.Namespace, **more: str) -> dict[str, Any]:
    """Result of one worker in a process of its own; empty if it could not be had."""
    options = {"threads": args.threads, "runs": args.runs, "seconds": args.seconds, **more}
    command = [sys.executable, __file__]
    command += [part for key, value in options.items() for part in (f"--{key}", str(value))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}
    return {} if done.returncode else result


def show(args: argparse.Namespace, **case: str) -> None:
    """Measure and print one table."""
    print(f"\n{case['shape']} {case['dtype']} on {case['device']}, {args.threads} threads")
    print(f"{'':<32}{'x read':>8}{'ms':>9}{'extra MiB':>11}{'error, nats':>13}")
    times = child(args, worker="time", **case)
    for name in METHODS:
        row, mib = times.get(name), None
        if args.memory and name != READ:
            mib = child(args, worker="memory", method=name, **case).get("mib")
        if row is None:
            print(f"{name:<32}{'failed':>8}", flush=True)
            continue
        cells = f"{row['ratio']:>8.2f}{row['ms']:>9.1f}"
        cells += f"{'' if mib is None else format(mib, '.1f'):>11}"
        cells += f"{'' if row['error'] is None else format(row['error'], '.0e'):>13}"
        print(f"{name:<32}{cells}{'' if row['clean'] else ' !'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x vocabulary")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--runs", type=int, default=9, help="undisturbed pairs for each method")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most, for each method")
    parser.add_argument("--quick", action="store_true", help="the first shape and 3 pairs only")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="time only")
    for internal in ("worker", "shape", "dtype", "device", "method"):
        parser.add_argument(f"--{internal}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker = {"time": time_worker, "memory": memory_worker}[args.worker]
        print(json.dumps(worker(args)))
        return
    if args.quick:
        args.shapes, args.runs, args.seconds = args.shapes[:1], 3, 3.0
    asks = (
        "import torch; print(torch.cuda.is_available())"  # not here: children start without torch
    )
    gpu = (
        "True"
        in subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True).stdout
    )
    for device in ["cpu", "cuda"] if gpu else ["cpu"]:
        args.memory = args.memory and (device == "cuda" or sys.platform == "linux")
        for shape in args.shapes:
            for dtype in args.dtypes:
                show(args, shape=shape, dtype=dtype, device=device)


if __name__ == "__main__":
    main()
