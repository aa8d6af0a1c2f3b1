"""The probe of each place that torch can compute on: here alone all vendors are known."""

from __future__ import annotations

import importlib
import platform
import re
from typing import Any

import torch

from .amd import AmdProbe
from .apple import AppleProbe
from .cpu import CpuProbe
from .nvml import NvmlProbe
from .probe import Device, Probe, SilentProbe

__all__ = ["cuda_probe", "probe_of"]


def probe_of(place: torch.device, threads: int | None = None) -> Probe:
    """The probe of a place of this process; `threads` are how many make the whole CPU."""
    if place.type == "cuda":
        return cuda_probe(place.index or 0)
    cpu = CpuProbe(threads)
    if place.type == "cpu":
        return cpu
    key = cpu.device.key.replace("cpu:", f"{place}:", 1)
    if place.type == "mps":
        return AppleProbe(Device(key=key, name=_apple_name(), kind="mps"))
    name = str(place)
    if place.type == "xla":
        name, ordinal = _tpu()
        key = f"{key}:{ordinal}"  # each process calls its own core xla:0
    device = Device(key=key, name=name, kind=place.type)
    return SilentProbe(device, f"no probe reads {place.type} devices")


def _tpu() -> tuple[str, int]:
    """The accelerator type, by which Lightning too knows a TPU, and the number among all cores."""
    try:
        tpu = importlib.import_module("torch_xla._internal.tpu")
        ordinal = importlib.import_module("torch_xla.runtime").global_ordinal()
        return str(tpu.get_tpu_env()["ACCELERATOR_TYPE"]).split("-")[0], int(ordinal)
    except Exception:  # no TPU, or no answer from the server that knows its type
        return "xla", 0


def _apple_name() -> str:
    """Such as "Apple M1 Max 32-core GPU": one name of a chip may mean GPUs of several sizes."""
    try:
        mps = torch.backends.mps
        return f"{mps.get_name()} {mps.get_core_count()}-core GPU"
    except (AttributeError, RuntimeError):  # newer than the oldest torch
        return "Apple GPU"


def cuda_probe(device_index: int) -> Probe:
    """The probe of `torch.device("cuda", device_index)` of this process, AMD's under ROCm.

    Never fails for want of NVML or amdsmi: the device's identity and time count all the same. Asks
    CUDA for properties that it already holds, so nothing is allocated and nothing synchronised.
    """
    properties = torch.cuda.get_device_properties(device_index)
    name, uuid = str(properties.name), _bare(getattr(properties, "uuid", ""))
    if torch.version.hip is not None or not uuid:
        address = _address(properties)
        # Both, since AMD GPUs without a serial number share a UUID, and parts of one an address.
        marks = [*filter(None, [uuid]), *map(str, address or ())] or [str(device_index)]
        device = Device(key=":".join(["cuda", platform.node(), *marks]), name=name, kind="cuda")
        if torch.version.hip is None:
            return SilentProbe(device, "this torch does not tell a device's UUID; use torch>=2.4")
        if address is None:
            return SilentProbe(device, "this torch does not tell where an AMD GPU is plugged in")
        return AmdProbe(device, address)
    prefix = "MIG" if " MIG " in name else "GPU"
    return NvmlProbe(Device(key=f"{prefix}-{uuid}", name=name, kind="cuda"))


def _address(properties: Any) -> tuple[int, int, int] | None:
    """Where the device is plugged in: unlike its index, the same for processes that see others.

    PCI domain, bus and device.
    """
    try:
        return properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id
    except AttributeError:
        return None


def _bare(uuid: object) -> str:
    """The UUID in lower case without NVML's prefix, which torch gives in some versions only."""
    return re.sub(r"^(GPU|MIG)-", "", str(uuid).strip(), flags=re.IGNORECASE).lower()
