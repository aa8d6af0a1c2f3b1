"""NVIDIA GPUs, read through NVML.

`cuda_probe` knows a device by the UUID that CUDA gives it, never by an index: NVML's order is not
CUDA's. NVML itself is opened by the first `NvmlProbe.read`, in the thread that samples; what it
cannot say is None with a reason, so a machine without a usable NVML still counts its devices' time.

Power is `nvmlDeviceGetPowerUsage`, which every driver has: a mean over the last second on Ampere
and newer (at the moment of the reading on GA100 and older), which is what a sampler that reads once
a second wants to integrate. The energy counter is better, and is preferred where it is sound.
Memory is the whole device's, other processes included, without what the driver reserves.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from .hardware import Device, Probe, ProbeLost, Reading, SilentProbe

__all__ = ["NvmlProbe", "cuda_probe"]

_UNSUPPORTED = (
    "NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_NO_PERMISSION", "NVML_ERROR_FUNCTION_NOT_FOUND",
    "NVML_ERROR_INVALID_ARGUMENT", "NVML_ERROR_ARGUMENT_VERSION_MISMATCH", "NVML_ERROR_DEPRECATED",
)  # fmt: skip
"""Answers that will not change while the process lives: the question is not asked again."""

_LOST = (
    "NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_GPU_NOT_FOUND", "NVML_ERROR_NOT_FOUND",
    "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNINITIALIZED", "NVML_ERROR_DRIVER_NOT_LOADED",
    "NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_LIB_RM_VERSION_MISMATCH",
)  # fmt: skip
"""Answers that concern the device or NVML as a whole, not one measure."""

_MIG = "a MIG slice: NVML reports it for the whole board only, which is not this process's alone"


class NvmlProbe:
    """One NVIDIA GPU or MIG slice; `device.key` is its UUID with NVML's prefix.

    Picklable while closed. `read` and `close` belong to one thread and one process: NVML does not
    survive a fork.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._reasons: dict[str, str] = {}
        self._session: _Session | None = None
        self._refused: str | None = None  # why NVML could never be opened
        self._answered = False

    @property
    def reasons(self) -> Mapping[str, str]:
        if self._refused is not None:
            return dict.fromkeys(_QUERIES, self._refused)
        return MappingProxyType(self._reasons)

    def read(self) -> Reading:
        """Raises `ProbeLost` for a device that once answered; before that, it is silent."""
        if self._refused is not None:
            return Reading()
        try:
            if self._session is None:
                self._session = _Session(self.device.key)
            reading, self._reasons = self._session.read()
        except ProbeLost as lost:
            self.close()
            if self._answered:
                raise
            self._refused = str(lost)
            return Reading()
        self._answered = True
        return reading

    def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()


