"""A machine of invented NVIDIA GPUs behind the functions of the real `pynvml`.

Functions are replaced by the names they have there, so a name that does not exist fails the test.
"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from conftest import PlainLM

from lightning_lscore.hardware.nvml import NvmlProbe
from lightning_lscore.hardware.probe import Device

ERROR_CODES = sorted(
    {code for name, code in vars(pynvml).items() if name.startswith("NVML_ERROR_")}
)
"""Every code that this nvidia-ml-py knows."""

QUERIES = {
    "busy_fraction": "nvmlDeviceGetUtilizationRates",
    "power_watts": "nvmlDeviceGetPowerUsage",
    "energy_joules": "nvmlDeviceGetTotalEnergyConsumption",
    "memory_used_bytes": "nvmlDeviceGetMemoryInfo",
    "sm_clock_mhz": "nvmlDeviceGetClockInfo",
    "throttled": "nvmlDeviceGetCurrentClocksEventReasons",
}
"""The function behind each measure of a reading."""

UUID = "ffc79498-8ff3-c2dc-3b0d-fafd804516ae"
OTHER_UUID = "0a1b2c3d-0000-1111-2222-333344445555"


@dataclass
class FakeGpu:
    """One GPU or MIG slice. Power, utilisation and energy of a slice are those of its board.

    Its clock and what holds it down are told by the board alone.
    """

    uuid: str = f"GPU-{UUID}"
    is_slice: bool = False
    board_in_mig_mode: bool = False
    energy_counter: bool = True
    utilization_percent: int = 75
    power_milliwatts: int = 350_000
    energy_millijoules: int = 5_000_000
    memory_bytes: int = 12 * 2**30
    reserved_bytes: int = 2**29
    total_bytes: int = 80 * 2**30
    sm_clock_mhz: int = 1755
    clock_reasons: int = 0


@dataclass
class FakeNvml:
    """The driver: which GPUs there are, and which calls fail with which code."""

    gpus: list[FakeGpu] = field(default_factory=lambda: [FakeGpu()])
    faults: dict[str, int] = field(default_factory=dict)
    knows_mig: bool = True
    knows_memory_v2: bool = True
    knows_event_reasons: bool = True
    initialised: int = 0
    calls: Counter[str] = field(default_factory=Counter)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
        for name in dir(type(self)):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, self._guarded(name))
        return self

    def install_for_fits(
        self, monkeypatch: pytest.MonkeyPatch, name: str = "NVIDIA H100 80GB HBM3"
    ) -> FakeNvml:
        """Fits on the CPU take the first GPU for the device that they compute on."""
        device = Device(key=self.gpus[0].uuid, name=name, kind="cuda")
        monkeypatch.setattr(
            "lightning_lscore.hardware.places.CpuProbe", lambda *_: NvmlProbe(device)
        )
        return self.install(monkeypatch)

    def await_call(self, name: str, beyond: int = 0) -> None:
        """Until there were more calls than these: the thread that reads runs beside training."""
        deadline = time.monotonic() + 20
        while self.calls[name] <= beyond and time.monotonic() < deadline:
            time.sleep(0.001)

    def _guarded(self, name: str) -> Any:
        function = getattr(self, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            if name in self.faults:
                raise pynvml.NVMLError(self.faults[name])
            if name != "nvmlInit" and not self.initialised:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
            return function(*args, **kwargs)

        return call

    def nvmlInit(self) -> None:
        self.initialised += 1

    def nvmlShutdown(self) -> None:
        self.initialised -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in self.gpus:
            if gpu.uuid == uuid:
                return gpu
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        raise AssertionError("NVML's indexes are not CUDA's")

    def nvmlDeviceIsMigDeviceHandle(self, gpu: FakeGpu) -> ctypes.c_uint:
        if not self.knows_mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return ctypes.c_uint(gpu.is_slice)  # not an int: nvidia-ml-py gives the C object

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        if not self.knows_mig or gpu.is_slice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(gpu.board_in_mig_mode), int(gpu.board_in_mig_mode)]

    def nvmlDeviceGetUtilizationRates(self, gpu: FakeGpu) -> SimpleNamespace:
        return SimpleNamespace(gpu=gpu.utilization_percent, memory=1)

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        return gpu.power_milliwatts

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        if not gpu.energy_counter:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu.energy_millijoules

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, version: int | None = None) -> SimpleNamespace:
        if version is None:
            used = gpu.memory_bytes + gpu.reserved_bytes
            return SimpleNamespace(used=used, total=gpu.total_bytes)
        if not self.knows_memory_v2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        assert version == pynvml.nvmlMemory_v2
        return SimpleNamespace(used=gpu.memory_bytes, total=gpu.total_bytes)

    def nvmlDeviceGetClockInfo(self, gpu: FakeGpu, clock: int) -> int:
        assert clock == pynvml.NVML_CLOCK_SM
        if gpu.is_slice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu.sm_clock_mhz

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGpu) -> int:
        if not self.knows_event_reasons:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return self.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: FakeGpu) -> int:
        if gpu.is_slice:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return gpu.clock_reasons

    def nvmlSystemGetDriverVersion(self) -> str:
        return "999.88.77"

    def nvmlSystemGetNVMLVersion(self) -> str:
        return "13.999.88.77"


class Draws(PlainLM):
    """Each of its steps takes 5 J of the GPU, from the first reading on."""

    def __init__(self, driver: FakeNvml) -> None:
        super().__init__()
        self.driver = driver

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.driver.await_call("nvmlDeviceGetMemoryInfo")
        self.driver.gpus[0].energy_millijoules += 5_000
