"""NVIDIA GPUs, read through NVML.

Devices are identified by CUDA's UUID, never by an index: NVML's order is not CUDA's. The first
``NvmlProbe.read`` opens NVML, in the sampler's thread. Values that NVML does not report are None
with a reason, and without a usable NVML the devices' time still counts.

Power is ``nvmlDeviceGetPowerUsage``, which every driver has: the mean over the last second on
Ampere and newer, which suits a sampler that reads once per second, and the current value on GA100
and older. A sound energy counter is better and preferred. Memory is that of the whole device,
including other processes, without the driver's reserve. The clock of a MIG slice is that of its
board, which all slices share; NVML may refuse to report it for a slice.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .library import PLAUSIBLE_MHZ, OpenedProbe, Query, VendorLibrary
from .probe import ProbeLost, Reading, for_every_measure

__all__ = ["NvmlProbe", "driver_versions"]

_UNSUPPORTED = (
    "NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_NO_PERMISSION", "NVML_ERROR_FUNCTION_NOT_FOUND",
    "NVML_ERROR_INVALID_ARGUMENT", "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", "NVML_ERROR_DEPRECATED",
)  # fmt: skip
"""Errors that will not change while the process lives: the query is not repeated."""

_LOST = (
    "NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_GPU_NOT_FOUND", "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNINITIALIZED", "NVML_ERROR_DRIVER_NOT_LOADED",
    "NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_LIB_RM_VERSION_MISMATCH",
)  # fmt: skip
"""Errors that concern the device or NVML as a whole, not one value."""

_HELD_DOWN = {
    "SwPowerCap": "power",
    "HwPowerBrakeSlowdown": "power",
    "SwThermalSlowdown": "heat",
    "HwThermalSlowdown": "heat",
    "HwSlowdown": "fault",  # set beside either of the Hw... above, or alone
}
"""Reasons for a low clock that are throttling; idling and clocks set by a user are not."""

_ZEROS = "the device answers 0 to every question, as integrated ones do"
_MIG = "a MIG slice: NVML reports it for the whole board only, which is not this process's alone"


class NvmlProbe(OpenedProbe):
    """One NVIDIA GPU or MIG slice; ``device.key`` is its UUID with NVML's prefix.

    One process only: NVML does not survive a fork.
    """

    def _open(self) -> VendorLibrary:
        return _NvmlLibrary(self.device.key)


class _NvmlLibrary(VendorLibrary):
    """NVML opened for one device: from ``nvmlInit`` to the matching ``nvmlShutdown``."""

    NAME, PACKAGE, FORKED = "NVML", "nvidia-ml-py", " and does not survive a fork"

    def __init__(self, uuid: str) -> None:
        try:
            super().__init__(importlib.import_module("pynvml"), _QUERIES)
        except Exception as error:
            raise ProbeLost(f"nvidia-ml-py cannot be imported: {error!r}; reinstall it") from error
        self._unsupported = self._codes(_UNSUPPORTED)
        self._lost = self._codes(_LOST)
        self._open = False
        try:
            self._library.nvmlInit()
            self._open = True
            self._handle = _handle(self._library, uuid)
            # The name decides where it can: an error would charge the board's energy to the slice.
            if uuid.startswith("MIG-") or self._is_slice():
                self._never = dict.fromkeys(("busy_fraction", "power_watts", "energy_joules"), _MIG)
        except Exception as error:  # an NVMLError, or ctypes' own when the library is damaged
            self.close()
            why = f"NVML cannot open {uuid}: {error}{_shadow(self._library)}"
            raise ProbeLost(why) from error

    def read(self) -> tuple[Reading, dict[str, str]]:
        """Return the reading; nothing of a device that answers 0 to everything."""
        reading, missing = super().read()
        values = [getattr(reading, field.name) for field in fields(Reading)]
        # Integrated GPUs do. An idle one has a clock and draws power.
        if reading.busy_fraction == 0 and not any(values):
            return Reading(), {**for_every_measure(_ZEROS), **self._never}
        return reading, missing

    def close(self) -> None:
        # A forked child did not initialise NVML, so it has nothing to release.
        if self._open and os.getpid() == self._pid:
            with contextlib.suppress(Exception):  # the driver may be gone
                self._library.nvmlShutdown()

    def _code(self, error: Exception) -> int | None:
        return error.value if isinstance(error, self._library.NVMLError) else None

    def _is_slice(self) -> bool:
        """Return whether it is a MIG slice, or a board in MIG mode, which is used by its slices."""
        # A driver, or a package, from before MIG.
        with contextlib.suppress(self._library.NVMLError, AttributeError):
            if _plain_int(self._library.nvmlDeviceIsMigDeviceHandle(self._handle)):
                return True
        try:
            current, _ = self._library.nvmlDeviceGetMigMode(self._handle)
            return bool(current == self._library.NVML_DEVICE_MIG_ENABLE)
        except (self._library.NVMLError, AttributeError):
            return False

    def _codes(self, names: tuple[str, ...]) -> frozenset[int]:
        return frozenset(
            getattr(self._library, name) for name in names if hasattr(self._library, name)
        )


def driver_versions() -> str:
    """Return the versions of NVIDIA's driver and NVML in words, or why there are none."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception as error:  # also of the import, and ctypes' own
        return f"no NVIDIA driver answers: {error}"
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        library = _text(nvml.nvmlSystemGetNVMLVersion())
    except Exception as error:
        return f"the NVIDIA driver does not report its version: {error}"
    finally:
        with contextlib.suppress(Exception):
            nvml.nvmlShutdown()
    return f"NVIDIA driver {driver}, NVML {library}{_shadow(nvml)}"


