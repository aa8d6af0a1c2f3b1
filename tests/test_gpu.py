"""What only a real NVIDIA GPU can show: that nothing waits for it, and that its readings are true.

python -m pytest -m gpu

Lines that begin with "measured:" are figures; ``make gpu`` puts them into docs/gpu.md.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from statistics import fmean

import lightning.pytorch as pl
import pynvml
import pytest
import torch
from conftest import LENGTH, VOCABULARY, PlainLM, loader, reference_nll, run_python

from lightning_lscore import LScore, Perplexity
from lightning_lscore.hardware.devices import probe_of
from lightning_lscore.hardware.meter import Meter
from lightning_lscore.hardware.peaks import peak_flops
from lightning_lscore.hardware.probe import Probe, Reading
from lightning_lscore.hardware.sampler import Sampler
from lightning_lscore.heldout.compiled import _built
from lightning_lscore.heldout.held_out import HeldOut
from lightning_lscore.heldout.nll import row_nll

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
    # torch warns about the mode itself when it is first set, Lightning about fits on the CPU.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]

STEPS = 200
SECONDS = 6.0
GPU = "cuda"


def gpu_probe() -> Probe:
    return probe_of(torch.device("cuda", 0))


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Let any operation raise that makes the host wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def work(seconds: float) -> None:
    """Keep the GPU busy."""
    a = torch.randn(4096, 4096, device=GPU)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            a = (a @ a).clamp_(-1, 1)
        torch.cuda.synchronize()


@contextlib.contextmanager
def working() -> Iterator[None]:
    """Keep the GPU busy in another thread, at its steady power and load on entry."""
    done = threading.Event()

    def go_on() -> None:
        while not done.is_set():
            work(0.2)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        time.sleep(3.0)  # power and load are means over about a second
        yield
    finally:
        done.set()
        thread.join()


# ---------------------------------------------------------------------- nothing waits


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_update_does_not_wait_for_the_gpu_and_is_exact(dtype, compile):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 64, 32000, generator=generator) * 3).to(dtype)
    labels = torch.randint(32000, (2, 64), generator=generator)
    labels[0, :9] = -100
    nll = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten())
    x, t = logits.to(GPU), labels.to(GPU)
    metric, held_out = Perplexity(compile=compile).to(GPU), HeldOut(-100, x.device)
    metric.update(x, t)  # kernels are built and loaded
    metric.reset()
    with no_waiting():
        metric.update(x, t)
        held_out.update(x, t)
    built = [ok for (_, kind, place), ok in _built.items() if (kind, place) == (dtype, GPU)]
    assert all(built), "a kernel could not be built, or waited"
    assert built or not compile
    error = abs(float(metric.nll()) - float(nll))
    print(f"measured: NLL of {dtype}{', compiled' * compile}, off by {error:.1e} nats from float64")
    assert float(metric.nll()) == pytest.approx(float(nll), abs=1e-6)
    assert held_out.numbers()[1] == int((labels != -100).sum())


class StrictSteps(pl.Callback):
    """Let what waits for the GPU raise in the training steps of a fit, after the first few."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 5:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += torch.cuda.get_sync_debug_mode() == 2
        if batch_idx == STEPS + 5:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("masked", [False, True])
def test_training_steps_do_not_wait_for_the_gpu(masked, trainer):
    class Masked(PlainLM):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            mask = torch.ones_like(batch["input_ids"])
            return {**batch, "attention_mask": mask} if masked else batch

    def fit(*callbacks):
        guard = StrictSteps()
        t = trainer(guard, *callbacks, accelerator=GPU, devices=1)
        try:
            t.fit(Masked(), loader((STEPS + 10) * 4), loader(8))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return guard.steps

    try:
        fit()
    except RuntimeError as error:
        pytest.skip(f"Lightning itself waits for the GPU: {error}")
    lscore = LScore()
    assert fit(lscore) > STEPS
    tokens = lscore.last_record.measurements.tokens
    assert tokens == (STEPS + 10) * 4 * LENGTH
    assert lscore.last_record.L is not None
    assert lscore.last_record.devices[0].kind == GPU


