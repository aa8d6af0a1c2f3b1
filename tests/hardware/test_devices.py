from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_lscore.equation.evidence import OccupiedDevice
from lightning_lscore.hardware import devices, places
from lightning_lscore.hardware.devices import Devices, compute_dtype, find_devices
from lightning_lscore.hardware.peaks import Peak
from lightning_lscore.hardware.probe import Device, SilentProbe

HERE = threading.local()  # which host and with how many threads the rank of this thread is


class FakeCpu(SilentProbe):
    """The CPU of the host that this rank is on."""

    made = []  # noqa: RUF012

    def __init__(self, threads=None):
        super().__init__(Device(key=f"cpu:{HERE.host}", name="Invented CPU", kind="cpu"), "fake")
        FakeCpu.made.append((HERE.rank, threads))


def fake_gpu(index):
    device = Device(key=f"GPU-{HERE.host}-{index}", name="Invented GPU", kind="cuda")
    return SilentProbe(device, "fake")


@pytest.fixture(autouse=True)
def invented_machines(monkeypatch):
    """Hosts without end, whose peaks are in the table."""
    monkeypatch.setattr(places, "CpuProbe", FakeCpu)
    monkeypatch.setattr(places, "cuda_probe", fake_gpu)
    monkeypatch.setattr(devices, "peak_flops", lambda name, dtype: Peak(flops=1e12, source=dtype))
    monkeypatch.setattr(torch, "get_num_threads", lambda: HERE.threads)
    FakeCpu.made = []


def model(*places):
    """Something whose parameters lie on the given devices."""
    parameters = [
        SimpleNamespace(device=torch.device(p), dtype=torch.float32, numel=lambda: 1)
        for p in places
    ]
    return SimpleNamespace(parameters=lambda: iter(parameters))


class Gathering:
    """Gives all ranks, each in its thread, what all of them brought."""

    def __init__(self, ranks):
        self.barrier = threading.Barrier(ranks, timeout=30)
        self.brought = [None] * ranks
        self.calls = [0] * ranks

    def __call__(self, mine):
        self.brought[HERE.rank] = mine
        self.calls[HERE.rank] += 1
        self.barrier.wait()
        everyone = list(self.brought)
        self.barrier.wait()
        return everyone


