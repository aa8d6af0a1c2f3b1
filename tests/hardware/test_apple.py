"""The GPU of Apple's chips, behind a stand-in for zeus-apple-silicon."""

from __future__ import annotations

import pickle
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_lscore.hardware.apple import AppleProbe
from lightning_lscore.hardware.peaks import peak_flops
from lightning_lscore.hardware.places import probe_of
from lightning_lscore.hardware.probe import Device, Reading
from lightning_lscore.hardware.sampler import Sampler

DEVICE = Device(key="mps:here", name="Apple M4 Max", kind="mps")
MEMORY = 3 * 2**30


@pytest.fixture
def energy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the package reports, in mJ."""
    reported = SimpleNamespace(gpu_mj=1000, gpu_sram_mj=20, dram_mj=300, cpu_total_mj=7, ane_mj=5)

    class AppleEnergyMonitor:
        def get_cumulative_energy(self):
            return reported

    package: Any = ModuleType("zeus_apple_silicon")
    package.AppleEnergyMonitor = AppleEnergyMonitor
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", package)
    return reported


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: MEMORY)


def test_energy_is_that_of_gpu_and_memory(energy):
    assert AppleProbe(DEVICE).read() == Reading(energy_joules=1.32, memory_used_bytes=MEMORY)


def test_parts_that_a_chip_does_not_count_are_left_out(energy):
    energy.gpu_sram_mj = energy.dram_mj = None
    assert AppleProbe(DEVICE).read().energy_joules == 1.0


def test_without_the_gpus_own_energy_there_is_none(energy):
    energy.gpu_mj = None
    probe = AppleProbe(DEVICE)
    assert probe.read() == Reading(memory_used_bytes=MEMORY)
    assert "no energy of this chip's GPU" in probe.missing["energy_joules"]


def test_without_the_package_memory_is_read_and_the_reason_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)
    probe = AppleProbe(DEVICE)
    assert probe.read() == Reading(memory_used_bytes=MEMORY)
    assert "install zeus-apple-silicon" in probe.missing["energy_joules"]
    assert probe.missing["busy_fraction"]


def test_a_torch_without_mps_has_no_memory_to_tell(energy, monkeypatch):
    monkeypatch.undo()
    probe = AppleProbe(DEVICE)
    assert probe.read().memory_used_bytes is None
    assert "MPS" in probe.missing["memory_used_bytes"]


def test_an_answer_takes_its_reason_back(energy):
    energy.gpu_mj = None
    probe = AppleProbe(DEVICE)
    probe.read()
    energy.gpu_mj = 1
    probe.read()
    assert "energy_joules" not in probe.missing


def test_the_counter_runs_through_the_sampler(energy):
    """No reading says nothing at all: the time in which it was read is covered."""
    sampler = Sampler([AppleProbe(DEVICE)], interval=0.01)
    sampler.start()
    sampler.resume()
    while next(iter(sampler.by_device().values())).readings < 3:
        energy.gpu_mj += 1000
    sampler.pause()
    (totals,) = sampler.by_device().values()
    sampler.stop()
    assert totals.energy_joules > 0
    assert totals.energy_is_counter
    assert totals.memory_peak_bytes == MEMORY


def test_it_pickles_before_it_is_read_and_after_it_is_closed(energy):
    probe = AppleProbe(DEVICE)
    probe.read()
    probe.close()
    assert pickle.loads(pickle.dumps(probe)).read() == probe.read()


def test_torchs_mps_is_read_by_it(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M1 Max", raising=False)
    monkeypatch.setattr(torch.backends.mps, "get_core_count", lambda: 24, raising=False)
    probe = probe_of(torch.device("mps"))
    assert isinstance(probe, AppleProbe)
    assert (probe.device.name, probe.device.kind) == ("Apple M1 Max 24-core GPU", "mps")
    assert peak_flops(probe.device.name, "float32").flops == 7.8e12
    assert probe.device.key.startswith("mps:")
