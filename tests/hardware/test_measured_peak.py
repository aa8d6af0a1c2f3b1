"""When a peak is measured, what is kept of it, and that nothing about that ends a run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from conftest import run_python

from lightning_lscore.hardware import measured_peak as measuring
from lightning_lscore.hardware.measured_peak import ENOUGH_SECONDS, measured_peak
from lightning_lscore.hardware.products import Rate

BUSY = "the process got 20% of the CPU time that it could use"
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d\+00:00"


class Machine:
    """Whose products take 0.3 s a round and come to the given rates; the last one repeats."""

    def __init__(self, monkeypatch, folder):
        self.t, self.rounds, self.rates = 0.0, 0, []
        monkeypatch.setenv("LSCORE_CACHE", str(folder))
        monkeypatch.setattr(measuring, "multiply", self.multiply)

    def multiply(self, device, dtype, *, threads=None, seconds):
        self.rounds += 1
        self.t += seconds
        rate = self.rates.pop(0) if len(self.rates) > 1 else self.rates[0]
        return None if rate is None else Rate(flops=rate[0], what="a product", disturbed=rate[1])

    def now(self):
        return self.t

    def fit(self, *rates, **options):
        """In a process of its own: the peak and how many rounds it took to find."""
        measuring._known.clear()
        return self.again(*rates, **options)

    def again(self, *rates, **options):
        """In the same process."""
        self.rates, self.rounds = list(rates), 0
        options = {"dtype": "float32", "name": "Invented CPU", "threads": 2, **options}
        peak = measured_peak("cpu", now=self.now, **options)
        return peak, self.rounds


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Nothing is known yet, nor afterwards."""
    monkeypatch.setattr(measuring, "_known", {})
    return Machine(monkeypatch, tmp_path / "cache")


def test_on_a_quiet_machine_two_rounds_that_agree_are_measured_once_for_all_runs(machine):
    peak, rounds = machine.fit((9.9e10, ""), (1e11, ""))
    assert (peak.flops, rounds) == (1e11, 2)
    assert re.fullmatch(f"measured: a product, {MOMENT}", peak.source)
    for rate in ((1e11, ""), (5e9, BUSY)):
        later, rounds = machine.fit(rate)
        assert (later.flops, rounds) == (1e11, 0)
        assert later.source == f"{peak.source}, kept since then"


def test_a_round_that_differs_is_repeated_until_two_agree(machine):
    """The first may find the device's clock low."""
    peak, rounds = machine.fit((6e10, ""), (1e11, ""), (2e10, BUSY), (9.8e10, ""))
    assert (peak.flops, rounds) == (1e11, 4)
    assert "busy" not in peak.source


def test_on_a_busy_machine_it_ends_after_a_while_and_says_that_it_may_be_too_low(machine):
    peak, _ = machine.fit((1e10, BUSY), (2e10, BUSY), (1e10, BUSY))
    assert 1.0 < machine.t <= ENOUGH_SECONDS
    assert peak.flops == 2e10
    assert f"maybe too low, as the machine was busy: {BUSY}" in peak.source


def test_rates_that_never_agree_are_a_busy_machines(machine):
    """Even if no single round shows it."""
    peak, _ = machine.fit(*((1e10 * i, "") for i in range(1, 9)))
    assert "its rate changed between the rounds" in peak.source


def test_the_next_process_measures_again_and_shortly_if_the_machine_is_still_busy(machine):
    machine.fit((2e10, BUSY))
    worse, rounds = machine.fit((1e10, BUSY))
    assert (worse.flops, rounds) == (2e10, 1)
    assert "kept since then; maybe too low" in worse.source
    better, rounds = machine.fit((3e10, BUSY))
    assert (better.flops, rounds) == (3e10, 1)
    assert "kept since then" not in better.source
    assert machine.fit((1e10, BUSY))[0].flops == 3e10


def test_a_quiet_machine_replaces_what_a_busy_one_measured(machine):
    machine.fit((2e10, BUSY))
    peak, rounds = machine.fit((1e11, ""))
    assert (peak.flops, rounds) == (1e11, 2)
    assert "busy" not in peak.source
    assert machine.fit((1e11, ""))[1] == 0


def test_a_busy_machines_best_is_confirmed_by_a_quiet_one_that_reaches_about_as_much(machine):
    machine.fit((1e11, BUSY))
    peak, _ = machine.fit((9.8e10, ""))
    assert peak.flops == 1e11
    assert "busy" not in peak.source
    assert machine.fit((9e9, BUSY)) == (machine.again()[0], 0)