class Strict(pl.Callback):
    """Set torch's mode when a validation batch begins or ends, but for the first one of all."""

    def __init__(self, hook: str, mode: str) -> None:
        self.batches = 0
        setattr(self, hook, lambda *_, **__: self._set(mode))

    def _set(self, mode: str) -> None:
        self.batches += 1
        torch.cuda.set_sync_debug_mode(mode if self.batches > 1 else "default")


@pytest.mark.parametrize("compile", [False, True])
def test_validation_batches_do_not_wait_for_the_gpu(compile, trainer):
    """After the first of a run, whose labels are compared with its input."""

    def fit(*callbacks):
        begin = Strict("on_validation_batch_start", "error")
        end = Strict("on_validation_batch_end", "default")
        t = trainer(begin, *callbacks, end, accelerator=GPU, devices=1, max_epochs=2)
        try:
            t.fit(PlainLM(), loader(8), loader(40, seed=1))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return end.batches

    try:
        fit()
    except RuntimeError as error:
        pytest.skip(f"Lightning itself waits for the GPU: {error}")
    assert fit(LScore(compile=compile)) == 2 * 10


def test_how_often_a_validation_waits_does_not_depend_on_its_batches(trainer):
    """It reads its sums once, at its end; Lightning's logging waits too, once a value."""

    def waits(batches, *callbacks):
        t = trainer(*callbacks, accelerator=GPU, devices=1)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                t.fit(PlainLM(), loader(8), loader(4 * batches, seed=1))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("called a synchronizing CUDA operation" in str(w.message) for w in seen)

    waits(3, LScore())  # whatever happens once in a process
    few, many = (waits(n, LScore()) - waits(n) for n in (3, 12))
    print(f"measured: {few} synchronising operations in a fit of one validation, logging included")
    assert 0 < few == many


# ---------------------------------------------------------------------- perplexity


@pytest.mark.parametrize("compile", [False, True])
def test_rows_that_are_hard_to_sum_are_as_in_float64(compile):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5000, generator=generator) * 3
    t = torch.randint(2500, (8,), generator=generator)
    x[0] += 1e4
    x[1] -= 1e4
    x[2, 2500:] = -math.inf  # masked words
    x[3, t[3]] = -math.inf  # its label among them
    x[4, 4000] = math.nan
    x[5, 4000] = math.inf
    x[6, 4000] = math.nan
    t[6] = -100
    expected = torch.nn.functional.cross_entropy(x.double(), t, reduction="none")
    nll = row_nll(x.to(GPU), t.to(GPU), compile=compile)
    assert nll.dtype == torch.float64
    torch.testing.assert_close(nll.cpu(), expected, rtol=0, atol=5e-6, equal_nan=True)


def test_a_label_outside_the_vocabulary_is_an_error_when_the_sum_is_read():
    """To look at it at once would wait for the GPU."""
    metric, logits = Perplexity().to(GPU), torch.zeros(1, 3, 8, device=GPU)
    metric.update(logits, torch.tensor([[0, 8, -100]], device=GPU))
    with pytest.raises(ValueError, match="1 others"):
        metric.compute()


class KeepsLogits(PlainLM):
    """Add its validation's NLL up in float64 on the CPU."""

    def __init__(self) -> None:
        super().__init__(lr=0.0)
        self.nll, self.tokens = 0.0, 0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        outputs = super().validation_step(batch, batch_idx)
        nll, tokens = reference_nll(outputs["logits"].cpu(), outputs["labels"].cpu())
        self.nll, self.tokens = self.nll + nll, self.tokens + tokens
        return outputs


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_perplexity_of_a_fit_is_that_of_its_logits_in_float64(precision, trainer):
    torch.manual_seed(0)
    model, lscore = KeepsLogits(), LScore()
    t = trainer(lscore, accelerator=GPU, devices=1, precision=precision)
    t.fit(model, loader(8), loader(16, seed=1))
    expected, measured = math.exp(model.nll / model.tokens), lscore.last_record.measurements
    print(
        f"measured: perplexity of a {precision} fit {measured.perplexity:.8f}, of its logits in "
        f"float64 {expected:.8f}"
    )
    assert measured.perplexity == pytest.approx(expected, rel=1e-6)
    assert measured.validation_tokens == model.tokens == 16 * (LENGTH - 1)