def _handle(nvml: Any, uuid: str) -> Any:
    """The handle of a device; the old package ``pynvml`` takes and gives bytes for text."""
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except (TypeError, ctypes.ArgumentError):
        return nvml.nvmlDeviceGetHandleByUUID(uuid.encode())


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _shadow(nvml: Any) -> str:
    """Which file is imported in place of nvidia-ml-py's, which is a single one; else empty."""
    if not hasattr(nvml, "__path__"):
        return ""
    return (
        f" ({nvml.__file__} of the old package pynvml stands before nvidia-ml-py: "
        "pip uninstall pynvml, then reinstall nvidia-ml-py)"
    )


def _plain_int(value: Any) -> int:
    # nvidia-ml-py returns some results as ctypes objects, and which ones differs between versions.
    return int(getattr(value, "value", value))


def _busy_fraction(nvml: Any, handle: Any) -> float | None:
    percent = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
    return percent / 100 if 0 <= percent <= 100 else None


def _power_watts(nvml: Any, handle: Any) -> float | None:
    milliwatts = nvml.nvmlDeviceGetPowerUsage(handle)
    return milliwatts / 1e3 if milliwatts > 0 else None  # a device that answers draws some power


def _energy_joules(nvml: Any, handle: Any) -> float | None:
    return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


def _memory_used_bytes(nvml: Any, handle: Any) -> int | None:
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (
        *(AttributeError, TypeError),  # a package older than that
        *(nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported),
    ):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)  # a driver older than R510
    # The peak would keep a single wrong value forever.
    return int(memory.used) if 0 <= memory.used <= memory.total > 0 else None


def _sm_clock_mhz(nvml: Any, handle: Any) -> float | None:
    mhz = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
    return float(mhz) if 0 < mhz < PLAUSIBLE_MHZ else None


def _throttled(nvml: Any, handle: Any) -> frozenset[str]:
    # R535 renamed the function, and nvidia-ml-py its constants: either may know one name only.
    try:
        reasons = nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except (AttributeError, nvml.NVMLError_FunctionNotFound):
        reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    prefix = "nvmlClocksEventReason"
    if not hasattr(nvml, f"{prefix}SwPowerCap"):
        prefix = "nvmlClocksThrottleReason"
    causes = {cause for name, cause in _HELD_DOWN.items() if reasons & getattr(nvml, prefix + name)}
    return frozenset(causes - {"fault"} or causes)


_QUERIES: Mapping[str, Query] = {
    "busy_fraction": _busy_fraction,
    "power_watts": _power_watts,
    "energy_joules": _energy_joules,
    "memory_used_bytes": _memory_used_bytes,
    "sm_clock_mhz": _sm_clock_mhz,
    "throttled": _throttled,
}
