"""The GPU of Apple's chips: memory from torch, energy from the package zeus-apple-silicon.

Written from the documentation of zeus-apple-silicon 1.1, tested with a fake package that has its
names, and not yet run on a device. The energy is that of the GPU, its caches and the memory, which
the CPU shares; macOS computes it from load and clocks, and Apple calls it an estimate. No public
interface reports how busy the GPU is.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from .probe import Device, Reading, why_missing

__all__ = ["AppleProbe"]

_PARTS = ("gpu_mj", "gpu_sram_mj", "dram_mj")


class AppleProbe:
    """One Apple GPU, as torch's device ``mps``."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._monitor: Any = None
        self.missing: Mapping[str, str] = {}

    def read(self) -> Reading:
        """Read each measure by itself: without the package there is still the memory."""
        values: dict[str, Any] = {}
        why = {"power_watts": "the chip counts energy only; the mean power follows from that"}
        for measure, ask in (("energy_joules", self._joules), ("memory_used_bytes", _memory)):
            try:
                values[measure] = ask()
            except Exception as error:  # from a compiled extension, or from a torch without MPS
                why[measure] = str(error) or repr(error)
        reading = Reading(**values)
        self.missing = why_missing(reading, why, "no public interface of macOS reports it")
        return reading

    def close(self) -> None:
        self._monitor = None

    def _joules(self) -> float:
        if self._monitor is None:
            try:
                package = importlib.import_module("zeus_apple_silicon")
            except ImportError as error:
                raise RuntimeError(f"{error}; install zeus-apple-silicon") from error
            self._monitor = package.AppleEnergyMonitor()
        energy = self._monitor.get_cumulative_energy()
        if energy.gpu_mj is None:
            raise RuntimeError("zeus-apple-silicon reports no energy of this chip's GPU")
        return sum(getattr(energy, part) or 0 for part in _PARTS) / 1e3


def _memory() -> int:
    return torch.mps.driver_allocated_memory()  # of this process; torch keeps this sum
