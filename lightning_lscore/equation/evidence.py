"""What a score rests on besides its measurements: the held-out set and the devices.

The parts hand these frozen objects to the record: plain numbers and text, without torch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """What T was measured on, over all processes; each tuple has an entry per validation loader."""

    tokens: tuple[int, ...]
    """Tokens that were counted."""
    perplexities: tuple[float, ...]
    source: str
    """How logits and labels were found."""
    bytes: tuple[int, ...] | None = None
    """Bytes of the counted tokens; None if bytes were not counted."""
    fingerprints: tuple[str, ...] = ()
    """Equal if the same sequences of tokens were counted."""
    longest: tuple[int, ...] = ()
    """Counted tokens of the longest sequence."""


@dataclass(frozen=True, kw_only=True)
class OccupiedDevice:
    """A device that a run computes on, counted once however many processes share it."""

    key: str
    """Unique across hosts, see ``Device.key``."""
    name: str
    """As its vendor reports it."""
    kind: str
    """The ``torch.device.type``: ``cuda``, ``cpu``, ..."""
    dtype: str
    """Precision of the run's matrix products."""
    peak_flops: float | None
    """Dense peak in that dtype, in FLOP/s; None if unknown."""
    peak_source: str
    """The document that states the peak, how it was measured, or why there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceUse:
    """What one device did in training since the run began; None if not measured.

    Fields are named as in ``Measurements``, with the same units.
    """

    coverage: float | None = None
    """Share of the training time that readings cover, 0..1."""
    busy_fraction: float | None = None
    sm_clock_mhz: float | None = None
    throttled_fraction: float | None = None
    throttled_by_power_fraction: float | None = None
    throttled_by_heat_fraction: float | None = None
    memory_mean_gib: float | None = None
    memory_peak_gib: float | None = None
    power_watts: float | None = None
    energy_kwh: float | None = None
