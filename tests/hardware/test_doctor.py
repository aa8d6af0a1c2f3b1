"""The doctor tries; what it says is what was found."""

from __future__ import annotations

import re

import pynvml
import pytest
from fake_nvml import UUID, FakeGpu, FakeNvml

from lightning_lscore.cli import main
from lightning_lscore.hardware import doctor
from lightning_lscore.hardware.nvml import NvmlProbe
from lightning_lscore.hardware.peaks import Peak
from lightning_lscore.hardware.probe import Device, SilentProbe

H100 = Device(key=f"GPU-{UUID}", name="NVIDIA H100 80GB HBM3", kind="cuda")


VERSIONS = {"lightning-lscore": "1.2"}


@pytest.fixture(autouse=True)
def no_products(monkeypatch):
    """Matrix products take time; their figure is tested elsewhere."""
    peak = Peak(flops=30e12, source="measured: a product")
    monkeypatch.setattr(doctor, "measured_peak", lambda place, dtype, **_: peak)


class Ticks:
    """Ten milliseconds pass between two looks; the counter moves every hundred."""

    def __init__(self, gpu=None):
        self.gpu, self.count = gpu, 0

    def __call__(self):
        self.count += 1
        if self.gpu is not None and self.count % 10 == 0:
            self.gpu.energy_millijoules += 1000
        return self.count / 100


def examined(probe, now=None, **options):
    """The lines about a device, as a dictionary, and what is not available in a run."""
    text = "\n".join(
        doctor.examine(versions=VERSIONS, probes=[probe], now=now or Ticks(), **options)
    )
    device, _, missing = text.partition("Not available in a run here:")
    table = dict(re.findall(r"^    (.{22})  (.*)$", device, re.MULTILINE))
    lacking = dict(re.findall(r"^    (.{22})  (.*)$", missing, re.MULTILINE))
    return ({k.strip(): v for k, v in t.items()} for t in (table, lacking))


def test_a_gpu_that_answers_is_described_with_the_period_of_its_counter(monkeypatch):
    gpu = FakeGpu()
    driver = FakeNvml([gpu]).install(monkeypatch)
    found, missing = examined(NvmlProbe(H100), Ticks(gpu))
    assert found["identity"] == f"GPU-{UUID} (cuda)"
    assert found["busy_fraction"] == "75.0%"
    assert found["power_watts"] == "350.0 W"
    assert found["memory_used_bytes"] == "12.00 GiB"
    assert found["sm_clock_mhz"] == "1755 MHz"
    assert found["throttled"] == "no"
    assert found["energy_joules"].endswith("a counter that changes every 100 ms")
    assert found["peak float32"].startswith("66.9 TFLOP/s: NVIDIA H100")
    assert found["matrix product"].startswith("30 TFLOP/s, 45% of the peak")
    assert missing == {}
    assert driver.initialised == 0, "it gives back what it opened"


def test_what_nvml_refuses_is_unavailable_with_its_reason(monkeypatch):
    faults = {"nvmlDeviceGetUtilizationRates": pynvml.NVML_ERROR_NOT_SUPPORTED}
    FakeNvml([FakeGpu(energy_counter=False)], faults).install(monkeypatch)
    found, missing = examined(NvmlProbe(H100))
    assert found["busy_fraction"] == "unavailable: NVML: Not Supported"
    assert found["energy"] == "estimated in a run, by integrating the power"
    assert missing == {"busy_fraction": "NVML: Not Supported"}


def test_a_mig_slice_lacks_what_its_board_alone_can_tell(monkeypatch):
    FakeNvml([FakeGpu(uuid=f"MIG-{UUID}", is_slice=True)]).install(monkeypatch)
    device = Device(key=f"MIG-{UUID}", name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", kind="cuda")
    found, missing = examined(NvmlProbe(device))
    assert found["memory_used_bytes"] == "12.00 GiB"
    board_only = {"busy_fraction", "energy_kwh", "power_watts", "emissions_kg"}
    assert set(missing) == {*board_only, "sm_clock_mhz", "throttled_fraction"}
    assert all("whole board" in missing[measure] for measure in board_only)


def test_a_gpu_whose_clocks_are_held_down_says_so(monkeypatch):
    bits = pynvml.nvmlClocksThrottleReasonSwPowerCap
    FakeNvml([FakeGpu(clock_reasons=bits)]).install(monkeypatch)
    found, _ = examined(NvmlProbe(H100))
    assert found["throttled"] == "yes: by power"


def test_the_versions_of_driver_and_nvml_are_told_where_there_is_an_nvidia_gpu(monkeypatch):
    FakeNvml().install(monkeypatch)
    lines = list(doctor.examine(versions=VERSIONS, probes=[NvmlProbe(H100)], now=Ticks()))
    assert "NVIDIA driver 999.88.77, NVML 13.999.88.77" in lines
    other = SilentProbe(Device(key="xpu:0", name="other", kind="xpu"), "why")
    assert "NVIDIA driver" not in "".join(
        doctor.examine(versions=VERSIONS, probes=[other], now=Ticks())
    )


def test_a_device_that_is_lost_while_it_is_read_ends_nothing(monkeypatch):
    driver = FakeNvml().install(monkeypatch)
    ticks = Ticks()

    def now():
        if ticks.count == 50:
            driver.faults["nvmlDeviceGetPowerUsage"] = pynvml.NVML_ERROR_GPU_IS_LOST
        return ticks()

    found, missing = examined(NvmlProbe(H100), now)
    assert found["busy_fraction"] == "75.0%"
    assert "NVML lost the device" in found["lost while being read"]
    assert missing == {}


def test_a_device_without_a_driver_or_a_peak_says_so(monkeypatch):
    monkeypatch.setattr(doctor, "measured_peak", lambda place, dtype, **_: None)
    device = Device(key="xpu:0", name="Some accelerator", kind="xpu")
    found, missing = examined(SilentProbe(device, "nothing reads these yet"))
    assert found["busy_fraction"] == "unavailable: nothing reads these yet"
    assert "no peak of Some accelerator in float32 is known" in found["peak float32"]
    assert set(missing) == {
        "capacity_flops", "mfu", "busy_fraction", "memory_mean_gib", "memory_peak_gib",
        "energy_kwh", "power_watts", "emissions_kg", "sm_clock_mhz", "throttled_fraction",
    }  # fmt: skip


def test_a_counter_that_stands_still_is_told(monkeypatch):
    FakeNvml().install(monkeypatch)
    found, _ = examined(NvmlProbe(H100), seconds=1)
    assert "more than 1.0 s: it was not seen to" in found["energy_joules"]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-true"])
def test_the_peak_is_that_of_the_runs_precision(precision, monkeypatch):
    FakeNvml().install(monkeypatch)
    found, _ = examined(NvmlProbe(H100), precision=precision)
    assert found[f"peak {'bfloat16' if precision[0] == 'b' else 'float16'}"].startswith("989.4")


def test_the_command_examines_this_machine(capsys):
    assert main(["doctor", "--seconds", "0.05"]) == 0
    out = capsys.readouterr().out
    assert "lightning-lscore" in out
    assert "CUDA_VISIBLE_DEVICES" in out
    assert re.search(r"^    identity +(cpu:|GPU-|MIG-)", out, re.MULTILINE)
