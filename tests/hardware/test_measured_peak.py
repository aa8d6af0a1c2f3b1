"""Measuring a peak: the arithmetic under an injected clock, and that it leaves no trace."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from lightning_lscore.hardware import measured_peak as measuring
from lightning_lscore.hardware.measured_peak import measured_peak


class Ticking:
    """A clock on which every look takes a millisecond."""

    def __init__(self, step=1e-3):
        self.ticks = itertools.count()
        self.step = step

    def __call__(self):
        return next(self.ticks) * self.step


def test_the_measured_rate_is_two_n_cubed_over_the_time():
    peak = measured_peak("cpu", "float32", seconds=0.02, now=Ticking())

    assert peak is not None
    assert peak.flops == pytest.approx(2 * 512**3 / 1e-3)
    assert "512 x 512 matrices on cpu" in peak.source


def test_where_there_is_time_a_larger_product_is_measured():
    peak = measured_peak("cpu", "float64", seconds=0.042, now=Ticking())

    assert peak is not None
    assert "1024 x 1024" in peak.source
    assert peak.flops == pytest.approx(2 * 1024**3 / 1e-3)


def test_the_best_rate_counts_even_if_a_larger_product_is_slower():
    looks = itertools.chain([i * 1e-3 for i in range(7)], itertools.count(1.0))
    peak = measured_peak("cpu", "float32", seconds=0.05, now=lambda: next(looks))

    assert peak is not None
    assert peak.flops == pytest.approx(2 * 512**3 / 1e-3)
    assert "512 x 512" in peak.source


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("native", [True, False])
def test_a_format_that_the_device_has_to_imitate_does_not_make_it_a_slower_device(
    dtype, native, monkeypatch
):
    """Many a CPU multiplies 16-bit numbers at a hundredth of the rate of float32."""
    rates = {getattr(torch, dtype): (5e9 if native else 1e9, 512), torch.float32: (2e9, 1024)}
    monkeypatch.setattr(measuring, "_fastest_product", lambda device, dtype, *_: rates[dtype])
    peak = measured_peak("cpu", dtype, threads=2)

    if native:
        expected = 5e9, f"measured: {dtype} product of 512 x 512 matrices on cpu, 2 threads"
    else:
        expected = (
            2e9,
            (
                "measured: float32 product of 1024 x 1024 matrices on cpu, 2 threads"
                f" ({dtype}: 0.5 times as fast)"
            ),
        )
    assert (peak.flops, peak.source) == expected


def test_a_slow_device_is_left_after_its_first_product():
    clock = Ticking(step=100.0)
    measured_peak("cpu", "float32", now=clock)

    assert next(clock.ticks) <= 4


def test_measuring_leaves_no_trace():
    torch_state, python_state = torch.random.get_rng_state(), random.getstate()
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measured_peak("cpu", "float32", threads=1, seconds=1e-3) is not None
        assert torch.is_autocast_enabled("cpu")

    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, grad)


def test_threads_are_set_for_the_product_and_restored_even_if_it_fails(monkeypatch):
    seen, before = [], torch.get_num_threads()

    def fail(*args, **kwargs):
        seen.append(torch.get_num_threads())
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch, "mm", fail)
    assert measured_peak("cpu", "float32", threads=before + 1) is None
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dtype", ["float8", "int8", "complex64", ""])
def test_a_precision_that_torch_does_not_multiply_in_is_not_measured(dtype):
    assert measured_peak("cpu", dtype) is None


def test_a_device_that_is_not_there_is_not_measured():
    if not torch.cuda.is_available():
        assert measured_peak("cuda", "float32") is None


def test_a_gpus_memory_bounds_the_size(monkeypatch):
    free = 4 * 3 * 4096 * 4096 * 2 + 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    gpu = torch.device("cuda")

    assert measuring._fits(gpu, torch.bfloat16, 4096)
    assert not measuring._fits(gpu, torch.bfloat16, 8192)
    assert not measuring._fits(gpu, torch.float32, 4096)
