"""AMD GPUs, behind a stand-in for amdsmi with the names of amdsmi 7.0.2 and of ROCm 6."""

from __future__ import annotations

import enum
import pickle
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_lscore.hardware import library
from lightning_lscore.hardware.amd import AmdProbe
from lightning_lscore.hardware.places import cuda_probe
from lightning_lscore.hardware.probe import Device, ProbeLost, Reading, SilentProbe
from lightning_lscore.hardware.sampler import Sampler

DEVICE = Device(key="cuda:here:0:193:0", name="AMD Instinct MI300X", kind="cuda")
ADDRESS = (0, 0xC1, 0)
MEMORY, CLOCKS = enum.IntEnum("AmdSmiMemoryType", "VRAM"), enum.IntEnum("AmdSmiClkType", "GFX")
QUERIES = {
    "busy_fraction": "amdsmi_get_gpu_activity",
    "power_watts": "amdsmi_get_power_info",
    "energy_joules": "amdsmi_get_energy_count",
    "memory_used_bytes": "amdsmi_get_gpu_memory_usage",
    "sm_clock_mhz": "amdsmi_get_clock_info",
}
FULL = {
    "busy_fraction": 0.75,
    "power_watts": 500.0,
    "energy_joules": pytest.approx(15.3, rel=1e-3),
    "memory_used_bytes": 12 * 2**30,
    "sm_clock_mhz": 2100.0,
    "throttled": None,
}
STATUS = {
    "AMDSMI_STATUS_NOT_SUPPORTED": 2,
    "AMDSMI_STATUS_NOT_YET_IMPLEMENTED": 3,
    "AMDSMI_STATUS_API_FAILED": 7,
    "AMDSMI_STATUS_TIMEOUT": 8,
    "AMDSMI_STATUS_NO_PERM": 10,
    "AMDSMI_STATUS_BUSY": 30,
    "AMDSMI_STATUS_NOT_FOUND": 31,
    "AMDSMI_STATUS_NOT_INIT": 32,
    "AMDSMI_STATUS_DRIVER_NOT_LOADED": 34,
    "AMDSMI_STATUS_NO_DRV": 51,
    "AMDSMI_STATUS_UNKNOWN_ERROR": 4294967295,
}
LOST = {31, 32, 34, 51}


class AmdSmiException(Exception):
    pass


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | AMDSMI_STATUS - made up"


@dataclass
class FakeGpu:
    """What amdsmi's dictionaries hold for one GPU."""

    bdf: str = "0000:c1:00.0"
    partition: str | int = "SPX"
    """An int is the error code that is raised instead."""
    gfx_activity: Any = 75
    power: dict[str, Any] = field(
        default_factory=lambda: {"current_socket_power": 500, "average_socket_power": "N/A"}
    )
    energy: dict[str, Any] = field(
        default_factory=lambda: {"energy_accumulator": 10**6, "counter_resolution": 15.3}
    )
    vram: int = 12 * 2**30
    clock: dict[str, Any] = field(default_factory=lambda: {"clk": 2100, "max_clk": 2100})


@dataclass
class FakeSmi:
    """The library: which GPUs there are, and which calls fail with which code."""

    gpus: list[FakeGpu] = field(
        default_factory=lambda: [FakeGpu(bdf="0000:83:00.0", gfx_activity=1), FakeGpu()]
    )
    faults: dict[str, int] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    open: bool = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeSmi:
        module: Any = ModuleType("amdsmi")
        for name in dir(type(self)):
            if name.startswith("amdsmi_"):
                setattr(module, name, self._guarded(name))
        module.AmdSmiException = AmdSmiException
        module.AmdSmiLibraryException = AmdSmiLibraryException
        module.AmdSmiMemoryType, module.AmdSmiClkType = MEMORY, CLOCKS
        module.amdsmi_wrapper = SimpleNamespace(**STATUS)
        monkeypatch.setitem(sys.modules, "amdsmi", module)
        return self

    def _guarded(self, name: str) -> Any:
        function = getattr(self, name)

        def call(*args: Any) -> Any:
            self.calls[name] += 1
            if name in self.faults:
                raise AmdSmiLibraryException(self.faults[name])
            if name != "amdsmi_init" and not self.open:
                raise AmdSmiLibraryException(STATUS["AMDSMI_STATUS_NOT_INIT"])
            return function(*args)

        return call

    def amdsmi_init(self) -> None:
        self.open = True

    def amdsmi_shut_down(self) -> None:
        self.open = False  # for everyone: it counts no users

    def amdsmi_get_processor_handles(self) -> list[FakeGpu]:
        return list(self.gpus)

    def amdsmi_get_gpu_device_bdf(self, gpu: FakeGpu) -> str:
        return gpu.bdf

    def amdsmi_get_gpu_compute_partition(self, gpu: FakeGpu) -> str:
        if isinstance(gpu.partition, int):
            raise AmdSmiLibraryException(gpu.partition)
        return gpu.partition

    def amdsmi_get_gpu_activity(self, gpu: FakeGpu) -> dict[str, Any]:
        return {"gfx_activity": gpu.gfx_activity, "umc_activity": 3, "mm_activity": "N/A"}

    def amdsmi_get_power_info(self, gpu: FakeGpu) -> dict[str, Any]:
        return gpu.power

    def amdsmi_get_energy_count(self, gpu: FakeGpu) -> dict[str, Any]:
        return {**gpu.energy, "timestamp": 1}

    def amdsmi_get_gpu_memory_usage(self, gpu: FakeGpu, kind: enum.IntEnum) -> int:
        assert kind is MEMORY.VRAM
        return gpu.vram

    def amdsmi_get_clock_info(self, gpu: FakeGpu, kind: enum.IntEnum) -> dict[str, Any]:
        assert kind is CLOCKS.GFX
        return gpu.clock


