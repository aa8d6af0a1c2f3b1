"""Published peaks: dense FLOP/s of a device by dtype.

``peak_flops`` looks devices up by the exact name that CUDA and NVML report. It never guesses from
part of a name, which alone distinguishes an H100 PCIe from an SXM, or a laptop's GPU from a
desktop's. ``measured_peak`` is for devices that are not in the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .peak_table import TABLE, Line

__all__ = ["Peak", "peak_flops"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """Dense peak of one device in one dtype."""

    flops: float
    """FLOP/s."""
    source: str
    """The document that states it, or how it was measured."""


def peak_flops(name: str, dtype: str) -> Peak | None:
    """Return the published peak of a device; None if the table has none.

    A MIG slice gets the share of its board's peak that NVIDIA states: its compute slices over those
    of the board. (Counted in multiprocessors, a slice of an H100 has up to 15 % less.)

    Args:
        name: Exactly as ``torch.cuda.get_device_name`` or NVML reports it.
        dtype: One of ``float64``, ``float32``, ``tf32``, ``bfloat16``, ``float16`` or ``float8``.

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


def _slice_peak(slice_: re.Match[str], dtype: str) -> Peak | None:
    board, slices = slice_["board"], int(slice_["compute"] or slice_["graphics"])
    total = next((n for start, n in _MIG_SLICES if _plain(board).startswith(start)), None)
    peak = peak_flops(board, dtype)
    if peak is None or total is None or slices > total:
        return None
    source = f"{peak.source}; {slices} of {total} compute slices, {_MIG_GUIDE}"
    return replace(peak, flops=peak.flops * slices / total, source=source)


def _plain(name: str) -> str:
    # Drivers before R470 leave NVIDIA out: "A100-SXM4-40GB".
    return name.strip().removeprefix("NVIDIA ")


_MIG_NAME = re.compile(
    r"(?P<board>.+) MIG (?:(?P<compute>\d+)c\.)?(?P<graphics>\d+)g\.\d+gb(?:[+-].*)?"
)
_MIG_SLICES = (
    ("A30", 4), ("RTX PRO 6000", 4),
    ("A100", 7), ("A800", 7), ("H", 7), ("GH", 7), ("B", 7), ("GB", 7),
)  # fmt: skip
_MIG_GUIDE = "https://docs.nvidia.com/datacenter/tesla/mig-user-guide/supported-mig-profiles.html"

_BY_NAME: dict[str, Line] = {name: line for line in TABLE for name in line[0]}
