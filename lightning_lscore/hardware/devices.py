"""The devices of a run, each counted once over all ranks, and their peaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..equation.evidence import OccupiedDevice
from .measured_peak import measured_peak
from .peaks import peak_flops
from .places import probe_of
from .probe import Device
from .sampler import Sampler

Gather = Callable[[Any], list[Any]]
"""Returns the objects of all ranks to every rank, in the order of ranks."""


@dataclass(frozen=True)
class Devices:
    """The devices that a run computes on, over all ranks."""

    described: tuple[OccupiedDevice, ...]
    """Each with its peak, for the record."""
    sampler: Sampler
    """Reads those of this process."""
    read_by: tuple[tuple[str, ...], ...]
    """The keys of the devices that each rank's sampler reads."""

    @property
    def count(self) -> int:
        """The number of devices; one that several ranks share counts once."""
        return len(self.described)

    @property
    def peak_flops(self) -> float | None:
        """Dense peak of all devices together, in FLOP/s; None if one is unknown."""
        peaks = [device.peak_flops for device in self.described]
        known = [peak for peak in peaks if peak is not None]
        return sum(known) if len(known) == len(peaks) else None


def find_devices(
    module: nn.Module,
    root: torch.device,
    precision: str,
    *,
    rank: int,
    gather: Gather,
    interval: float,
) -> Devices:
    """Identify the devices of all processes. Collective: every rank calls it.

    Args:
        module: Its parameters may lie on several devices.
        root: The strategy's root device in this process.
        precision: The Trainer's, e.g. ``"bf16-mixed"``.
        rank: This process's index in what ``gather`` returns.
        gather: Called twice here, and never afterwards.
        interval: Seconds between readings.
    """
    dtype = compute_dtype(precision, module, root)
    places = {p.device for p in module.parameters() if p.device.type == root.type}
    # By key, because "cuda" and "cuda:0" are one device.
    by_key = {p.device.key: p for p in map(probe_of, sorted({root, *places}, key=str))}
    keys, probes = list(by_key), list(by_key.values())

    ranks = gather((keys, torch.get_num_threads()))
    owner = {key: r for r, (theirs, _) in reversed([*enumerate(ranks)]) for key in theirs}
    owned = [probe for probe in probes if owner[probe.device.key] == rank]
    threads = sum(n for theirs, n in ranks if keys[0] in theirs)
    if root.type == "cpu":  # the ranks of one host share its CPU: together they use these threads
        probes = [probe_of(root, threads)]
    # Only its owner reads a GPU; each process reads its own CPU time.
    read = probes if root.type == "cpu" else owned

    mine = [_described(probe.device, root, dtype, threads) for probe in owned]
    gathered = gather((mine, tuple(p.device.key for p in read)))
    described = tuple(device for theirs, _ in gathered for device in theirs)
    names = {probe.device.key for probe in owned}
    sampler = Sampler(read, interval=interval, owned=names)
    return Devices(described, sampler, tuple(read for _, read in gathered))


def compute_dtype(precision: str, module: nn.Module, root: torch.device) -> str:
    """Return the dtype of the run's matrix products, as ``peaks`` names it."""
    precision = str(precision)
    if precision.startswith("transformer-engine"):
        return "float8"
    for mark, dtype in (("bf16", "bfloat16"), ("16", "float16"), ("64", "float64")):
        if precision.startswith(mark):
            return dtype
    sizes = Counter[torch.dtype]()
    for parameter in module.parameters():
        if parameter.dtype.is_floating_point:  # packed weights are unpacked for a product
            # Lazy modules make theirs in the first step.
            sizes[parameter.dtype] += 0 if is_lazy(parameter) else parameter.numel()
    dtype = str(max(sizes, key=lambda d: sizes[d], default=torch.float32)).removeprefix("torch.")
    tf32 = root.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if dtype == "float32" and tf32 else dtype


def _described(device: Device, root: torch.device, dtype: str, threads: int) -> OccupiedDevice:
    peak = peak_flops(device.name, dtype) or measured_peak(
        root, dtype, name=device.name, threads=threads
    )
    return OccupiedDevice(
        key=device.key,
        name=device.name,
        kind=device.kind,
        dtype=dtype,
        peak_flops=None if peak is None else peak.flops,
        peak_source=f"unavailable: no {dtype} product ran here" if peak is None else peak.source,
    )
