from __future__ import annotations

import pickle
import sys
from dataclasses import asdict, fields

import pynvml
import pytest
import torch
from fake_nvml import ERROR_CODES, OTHER_UUID, QUERIES, UUID, FakeGpu, FakeNvml

from lightning_lscore.hardware import nvml
from lightning_lscore.hardware.nvml import NvmlProbe
from lightning_lscore.hardware.places import cuda_probe
from lightning_lscore.hardware.probe import Device, ProbeLost, Reading
from lightning_lscore.hardware.sampler import Sampler

MEASURES = {f.name for f in fields(Reading)}
GPU = Device(key=f"GPU-{UUID}", name="NVIDIA H100 80GB HBM3", kind="cuda")
SLICE = Device(key=f"MIG-{UUID}", name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", kind="cuda")
FULL = {
    "busy_fraction": 0.75,
    "power_watts": 350.0,
    "energy_joules": 5000.0,
    "memory_used_bytes": 12 * 2**30,
    "sm_clock_mhz": 1755.0,
    "throttled": frozenset(),
}
BOARD_ONLY = {"busy_fraction", "power_watts", "energy_joules"}
"""What NVML says of a whole board, where a slice of it asks."""


@pytest.mark.parametrize("knows_mig", [True, False], ids=["new driver", "driver before MIG"])
@pytest.mark.parametrize("knows_memory_v2", [True, False], ids=["memory v2", "memory v1"])
@pytest.mark.parametrize("knows_event_reasons", [True, False], ids=["R535 or newer", "older"])
@pytest.mark.parametrize("energy_counter", [True, False], ids=["Volta or newer", "Pascal"])
def test_every_architecture_and_driver_reports_what_it_can(
    monkeypatch, knows_mig, knows_memory_v2, knows_event_reasons, energy_counter
):
    gpu = FakeGpu(energy_counter=energy_counter)
    fake = FakeNvml([gpu], knows_mig=knows_mig, knows_memory_v2=knows_memory_v2)
    fake.knows_event_reasons = knows_event_reasons
    fake.install(monkeypatch)
    probe = NvmlProbe(GPU)

    reading = asdict(probe.read())

    expected = dict(FULL)
    if not energy_counter:
        expected["energy_joules"] = None
    if not knows_memory_v2:
        expected["memory_used_bytes"] = gpu.memory_bytes + gpu.reserved_bytes
    assert reading == expected
    assert set(probe.missing) == {m for m, value in expected.items() if value is None}


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

    reading = probe.read()
    assert reading.memory_used_bytes == gpu.memory_bytes
    assert {m for m in BOARD_ONLY if getattr(reading, m) is None} == BOARD_ONLY
    assert all("whole board" in probe.missing[m] for m in BOARD_ONLY)
    assert not {QUERIES[m] for m in BOARD_ONLY} & set(fake.calls)


def test_the_clock_of_a_board_is_that_of_its_slices_and_nvml_may_refuse_to_tell_it(monkeypatch):
    FakeNvml([FakeGpu(board_in_mig_mode=True)]).install(monkeypatch)
    board = NvmlProbe(GPU)
    assert (board.read().sm_clock_mhz, board.read().throttled) == (1755.0, frozenset())

    FakeNvml([FakeGpu(uuid=SLICE.key, is_slice=True)]).install(monkeypatch)
    alone = NvmlProbe(SLICE)
    assert (alone.read().sm_clock_mhz, alone.read().throttled) == (None, None)
    assert alone.missing["sm_clock_mhz"] == alone.missing["throttled"] == "NVML: Not Supported"


@pytest.mark.parametrize("function", ["nvmlDeviceIsMigDeviceHandle", "nvmlDeviceGetMigMode"])
def test_no_error_charges_a_slice_for_its_board(monkeypatch, function):
    fake = FakeNvml([FakeGpu(uuid=SLICE.key, is_slice=True)]).install(monkeypatch)
    for code in ERROR_CODES:
        fake.faults = {function: code}
        reading = asdict(NvmlProbe(SLICE).read())
        assert {m for m in BOARD_ONLY if reading[m] is None} == BOARD_ONLY, code
        assert reading["memory_used_bytes"] == FULL["memory_used_bytes"], code


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
        if (function, code) == (QUERIES["throttled"], pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            failed = set()  # it has an older name
        assert {m for m, value in reading.items() if value is None} == failed
        assert set(probe.missing) == failed
        assert {**reading, **{m: FULL[m] for m in failed}} == FULL
    probe.close()
    assert fake.initialised == 0


KINDS = {
    "whole": (FakeGpu(), {}),
    "whole, without a counter, old driver": (
        FakeGpu(energy_counter=False),
        {"knows_mig": False, "knows_memory_v2": False, "knows_event_reasons": False},
    ),
    "board of slices": (FakeGpu(board_in_mig_mode=True), {}),
    "slice": (FakeGpu(uuid=SLICE.key, is_slice=True), {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [*QUERIES.values(), "nvmlDeviceGetHandleByUUID", "nvmlInit"])
def test_any_error_in_mid_run_spoils_nothing_else_and_passes(monkeypatch, kind, function):
    """On every kind of device: what is there is right, and all is back when the error is gone."""
    gpu, driver = KINDS[kind]
    fake = FakeNvml([gpu], **driver).install(monkeypatch)
    for code in ERROR_CODES:
        fake.faults = {}
        probe = NvmlProbe(SLICE if gpu.is_slice else GPU)
        healthy = asdict(probe.read())

        fake.faults = {function: code}
        lost, reading = read(probe)
        wrong = {m for m, value in reading.items() if value != healthy[m]}
        assert wrong <= {m for m, f in QUERIES.items() if f == function}, code
        assert {reading[m] for m in wrong} <= {None}, code
        assert wrong <= set(probe.missing), code

        fake.faults = {}
        if lost is not None:
            assert asdict(probe.read()) == healthy, code
        probe.close()
        assert fake.initialised == 0, code


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
    assert set(probe.missing) == MEASURES
    assert all(str(pynvml.NVMLError(code)) in reason for reason in probe.missing.values())
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
    assert probe.missing == {"power_watts": "NVML: Timeout"}
    fake.faults = {}
    assert probe.read().power_watts == 350.0
    assert probe.missing == {}


def test_what_is_not_supported_is_asked_once(monkeypatch):
    fake = FakeNvml(faults={"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_NOT_SUPPORTED})
    fake.install(monkeypatch)
    probe = NvmlProbe(GPU)

    for _ in range(3):
        assert probe.read().power_watts is None
        assert probe.missing == {"power_watts": "NVML: Not Supported"}
    assert fake.calls["nvmlDeviceGetPowerUsage"] == 1


@pytest.mark.parametrize(
    ("measure", "gpu"),
    [
        ("busy_fraction", FakeGpu(utilization_percent=0xFFFFFFFF)),
        ("power_watts", FakeGpu(power_milliwatts=0)),
        ("memory_used_bytes", FakeGpu(memory_bytes=2**64 - 1)),
        ("sm_clock_mhz", FakeGpu(sm_clock_mhz=0)),
        ("sm_clock_mhz", FakeGpu(sm_clock_mhz=0xFFFFFFFF)),
    ],
)
def test_an_impossible_value_is_missing(monkeypatch, measure, gpu):
    FakeNvml([gpu]).install(monkeypatch)
    probe = NvmlProbe(GPU)

    assert getattr(probe.read(), measure) is None
    assert "impossible" in probe.missing[measure]


def test_an_idle_gpu_is_not_a_missing_one(monkeypatch):
    FakeNvml([FakeGpu(utilization_percent=0)]).install(monkeypatch)

    assert NvmlProbe(GPU).read().busy_fraction == 0.0


THROTTLING = {
    "SwPowerCap": "power", "HwPowerBrakeSlowdown": "power", "SwThermalSlowdown": "heat",
    "HwThermalSlowdown": "heat", "HwSlowdown": "fault",
}  # fmt: skip


@pytest.mark.parametrize("names", ["EventReason", "ThrottleReason"])
@pytest.mark.parametrize(
    "reason",
    [*THROTTLING, "None", "GpuIdle", "ApplicationsClocksSetting", "SyncBoost",
     "DisplayClockSetting"],
)  # fmt: skip
def test_power_heat_and_faults_throttle_and_idleness_and_settings_do_not(
    monkeypatch, names, reason
):
    """Under the names of either age of nvidia-ml-py."""
    bits = getattr(pynvml, f"nvmlClocks{names}{reason}")
    FakeNvml([FakeGpu(clock_reasons=bits)]).install(monkeypatch)
    other = {"EventReason": "ThrottleReason", "ThrottleReason": "EventReason"}[names]
    for name in dir(pynvml):
        if name.startswith(f"nvmlClocks{other}"):
            monkeypatch.delattr(pynvml, name)
    monkeypatch.delattr(pynvml, f"nvmlDeviceGetCurrentClocks{other}s")

    cause = THROTTLING.get(reason)
    assert NvmlProbe(GPU).read().throttled == ({cause} if cause else set())


@pytest.mark.parametrize(
    ("names", "causes"),
    [
        (["SyncBoost", "HwSlowdown"], {"fault"}),
        (["SwPowerCap", "SwThermalSlowdown"], {"power", "heat"}),
        (["HwSlowdown", "HwThermalSlowdown"], {"heat"}),  # the first says no more than the second
        (["HwSlowdown", "HwPowerBrakeSlowdown", "GpuIdle"], {"power"}),
    ],
)
def test_of_several_reasons_each_cause_is_told(monkeypatch, names, causes):
    bits = sum(getattr(pynvml, f"nvmlClocksEventReason{name}") for name in names)
    FakeNvml([FakeGpu(clock_reasons=bits)]).install(monkeypatch)

    assert NvmlProbe(GPU).read().throttled == causes


def test_an_nvidia_ml_py_without_reasons_knows_of_no_throttling(monkeypatch):
    """Not: that there is none."""
    FakeNvml().install(monkeypatch)
    for name in [n for n in dir(pynvml) if n.startswith("nvmlClocks")]:
        monkeypatch.delattr(pynvml, name)
    probe = NvmlProbe(GPU)

    assert probe.read().throttled is None
    assert "SwPowerCap" in probe.missing["throttled"]


def test_the_versions_of_the_driver_and_of_nvml(monkeypatch):
    fake = FakeNvml().install(monkeypatch)
    assert nvml.driver_versions() == "NVIDIA driver 999.88.77, NVML 13.999.88.77"
    assert fake.initialised == 0

    fake.faults = {"nvmlSystemGetNVMLVersion": pynvml.NVML_ERROR_UNKNOWN}
    assert "does not report its version: Unknown Error" in nvml.driver_versions()
    assert fake.initialised == 0
    fake.faults = {"nvmlInit": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}
    assert nvml.driver_versions() == "no NVIDIA driver answers: Driver Not Loaded"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "no NVIDIA driver answers: import of pynvml" in nvml.driver_versions()


def test_a_function_that_this_nvidia_ml_py_lacks_is_a_missing_measure(monkeypatch):
    FakeNvml().install(monkeypatch)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption")
    probe = NvmlProbe(GPU)

    assert probe.read().energy_joules is None
    assert "nvmlDeviceGetTotalEnergyConsumption" in probe.missing["energy_joules"]


def test_without_nvidia_ml_py_the_probe_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    probe = NvmlProbe(GPU)

    assert probe.read() == Reading()
    assert "nvidia-ml-py" in probe.missing["busy_fraction"]


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


HOUR = 3600.0


def after_a_fault(monkeypatch, spoil, *, power=True, reloaded=False):
    """Totals of 90 h of training at 300 W, read every hour, of which the 11th to 20th are bad.

    Args:
        spoil: changes the driver or its GPU, given their state when all is well.
        power: whether the GPU tells its power at all.
        reloaded: the driver begins anew after the fault, and its counter at zero.
    """
    fake = FakeNvml().install(monkeypatch)
    (gpu,) = fake.gpus
    t = 0.0
    # The thread reads at every mark, and not by itself while the test lasts.
    sampler = Sampler([NvmlProbe(GPU)], interval=HOUR, now=lambda: t)
    sampler.start()
    for hour in range(91):
        counted = hour - 20 if reloaded and hour > 20 else hour
        sound = FakeGpu(
            power_milliwatts=300_000,
            utilization_percent=50,
            energy_millijoules=int(counted * HOUR * 300_000),
        )
        vars(gpu).update(vars(sound))
        fake.faults = {} if power else {QUERIES["power_watts"]: pynvml.NVML_ERROR_NOT_SUPPORTED}
        if 10 < hour <= 20:
            spoil(fake, gpu)
        t = hour * HOUR
        sampler.pause()
        sampler.by_device(timeout=20)
        if hour < 90:
            sampler.resume()
            sampler.by_device(timeout=20)
    (totals,) = sampler.by_device(timeout=20).values()
    sampler.stop(20)
    assert totals.training_seconds == 90 * HOUR
    return totals, sampler


AT_10_HOURS = int(10 * HOUR * 300_000)
COUNTERS = {
    "wraps": lambda mj: mj % (AT_10_HOURS + 1),
    "stands still": lambda mj: AT_10_HOURS,
    "runs backwards": lambda mj: 2 * AT_10_HOURS - mj,
    "starts over": lambda mj: mj - AT_10_HOURS,
    "leaps": lambda mj: mj + 2**62,
    "is zero": lambda mj: 0,
}


@pytest.mark.parametrize("power", [True, False], ids=["with power", "without power"])
@pytest.mark.parametrize("fault", COUNTERS)
def test_a_bad_energy_counter_never_charges_what_was_not_drawn(monkeypatch, fault, power):
    def spoil(fake, gpu):
        gpu.energy_millijoules = COUNTERS[fault](gpu.energy_millijoules)

    totals, sampler = after_a_fault(monkeypatch, spoil, power=power)
    assert totals.use().power_watts == pytest.approx(300)
    assert totals.energy_known_seconds == (90 if power else 10) * HOUR
    assert totals.energy_estimated_joules == pytest.approx((80 if power else 0) * HOUR * 300)
    assert "the energy counter" in sampler.missing()[GPU.key]["energy_joules"]
    assert totals.observed_seconds == 90 * HOUR
    assert (totals.use().busy_fraction, totals.use().sm_clock_mhz) == (0.5, 1755)


IMPOSSIBLE = {
    "utilization_percent": [101, 2**32 - 1],
    "power_milliwatts": [0, 2**32 - 1],
    "memory_bytes": [-1, 2**64 - 1],
    "sm_clock_mhz": [0, 2**32 - 1],
}


@pytest.mark.parametrize(("what", "value"), [(w, v) for w in IMPOSSIBLE for v in IMPOSSIBLE[w]])
@pytest.mark.parametrize("counter", [True, False], ids=["with counter", "without"])
def test_impossible_values_leave_the_sums_as_they_were(monkeypatch, what, value, counter):
    def spoil(fake, gpu):
        setattr(gpu, what, value)

    if not counter:
        monkeypatch.setitem(nvml._QUERIES, "energy_joules", lambda nvml, handle: None)
    totals, _ = after_a_fault(monkeypatch, spoil)
    assert totals.use().power_watts == pytest.approx(300)
    assert totals.energy_is_counter == counter
    assert totals.observed_seconds == 90 * HOUR
    assert (totals.use().busy_fraction, totals.use().sm_clock_mhz) == (0.5, 1755)
    assert totals.memory_peak_bytes == 12 * 2**30
    for name, known in [
        ("utilization_percent", totals.busy_known_seconds),
        ("sm_clock_mhz", totals.sm_clock_known_seconds),
    ]:
        assert known == (80 if what == name else 90) * HOUR


def test_a_driver_that_is_loaded_anew_is_trusted_though_it_counts_from_zero(monkeypatch):
    faults = {"nvmlDeviceGetPowerUsage": pynvml.NVML_ERROR_UNINITIALIZED}
    totals, sampler = after_a_fault(
        monkeypatch, lambda fake, gpu: fake.faults.update(faults), reloaded=True
    )
    assert totals.energy_is_counter
    assert totals.energy_joules == pytest.approx(300 * 79 * HOUR)  # not that of 11 unseen hours
    assert totals.energy_known_seconds == 79 * HOUR
    assert sampler.missing() == {GPU.key: {}}


@pytest.mark.parametrize("code", ["GPU_IS_LOST", "UNINITIALIZED", "TIMEOUT", "NOT_SUPPORTED"])
@pytest.mark.parametrize("function", [*QUERIES.values(), "all"])
def test_errors_for_a_while_cost_their_time_and_bias_no_mean(monkeypatch, function, code):
    number = getattr(pynvml, f"NVML_ERROR_{code}")
    faults = dict.fromkeys(QUERIES.values() if function == "all" else [function], number)
    totals, sampler = after_a_fault(monkeypatch, lambda fake, gpu: fake.faults.update(faults))
    assert totals.use().power_watts == pytest.approx(300)
    assert (totals.use().busy_fraction, totals.use().sm_clock_mhz) == (0.5, 1755)
    assert totals.use().throttled_fraction == 0
    observed = 90
    if code in ("GPU_IS_LOST", "UNINITIALIZED"):  # from the 10th hour to the 21st
        observed = 79
    elif function == "all":
        observed = 80 if code == "TIMEOUT" else 10
    assert totals.observed_seconds == observed * HOUR
    assert len(sampler.messages()) == (1 if observed == 79 else 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_gpu_reports_every_measure_without_touching_its_memory():
    before = torch.cuda.memory_reserved()
    probe = cuda_probe(0)
    reading = probe.read()
    probe.close()

    if probe.device.key.startswith("GPU-") and "busy_fraction" not in probe.missing:
        assert reading.busy_fraction is not None
        assert 0 <= reading.busy_fraction <= 1
        assert reading.power_watts is not None
        assert 1 < reading.power_watts < 2000
        if "sm_clock_mhz" not in probe.missing:
            assert reading.sm_clock_mhz is not None
            assert 100 < reading.sm_clock_mhz < 5000
        assert reading.throttled is None or reading.throttled <= {"power", "heat", "fault"}
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
    (totals,) = sampler.by_device(timeout=10).values()
    sampler.stop()

    assert totals.readings >= 2
    assert totals.training_seconds > 0
    if "energy_joules" not in next(iter(sampler.missing().values())):
        assert totals.energy_joules > 0


# ------------------------------------------------------------- an old package, an odd device


def make_old(monkeypatch, knows_bytes=True):
    """What the package ``pynvml`` 11.4 did: a folder, bytes for text, and fewer functions."""
    by_uuid, version = pynvml.nvmlDeviceGetHandleByUUID, pynvml.nvmlSystemGetDriverVersion

    def of_bytes(uuid):
        if not isinstance(uuid, bytes) or not knows_bytes:
            raise TypeError("bytes or integer address expected instead of str instance")
        return by_uuid(uuid.decode())

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", of_bytes)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: version().encode())
    monkeypatch.setattr(pynvml, "__path__", ["old"], raising=False)
    monkeypatch.setattr(pynvml, "__file__", "old/pynvml/__init__.py")
    for name in (
        *("nvmlMemory_v2", "nvmlDeviceGetCurrentClocksEventReasons"),
        *("nvmlDeviceIsMigDeviceHandle", "nvmlDeviceGetMigMode", "NVML_DEVICE_MIG_ENABLE"),
    ):
        monkeypatch.delattr(pynvml, name)


def test_an_old_package_before_nvidias_own_is_read_all_the_same(monkeypatch):
    gpu = FakeGpu()
    FakeNvml([gpu]).install(monkeypatch)
    make_old(monkeypatch)
    probe = NvmlProbe(GPU)
    all_of_it = {"memory_used_bytes": gpu.memory_bytes + gpu.reserved_bytes}
    assert asdict(probe.read()) == {**FULL, **all_of_it}
    assert not probe.missing
    said = nvml.driver_versions()
    assert said.startswith("NVIDIA driver 999.88.77, NVML 13.999.88.77 (old/pynvml/__init__.py")
    assert "pip uninstall pynvml" in said


def test_an_old_package_that_cannot_be_used_is_named(monkeypatch):
    """With its file: two packages of one module's name are hard to tell apart."""
    FakeNvml().install(monkeypatch)
    make_old(monkeypatch, knows_bytes=False)
    probe = NvmlProbe(GPU)
    assert probe.read() == Reading()
    assert all("old/pynvml/__init__.py of the old package" in why for why in probe.missing.values())


@pytest.mark.parametrize("memory", [0, 3 * 2**30])
def test_a_device_that_answers_0_to_everything_is_not_idle(monkeypatch, memory):
    """It is unavailable; one that has memory in use answers something."""
    gpu = FakeGpu(utilization_percent=0, power_milliwatts=0, energy_millijoules=0)
    gpu.sm_clock_mhz, gpu.memory_bytes = 0, memory
    FakeNvml([gpu]).install(monkeypatch)
    probe = NvmlProbe(GPU)
    reading = probe.read()
    assert reading.power_watts is reading.sm_clock_mhz is None
    assert reading.busy_fraction == (0 if memory else None)
    assert reading.memory_used_bytes == (memory or None)
    if not memory:
        assert reading == Reading()
        assert set(probe.missing) == MEASURES
        assert "answers 0 to every question" in probe.missing["busy_fraction"]


def test_an_idle_gpu_is_idle(monkeypatch):
    FakeNvml([FakeGpu(utilization_percent=0, memory_bytes=0)]).install(monkeypatch)
    assert NvmlProbe(GPU).read().busy_fraction == 0