@pytest.mark.parametrize("freak", [(1.1e11, BUSY), (1.2e11, BUSY)])
def test_a_freakishly_high_rate_of_a_busy_machine_is_settled_by_a_quiet_one(machine, freak):
    """Later processes would never reach it, and would measure again each time."""
    machine.fit(freak)
    peak, _ = machine.fit((1e11, ""))
    assert peak.flops == freak[0]
    assert "busy" not in peak.source
    for rate in ((1e11, ""), (2e10, BUSY)):
        later, rounds = machine.fit(rate)
        assert (later.flops, rounds) == (freak[0], 0)


def test_a_rate_that_one_quiet_round_alone_reached_is_settled_by_the_next_process(machine):
    machine.fit((1.1e11, ""), (1e11, ""))
    peak, _ = machine.fit((1e11, ""))
    assert peak.flops == 1.1e11
    assert machine.fit((1e11, ""))[1] == 0


def test_a_device_that_takes_long_for_one_round_is_quiet_if_that_was(machine, monkeypatch):
    monkeypatch.setattr(measuring, "ROUND_SECONDS", 2.0)
    assert machine.fit((1e9, ""))[1] == 1
    assert machine.fit((1e9, ""))[1] == 0


@pytest.mark.parametrize("rate", [(1e11, ""), (1e10, BUSY), None])
def test_a_process_measures_nothing_twice(machine, rate):
    """Nor does it try twice what torch cannot do."""
    first, rounds = machine.fit(rate)
    assert rounds >= 1
    assert machine.again(rate) == (first, 0)


@pytest.mark.parametrize(
    "other", [{"dtype": "float64"}, {"name": "Other CPU"}, {"threads": 3}, {"threads": None}]
)
def test_another_device_precision_or_number_of_threads_has_its_own_peak(machine, other):
    machine.fit((1e11, ""))
    peak, rounds = machine.again((5e10, ""), **{"threads": 2, **other})
    assert (peak.flops, rounds) == (5e10, 2)


def test_measured_anew_the_best_of_both_counts(machine):
    """The doctor tries; a figure that was kept by mistake is found out by a better one."""
    machine.fit((1e11, ""))
    assert machine.again((5e10, BUSY), anew=True)[1] >= 1
    assert machine.fit((1e9, ""))[0].flops == 1e11
    assert machine.again((2e11, ""), anew=True)[0].flops == 2e11
    assert machine.fit((1e9, ""))[0].flops == 2e11


def test_a_kept_peak_outlives_a_device_without_memory_for_a_product(machine):
    machine.fit((2e10, BUSY))
    assert machine.fit(None)[0].flops == 2e10


def test_a_damaged_cache_costs_the_saving_alone_and_is_mended(machine):
    machine.fit((1e11, ""))
    (path,) = Path(os.environ["LSCORE_CACHE"]).iterdir()
    path.write_text("{")
    peak, _ = machine.fit((9e10, ""))
    assert peak.flops == 9e10
    assert "the cache could not be read: " in peak.source
    assert "is damaged" in peak.source
    assert machine.fit((9e10, ""))[1] == 0


def test_a_folder_that_cannot_be_made_costs_the_saving_alone(machine, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LSCORE_CACHE", str(tmp_path / "file" / "folder"))
    for _ in range(2):
        peak, rounds = machine.fit((1e11, ""))
        assert (peak.flops, rounds) == (1e11, 2)
        assert "it could not be kept: " in peak.source


def test_a_user_without_a_home_measures_and_keeps_nothing(machine, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(measuring, "cache_folder", fail)
    peak, _ = machine.fit((1e11, ""))
    assert peak.flops == 1e11
    assert "the cache could not be read: Could not determine home directory." in peak.source


PROGRAM = """
from lightning_lscore.hardware.measured_peak import measured_peak
peak = measured_peak("cpu", "float32", name="this one", threads=1)
print(repr(peak.flops), "kept since then" in peak.source)
"""


def test_real_products_are_kept_for_the_next_process(tmp_path, monkeypatch):
    """What is kept of a busy machine may be outdone by the next process, and is never undone."""
    monkeypatch.setenv("LSCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "_known", {})
    here = measured_peak("cpu", "float32", name="this one", threads=1)
    there, kept = run_python("-c", PROGRAM, folder=tmp_path).split()
    assert 1e8 < here.flops <= float(there)
    if "busy" not in here.source:
        assert (float(there), kept) == (here.flops, "True")
