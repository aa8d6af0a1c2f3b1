from __future__ import annotations

import pickle
import sys
from dataclasses import asdict, fields
from types import SimpleNamespace

import pynvml
import pytest
import torch
from fake_nvml import ERROR_CODES, OTHER_UUID, QUERIES, UUID, FakeGpu, FakeNvml

from lightning_lscore import nvml
from lightning_lscore.hardware import Device, ProbeLost, Reading, SilentProbe
from lightning_lscore.nvml import NvmlProbe, cuda_probe
from lightning_lscore.sampler import Sampler

MEASURES = {f.name for f in fields(Reading)}
GPU = Device(key=f"GPU-{UUID}", name="NVIDIA H100 80GB HBM3", kind="cuda")
SLICE = Device(key=f"MIG-{UUID}", name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", kind="cuda")
FULL = {
    "busy": 0.75,
    "power_watts": 350.0,
    "energy_joules": 5000.0,
    "memory_used_bytes": 12 * 2**30,
}


def cuda_with(monkeypatch: pytest.MonkeyPatch, **properties: object) -> None:
    """Lets CUDA's device 0 have these properties, without CUDA."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**properties)
    )


@pytest.mark.parametrize("knows_mig", [True, False], ids=["new driver", "driver before MIG"])
@pytest.mark.parametrize("knows_memory_v2", [True, False], ids=["memory v2", "memory v1"])
@pytest.mark.parametrize("energy_counter", [True, False], ids=["Volta or newer", "Pascal"])
def test_every_architecture_and_driver_reports_what_it_can(
    monkeypatch, knows_mig, knows_memory_v2, energy_counter
):
    gpu = FakeGpu(energy_counter=energy_counter)
    fake = FakeNvml([gpu], knows_mig=knows_mig, knows_memory_v2=knows_memory_v2)
    fake.install(monkeypatch)
    probe = NvmlProbe(GPU)

    reading = asdict(probe.read())

    expected = dict(FULL)
    if not energy_counter:
        expected["energy_joules"] = None
    if not knows_memory_v2:
        expected["memory_used_bytes"] = gpu.memory_bytes + gpu.reserved_bytes
    assert reading == expected
    assert set(probe.reasons) == {m for m, value in expected.items() if value is None}


@pytest.mark.parametrize(
    ("gpu", "device"),
    [
        (FakeGpu(uuid=SLICE.key, is_slice=True), SLICE),
        (FakeGpu(board_in_mig_mode=True), GPU),
    ],
    ids=["slice", "board of slices"],
)
def test_a_mig_slice_is_never_charged_for_its_board(monkeypatch, gpu, device):
    fake = FakeNvml([gpu]).install(monkeypatch)
    probe = NvmlProbe(device)

    assert probe.read() == Reading(memory_used_bytes=gpu.memory_bytes)
    assert set(probe.reasons) == {"busy", "power_watts", "energy_joules"}
    assert all("whole board" in reason for reason in probe.reasons.values())
    assert not {QUERIES[m] for m in probe.reasons} & set(fake.calls)


@pytest.mark.parametrize("code", ERROR_CODES)
@pytest.mark.parametrize("function", [*QUERIES.values()])
def test_any_error_of_a_query_costs_that_measure_or_tells_of_a_loss(monkeypatch, function, code):
    fake = FakeNvml().install(monkeypatch)
    probe = NvmlProbe(GPU)
    assert asdict(probe.read()) == FULL

    fake.faults[function] = code
    lost, reading = read(probe)
    if lost is not None:
        assert isinstance(lost.__cause__, pynvml.NVMLError)
        assert fake.initialised == 0  # given back at once
    else:
        failed = {m for m, f in QUERIES.items() if f == function}
        assert {m for m, value in reading.items() if value is None} == failed
        assert set(probe.reasons) == failed
        assert {**reading, **{m: FULL[m] for m in failed}} == FULL
    probe.close()
    assert fake.initialised == 0


def read(probe):
    """The loss, or the reading."""
    try:
        return None, asdict(probe.read())
    except ProbeLost as lost:
        return lost, {}


@pytest.mark.parametrize("code", ERROR_CODES)
@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_any_error_at_the_start_leaves_a_silent_probe_with_reasons(monkeypatch, function, code):
    fake = FakeNvml(faults={function: code}).install(monkeypatch)
    probe = NvmlProbe(GPU)

    for _ in range(2):
        assert probe.read() == Reading()
    assert set(probe.reasons) == MEASURES
    assert all(str(pynvml.NVMLError(code)) in reason for reason in probe.reasons.values())
    assert fake.calls[function] == 1  # not asked again and again
    assert fake.initialised == 0
    assert probe.device == GPU


@pytest.mark.parametrize("code", ERROR_CODES)
@pytest.mark.parametrize(
    "function", ["nvmlDeviceIsMigDeviceHandle", "nvmlDeviceGetMigMode", "nvmlShutdown"]
)
def test_errors_of_the_other_calls_do_no_harm(monkeypatch, function, code):
    fake = FakeNvml(faults={function: code}).install(monkeypatch)
    probe = NvmlProbe(GPU)

    assert asdict(probe.read()) == FULL
    probe.close()
    probe.close()
    assert fake.calls["nvmlShutdown"] == 1


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_UNINITIALIZED])
def test_a_loss_in_mid_run_is_told_and_a_device_that_comes_back_is_read_again(monkeypatch, code):
    fake = FakeNvml().install(monkeypatch)
    probe = NvmlProbe(GPU)
    probe.read()

    fake.faults["nvmlDeviceGetPowerUsage"] = code
    with pytest.raises(ProbeLost, match="NVML lost the device"):
        probe.read()
    fake.faults = {"nvmlInit": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
    with pytest.raises(ProbeLost, match="cannot open"):
        probe.read()
    fake.faults = {}

    assert asdict(probe.read()) == FULL
    probe.close()
    assert fake.initialised == 0


def test_a_passing_error_is_asked_again_and_its_reason_goes(monkeypatch):
    fake = FakeNvml(faults={"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_TIMEOUT})
    fake.install(monkeypatch)
    probe = NvmlProbe(GPU)

    assert probe.read().power_watts is None
    assert probe.reasons == {"power_watts": "NVML: Timeout"}
    fake.faults = {}
    assert probe.read().power_watts == 350.0
    assert probe.reasons == {}


def test_what_is_not_supported_is_asked_once(monkeypatch):
    fake = FakeNvml(faults={"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_NOT_SUPPORTED})
    fake.install(monkeypatch)
    probe = NvmlProbe(GPU)

    for _ in range(3):
        assert probe.read().power_watts is None
        assert probe.reasons == {"power_watts": "NVML: Not Supported"}
    assert fake.calls["nvmlDeviceGetPowerUsage"] == 1


@pytest.mark.parametrize(
    ("measure", "gpu"),
    [
        ("busy", FakeGpu(utilization_percent=0xFFFFFFFF)),
        ("power_watts", FakeGpu(power_milliwatts=0)),
    ],
)
def test_an_impossible_value_is_missing(monkeypatch, measure, gpu):
    FakeNvml([gpu]).install(monkeypatch)
    probe = NvmlProbe(GPU)

    assert getattr(probe.read(), measure) is None
    assert "impossible" in probe.reasons[measure]


def test_an_idle_gpu_is_not_a_missing_one(monkeypatch):
    FakeNvml([FakeGpu(utilization_percent=0)]).install(monkeypatch)

    assert NvmlProbe(GPU).read().busy == 0.0


def test_a_function_that_this_nvidia_ml_py_lacks_is_a_missing_measure(monkeypatch):
    FakeNvml().install(monkeypatch)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption")
    probe = NvmlProbe(GPU)

    assert probe.read().energy_joules is None
    assert "nvmlDeviceGetTotalEnergyConsumption" in probe.reasons["energy_joules"]


def test_without_nvidia_ml_py_the_probe_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    probe = NvmlProbe(GPU)

    assert probe.read() == Reading()
    assert "nvidia-ml-py" in probe.reasons["busy"]


def test_probes_share_nvml_and_each_gives_back_its_own(monkeypatch):
    fake = FakeNvml([FakeGpu(), FakeGpu(uuid=f"GPU-{OTHER_UUID}")]).install(monkeypatch)
    first, second = NvmlProbe(GPU), NvmlProbe(Device(key=f"GPU-{OTHER_UUID}", name="", kind="cuda"))

    first.read()
    second.read()
    assert fake.initialised == 2
    first.close()
    assert asdict(second.read()) == FULL
    second.close()
    assert fake.initialised == 0


def test_nvml_is_left_alone_in_a_forked_child(monkeypatch):
    fake = FakeNvml().install(monkeypatch)
    probe = NvmlProbe(GPU)
    probe.read()

    monkeypatch.setattr(nvml.os, "getpid", lambda: -1)
    with pytest.raises(ProbeLost, match="fork"):
        probe.read()
    assert fake.calls["nvmlShutdown"] == 0


def test_a_probe_pickles_before_it_is_read():
    probe = pickle.loads(pickle.dumps(NvmlProbe(GPU)))

    assert probe.device == GPU


@pytest.mark.parametrize(
    ("name", "uuid", "key"),
    [
        ("NVIDIA H100 PCIe", UUID, f"GPU-{UUID}"),
        ("NVIDIA H100 PCIe", f"GPU-{UUID}", f"GPU-{UUID}"),
        ("NVIDIA H100 PCIe", UUID.upper(), f"GPU-{UUID}"),
        (SLICE.name, UUID, f"MIG-{UUID}"),
        (SLICE.name, f"MIG-{UUID}", f"MIG-{UUID}"),
    ],
)
def test_a_cuda_device_is_known_by_its_uuid_with_nvmls_prefix(monkeypatch, name, uuid, key):
    cuda_with(monkeypatch, name=name, uuid=uuid)

    assert cuda_probe(0).device == Device(key=key, name=name, kind="cuda")


def test_cuda_index_0_reads_the_gpu_of_its_uuid_wherever_nvml_lists_it(monkeypatch):
    other = FakeGpu(uuid=f"GPU-{OTHER_UUID}", utilization_percent=1)
    FakeNvml([other, FakeGpu()]).install(monkeypatch)
    cuda_with(monkeypatch, name=GPU.name, uuid=UUID)

    assert cuda_probe(0).read().busy == 0.75


def test_a_torch_without_uuids_and_an_amd_gpu_are_silent_but_distinct(monkeypatch):
    cuda_with(monkeypatch, name="Some GPU")
    without = [cuda_probe(0), cuda_probe(1)]
    monkeypatch.setattr(torch.version, "hip", "6.2")
    amd = [cuda_probe(0), cuda_probe(1)]

    for probes in (without, amd):
        assert len({probe.device.key for probe in probes}) == 2
        for probe in probes:
            assert isinstance(probe, SilentProbe)
            assert probe.read() == Reading()
            assert set(probe.reasons) == MEASURES


def test_without_a_uuid_the_place_on_the_bus_tells_devices_apart(monkeypatch):
    place = {"pci_domain_id": 0, "pci_bus_id": 65, "pci_device_id": 0}
    cuda_with(monkeypatch, name="AMD Instinct MI300X", **place)
    monkeypatch.setattr(torch.version, "hip", "6.2")

    # Each process may see this one as its device 0.
    assert cuda_probe(0).device == cuda_probe(1).device
    assert cuda_probe(0).device.key.endswith(":0:65:0")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_reports_every_measure_without_touching_its_memory():
    before = torch.cuda.memory_reserved()
    probe = cuda_probe(0)
    reading = probe.read()
    probe.close()

    if probe.device.key.startswith("GPU-") and "busy" not in probe.reasons:
        assert reading.busy is not None
        assert 0 <= reading.busy <= 1
        assert reading.power_watts is not None
        assert 1 < reading.power_watts < 2000
    assert reading.memory_used_bytes is not None
    assert 0 < reading.memory_used_bytes <= torch.cuda.get_device_properties(0).total_memory
    assert torch.cuda.memory_reserved() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_spends_energy_while_it_multiplies():
    sampler = Sampler([cuda_probe(0)], interval=0.1)
    sampler.start()
    sampler.resume()
    a = torch.randn(2048, 2048, device="cuda")
    for _ in range(300):
        a = (a @ a).clamp_(-1, 1)
    torch.cuda.synchronize()
    sampler.pause()
    totals = sampler.totals(timeout=10)
    sampler.stop()

    assert totals.readings >= 2
    assert totals.training_seconds > 0
    if "energy_joules" not in next(iter(sampler.reasons().values())):
        assert totals.energy_joules > 0
