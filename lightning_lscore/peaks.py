"""How fast a device could multiply matrices: dense peak FLOP/s by precision, looked up or measured.

`peak_flops` knows devices by the exact name that CUDA and NVML report, and never guesses from part
of one: a name alone tells an H100 PCIe from an SXM, a laptop's GPU from a desktop's. A device that
is not in the table is multiplied with for a moment instead: `measured_peak`.

Rules of the table, in TFLOP/s:
- dense: a figure that a vendor gives "with sparsity" is halved;
- products accumulate in float32, as torch does: on GeForce cards that halves the 16-bit rate;
- the fastest unit that computes in that precision, so FP64 tensor cores count for float64;
- one line is what torch counts as one device: one of the two dies of an MI250X.

Left out on purpose: names that several chips share (GeForce RTX 3080 and 3060, AMD's
"MI250X / MI250", every Apple GPU) and devices for which no vendor publishes the figure.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["Peak", "measured_peak", "peak_flops"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """Dense peak of one device in one precision."""

    flops: float
    """FLOP/s."""
    source: str
    """The document that says so, or how it was measured."""
    measured: bool = False


def peak_flops(name: str, dtype: str) -> Peak | None:
    """The published peak of a device; None where the table has none: measure it then.

    A MIG slice has the share of its board's multiprocessors that NVIDIA states, its compute slices
    over those of the board. (By multiprocessors counted, a slice of an H100 has up to 15 % less.)

    Args:
        name: exactly as `torch.cuda.get_device_name` or NVML reports it.
        dtype: `float64`, `float32`, `tf32`, `bfloat16`, `float16` or `float8`.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bfloat16").flops
    989400000000000.0
    >>> peak_flops("NVIDIA H100 80GB HBM2", "bfloat16") is None
    True
    """
    slice_ = _MIG_NAME.fullmatch(name)
    if slice_ is not None:
        return _slice_peak(slice_, dtype)
    line = _BY_NAME.get(_plain(name))
    if line is None or dtype not in line[1]:
        return None
    return Peak(flops=line[1][dtype] * 1e12, source=line[2])


def measured_peak(
    device: Any,
    dtype: str,
    *,
    threads: int | None = None,
    seconds: float = 0.3,
    now: Callable[[], float] = time.perf_counter,
) -> Peak | None:
    """The fastest of several square matrix products, in the run's own precision settings.

    A stand-in for a published peak, and lower: 60 to 95 % of it where there is one. Call it once,
    before training: it synchronises the device and holds up to 0.5 GB of its memory for a moment.
    Leaves the random generators, the number of threads and autocast as they were.

    Args:
        device: a `torch.device` or its name.
        dtype: as for `peak_flops`; `tf32` multiplies in float32, as torch is set to.
        threads: CPU threads; None: as many as torch uses.
        seconds: about how long it may take. Warm-up and slow devices may double it.
        now: seconds.

    Returns:
        None if torch cannot multiply in that precision there, or has no memory for it.
    """
    import torch

    device = torch.device(device)
    name = "float32" if dtype == "tf32" else dtype
    if name not in ("float64", "float32", "bfloat16", "float16"):
        return None  # torch has no public product of float8 matrices
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            flops, size = _fastest_product(device, getattr(torch, name), seconds, now)
    except (RuntimeError, TypeError):  # not implemented there, or out of memory at once
        return None
    finally:
        torch.set_num_threads(before)
    used = f", {threads or before} threads" if device.type == "cpu" else ""
    source = f"measured: {dtype} product of {size} x {size} matrices on {device}{used}"
    return Peak(flops=flops, source=source, measured=True)


def _fastest_product(
    device: Any, dtype: Any, seconds: float, now: Callable[[], float]
) -> tuple[float, int]:
    """The best FLOP/s, and the size that gave it. Sizes grow as far as the time allows."""
    import torch

    on_cpu = device.type == "cpu"
    synchronize = getattr(getattr(torch, device.type), "synchronize", lambda: None)
    generator = torch.Generator(device=device).manual_seed(0)  # not the global one
    best, best_size = 0.0, 0
    deadline = now() + seconds
    left = seconds
    for size in (512, 1024, 2048) if on_cpu else (1024, 2048, 4096, 8192):
        if best and not _fits(device, dtype, size):
            break
        a, b = (
            torch.randn(size, size, device=device, dtype=dtype, generator=generator)
            for _ in range(2)
        )
        out = torch.mm(a, b)  # warm-up: the library chooses its kernel here
        # Several small ones in one go on a GPU, so that their launch does not weigh in.
        products = 1 if on_cpu else max(1, 2**33 // size**3)
        fastest, repeats = float("inf"), 0
        # The next size takes eightfold; it is worth a warm-up and three products at least.
        while left > 0 and (repeats < 3 or left < 4 * 8 * fastest):
            synchronize()
            start = now()
            for _ in range(products):
                torch.mm(a, b, out=out)
            synchronize()
            end = now()
            fastest = min(fastest, max(end - start, 1e-9) / products)
            repeats += 1
            left = deadline - end
        best, best_size = max((best, best_size), (2 * size**3 / fastest, size))
        if left <= 0:
            break
    del a, b, out
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return best, best_size


def _fits(device: Any, dtype: Any, size: int) -> bool:
    """Whether three such matrices take less than a quarter of the device's free memory."""
    import torch

    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return bool(4 * 3 * size * size * dtype.itemsize < free)


