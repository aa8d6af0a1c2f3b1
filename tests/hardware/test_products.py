"""Matrix products: the arithmetic under an injected clock, and that they leave no trace."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from lightning_lscore.hardware import products
from lightning_lscore.hardware.products import multiply


class Ticking:
    """A clock on which every look takes a millisecond."""

    def __init__(self, step=1e-3):
        self.ticks = itertools.count()
        self.step = step

    def __call__(self):
        return next(self.ticks) * self.step


def test_the_measured_rate_is_two_n_cubed_over_the_time():
    rate = multiply("cpu", "float32", seconds=0.02, now=Ticking())

    assert rate is not None
    assert rate.flops == pytest.approx(2 * 512**3 / 1e-3)
    assert "512 x 512 matrices on cpu" in rate.what


def test_where_there_is_time_a_larger_product_is_measured():
    rate = multiply("cpu", "float64", seconds=0.042, now=Ticking())

    assert rate is not None
    assert "1024 x 1024" in rate.what
    assert rate.flops == pytest.approx(2 * 1024**3 / 1e-3)


def test_the_best_rate_counts_even_if_a_larger_product_is_slower():
    looks = itertools.chain([i * 1e-3 for i in range(7)], itertools.count(1.0))
    rate = multiply("cpu", "float32", seconds=0.05, now=lambda: next(looks))

    assert rate is not None
    assert rate.flops == pytest.approx(2 * 512**3 / 1e-3)
    assert "512 x 512" in rate.what


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("native", [True, False])
def test_a_format_that_the_device_has_to_imitate_does_not_make_it_a_slower_device(
    dtype, native, monkeypatch
):
    """Many a CPU multiplies 16-bit numbers at a hundredth of the rate of float32."""
    rates = {
        getattr(torch, dtype): (5e9 if native else 1e9, 512, ""),
        torch.float32: (2e9, 1024, ""),
    }
    monkeypatch.setattr(products, "_fastest_product", lambda device, dtype, *_: rates[dtype])
    rate = multiply("cpu", dtype, threads=2)

    if native:
        expected = 5e9, f"{dtype} product of 512 x 512 matrices on cpu, 2 threads"
    else:
        expected = (
            2e9,
            (
                "float32 product of 1024 x 1024 matrices on cpu, 2 threads"
                f" ({dtype}: 0.5 times as fast)"
            ),
        )
    assert (rate.flops, rate.what) == expected


def test_a_slow_device_is_left_after_its_first_product():
    clock = Ticking(step=100.0)
    multiply("cpu", "float32", now=clock)

    assert next(clock.ticks) <= 4


def test_products_leave_no_trace():
    torch_state, python_state = torch.random.get_rng_state(), random.getstate()
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert multiply("cpu", "float32", threads=1, seconds=1e-3) is not None
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
    assert multiply("cpu", "float32", threads=before + 1) is None
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("dtype", ["float8", "int8", "complex64", ""])
def test_a_precision_that_torch_does_not_multiply_in_is_not_measured(dtype):
    assert multiply("cpu", dtype) is None


def test_a_device_that_is_not_there_is_not_measured():
    if not torch.cuda.is_available():
        assert multiply("cuda", "float32") is None


def test_a_gpus_memory_bounds_the_size(monkeypatch):
    free = 4 * 3 * 4096 * 4096 * 2 + 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    gpu = torch.device("cuda")

    assert products._fits(gpu, torch.bfloat16, 4096)
    assert not products._fits(gpu, torch.bfloat16, 8192)
    assert not products._fits(gpu, torch.float32, 4096)


@pytest.mark.parametrize(
    ("took", "cpu_seconds", "threads", "cpus", "sign"),
    [
        ([1.0, 1.0], 4.0, 2, 2, None),
        ([1.0, 1.0], 3.7, 2, 2, None),
        ([1.0, 1.0], 2.0, 2, 2, "got 50% of the CPU time"),
        ([1.0, 1.0], 2.0, 1, 2, None),
        ([1.0, 1.0], 4.0, 8, 2, None),  # threads that outnumber the CPUs take turns
        ([1.0, 1.05, 3.0], 10.0, 2, 2, None),
        ([1.0, 1.2, 1.2], 7.0, 2, 2, "half of the products took over 1.1 times"),
        ([1.0, 1.0], None, 1, 2, None),
        ([1.0, 1.2, 1.2], None, 1, 2, "half of the products took over 1.1 times"),
    ],
)
def test_a_busy_machine_shows_in_the_cpu_time_and_in_the_scatter(
    monkeypatch, took, cpu_seconds, threads, cpus, sign
):
    """On a GPU in the scatter alone."""
    monkeypatch.setattr(products, "usable_threads", lambda: cpus)
    found = products._disturbance(took, cpu_seconds, threads)
    assert found == "" if sign is None else sign in found


@pytest.mark.parametrize(("cpu_step", "busy"), [(1.0, False), (0.3, True)])
def test_a_rate_carries_the_sign_that_the_process_was_kept_waiting(cpu_step, busy):
    """Against a wall clock on which the repeats take 1 ms each, one after the other."""
    clock = Ticking()
    rate = multiply(
        "cpu", "float32", threads=1, seconds=0.02, now=clock,
        cpu_time=lambda: next(clock.ticks) * clock.step * cpu_step,
    )  # fmt: skip
    assert bool(rate.disturbed) == busy
