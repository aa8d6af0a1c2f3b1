"""What only a real NVIDIA GPU can show: that nothing waits for it, and that its readings are true.

python -m pytest -m gpu
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from statistics import fmean

import lightning.pytorch as pl
import pytest
import torch
from conftest import LENGTH, VOCABULARY, PlainLM, loader, run_python

from lightning_lscore import LScore, Perplexity
from lightning_lscore.hardware.meter import Meter
from lightning_lscore.hardware.nvml import cuda_probe
from lightning_lscore.hardware.probe import Reading
from lightning_lscore.hardware.sampler import Sampler
from lightning_lscore.heldout.compiled import _built
from lightning_lscore.heldout.held_out import HeldOut

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

STEPS = 200
SECONDS = 6.0


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Any operation that makes the host wait for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class NoWaiting(pl.Callback):
    """The same, for the training steps of a fit after the first few."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 5:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += torch.cuda.get_sync_debug_mode() == 2
        if batch_idx == STEPS + 5:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_update_does_not_wait_for_the_gpu_and_is_exact(dtype, compile):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 64, 32000, generator=generator) * 3).to(dtype)
    labels = torch.randint(32000, (2, 64), generator=generator)
    labels[0, :9] = -100
    nll = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten())
    x, t = logits.cuda(), labels.cuda()
    metric, held_out = Perplexity(compile=compile).cuda(), HeldOut(-100, x.device)
    metric.update(x, t)  # kernels are built and loaded
    metric.reset()
    with no_waiting():
        metric.update(x, t)
        held_out.update(x, t)
    assert all(_built.values()), "a kernel could not be built, or waited"
    assert float(metric.nll()) == pytest.approx(float(nll), abs=1e-6)
    assert held_out.numbers()[1] == int((labels != -100).sum())


@pytest.mark.parametrize("masked", [False, True])
def test_training_steps_do_not_wait_for_the_gpu(masked, trainer):
    class Masked(PlainLM):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            mask = torch.ones_like(batch["input_ids"])
            return {**batch, "attention_mask": mask} if masked else batch

    def fit(*callbacks):
        guard = NoWaiting()
        t = trainer(guard, *callbacks, accelerator="cuda", devices=1)
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
    assert lscore.last_record.devices[0]["kind"] == "cuda"


SHARED = """
import json, sys
import torch, torch.distributed as dist, torch.multiprocessing as mp
from lightning_lscore.hardware.devices import find_devices
from lightning_lscore.run.processes import gather_objects

def main(rank, place):
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29533", rank=rank, world_size=2)
    place = torch.device(place)
    module = torch.nn.Linear(2, 2).to(place)
    found = find_devices(module, place, "32-true", rank=rank, gather=gather_objects, interval=1.0)
    read = gather_objects(len(found.sampler.devices))
    if rank == 0:
        print(json.dumps([found.count, found.described[0]["key"], read]))
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.spawn(main, args=(sys.argv[1],), nprocs=2)
"""


def test_two_processes_on_one_gpu_count_it_once(tmp_path):
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    count, key, read = json.loads(run_python(str(script), "cuda:0", folder=tmp_path))
    assert count == 1
    assert key == cuda_probe(0).device.key
    assert read == [1, 0], "the first process alone reads it"


def busy(seconds: float) -> None:
    """Keeps the GPU at work."""
    a = torch.randn(4096, 4096, device="cuda")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            a = (a @ a).clamp_(-1, 1)
        torch.cuda.synchronize()


def test_readings_are_those_of_nvidia_smi_and_energy_is_power_over_time():
    """Within 10 %: two programs never read at the same moment."""
    probe = cuda_probe(0)
    if shutil.which("nvidia-smi") is None or not probe.device.key.startswith("GPU-"):
        pytest.skip("needs nvidia-smi, and a whole GPU")
    query = "utilization.gpu,power.draw,memory.used"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-lms", "200"]
    busy(2.0)  # power is a mean over about a second
    sampler = Sampler([probe], interval=0.2)
    sampler.start()
    smi = subprocess.Popen(
        [*command, "-i", probe.device.key], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert smi.stdout is not None
    smi.stdout.readline()  # it is under way
    sampler.resume()
    start = time.monotonic()
    busy(SECONDS)
    sampler.pause()
    seconds = time.monotonic() - start
    smi.terminate()
    lines = [line.split(",") for line in smi.communicate()[0].splitlines() if line.count(",") == 2]
    totals = sampler.totals(timeout=10)
    (reasons,) = sampler.reasons().values()
    sampler.stop()

    theirs = {
        name: fmean(float(line[i]) for line in lines)
        for i, name in enumerate(("busy", "power_watts", "memory_mib"))
    }
    print(f"{probe.device.name}: nvidia-smi {theirs}, {totals}")
    assert totals.busy_fraction == pytest.approx(theirs["busy"] / 100, abs=0.1)
    assert totals.power_watts == pytest.approx(theirs["power_watts"], rel=0.1)
    assert totals.memory_peak_bytes / 2**20 == pytest.approx(theirs["memory_mib"], rel=0.1)
    assert totals.energy_joules == pytest.approx(theirs["power_watts"] * seconds, rel=0.1)
    assert totals.energy_is_counter or "energy_joules" in reasons


def test_the_energy_counter_agrees_with_the_integral_of_power():
    probe = cuda_probe(0)
    both, power_alone = Meter(max_gap=5.0), Meter(max_gap=5.0)
    busy(2.0)
    for meter in (both, power_alone):
        meter.resume(time.monotonic())
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        reading, t = probe.read(), time.monotonic()
        both.add(reading, t)
        power_alone.add(Reading(power_watts=reading.power_watts), t)
        busy(0.1)
    if "energy_joules" in probe.reasons or "power_watts" in probe.reasons:
        pytest.skip(f"{probe.device.name} tells no energy or no power: {dict(probe.reasons)}")
    probe.close()
    counter, integral = both.totals(), power_alone.totals()
    print(
        f"{probe.device.name}: counter {counter.energy_joules} J, power {integral.energy_joules} J"
    )
    assert counter.energy_is_counter
    assert counter.power_watts == pytest.approx(integral.power_watts, rel=0.1)


def test_perplexity_of_a_fit_on_the_gpu_is_that_on_the_cpu(trainer):
    """Of the same weights; in float32 the products differ by rounding."""
    torch.manual_seed(0)
    model, seen = PlainLM(lr=0.0), []
    for accelerator in ("cpu", "cuda"):
        lscore = LScore()
        t = trainer(lscore, accelerator=accelerator, devices=1)
        t.fit(model, loader(8), loader(16, seed=1))
        seen.append(lscore.last_record.measurements)
    assert seen[0].perplexity == pytest.approx(seen[1].perplexity, rel=1e-5)
    assert seen[0].validation_tokens == seen[1].validation_tokens == 16 * (LENGTH - 1)
    assert seen[1].perplexity < 2 * VOCABULARY