def read(probe):
    """The loss, or the reading."""
    try:
        return None, asdict(probe.read())
    except ProbeLost as lost:
        return lost, {}


def test_the_gpu_at_its_place_on_the_bus_tells_every_measure_but_throttling(monkeypatch):
    FakeSmi().install(monkeypatch)
    probe = AmdProbe(DEVICE, ADDRESS)

    assert asdict(probe.read()) == FULL
    assert set(probe.missing) == {"throttled"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"power": {"current_socket_power": "N/A", "average_socket_power": 300}}, {"power": 300}),
        ({"power": {"current_socket_power": 0xFFFF, "average_socket_power": 300}}, {"power": 300}),
        ({"power": {"average_socket_power": 300}}, {"power": 300}),
        ({"energy": {"power": 10**6, "counter_resolution": 15.3}}, {}),
        ({"clock": {"cur_clk": 2100, "max_clk": 2100}}, {}),
        ({"partition": "N/A"}, {}),
        ({"partition": STATUS["AMDSMI_STATUS_NOT_SUPPORTED"]}, {}),
        ({"bdf": "0000:C1:00.0"}, {}),
    ],
)
def test_other_gpus_and_other_versions_say_the_same_in_other_words(monkeypatch, change, expected):
    FakeSmi([FakeGpu(**change)]).install(monkeypatch)

    reading = asdict(AmdProbe(DEVICE, ADDRESS).read())
    assert reading == {**FULL, "power_watts": expected.get("power", FULL["power_watts"])}


@pytest.mark.parametrize(
    ("measure", "change"),
    [
        ("busy_fraction", {"gfx_activity": "N/A"}),
        ("busy_fraction", {"gfx_activity": 0xFFFF}),
        ("power_watts", {"power": {"current_socket_power": "N/A", "average_socket_power": "N/A"}}),
        ("power_watts", {"power": {"current_socket_power": 0, "average_socket_power": 2**32 - 1}}),
        ("energy_joules", {"energy": {"energy_accumulator": "N/A", "counter_resolution": 15.3}}),
        ("energy_joules", {"energy": {"energy_accumulator": 1, "counter_resolution": "N/A"}}),
        ("energy_joules", {"energy": {}}),
        ("memory_used_bytes", {"vram": 2**64 - 1}),
        ("memory_used_bytes", {"vram": "N/A"}),
        ("sm_clock_mhz", {"clock": {"clk": "N/A"}}),
        ("sm_clock_mhz", {"clock": {"clk": 2**32 - 1}}),
        ("sm_clock_mhz", {"clock": {}}),
    ],
)
def test_what_a_gpu_does_not_have_is_missing_and_has_a_reason(monkeypatch, measure, change):
    FakeSmi([FakeGpu(**change)]).install(monkeypatch)
    probe = AmdProbe(DEVICE, ADDRESS)

    assert asdict(probe.read()) == {**FULL, measure: None}
    assert set(probe.missing) == {measure, "throttled"}


@pytest.mark.parametrize("function", QUERIES.values())
@pytest.mark.parametrize("code", STATUS.values(), ids=STATUS)
def test_any_error_of_a_query_costs_that_measure_or_tells_of_a_loss(monkeypatch, function, code):
    fake = FakeSmi().install(monkeypatch)
    probe = AmdProbe(DEVICE, ADDRESS)
    probe.read()

    fake.faults = {function: code}
    lost, reading = read(probe)
    (failed,) = (m for m, f in QUERIES.items() if f == function)
    assert (lost is not None) == (code in LOST)
    if lost is None:
        assert reading == {**FULL, failed: None}
        assert probe.missing[failed] == f"amdsmi: Error code: {code} | AMDSMI_STATUS - made up"
    else:
        assert isinstance(lost.__cause__, AmdSmiLibraryException)
    fake.faults = {}
    again = None if code in (2, 3, 10) else FULL[failed]  # these will not change
    assert asdict(probe.read()) == {**FULL, failed: again}


@pytest.mark.parametrize(
    "function",
    ["amdsmi_init", "amdsmi_get_processor_handles", "amdsmi_get_gpu_device_bdf"],
)
def test_any_error_at_the_start_leaves_a_silent_probe_with_reasons(monkeypatch, function):
    for code in STATUS.values():
        fake = FakeSmi(faults={function: code}).install(monkeypatch)
        probe = AmdProbe(DEVICE, ADDRESS)
        assert probe.read() == probe.read() == Reading()
        assert set(probe.missing) == set(FULL)
        assert f"{code} | AMDSMI_STATUS" in probe.missing["busy_fraction"]
        assert fake.calls[function] == 1  # not asked again and again