class _Session:
    """NVML held open for one device: from `nvmlInit` to the matching `nvmlShutdown`."""

    def __init__(self, uuid: str) -> None:
        self._pid = os.getpid()
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except Exception as error:
            raise ProbeLost(f"nvidia-ml-py cannot be imported: {error!r}; reinstall it") from error
        self._unsupported = self._codes(_UNSUPPORTED)
        self._lost = self._codes(_LOST)
        self._never: dict[str, str] = {}
        self._open = False
        try:
            self._nvml.nvmlInit()
            self._open = True
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
            if self._is_slice():
                self._never = dict.fromkeys(("busy", "power_watts", "energy_joules"), _MIG)
        except Exception as error:  # an NVMLError, or ctypes' own when the library is damaged
            self.close()
            raise ProbeLost(f"NVML cannot open {uuid}: {error}") from error

    def read(self) -> tuple[Reading, dict[str, str]]:
        """Every measure by itself: one that fails is None and has a reason."""
        if os.getpid() != self._pid:
            raise ProbeLost("NVML was opened in the parent process and does not survive a fork")
        values: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for measure, query in _QUERIES.items():
            if measure not in self._never:
                values[measure] = self._ask(measure, query, reasons)
        return Reading(**values), {**reasons, **self._never}

    def close(self) -> None:
        # In a forked child NVML was never initialised by us, so there is nothing to give back.
        if self._open and os.getpid() == self._pid:
            with contextlib.suppress(Exception):  # the driver may be gone
                self._nvml.nvmlShutdown()

    def _ask(self, measure: str, query: _Query, reasons: dict[str, str]) -> float | None:
        try:
            value = query(self._nvml, self._handle)
        except self._nvml.NVMLError as error:
            if error.value in self._lost:
                raise ProbeLost(f"NVML lost the device: {error}") from error
            if error.value in self._unsupported:
                self._never[measure] = f"NVML: {error}"
            reasons[measure] = f"NVML: {error}"
            return None
        except Exception as error:  # e.g. a function that this nvidia-ml-py does not have
            self._never[measure] = reasons[measure] = f"nvidia-ml-py: {error!r}"
            return None
        if value is None:
            reasons[measure] = "NVML gave an impossible value"
        return value

    def _is_slice(self) -> bool:
        """True for a MIG slice, and for a board in MIG mode, of which we can have a slice only."""
        with contextlib.suppress(self._nvml.NVMLError):  # a driver from before MIG
            if _number(self._nvml.nvmlDeviceIsMigDeviceHandle(self._handle)):
                return True
        try:
            current, _ = self._nvml.nvmlDeviceGetMigMode(self._handle)
        except self._nvml.NVMLError:
            return False
        return bool(current == self._nvml.NVML_DEVICE_MIG_ENABLE)

    def _codes(self, names: tuple[str, ...]) -> frozenset[int]:
        return frozenset(getattr(self._nvml, name) for name in names if hasattr(self._nvml, name))


def cuda_probe(device_index: int) -> Probe:
    """The probe of `torch.device("cuda", device_index)` of this process.

    Never fails for want of NVML: the device's identity and time count all the same. Asks CUDA for
    properties that it already holds, so nothing is allocated and nothing synchronised.
    """
    import torch

    properties = torch.cuda.get_device_properties(device_index)
    name, uuid = str(properties.name), _bare(getattr(properties, "uuid", ""))
    if torch.version.hip is not None or not uuid:
        why = "this torch does not tell a device's UUID; use torch>=2.4"
        if torch.version.hip is not None:
            why = "an AMD GPU: nothing reads these yet"
        key = f"cuda:{platform.node()}:{uuid or _address(properties, device_index)}"
        return SilentProbe(Device(key=key, name=name, kind="cuda"), why)
    prefix = "MIG" if " MIG " in name else "GPU"
    return NvmlProbe(Device(key=f"{prefix}-{uuid}", name=name, kind="cuda"))


def _address(properties: Any, device_index: int) -> str:
    """Where the device is plugged in: unlike its index, the same for processes that see others."""
    parts = [getattr(properties, f"pci_{p}_id", None) for p in ("domain", "bus", "device")]
    return str(device_index) if None in parts else ":".join(map(str, parts))


def _bare(uuid: object) -> str:
    """The UUID in lower case without NVML's prefix, which torch gives in some versions only."""
    return re.sub(r"^(GPU|MIG)-", "", str(uuid).strip(), flags=re.IGNORECASE).lower()


def _number(value: Any) -> int:
    # nvidia-ml-py returns some results as ctypes objects, and which ones differs between versions.
    return int(getattr(value, "value", value))


_Query = Callable[[Any, Any], "float | None"]


def _busy(nvml: Any, handle: Any) -> float | None:
    percent = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
    return percent / 100 if 0 <= percent <= 100 else None


def _power_watts(nvml: Any, handle: Any) -> float | None:
    milliwatts = nvml.nvmlDeviceGetPowerUsage(handle)
    return milliwatts / 1e3 if milliwatts > 0 else None  # a device that answers draws something


def _energy_joules(nvml: Any, handle: Any) -> float | None:
    return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3


def _memory_used_bytes(nvml: Any, handle: Any) -> int | None:
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).used)
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported):
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)  # a driver older than R510


_QUERIES: Mapping[str, _Query] = {
    "busy": _busy,
    "power_watts": _power_watts,
    "energy_joules": _energy_joules,
    "memory_used_bytes": _memory_used_bytes,
}
