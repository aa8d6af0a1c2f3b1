"""Which probe reads a place of torch, behind stand-ins for CUDA and its kin."""

from __future__ import annotations

import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from fake_nvml import OTHER_UUID, UUID, FakeGpu, FakeNvml

from lightning_lscore.hardware.peaks import peak_flops
from lightning_lscore.hardware.places import cuda_probe, probe_of
from lightning_lscore.hardware.probe import Device, Reading, SilentProbe

MEASURES = {f.name for f in fields(Reading)}
GPU = Device(key=f"GPU-{UUID}", name="NVIDIA H100 80GB HBM3", kind="cuda")
SLICE = Device(key=f"MIG-{UUID}", name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", kind="cuda")


def cuda_with(monkeypatch: pytest.MonkeyPatch, **properties: object) -> None:
    """Lets CUDA's device 0 have these properties, without CUDA."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**properties)
    )


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

    assert cuda_probe(0).read().busy_fraction == 0.75


MACHINE = [
    FakeGpu(uuid=f"GPU-{UUID}", utilization_percent=11, memory_bytes=2**30),
    FakeGpu(uuid=f"GPU-{OTHER_UUID}", utilization_percent=22, memory_bytes=2**31),
    FakeGpu(uuid="GPU-5a000000-0000-0000-0000-000000000000", board_in_mig_mode=True),
    FakeGpu(uuid="MIG-51000000-0000-0000-0000-000000000000", is_slice=True, memory_bytes=2**32),
    FakeGpu(uuid="MIG-52000000-0000-0000-0000-000000000000", is_slice=True, memory_bytes=2**33),
]
"""Two whole GPUs and a board of two slices, in NVML's order."""


def cuda_sees(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> list[FakeGpu]:
    """Lets CUDA number the machine's devices as it would: not as NVML, and as it is told."""
    whole, slices = [MACHINE[1], MACHINE[0]], MACHINE[3:]
    if visible is None:
        seen = [*whole, slices[0]]  # of a board's slices the first alone
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        seen = [
            whole[int(name)] if name.isdigit() else
            next(gpu for gpu in MACHINE if gpu.uuid.startswith(name))
            for name in visible.split(",")
        ]  # fmt: skip
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    def properties(index: int) -> SimpleNamespace:
        gpu = seen[index]
        name = "NVIDIA A100-SXM4-80GB" + (" MIG 1g.10gb" if gpu.is_slice else "")
        return SimpleNamespace(name=name, uuid=gpu.uuid[4:])

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    return seen


@pytest.mark.parametrize("old", [False, True], ids=["new driver", "old driver"])
@pytest.mark.parametrize(
    "visible",
    [None, "0", "1", "1,0", MACHINE[0].uuid, f"{MACHINE[0].uuid},{MACHINE[1].uuid}", "GPU-0a1b,1",
     MACHINE[3].uuid, MACHINE[4].uuid, f"{MACHINE[4].uuid},{MACHINE[3].uuid},{MACHINE[0].uuid}"],
)  # fmt: skip
def test_whatever_cuda_shows_is_read_from_the_very_same_device(monkeypatch, visible, old):
    """By indices, UUIDs, their beginnings and the names of slices; and nothing else is opened."""
    fake = FakeNvml(MACHINE, knows_memory_v2=not old, knows_event_reasons=not old)
    fake.install(monkeypatch)
    seen = cuda_sees(monkeypatch, visible)
    for index, gpu in enumerate(seen):
        probe = cuda_probe(index)
        reading = probe.read()
        assert probe.device.key == gpu.uuid
        assert reading.memory_used_bytes == gpu.memory_bytes + old * gpu.reserved_bytes
        assert reading.busy_fraction == (None if gpu.is_slice else gpu.utilization_percent / 100)
    assert fake.calls["nvmlDeviceGetHandleByUUID"] == len(seen)


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
            assert set(probe.missing) == MEASURES


def test_without_a_uuid_the_place_on_the_bus_tells_devices_apart(monkeypatch):
    place = {"pci_domain_id": 0, "pci_bus_id": 65, "pci_device_id": 0}
    cuda_with(monkeypatch, name="AMD Instinct MI300X", **place)
    monkeypatch.setattr(torch.version, "hip", "6.2")

    # Each process may see this one as its device 0. It is read only when someone asks.
    assert cuda_probe(0).device == cuda_probe(1).device
    assert cuda_probe(0).device.key.endswith(":0:65:0")


def test_cores_of_a_tpu_are_told_apart_and_named_by_their_type(monkeypatch):
    """torch calls each of them xla:0, and has no name for it."""
    cores = iter([0, 1])
    for name, module in {
        "torch_xla": SimpleNamespace(),
        "torch_xla._internal": SimpleNamespace(),
        "torch_xla._internal.tpu": SimpleNamespace(
            get_tpu_env=lambda: {"ACCELERATOR_TYPE": "v5litepod-8"}
        ),
        "torch_xla.runtime": SimpleNamespace(global_ordinal=lambda: next(cores)),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    devices = [probe_of(torch.device("xla:0")).device for _ in range(2)]
    assert len({device.key for device in devices}) == 2
    assert {device.name for device in devices} == {"v5litepod"}
    assert peak_flops("v5litepod", "bfloat16") is not None