def _slice_peak(slice_: re.Match[str], dtype: str) -> Peak | None:
    board, slices = slice_["board"], int(slice_["compute"] or slice_["graphics"])
    total = next((n for start, n in _MIG_SLICES if _plain(board).startswith(start)), None)
    peak = peak_flops(board, dtype)
    if peak is None or total is None or slices > total:
        return None
    source = f"{peak.source}; {slices} of {total} compute slices, {_MIG_GUIDE}"
    return replace(peak, flops=peak.flops * slices / total, source=source)


def _plain(name: str) -> str:
    # Drivers before R470 leave the maker out: "A100-SXM4-40GB".
    return name.strip().removeprefix("NVIDIA ")


_MIG_NAME = re.compile(
    r"(?P<board>.+) MIG (?:(?P<compute>\d+)c\.)?(?P<graphics>\d+)g\.\d+gb(?:[+-].*)?"
)
_MIG_SLICES = (
    ("A30", 4), ("RTX PRO 6000", 4),
    ("A100", 7), ("A800", 7), ("H", 7), ("GH", 7), ("B", 7), ("GB", 7),
)  # fmt: skip
_MIG_GUIDE = "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html"

_V100 = (
    "https://images.nvidia.com/content/technologies/volta/pdf/"
    "volta-v100-datasheet-update-us-1165301-r5.pdf"
)
_T4 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/"
    "t4-tensor-core-datasheet-951643.pdf"
)
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_A10 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf"
_A10G = (
    "https://d1.awsstatic.com/product-marketing/ec2/NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"
)
_A40 = "https://images.nvidia.com/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
_GA102 = (
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)
_ADA = (
    "https://images.nvidia.com/aem-dam/Solutions/Data-Center/l4/"
    "nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"
)
_BLACKWELL_RTX = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
    "nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_HOPPER = "NVIDIA H100 Tensor Core GPU Architecture, https://resources.nvidia.com/en-us-tensor-core"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/, halved from sparse"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/, halved from sparse"
_GH200 = "https://www.nvidia.com/en-us/data-center/grace-hopper-superchip/, halved from sparse"
_HGX = "https://www.nvidia.com/en-us/data-center/hgx/, one of eight GPUs, halved from sparse"
_NVL72 = "NVL72, one of 72 GPUs, halved from sparse"
_CHINA = "https://github.com/citsjtu2020/LLM-Prof/blob/main/hardware_spec.md (no public datasheet)"
_AMD = "https://www.amd.com/en/products/accelerators/instinct"
_TPU = "https://cloud.google.com/tpu/docs"

_Line = tuple[tuple[str, ...], dict[str, float], str]
"""Names without "NVIDIA ", TFLOP/s by precision, source."""


def _rates(
    f64: float | None = None,
    f32: float | None = None,
    tf32: float | None = None,
    b16: float | None = None,
    f16: float | None = None,
    f8: float | None = None,
) -> dict[str, float]:
    given = {
        "float64": f64, "float32": f32, "tf32": tf32,
        "bfloat16": b16, "float16": f16, "float8": f8,
    }  # fmt: skip
    return {dtype: tera for dtype, tera in given.items() if tera is not None}