@pytest.mark.parametrize(
    ("gpus", "why"),
    [
        ([FakeGpu(bdf="0000:83:00.0")], "no GPU at 0000:c1:00.x"),
        ([FakeGpu(bdf="0001:c1:00.0")], "no GPU at 0000:c1:00.x"),
        ([FakeGpu(partition="CPX")], "a part of an AMD GPU"),
        ([FakeGpu(bdf=f"0000:c1:00.{i}") for i in range(2)], "a part of an AMD GPU"),
        ([], "no GPU at"),
    ],
)
def test_a_gpu_that_is_not_there_alone_and_whole_is_not_guessed(monkeypatch, gpus, why):
    FakeSmi(gpus).install(monkeypatch)
    probe = AmdProbe(DEVICE, ADDRESS)

    assert probe.read() == Reading()
    assert all(why in reason for reason in probe.missing.values())


def test_without_amdsmi_the_probe_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    probe = AmdProbe(DEVICE, ADDRESS)

    assert probe.read() == Reading()
    assert "install the one of your ROCm version" in probe.missing["busy_fraction"]


def test_closing_leaves_the_library_to_those_who_use_it_too(monkeypatch):
    fake = FakeSmi().install(monkeypatch)
    first, second = AmdProbe(DEVICE, ADDRESS), AmdProbe(DEVICE, (0, 0x83, 0))
    first.read()
    second.read()
    first.close()
    first.close()

    assert second.read().busy_fraction == 0.01
    assert fake.calls["amdsmi_shut_down"] == 0
    assert asdict(first.read()) == FULL


def test_a_forked_child_does_not_use_its_parents_handle(monkeypatch):
    FakeSmi().install(monkeypatch)
    probe = AmdProbe(DEVICE, ADDRESS)
    probe.read()

    monkeypatch.setattr(library.os, "getpid", lambda: -1)
    with pytest.raises(ProbeLost, match="parent process"):
        probe.read()


def test_a_probe_pickles_before_it_is_read(monkeypatch):
    FakeSmi().install(monkeypatch)
    probe = pickle.loads(pickle.dumps(AmdProbe(DEVICE, ADDRESS)))

    assert asdict(probe.read()) == FULL


def hip_with(monkeypatch, **properties):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    everything = {"name": DEVICE.name, **properties}
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**everything)
    )


def test_under_rocm_a_cuda_device_is_read_by_its_place(monkeypatch):
    FakeSmi().install(monkeypatch)
    hip_with(monkeypatch, pci_domain_id=0, pci_bus_id=0xC1, pci_device_id=0, uuid="5858")

    probe = cuda_probe(0)
    assert asdict(probe.read()) == FULL
    assert probe.device.key.endswith(":5858:0:193:0")


def test_gpus_of_one_uuid_are_two_if_they_are_plugged_in_at_two_places(monkeypatch):
    """Those without a serial number all have the same."""
    keys = set()
    for bus in (0xC1, 0x83):
        hip_with(monkeypatch, pci_domain_id=0, pci_bus_id=bus, pci_device_id=0, uuid="5858")
        keys.add(cuda_probe(0).device.key)
    assert len(keys) == 2


def test_a_torch_that_knows_no_place_leaves_the_gpu_silent(monkeypatch):
    hip_with(monkeypatch, uuid="61643763")
    first, second = cuda_probe(0), cuda_probe(1)

    assert first.device == second.device  # the UUID alone tells, whatever the index
    assert isinstance(first, SilentProbe)
    assert "does not report the PCI address" in first.missing["busy_fraction"]


@pytest.mark.parametrize("moves", [True, False], ids=["sound counter", "counter stands still"])
def test_a_run_is_charged_by_the_counter_or_where_it_stands_still_by_the_power(monkeypatch, moves):
    gpu = FakeGpu(power={"current_socket_power": 400}, energy={"energy_accumulator": 0})
    FakeSmi([gpu]).install(monkeypatch)
    t = 0.0
    sampler = Sampler([AmdProbe(DEVICE, ADDRESS)], interval=3600.0, now=lambda: t)
    sampler.start()
    for hour in range(11):
        t = hour * 3600.0
        ticks = int(t * 500 * 1e6 / 15.25) if moves else 7
        gpu.energy = {"energy_accumulator": ticks, "counter_resolution": 15.25}
        sampler.pause()
        sampler.by_device(20)
        if hour < 10:
            sampler.resume()
            sampler.by_device(20)
    (totals,) = sampler.by_device(20).values()
    sampler.stop(20)

    assert totals.use().power_watts == pytest.approx(500 if moves else 400)
    assert totals.energy_is_counter == moves
    assert totals.use().busy_fraction == 0.75
    assert totals.use().sm_clock_mhz == 2100
    assert totals.use().throttled_fraction is None
