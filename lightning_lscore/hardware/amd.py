"""AMD GPUs, read through the optional package ``amdsmi``, which comes with ROCm.

Written from AMD's documentation and the source of amdsmi 7.0.2, including the names used by ROCm 6;
tested with a fake library that has these names, and not yet run on a device.

A GPU is identified by its PCI address, on which torch and amdsmi agree. A partition of a GPU (DPX,
CPX, …) is not read, because amdsmi may report values of the whole GPU for it. Power is
``current_socket_power``, or ``average_socket_power`` on GPUs before the MI300. The energy counter
stands still under some drivers; the meter detects that and integrates the power instead. Memory is
that of the whole device, including other processes. On GPUs with several dies, the clock is that of
the die that amdsmi lists first.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from .library import PLAUSIBLE_MHZ, OpenedProbe, Query, VendorLibrary
from .probe import Device, ProbeLost

__all__ = ["AmdProbe"]

_UNSUPPORTED = (
    "AMDSMI_STATUS_NOT_SUPPORTED", "AMDSMI_STATUS_NOT_YET_IMPLEMENTED", "AMDSMI_STATUS_NO_PERM",
)  # fmt: skip
"""Errors that will not change while the process lives: the query is not repeated."""

_LOST = (
    "AMDSMI_STATUS_NOT_FOUND", "AMDSMI_STATUS_NOT_INIT", "AMDSMI_STATUS_DRIVER_NOT_LOADED",
    "AMDSMI_STATUS_NO_DRV",
)  # fmt: skip
"""Errors that concern the device or the library as a whole, not one value."""

_PARTS = ("DPX", "TPX", "QPX", "CPX")
"""Compute partitions smaller than a GPU; SPX is all of it."""

_PART = "a part of an AMD GPU: amdsmi may report it for the whole GPU"

_NEVER = {
    "throttled": "amdsmi reports it on some GPUs only, and blocks meanwhile; it is not read",
}


class AmdProbe(OpenedProbe):
    """One AMD GPU.

    Args:
        device: Its identity.
        address: PCI domain, bus and device.
    """

    def __init__(self, device: Device, address: tuple[int, int, int]) -> None:
        super().__init__(device)
        self._address = address

    def _open(self) -> VendorLibrary:
        return _AmdLibrary(self._address)


class _AmdLibrary(VendorLibrary):
    """amdsmi and its handle of one GPU."""

    NAME, PACKAGE = "amdsmi", "amdsmi"

    def __init__(self, address: tuple[int, int, int]) -> None:
        try:
            super().__init__(importlib.import_module("amdsmi"), _QUERIES)
        except Exception as error:  # a missing libamd_smi.so raises anything
            raise ProbeLost(
                f"amdsmi cannot be imported: {error!r}; install the one of your ROCm version"
            ) from error
        self._unsupported, self._lost = self._codes(_UNSUPPORTED), self._codes(_LOST)
        self._never = dict(_NEVER)
        place = "{:04x}:{:02x}:{:02x}.".format(*address)
        try:
            self._library.amdsmi_init()
            handles = [
                h for h in self._library.amdsmi_get_processor_handles() if self._is_at(h, place)
            ]
            partitioned = len(handles) > 1 or any(map(self._is_part, handles))
        except Exception as error:
            raise ProbeLost(f"amdsmi cannot open {place}x: {_line(error)}") from error
        if partitioned:
            raise ProbeLost(_PART)
        if not handles:
            raise ProbeLost(f"amdsmi has no GPU at {place}x")
        (self._handle,) = handles

    def close(self) -> None:
        """Leave amdsmi open: it counts no users, and would close for torch and others as well."""

    def _code(self, error: Exception) -> int | None:
        known = isinstance(error, self._library.AmdSmiLibraryException)
        return error.err_code if known else None  # type: ignore[attr-defined]

    def _words(self, error: Exception) -> str:
        return _line(error)

    def _is_at(self, handle: Any, place: str) -> bool:
        # Without the function (the digit after the dot), which torch does not report.
        return str(self._library.amdsmi_get_gpu_device_bdf(handle)).lower().startswith(place)

    def _is_part(self, handle: Any) -> bool:
        with contextlib.suppress(self._library.AmdSmiException):  # a GPU without partitions
            return self._library.amdsmi_get_gpu_compute_partition(handle) in _PARTS
        return False

    def _codes(self, names: Iterable[str]) -> frozenset[int]:
        constants = getattr(self._library, "amdsmi_wrapper", None)
        return frozenset(getattr(constants, name) for name in names if hasattr(constants, name))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())  # amdsmi's messages have two lines


def _float_or_nan(value: Any) -> float:
    """Return NaN for anything but a number: amdsmi reports "N/A" for what a GPU lacks."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _busy_fraction(smi: Any, handle: Any) -> float | None:
    percent = _float_or_nan(smi.amdsmi_get_gpu_activity(handle)["gfx_activity"])
    return percent / 100 if 0 <= percent <= 100 else None


def _power_watts(smi: Any, handle: Any) -> float | None:
    info = smi.amdsmi_get_power_info(handle)
    for key in ("current_socket_power", "average_socket_power"):
        watts = _float_or_nan(info.get(key))
        if 0 < watts < 0xFFFF:  # 0xFFFF: "N/A" that amdsmi did not translate
            return watts
    return None


def _energy_joules(smi: Any, handle: Any) -> float | None:
    info = smi.amdsmi_get_energy_count(handle)
    ticks = _float_or_nan(
        info["energy_accumulator"] if "energy_accumulator" in info else info["power"]
    )
    joules = (
        ticks * _float_or_nan(info["counter_resolution"]) / 1e6
    )  # a tick is so many microjoules
    return joules if 0 <= joules < math.inf else None


def _memory_used_bytes(smi: Any, handle: Any) -> int | None:
    used = int(smi.amdsmi_get_gpu_memory_usage(handle, smi.AmdSmiMemoryType.VRAM))
    return used if 0 <= used < 2**50 else None  # no GPU holds a PiB


def _sm_clock_mhz(smi: Any, handle: Any) -> float | None:
    info = smi.amdsmi_get_clock_info(handle, smi.AmdSmiClkType.GFX)
    mhz = _float_or_nan(info["clk"] if "clk" in info else info["cur_clk"])
    return mhz if 0 < mhz < PLAUSIBLE_MHZ else None


_QUERIES: Mapping[str, Query] = {
    "busy_fraction": _busy_fraction,
    "power_watts": _power_watts,
    "energy_joules": _energy_joules,
    "memory_used_bytes": _memory_used_bytes,
    "sm_clock_mhz": _sm_clock_mhz,
}