def test_perplexity_of_a_fit_on_the_gpu_is_that_on_the_cpu(trainer):
    """Of the same weights; in float32 the products differ by rounding."""
    torch.manual_seed(0)
    model, seen = PlainLM(lr=0.0), []
    for accelerator in ("cpu", GPU):
        lscore = LScore()
        t = trainer(lscore, accelerator=accelerator, devices=1)
        t.fit(model, loader(8), loader(16, seed=1))
        seen.append(lscore.last_record.measurements)
    assert seen[0].perplexity == pytest.approx(seen[1].perplexity, rel=1e-5)
    assert seen[0].validation_tokens == seen[1].validation_tokens == 16 * (LENGTH - 1)
    assert seen[1].perplexity < 2 * VOCABULARY


# ---------------------------------------------------------------------- which device


@contextlib.contextmanager
def driver() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def test_each_device_of_torch_is_the_one_at_the_same_place_on_the_bus():
    """NVML finds it by the UUID that torch tells; the bus is another witness."""
    for index in range(torch.cuda.device_count()):
        probe, theirs = (
            probe_of(torch.device("cuda", index)),
            torch.cuda.get_device_properties(index),
        )
        assert probe.device.name == theirs.name
        if not probe.device.key.startswith("GPU-") or not hasattr(theirs, "pci_bus_id"):
            pytest.skip(f"{probe.device.key}: a part of a GPU, or this torch tells no place")
        with driver():
            bus = pynvml.nvmlDeviceGetPciInfo(pynvml.nvmlDeviceGetHandleByUUID(probe.device.key))
        place = theirs.pci_domain_id, theirs.pci_bus_id, theirs.pci_device_id
        assert (bus.domain, bus.bus, bus.device) == place


def test_a_whole_gpu_is_not_taken_for_a_slice():
    probe = gpu_probe()
    with driver():
        handle = pynvml.nvmlDeviceGetHandleByUUID(probe.device.key)
        try:
            mode, _ = pynvml.nvmlDeviceGetMigMode(handle)
        except pynvml.NVMLError_NotSupported:
            mode = pynvml.NVML_DEVICE_MIG_DISABLE
    if mode == pynvml.NVML_DEVICE_MIG_ENABLE:
        pytest.skip(f"{probe.device.name} is divided into slices")
    probe.read()
    probe.close()
    assert probe.device.key.startswith("GPU-")
    assert not [why for why in probe.missing.values() if "MIG" in why]


SHARED = """
import json, os, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from lightning_lscore.hardware.devices import find_devices
from lightning_lscore.run.processes import gather_objects

def main(rank, place):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a machine's own name may have no address
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29533", rank=rank, world_size=2)
    place = torch.device(place)
    module = torch.nn.Linear(2, 2).to(place)
    found = find_devices(module, place, "32-true", rank=rank, gather=gather_objects, interval=1.0)
    read = gather_objects(len(found.sampler.devices))
    if rank == 0:
        print(json.dumps([found.count, found.described[0].key, read]))
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(main, args=(sys.argv[1],), nprocs=2)
"""


