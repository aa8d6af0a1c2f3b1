from __future__ import annotations

import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lightning_lscore.hardware import cpu
from lightning_lscore.hardware.cpu import CpuProbe
from lightning_lscore.hardware.meter import Meter
from lightning_lscore.hardware.probe import Reading

RAPL = "sys/class/powercap"


@dataclass
class Host:
    """A made-up /proc and /sys, and clocks that a test moves."""

    root: Path
    t: float = 0.0
    cpu_seconds: float = 0.0
    threads: int = 4
    files: dict[str, str] = field(default_factory=dict)

    def write(self, path: str, text: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def zone(self, folder: str, name: str, energy_uj: int, range_uj: int = 1_000_000_000) -> None:
        self.write(f"{RAPL}/{folder}/name", name)
        self.write(f"{RAPL}/{folder}/max_energy_range_uj", range_uj)
        self.write(f"{RAPL}/{folder}/energy_uj", energy_uj)

    def probe(self) -> CpuProbe:
        return CpuProbe(
            self.threads,
            root=self.root,
            now=lambda: self.t,
            process_time=lambda: self.cpu_seconds,
        )


@pytest.fixture
def host(tmp_path):
    host = Host(tmp_path)
    host.write("proc/cpuinfo", "processor\t: 0\nmodel name\t: Invented CPU 9000\nflags\t: fpu")
    host.write("proc/sys/kernel/random/boot_id", "461ea499-51f6")
    host.write("proc/self/statm", "1000 250 30 1 0 100 0")
    return host


def test_busy_is_the_processs_cpu_time_over_the_threads_it_may_use(host):
    probe = host.probe()
    assert probe.read().busy_fraction is None  # no interval yet
    assert "busy_fraction" in probe.missing

    host.t, host.cpu_seconds = 2.0, 6.0
    assert probe.read().busy_fraction == 0.75
    assert "busy_fraction" not in probe.missing
    host.t = 3.0
    assert probe.read().busy_fraction == 0.0


def test_busy_stays_within_0_and_1(host):
    probe = host.probe()
    probe.read()
    host.t, host.cpu_seconds = 1.0, 400.0  # more threads ran than were said to count
    assert probe.read().busy_fraction == 1.0
    host.t, host.cpu_seconds = 2.0, 399.0
    assert probe.read().busy_fraction == 0.0


def test_two_readings_at_one_time_give_no_busy(host):
    probe = host.probe()
    probe.read()
    assert probe.read().busy_fraction is None


def test_identity_names_the_model_the_host_and_its_boot(host):
    device = host.probe().device

    assert device.kind == "cpu"
    assert device.name == "Invented CPU 9000"
    assert device.key.startswith("cpu:")
    assert device.key.endswith(":461ea499-51f6")
    assert device == host.probe().device


def test_a_host_without_proc_has_an_identity_too(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu.platform, "processor", lambda: "arm")
    first, second = CpuProbe(root=tmp_path), CpuProbe(root=tmp_path)

    assert first.device == second.device
    assert first.device.name == "arm"


def test_memory_is_the_resident_set(host):
    assert host.probe().read().memory_used_bytes == 250 * os.sysconf("SC_PAGE_SIZE")


def test_memory_without_proc_is_the_peak_that_the_system_kept(tmp_path):
    used = CpuProbe(root=tmp_path).read().memory_used_bytes

    assert used is not None
    assert used > 2**20


def test_energy_is_the_sum_of_the_packages_and_of_nothing_else(host):
    host.zone("intel-rapl:0", "package-0", 100)
    host.zone("intel-rapl:0:0", "core", 100)
    host.zone("intel-rapl:1", "package-1", 200)
    host.zone("intel-rapl:2", "psys", 300)
    host.zone("intel-rapl-mmio:0", "package-0", 400)
    probe = host.probe()
    start = probe.read().energy_joules

    for folder in ("intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"):
        host.write(f"{RAPL}/{folder}/energy_uj", 900_000_000)
    host.write(f"{RAPL}/intel-rapl:0/energy_uj", 3_000_100)
    host.write(f"{RAPL}/intel-rapl:1/energy_uj", 4_000_200)
    assert probe.read().energy_joules - start == pytest.approx(7.0)
    assert "energy_joules" not in probe.missing


def test_a_counter_that_starts_over_goes_on_counting(host):
    host.zone("intel-rapl:0", "package-0", 9_000_000, range_uj=10_000_000)
    probe = host.probe()
    start = probe.read().energy_joules

    for energy_uj, joules in [(9_500_000, 0.5), (500_000, 1.5), (9_000_000, 10.0), (0, 11.0)]:
        host.write(f"{RAPL}/intel-rapl:0/energy_uj", energy_uj)
        assert probe.read().energy_joules - start == pytest.approx(joules)


def test_a_meter_charges_the_counter_across_its_turns(host):
    host.zone("intel-rapl:0", "package-0", 0, range_uj=10_000_000)
    probe, meter = host.probe(), Meter(max_gap=4)
    meter.resume(0.0)
    for t in range(21):
        host.t, host.cpu_seconds = float(t), 2.0 * t
        host.write(f"{RAPL}/intel-rapl:0/energy_uj", 3_000_000 * t % 10_000_000)
        meter.add(probe.read(), host.t)

    totals = meter.totals()
    assert totals.energy_joules == pytest.approx(60)
    assert totals.energy_is_counter
    assert totals.use().busy_fraction == pytest.approx(0.5)


def test_closing_does_not_set_the_counter_back(host):
    host.zone("intel-rapl:0", "package-0", 0)
    probe = host.probe()
    probe.read()
    host.write(f"{RAPL}/intel-rapl:0/energy_uj", 5_000_000)
    before = probe.read().energy_joules
    probe.close()
    probe.close()

    assert probe.read().energy_joules == before
    assert probe.read().busy_fraction is None


def test_without_a_counter_energy_is_missing_and_says_why(host):
    probe = host.probe()

    assert probe.read().energy_joules is None
    assert "no RAPL counter" in probe.missing["energy_joules"]


def test_a_counter_for_root_only_says_what_to_do(host, monkeypatch):
    host.zone("intel-rapl:0", "package-0", 0)
    read_text = Path.read_text

    def refuse(self, *args, **kwargs):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return read_text(self, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    probe = host.probe()
    assert probe.read().energy_joules is None
    assert "chmod a+r" in probe.missing["energy_joules"]

    monkeypatch.undo()
    assert probe.read().energy_joules is not None
    assert "energy_joules" not in probe.missing


@pytest.mark.parametrize("text", ["", "not a number"])
def test_a_broken_counter_is_missing(host, text):
    host.zone("intel-rapl:0", "package-0", 0)
    host.write(f"{RAPL}/intel-rapl:0/energy_uj", text)
    probe = host.probe()

    assert probe.read().energy_joules is None
    assert "cannot be read" in probe.missing["energy_joules"]


def test_a_counter_that_vanishes_in_mid_run_leaves_the_rest(host):
    host.zone("intel-rapl:0", "package-0", 0)
    probe = host.probe()
    probe.read()
    (host.root / RAPL / "intel-rapl:0/energy_uj").unlink()
    host.t, host.cpu_seconds = 1.0, 2.0

    reading = probe.read()
    assert reading.energy_joules is None
    assert reading.busy_fraction == 0.5


def test_every_measure_is_there_or_has_a_reason(host):
    for probe in (host.probe(), CpuProbe()):
        reading = probe.read()
        for measure in Reading.__dataclass_fields__:
            assert (getattr(reading, measure) is None) == (measure in probe.missing)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_at_least_one(threads):
    with pytest.raises(ValueError, match="threads must be at least 1"):
        CpuProbe(threads)


def test_a_probe_pickles():
    probe = pickle.loads(pickle.dumps(CpuProbe(2)))

    assert probe.read().memory_used_bytes
