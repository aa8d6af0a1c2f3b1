"""The probe of each ``torch.device``: the one file that knows all vendors."""

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
    """Return the probe of a ``torch.device`` of this process.

    Args:
        place: The device.
        threads: How many threads make the whole CPU, see ``CpuProbe``.
    """
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
    """Return the accelerator type, as Lightning names a TPU, and the core's number among all."""
    try:
        tpu = importlib.import_module("torch_xla._internal.tpu")
        ordinal = importlib.import_module("torch_xla.runtime").global_ordinal()
        return str(tpu.get_tpu_env()["ACCELERATOR_TYPE"]).split("-")[0], int(ordinal)
    except Exception:  # no TPU, or the metadata server does not answer
        return "xla", 0


def _apple_name() -> str:
    """Return e.g. "Apple M1 Max 32-core GPU": a chip comes with GPUs of several sizes."""
    try:
        mps = torch.backends.mps
        return f"{mps.get_name()} {mps.get_core_count()}-core GPU"
    except (AttributeError, RuntimeError):  # not in older versions of torch
        return "Apple GPU"


def cuda_probe(device_index: int) -> Probe:
    """Return the probe of ``torch.device("cuda", device_index)``; under ROCm that is an AMD GPU.

    It does not need NVML or amdsmi: without them the device's identity and time still count. It
    reads properties that CUDA already holds, and neither allocates nor synchronises.
    """
    properties = torch.cuda.get_device_properties(device_index)
    name, uuid = str(properties.name), _bare(getattr(properties, "uuid", ""))
    if torch.version.hip is not None or not uuid:
        address = _address(properties)
        # Both: AMD GPUs without a serial number share a UUID, and partitions of one an address.
        marks = [*filter(None, [uuid]), *map(str, address or ())] or [str(device_index)]
        device = Device(key=":".join(["cuda", platform.node(), *marks]), name=name, kind="cuda")
        if torch.version.hip is None:
            return SilentProbe(
                device, "this version of torch does not report a device's UUID; use torch>=2.4"
            )
        if address is None:
            return SilentProbe(
                device, "this version of torch does not report the PCI address of an AMD GPU"
            )
        return AmdProbe(device, address)
    prefix = "MIG" if " MIG " in name else "GPU"
    return NvmlProbe(Device(key=f"{prefix}-{uuid}", name=name, kind="cuda"))


def _address(properties: Any) -> tuple[int, int, int] | None:
    """Return PCI domain, bus and device: unlike the index, they are the same in every process."""
    try:
        return properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id
    except AttributeError:
        return None


def _bare(uuid: object) -> str:
    """Return the UUID in lower case without NVML's prefix, which some versions of torch add."""
    return re.sub(r"^(GPU|MIG)-", "", str(uuid).strip(), flags=re.IGNORECASE).lower()