def test_two_processes_on_one_gpu_count_it_once(tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    output = run_python(str(script), "cuda:0", folder=tmp_path)
    count, key, read = json.loads(output.splitlines()[-1])
    assert count == 1
    assert key == gpu_probe().device.key
    assert read == [1, 0], "the first process alone reads it"


# ---------------------------------------------------------------------- readings


def test_readings_are_those_of_nvidia_smi_and_energy_is_power_over_time():
    """Within 10 %: two programs never read at the same moment."""
    probe = gpu_probe()
    if shutil.which("nvidia-smi") is None or not probe.device.key.startswith("GPU-"):
        pytest.skip("needs nvidia-smi, and a whole GPU")
    query = "utilization.gpu,power.draw,memory.used"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-lms", "200"]
    sampler, lines = Sampler([probe], interval=0.2), []
    sampler.start()
    with working():
        smi = subprocess.Popen(
            [*command, "-i", probe.device.key], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert smi.stdout is not None
        smi.stdout.readline()  # it is under way
        sampler.resume()
        start = time.monotonic()
        while time.monotonic() < start + SECONDS and (line := smi.stdout.readline()):
            lines.append(line.split(","))
        sampler.pause()
        seconds = time.monotonic() - start
        smi.kill()
        smi.communicate()
    (totals,) = sampler.by_device(timeout=10).values()
    (missing,) = sampler.missing().values()
    sampler.stop()
    use = totals.use()

    busy, watts, mib = (fmean(float(line[i]) for line in lines) for i in range(3))
    print(
        f"measured: under load, LScore's means and nvidia-smi's of {len(lines)} readings: busy "
        f"{use.busy_fraction:.2f} and {busy / 100:.2f}, power {use.power_watts:.1f} and "
        f"{watts:.1f} W, memory {totals.memory_peak_bytes / 2**20:.0f} and {mib:.0f} MiB"
    )
    assert use.busy_fraction == pytest.approx(busy / 100, abs=0.1)
    assert use.busy_fraction > 0.9
    assert use.power_watts == pytest.approx(watts, rel=0.1)
    assert totals.memory_peak_bytes / 2**20 == pytest.approx(mib, rel=0.1)
    assert totals.energy_joules == pytest.approx(watts * seconds, rel=0.1)
    assert totals.energy_is_counter or "energy_joules" in missing


def test_the_energy_counter_agrees_with_the_integral_of_power():
    probe = gpu_probe()
    both, power_alone = Meter(max_gap=5.0), Meter(max_gap=5.0)
    with working():
        for meter in (both, power_alone):
            meter.resume(time.monotonic())
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            reading, t = probe.read(), time.monotonic()
            both.add(reading, t)
            power_alone.add(Reading(power_watts=reading.power_watts), t)
            time.sleep(0.1)
    if "energy_joules" in probe.missing or "power_watts" in probe.missing:
        pytest.skip(f"{probe.device.name} reports no energy or no power: {dict(probe.missing)}")
    probe.close()
    counter, integral = both.totals(), power_alone.totals()
    print(
        f"measured: energy by the GPU's counter {counter.energy_joules:.1f} J, by its power over "
        f"time {integral.energy_joules:.1f} J"
    )
    assert counter.energy_is_counter
    assert counter.use().power_watts == pytest.approx(integral.use().power_watts, rel=0.1)


class Works(PlainLM):
    """Each step keeps the GPU busy for a tenth of a second."""

    def training_step(self, batch, batch_idx):
        work(0.1)
        return super().training_step(batch, batch_idx)


def test_a_fit_records_what_the_gpu_did_and_charges_its_published_peak(trainer):
    lscore = LScore(sample_interval=0.2)
    steps = round(SECONDS / 0.1)
    t = trainer(lscore, accelerator=GPU, devices=1)
    with working():  # so that the first readings are not of an idle GPU
        pass
    t.fit(Works(), loader(4 * steps), loader(8))
    record, probe = lscore.last_record, gpu_probe()
    (device,), seen = record.devices, record.measurements
    assert (device.key, device.name) == (probe.device.key, torch.cuda.get_device_name(0))
    assert list(record.hardware) == [device.key]
    assert seen.capacity_flops == pytest.approx(device.peak_flops * seen.device_hours * 3600)
    published = peak_flops(torch.cuda.get_device_name(0), "float32")
    print(f"measured: fp32 peak of {device.name} {device.peak_flops / 1e12:.1f} TFLOP/s, ", end="")
    print("not published" if published is None else f"as published: {published.source}")
    if published is not None:
        assert (device.peak_flops, device.peak_source) == (published.flops, published.source)
    assert seen.memory_peak_gib * 2**30 >= torch.cuda.memory_allocated()
    if "busy_fraction" not in probe_missing(probe):
        print(f"measured: busy in a fit of {steps} steps {seen.busy_fraction:.2f}", end="")
        print(f", {seen.power_watts:.1f} W, {seen.sm_clock_mhz:.0f} MHz")
        assert seen.busy_fraction > 0.85
        assert seen.energy_kwh * 1000 == pytest.approx(
            seen.power_watts * seen.device_hours, rel=0.1
        )


def probe_missing(probe: Probe) -> dict[str, str]:
    probe.read()
    probe.close()
    return dict(probe.missing)