# fmt: off
_TABLE: tuple[_Line, ...] = (
    # NVIDIA, data centre                                f64    f32    tf32    bf16    fp16   fp8
    (("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"),
     _rates(7.0, 14.0, None, None, 112.0), _V100),
    (("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"),
     _rates(7.8, 15.7, None, None, 125.0), _V100),
    (("Tesla V100S-PCIE-32GB",), _rates(8.2, 16.4, None, None, 130.0), _V100),
    (("Tesla V100-SXM3-32GB",), _rates(f16=125.0),
     "NVIDIA DGX-2 datasheet: 2 PFLOP/s of 16 GPUs"),
    (("Tesla T4",), _rates(None, 8.1, None, None, 65.0), _T4),
    (("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100 80GB PCIe"),
     _rates(19.5, 19.5, 156.0, 312.0, 312.0), _A100),
    (("A800-SXM4-80GB", "A800 80GB PCIe"), _rates(b16=312.0, f16=312.0), _CHINA),
    (("A800 40GB Active",), _rates(9.7, 19.5, None, 311.9, 311.9),
     "https://www.nvidia.com/en-us/design-visualization/a800/, halved from sparse"),
    (("A30",), _rates(10.3, 10.3, 82.0, 165.0, 165.0),
     "https://www.nvidia.com/en-us/data-center/products/a30-gpu/"),
    (("A10",), _rates(None, 31.2, 62.5, 125.0, 125.0), _A10),
    (("A10G",), _rates(None, 35.0, 35.0, 70.0, 70.0), _A10G),
    (("A40",), _rates(None, 37.4, 74.8, 149.7, 149.7), _A40),
    (("L4",), _rates(None, 30.3, 60.0, 121.0, 121.0, 242.5),
     "https://www.nvidia.com/en-us/data-center/l4/, halved from sparse"),
    (("L40",), _rates(None, 90.5, 90.5, 181.05, 181.05, 362.0),
     "https://www.nvidia.com/en-us/data-center/l40/"),
    (("L40S",), _rates(None, 91.6, 183.0, 362.05, 362.05, 733.0),
     "https://www.nvidia.com/en-us/data-center/l40s/"),
    (("H100 80GB HBM3",), _rates(66.9, 66.9, 494.7, 989.4, 989.4, 1978.9), _HOPPER),
    (("H100 PCIe",), _rates(51.2, 51.2, 378.0, 756.0, 756.0, 1513.0), _HOPPER),
    (("H100 NVL",), _rates(60.0, 60.0, 417.5, 835.5, 835.5, 1670.5), _H100),
    (("H200",), _rates(67.0, 67.0, 494.5, 989.5, 989.5, 1979.0), _H200),
    (("H200 NVL",), _rates(60.0, 60.0, 417.5, 835.5, 835.5, 1670.5), _H200),
    (("GH200 480GB", "GH200 120GB", "GH200 144G HBM3e"),
     _rates(67.0, 67.0, 494.5, 989.5, 989.5, 1979.0), _GH200),
    (("H20",), _rates(b16=148.0, f16=148.0), _CHINA),
    (("H800",), _rates(b16=989.0, f16=989.0), _CHINA),
    (("B200",), _rates(37.0, 75.0, 1100.0, 2250.0, 2250.0, 4500.0), _HGX),
    (("B300 SXM6 AC",), _rates(1.25, 75.0, 1125.0, 2250.0, 2250.0, 4500.0), _HGX),
    (("GB200",), _rates(40.0, 80.0, 1250.0, 2500.0, 2500.0, 5000.0),
     f"https://www.nvidia.com/en-us/data-center/gb200-nvl72/: {_NVL72}"),
    (("GB300",), _rates(None, None, 1250.0, 2500.0, 2500.0, 5000.0),
     f"https://www.nvidia.com/en-us/data-center/gb300-nvl72/: {_NVL72}"),
    # NVIDIA, workstation: the 16-bit rate is full with float32 accumulation
    (("RTX A4000",), _rates(None, 19.2, None, 76.7, 76.7),
     "NVIDIA RTX A4000 datasheet, 153.4 sparse"),
    (("RTX A5000",), _rates(None, 27.8, None, 111.1, 111.1),
     "NVIDIA RTX A5000 datasheet, 222.2 sparse"),
    (("RTX A6000",), _rates(None, 38.7, 77.4, 154.8, 154.8), _GA102),
    (("RTX 6000 Ada Generation",), _rates(None, 91.1, 182.1, 364.2, 364.2, 728.5),
     "NVIDIA RTX 6000 Ada datasheet, 1457.0 in sparse FP8"),
    (("RTX PRO 6000 Blackwell Workstation Edition",),
     _rates(None, 125.0, 250.0, 500.0, 500.0, 1000.0),
     "https://www.nvidia.com/en-us/products/workstations/professional-desktop-gpus/"
     "rtx-pro-6000/, 4000 in sparse FP4"),
    # NVIDIA GeForce: half the 16-bit rate with float32 accumulation
    (("GeForce RTX 3070",), _rates(None, 20.3, 20.3, 40.6, 40.6), _GA102),
    (("GeForce RTX 3080 Ti",), _rates(None, 34.1, 34.1, 68.2, 68.2), _GA102),
    (("GeForce RTX 3090",), _rates(None, 35.6, 35.6, 71.0, 71.0), _GA102),
    (("GeForce RTX 3090 Ti",), _rates(None, 40.0, 40.0, 80.0, 80.0), _ADA),
    (("GeForce RTX 4080",), _rates(None, 48.7, 48.7, 97.5, 97.5, 194.9), _ADA),
    (("GeForce RTX 4080 SUPER",), _rates(None, 52.2, 52.2, 104.4, 104.4, 208.8), _ADA),
    (("GeForce RTX 4090",), _rates(None, 82.6, 82.6, 165.2, 165.2, 330.3), _ADA),
    (("GeForce RTX 5070",), _rates(None, 30.9, 30.9, 61.7, 61.7, 123.5), _BLACKWELL_RTX),
    (("GeForce RTX 5070 Ti",), _rates(None, 43.9, 43.9, 87.9, 87.9, 175.8), _BLACKWELL_RTX),
    (("GeForce RTX 5080",), _rates(None, 56.3, 56.3, 112.6, 112.6, 225.1), _BLACKWELL_RTX),
    (("GeForce RTX 5090",), _rates(None, 104.8, 104.8, 209.5, 209.5, 419.0), _BLACKWELL_RTX),
    # AMD, matrix cores; an MI250X is two devices
    (("AMD Instinct MI210",), _rates(45.3, 45.3, None, 181.0, 181.0), f"{_AMD}/mi200/mi210.html"),
    (("AMD Instinct MI250X",), _rates(47.85, 47.85, None, 191.5, 191.5),
     f"{_AMD}/mi200/mi250x.html, one of two dies"),
    (("AMD Instinct MI300A",), _rates(122.6, 122.6, 490.3, 980.6, 980.6, 1961.2),
     f"{_AMD}/mi300/mi300a.html"),
    (("AMD Instinct MI300X", "AMD Instinct MI300X OAM"),
     _rates(163.4, 163.4, 653.7, 1307.4, 1307.4, 2614.9), f"{_AMD}/mi300/mi300x.html"),
    (("AMD Instinct MI325X", "AMD Instinct MI325X OAM"),
     _rates(163.4, 163.4, 653.7, 1307.4, 1307.4, 2614.9), f"{_AMD}/mi300/mi325x.html"),
    (("AMD Instinct MI350X",), _rates(72.1, 144.2, None, 2306.9, 2306.9, 4613.7),
     f"{_AMD}/mi350/mi350x.html"),
    (("AMD Instinct MI355X",), _rates(78.6, 157.3, None, 2516.6, 2516.6, 5033.2),
     f"{_AMD}/mi350/mi355x.html"),
    # Google: a chip is one device from v4 on (v2 and v3 are two, and left out)
    (("v4",), _rates(b16=275.0), f"{_TPU}/v4"),
    (("v5litepod",), _rates(b16=197.0), f"{_TPU}/v5e"),
    (("v5p",), _rates(b16=459.0), f"{_TPU}/v5p"),
    (("v6e",), _rates(b16=918.0), f"{_TPU}/v6e"),
)
# fmt: on

_BY_NAME: dict[str, _Line] = {name: line for line in _TABLE for name in line[0]}