def find_all(ranks):
    """find_devices on every rank: (host, root device, devices of the parameters)."""
    found, gather = [None] * len(ranks), Gathering(len(ranks))

    def run(rank, host, root, places):
        HERE.rank, HERE.host, HERE.threads = rank, host, 2 + rank
        found[rank] = find_devices(
            model(*places), torch.device(root), "32-true", rank=rank, gather=gather, interval=1.0
        )

    threads = [
        threading.Thread(target=run, args=(rank, *where)) for rank, where in enumerate(ranks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert None not in found
    assert gather.calls == [2] * len(ranks)
    return found


def keys(found):
    return [d.key for d in found.described]


def read_keys(found):
    return [d.key for d in found.sampler.devices]


def test_each_rank_with_a_gpu_of_its_own_reads_that_one():
    """All ranks agree on the list, and the devices of two hosts differ."""
    ranks = [(h, f"cuda:{i}", []) for h in "ab" for i in (0, 1)]
    everyone = find_all(ranks)
    expected = ["GPU-a-0", "GPU-a-1", "GPU-b-0", "GPU-b-1"]
    assert [keys(found) for found in everyone] == [expected] * 4
    assert [read_keys(found) for found in everyone] == [[key] for key in expected]
    assert {found.read_by for found in everyone} == {tuple((key,) for key in expected)}
    assert {(found.count, found.peak_flops) for found in everyone} == {(4, 4e12)}


def test_a_gpu_that_two_ranks_share_counts_once_and_is_read_once():
    """The first of them owns it."""
    first, second, third = find_all([("a", "cuda:0", []), ("a", "cuda:0", []), ("b", "cuda:0", [])])
    assert keys(first) == keys(second) == keys(third) == ["GPU-a-0", "GPU-b-0"]
    assert read_keys(first) == ["GPU-a-0"]
    assert read_keys(second) == []
    assert read_keys(third) == ["GPU-b-0"]
    assert second.read_by == (("GPU-a-0",), (), ("GPU-b-0",))


def test_a_model_over_several_gpus_occupies_all_of_them():
    """Parameters on the CPU occupy none."""
    (found,) = find_all([("a", "cuda:0", ["cuda:1", "cuda:0", "cpu", "cuda:1"])])
    assert keys(found) == read_keys(found) == ["GPU-a-0", "GPU-a-1"]


def test_a_device_without_an_index_is_the_same_as_the_first():
    """cuda and cuda:0 are one device."""
    (found,) = find_all([("a", "cuda", ["cuda:0"])])
    assert keys(found) == ["GPU-a-0"]


def test_ranks_on_one_hosts_cpu_share_it():
    """It counts once; each rank reads its own CPU time, over the threads of all of them."""
    everyone = find_all([("a", "cpu", ["cpu"]), ("a", "cpu", []), ("b", "cpu", [])])
    assert [keys(found) for found in everyone] == [["cpu:a", "cpu:b"]] * 3
    assert [read_keys(found) for found in everyone] == [["cpu:a"], ["cpu:a"], ["cpu:b"]]
    with_threads = sorted(made for made in FakeCpu.made if made[1] is not None)
    assert with_threads == [(0, 2 + 3), (1, 2 + 3), (2, 4)]


def test_only_the_owner_of_a_shared_cpu_counts_its_time():
    """Otherwise the coverage of two ranks would add up past the time that passed."""
    everyone = find_all([("a", "cpu", []), ("a", "cpu", [])])
    assert [found.sampler._owned for found in everyone] == [{"cpu:a"}, set()]


def test_a_device_that_nobody_can_read_still_counts():
    """Its time does, and the record says why there are no readings."""
    (found,) = find_all([("a", "xla:0", [])])
    assert keys(found) == ["xla:0:a:0"]
    (reasons,) = found.sampler.missing().values()
    assert set(reasons.values()) == {"no probe reads xla devices"}


def test_a_record_describes_each_device():
    """What it is, its peak, for which numbers, and by which source."""
    (found,) = find_all([("a", "cuda:0", [])])
    assert found.described == (
        OccupiedDevice(
            key="GPU-a-0",
            name="Invented GPU",
            kind="cuda",
            dtype=found.described[0].dtype,
            peak_flops=1e12,
            peak_source=found.described[0].dtype,
        ),
    )


def test_a_peak_that_is_in_no_table_is_measured(monkeypatch):
    """On the rank's own device, with the threads of all ranks on the host."""
    asked = []

    def measured(device, dtype, *, name, threads=None):
        asked.append((str(device), dtype, name, threads))
        return Peak(flops=3e9, source="measured: a product")

    monkeypatch.setattr(devices, "peak_flops", lambda name, dtype: None)
    monkeypatch.setattr(devices, "measured_peak", measured)
    found, _ = find_all([("a", "cpu", []), ("a", "cpu", [])])
    assert asked == [("cpu", "float32", "Invented CPU", 5)]
    assert found.peak_flops == 3e9
    assert found.described[0].peak_source == "measured: a product"


def test_a_peak_that_nobody_knows_is_none_for_all(monkeypatch):
    """Half a capacity would look like a whole one."""
    monkeypatch.setattr(
        devices, "peak_flops", lambda name, dtype: None if HERE.rank else Peak(flops=1.0, source="")
    )
    monkeypatch.setattr(devices, "measured_peak", lambda *args, **options: None)
    found, _ = find_all([("a", "cuda:0", []), ("b", "cuda:0", [])])
    assert [d.peak_flops for d in found.described] == [1.0, None]
    assert found.described[1].peak_source.startswith("unavailable: no ")
    assert found.peak_flops is None


def test_the_peak_of_a_run_is_that_of_all_devices_together():
    """In FLOP/s."""
    (found,) = find_all([("a", "cuda:0", [])])
    (one,) = found.described
    described = (one, replace(one, peak_flops=2e12))
    assert Devices(described, sampler=None, read_by=()).peak_flops == 3e12


# ---------------------------------------------------------------- the number format

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("precision", "parameters", "root", "tf32", "expected"),
    [
        ("bf16-mixed", torch.float32, CPU, False, "bfloat16"),
        ("bf16-true", torch.bfloat16, CUDA, False, "bfloat16"),
        ("bf16", torch.float32, CPU, False, "bfloat16"),
        ("16-mixed", torch.float32, CUDA, True, "float16"),
        ("16-true", torch.float16, CUDA, False, "float16"),
        (16, torch.float32, CUDA, False, "float16"),
        ("64-true", torch.float64, CPU, False, "float64"),
        ("transformer-engine", torch.bfloat16, CUDA, False, "float8"),
        ("transformer-engine-float16", torch.float16, CUDA, False, "float8"),
        ("32-true", torch.float32, CPU, False, "float32"),
        ("32-true", torch.float32, CPU, True, "float32"),
        ("32-true", torch.float32, CUDA, False, "float32"),
        ("32-true", torch.float32, CUDA, True, "tf32"),
        (32, torch.float32, CUDA, True, "tf32"),
        ("32-true", torch.bfloat16, CUDA, True, "bfloat16"),
        ("32-true", torch.float16, CPU, False, "float16"),
    ],
)
def test_the_format_of_the_products(monkeypatch, precision, parameters, root, tf32, expected):
    """By the Trainer's precision, else by the parameters; tf32 where torch may use it."""
    setting = "high" if tf32 else "highest"
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: setting)
    module = nn.Linear(2, 2).to(parameters)
    assert compute_dtype(precision, module, root) == expected


def test_most_parameters_decide_the_format():
    """A few in float32, such as norms, do not make a model a float32 one."""
    module = nn.Sequential(nn.Linear(100, 100).bfloat16(), nn.LayerNorm(100))
    assert compute_dtype("32-true", module, CPU) == "bfloat16"


def test_packed_weights_do_not_decide_the_format():
    """No product runs in uint8: 4-bit weights are unpacked to the format of the others."""
    module = nn.Sequential(nn.Linear(100, 100), nn.LayerNorm(100).bfloat16())
    module[0].weight = nn.Parameter(torch.zeros(5000, 1, dtype=torch.uint8), requires_grad=False)
    module[0].bias = None
    assert compute_dtype("32-true", module, CPU) == "bfloat16"


def test_a_model_without_parameters_is_float32():
    """The default of torch."""
    assert compute_dtype("32-true", nn.Identity(), CPU) == "float32"
