"""LScore in real training runs."""

from __future__ import annotations

import contextlib
import copy
import csv
import gc
import itertools
import math
import pickle
import weakref

import lightning.pytorch as pl
import pynvml
import pytest
import torch
from conftest import LENGTH, VOCABULARY, HuggingFaceLM, PlainLM, loader, reference_perplexity
from fake_nvml import OTHER_UUID, Draws, FakeGpu, FakeNvml
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from lightning_lscore import Factor, Formula, LScore, read_records
from lightning_lscore.equation.prediction import Prediction
from lightning_lscore.hardware.peaks import peak_flops
from lightning_lscore.heldout import compiled
from lightning_lscore.run.segment import Segment

BY_TOKENS = Formula(D=Factor("tokens", reference=500, weight=0.5))
"""A formula without time, so that two runs score alike."""


class Watch(pl.Callback):
    """Notes what callback_metrics hold at the end of each validation."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def counters(lscore: LScore) -> dict[str, float]:
    """What does not depend on the clock."""
    m = lscore.last_record.measurements
    names = ("tokens", "samples", "steps", "epochs", "model_flops", "validation_tokens")
    return {name: m.get(name) for name in (*names, "perplexity")}


# ---------------------------------------------------------------------- what is logged


@pytest.mark.parametrize("module", [PlainLM, HuggingFaceLM])
def test_l_is_the_product_of_a_perplexity_and_three_factors(module, trainer):
    watch, lscore, model = Watch(), LScore(), module()
    t = trainer(lscore, watch)
    t.fit(model, loader(8), loader(7, seed=1, batch=3))
    (seen,) = watch.seen
    parts = seen["perplexity"] * seen["f_D"] * seen["f_A"] * seen["f_H"]
    assert seen["L"] == pytest.approx(parts, rel=1e-12)
    net = model.model if module is HuggingFaceLM else model
    expected = reference_perplexity(net, loader(7, seed=1, batch=3))
    assert seen["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert t.callback_metrics["L"].dtype == torch.float64


def test_every_measure_of_a_cpu_run_is_logged_and_plausible(trainer):
    watch, lscore, model = Watch(), LScore(sample_interval=0.01), PlainLM()
    trainer(lscore, watch, max_epochs=3).fit(model, loader(8), loader(4))
    seen = {k.removeprefix("lscore/"): v for k, v in watch.seen[-1].items()}
    n = sum(p.numel() for p in model.parameters())
    assert seen["tokens"] == 3 * 8 * 12
    assert seen["validation_tokens"] == 4 * 11
    assert seen["trainable_parameters"] == seen["total_parameters"] == n
    # The head's product; the embedding is looked up, and the bias added.
    assert seen["model_flops"] == 6 * model.head.weight.numel() * seen["tokens"]
    assert seen["device_hours"] == seen["train_hours"] > 0
    seconds = 3600 * seen["train_hours"]
    assert seen["tokens_per_second"] == pytest.approx(seen["tokens"] / seconds)
    assert seen["mfu"] == pytest.approx(seen["model_flops"] / seen["capacity_flops"])
    assert 0 < seen["mfu"] < 1
    assert {"elasticity", "elasticity_needed"} <= {*seen}
    assert "bits_per_byte" not in seen
    missing = lscore.last_record.measurements.provenance["bits_per_byte"]
    assert missing.startswith("unavailable: ")


def test_loggers_and_progress_bar_see_l(trainer, tmp_path):
    logger, lscore = CSVLogger(tmp_path), LScore()
    t = trainer(lscore, logger=logger, max_epochs=2)
    t.fit(PlainLM(), loader(8), loader(4))
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["L"]]
    assert len(rows) == 2
    assert float(rows[-1]["L"]) == pytest.approx(lscore.last_record.L, rel=1e-6)
    assert float(rows[-1]["lscore/tokens"]) == 2 * 8 * 12
    assert "L" in t.progress_bar_metrics
    assert "lscore/tokens" not in t.progress_bar_metrics
    assert [r.L for r in read_records(logger.log_dir)][-1] == lscore.last_record.L


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_early_stopping_and_checkpoint_follow_l_in_any_order_of_callbacks(order, trainer, tmp_path):
    # Perplexity hardly moves at this rate while each epoch is charged for, so L rises throughout.
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="L", filename="{L:.6f}")
    callbacks = [LScore(BY_TOKENS), EarlyStopping("L", patience=2), checkpoint]
    t = trainer(*(callbacks[i] for i in order), max_epochs=10)
    t.fit(PlainLM(lr=1e-6), loader(8), loader(4))
    assert t.current_epoch == 3
    records = read_records(tmp_path)
    assert [r.step for r in records] == [2, 4, 6]
    assert records[0].L < records[1].L < records[2].L
    assert float(checkpoint.best_model_score) == records[0].L
    assert f"L={records[0].L:.6f}" in checkpoint.best_model_path


def test_several_validation_loaders_are_weighted_by_their_tokens(trainer):
    watch, model = Watch(), PlainLM()
    small, large = loader(1, seed=1), loader(9, seed=2)
    trainer(LScore(), watch).fit(model, loader(8), [small, large])
    (seen,) = watch.seen
    expected = [reference_perplexity(model, *s) for s in ([small, large], [small], [large])]
    names = ["perplexity", "lscore/perplexity_0", "lscore/perplexity_1"]
    assert [seen[name] for name in names] == pytest.approx(expected, rel=1e-6)


class OfSeveralLoaders(PlainLM):
    """Its batches hold one batch of each loader."""

    def training_step(self, batch, batch_idx):
        return sum(super(OfSeveralLoaders, self).training_step(b, 0) for b in batch.values())

    def validation_step(self, batch, batch_idx):
        whole = {k: torch.cat([b[k] for b in batch.values()]) for k in ("input_ids", "labels")}
        return super().validation_step(whole, batch_idx)


class Seen(PlainLM):
    """Counts what its training step reads."""

    tokens = rows = 0

    def training_step(self, batch, batch_idx):
        parts = batch.values() if isinstance(batch.get("a"), dict) else [batch]
        self.tokens += sum(part["input_ids"].numel() for part in parts if part)
        self.rows += sum(len(part["input_ids"]) for part in parts if part)
        return sum(super(Seen, self).training_step(part, batch_idx) for part in parts if part)


@pytest.mark.parametrize("mode", ["max_size_cycle", "max_size", "min_size"])
def test_tokens_of_several_loaders_are_those_that_the_step_reads(mode, trainer):
    """A loader that begins again is read again."""
    both = pl.utilities.CombinedLoader({"a": loader(16), "b": loader(6)}, mode)
    module, lscore = Seen(), LScore()
    trainer(lscore, max_epochs=2).fit(module, both, loader(4))
    measured = lscore.last_record.measurements
    assert (measured.tokens, measured.samples) == (module.tokens, module.rows)


def test_tokens_that_are_overfitted_count_each_time(trainer):
    module, lscore = Seen(), LScore()
    trainer(lscore, max_epochs=3, overfit_batches=2).fit(module, loader(16), loader(16))
    measured = lscore.last_record.measurements
    assert (measured.tokens, measured.samples) == (module.tokens, module.rows) == (288, 24)


class Cut(PlainLM):
    """Cuts rows of ids into inputs and targets."""

    def cut(self, batch):
        return self(batch["input_ids"][:, :-1]), batch["input_ids"][:, 1:]

    def training_step(self, batch, batch_idx):
        logits, targets = self.cut(batch)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def validation_step(self, batch, batch_idx):
        logits, targets = self.cut(batch)
        return {"logits": logits, "labels": targets}


def test_the_last_id_of_a_row_that_is_only_a_target_does_not_count(trainer):
    """And the record says so."""
    lscore = LScore()
    trainer(lscore, max_epochs=2).fit(Cut(), loader(8), loader(4))
    assert lscore.last_record.measurements.tokens == 2 * 8 * (LENGTH - 1)
    how = lscore.last_record.assumptions["tokens"]
    assert how.startswith("44 tokens of input_ids [4, 12], without the last of each row")


def test_several_loaders_at_once(trainer):
    """The batches of all training loaders count; validation loaders that come together are one."""
    watch, model, lscore = Watch(), OfSeveralLoaders(), LScore(labels_are_shifted=False)
    held_out = {"a": loader(8, seed=1), "b": loader(8, seed=2)}
    together = pl.utilities.CombinedLoader(held_out, "min_size")
    trainer(lscore, watch).fit(model, {"a": loader(8), "b": loader(4, seed=3)}, together)
    sequences = 8 + 4 + 4  # the shorter loader begins anew
    assert lscore.last_record.measurements.samples == sequences
    assert lscore.last_record.measurements.tokens == sequences * LENGTH
    (seen,) = watch.seen
    expected = reference_perplexity(model, *held_out.values())
    assert seen["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert not [name for name in seen if "dataloader_idx" in name]


def test_large_counts_keep_every_digit(trainer):
    t = trainer(LScore(count_tokens=lambda batch: 10**9 + 1))
    t.fit(PlainLM(), loader(4), loader(4))
    assert int(t.callback_metrics["lscore/tokens"]) == 10**9 + 1


def test_two_formulas_side_by_side(trainer, tmp_path):
    lax = LScore(BY_TOKENS, directory=tmp_path)
    strict = LScore(Formula(D=2.0), directory=tmp_path, prefix="strict_")
    t = trainer(lax, strict, ModelCheckpoint(tmp_path / "c", monitor="strict_L"))
    t.fit(PlainLM(), loader(8), loader(4))
    perplexity = float(t.callback_metrics["perplexity"])
    assert float(t.callback_metrics["strict_L"]) == 2 * perplexity
    assert float(t.callback_metrics["L"]) == lax.last_record.L != 2 * perplexity
    assert len(read_records(tmp_path / "strict_lscore.jsonl")) == len(read_records(tmp_path)) == 1


def test_two_of_the_same_prefix_are_refused(trainer):
    with pytest.raises(RuntimeError, match="state_key"):
        trainer(LScore(), LScore())


def test_what_nvml_says_of_a_gpu_reaches_the_loggers_and_the_record(trainer, monkeypatch, tmp_path):
    """From the driver's functions to the logged keys; the driver is a fake, the way is whole."""
    gpu = FakeGpu()
    driver = FakeNvml([gpu]).install_for_fits(monkeypatch)
    counter = gpu.energy_millijoules
    watch, formula = Watch(), Formula(H=Factor("emissions_kg", reference=1e-6, weight=0.1))
    lscore = LScore(formula, carbon_intensity=400)
    trainer(lscore, watch).fit(Draws(driver), loader(16), loader(4))
    seen = {key.removeprefix("lscore/"): value for key, value in watch.seen[-1].items()}
    joules = (gpu.energy_millijoules - counter) / 1e3
    assert joules == 4 * 5
    # The reading at the end comes a moment late, and shares what it finds with that moment.
    assert 0 < seen["energy_kwh"] <= joules / 3.6e6 * (1 + 1e-9)
    assert seen["emissions_kg"] == pytest.approx(0.4 * seen["energy_kwh"])
    charged = (1 + seen["emissions_kg"] / 1e-6) / 2
    assert seen["f_H"] == pytest.approx(charged ** (2 * 0.1))
    assert seen["power_watts"] > 0
    assert seen["busy_fraction"] == pytest.approx(0.75)
    assert seen["memory_peak_gib"] == 12
    peak = peak_flops("NVIDIA H100 80GB HBM3", "float32").flops
    assert seen["capacity_flops"] == pytest.approx(peak * 3600 * seen["device_hours"])
    record = read_records(tmp_path)[-1]
    assert record.devices[0].key == gpu.uuid
    assert record.measurements.provenance["energy_kwh"].startswith("measured: energy counter")
    assert list(record.hardware) == [gpu.uuid]
    assert record.hardware[gpu.uuid].energy_kwh == seen["energy_kwh"]
    assert record.hardware[gpu.uuid].memory_mean_gib == record.measurements.memory_mean_gib
    assert record.measurements.memory_mean_gib == pytest.approx(12)


def test_after_a_resume_on_another_gpu_the_record_tells_what_each_has_spent(
    trainer, monkeypatch, tmp_path
):
    """And that heat held the second one down."""
    cool, hot = FakeGpu(), FakeGpu(uuid=f"GPU-{OTHER_UUID}")
    hot.clock_reasons = pynvml.nvmlClocksEventReasonHwThermalSlowdown
    driver = FakeNvml([cool]).install_for_fits(monkeypatch)
    t = trainer(LScore())
    t.fit(Draws(driver), loader(16), loader(4))
    t.save_checkpoint(tmp_path / "half.ckpt")
    before = read_records(tmp_path)[-1]
    driver.gpus.insert(0, hot)
    driver.calls.clear()
    driver.install_for_fits(monkeypatch)
    t = trainer(LScore(), max_epochs=2)
    t.fit(Draws(driver), loader(16), loader(4), ckpt_path=tmp_path / "half.ckpt")
    record = read_records(tmp_path)[-1]
    assert [device.key for device in record.devices] == [hot.uuid]
    first, second = record.hardware[cool.uuid], record.hardware[hot.uuid]
    assert first.energy_kwh >= before.hardware[cool.uuid].energy_kwh > 0
    both = first.energy_kwh + second.energy_kwh
    assert both == pytest.approx(record.measurements.energy_kwh)
    assert (first.throttled_fraction, second.throttled_fraction) == (0, 1)
    assert (second.throttled_by_heat_fraction, second.throttled_by_power_fraction) == (1, 0)
    m = record.measurements
    assert 0 < m.throttled_by_heat_fraction == m.throttled_fraction < 1


def test_a_measure_of_ones_own_is_logged_charged_for_and_recorded(trainer, tmp_path):
    formula = Formula(A=Factor("learning_rate", reference=0.05, weight=1.0, c=0.0, own=True))
    lscore = LScore(
        formula,
        measures={
            "learning_rate": lambda trainer, module: trainer.optimizers[0].param_groups[0]["lr"],
            "loss_scale": lambda trainer, module: None,
        },
    )
    watch = Watch()
    trainer(lscore, watch).fit(PlainLM(lr=0.1), loader(8), loader(4))
    (seen,) = watch.seen
    assert seen["lscore/learning_rate"] == 0.1
    assert "lscore/loss_scale" not in seen
    assert seen["L"] == pytest.approx(2 * seen["perplexity"])
    (record,) = read_records(tmp_path)
    assert record.measurements.own == {"learning_rate": 0.1}
    assert Formula.from_dict(record.formula) == formula


@pytest.mark.parametrize("value", [-1.0, math.inf, "fast"])
def test_a_measure_of_ones_own_that_is_no_amount_is_named(value, trainer):
    lscore = LScore(measures={"rate": lambda trainer, module: value})
    with pytest.raises(ValueError, match="function of 'rate' to return a finite number >= 0"):
        trainer(lscore).fit(PlainLM(), loader(8), loader(4))


def test_money_and_wall_time_can_be_charged_for(trainer):
    formula = Formula(D=Factor("wall_hours", 1.0, weight=0.1), H=Factor("cost", 1.0, weight=0.1))
    lscore = LScore(formula, price_per_device_hour=3600.0)
    trainer(lscore).fit(PlainLM(), loader(8), loader(4))
    m = lscore.last_record.measurements
    assert m.cost == pytest.approx(3600 * m.device_hours)
    assert m.wall_hours > m.train_hours
    assert 0 < lscore.last_record.score.f_H < 1
    assert lscore.last_record.L is not None


def test_with_a_tokenizer_T_can_be_that_of_a_nominal_token(trainer):
    """Each of this vocabulary's tokens stands for two bytes, the first for none."""
    watch = Watch()
    lscore = LScore(
        Formula(T="nominal_perplexity"), count_bytes=lambda ids: 2 * int((ids > 0).sum())
    )
    trainer(lscore, watch).fit(PlainLM(), loader(8), [loader(7, seed=1), loader(2, seed=2)])
    (seen,) = watch.seen
    labels = torch.cat([b["labels"][:, 1:] for n, s in ((7, 1), (2, 2)) for b in loader(n, seed=s)])
    nats_per_byte = math.log(seen["perplexity"]) * labels.numel() / (2 * int((labels > 0).sum()))
    assert seen["lscore/bits_per_byte"] == pytest.approx(nats_per_byte / math.log(2))
    assert (
        seen["L"] == seen["lscore/nominal_perplexity"] == pytest.approx(math.exp(4 * nats_per_byte))
    )
    assert seen["perplexity"] != seen["L"]


def test_the_spending_to_a_level_is_absent_until_it_is_reached(trainer):
    """And then stays, while the run goes on."""

    def fit(lscore, *others):
        watch = Watch()
        pl.seed_everything(0, verbose=False)
        trainer(lscore, watch, *others, max_epochs=5).fit(PlainLM(), loader(8), loader(4))
        return watch.seen

    seen = fit(LScore())
    level = (seen[1]["perplexity"] + seen[2]["perplexity"]) / 2
    formula = Formula(D=Factor("tokens_to_level", reference=500, level=level))
    stop = EarlyStopping("L", patience=100, strict=False)
    with pytest.warns(UserWarning, match=r"no L to log: tokens_to_level: .* is not reached yet"):
        seen = fit(LScore(formula), stop)
    assert ["L" in s for s in seen] == [False, False, True, True, True]
    spent = {s["lscore/tokens_to_level"] for s in seen[2:]}
    assert len(spent) == 1
    assert seen[1]["lscore/tokens"] < min(spent) < seen[2]["lscore/tokens"]


def test_the_best_L_to_come_is_expected_once_the_curve_allows(trainer, tmp_path):
    """As a logged key and in the record; a sentence in the record before."""
    pl.seed_everything(0, verbose=False)
    watch, lscore = Watch(), LScore(BY_TOKENS)
    often = {"max_epochs": 1, "val_check_interval": 2}
    trainer(lscore, watch, **often).fit(PlainLM(lr=0.02), loader(320), loader(4))
    records = read_records(tmp_path)
    assert "got 1 so far" in records[0].prediction.reason
    shown = [r for r in records if isinstance(r.prediction, Prediction)]
    assert shown
    assert ["lscore/best_L_expected" in s for s in watch.seen] == [r in shown for r in records]
    for seen, r in zip(watch.seen, records, strict=True):
        assert seen.get("lscore/best_L_expected") == getattr(r.prediction, "best_L", None)
    best_so_far = min(r.L for r in records)
    assert all(r.prediction.best_L_low <= best_so_far * (1 + 1e-9) for r in shown[-1:])


@pytest.mark.parametrize(
    ("schedule", "shown"),
    [
        (lambda o: lr_scheduler.MultiStepLR(o, [75]), False),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0), True),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.99**step), True),
        (lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5), True),
        (lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=500), False),
    ],
    ids=["held before a decay", "held", "decaying", "warm-up over", "warm-up"],
)
def test_nothing_is_expected_before_a_decay_that_is_ahead(schedule, shown, trainer, tmp_path):
    """What it brings is not in the curve so far."""

    class Scheduled(PlainLM):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = {"scheduler": schedule(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    pl.seed_everything(0, verbose=False)
    options = {"max_epochs": 1, "val_check_interval": 2}
    trainer(LScore(BY_TOKENS), **options).fit(Scheduled(lr=0.02), loader(320), loader(4))
    prediction = read_records(tmp_path)[34].prediction
    assert isinstance(prediction, Prediction) == shown
    assert ("still ahead" in getattr(prediction, "reason", "")) != shown


def test_nothing_is_expected_where_the_data_is_passed_over_again(trainer, tmp_path):
    """The loss may turn there."""
    trainer(LScore(BY_TOKENS), max_epochs=9).fit(PlainLM(), loader(8), loader(4))
    assert (
        "over the data 9 times: the loss may turn" in read_records(tmp_path)[-1].prediction.reason
    )


def test_an_evaluation_set_that_changes_is_said(trainer):
    shuffled = DataLoader(loader(64).dataset, batch_size=4, shuffle=True)
    t = trainer(LScore(), max_epochs=2, limit_val_batches=2)
    with (
        pytest.warns(
            UserWarning, match="counted other held-out tokens than at the validation before"
        ),
        pytest.warns(UserWarning, match="sampler has shuffling"),  # Lightning's own
    ):
        t.fit(PlainLM(), loader(8), shuffled)


# ---------------------------------------------------------------------- what is counted


def test_no_forward_or_backward_pass_is_added(trainer):
    class Counting(PlainLM):
        backwards = 0

        def on_after_backward(self):
            self.backwards += 1

    counts = []
    for callbacks in ([], [LScore()]):
        model = Counting()
        trainer(*callbacks, max_epochs=2, num_sanity_val_steps=2).fit(model, loader(8), loader(8))
        counts.append((model.forwards, model.backwards))
    assert counts[0] == counts[1]


def test_every_hook_is_a_function():
    """For whoever calls them: a list of callbacks in one, a wrapper, a test."""
    lscore, arguments = LScore(), {"flops_per_token": "count"}
    for name in (name for name in dir(pl.Callback) if name.startswith("on_")):
        assert callable(getattr(lscore, name))
        assert callable(getattr(LScore(**arguments), name))
    assert lscore.on_after_backward(None, None) is None


def test_a_subclass_may_use_the_hooks_that_lscore_does_not(trainer):
    class Mine(LScore):
        called = 0

        def on_after_backward(self, trainer, pl_module):
            super().on_after_backward(trainer, pl_module)
            self.called += 1

        def on_train_batch_start(self, *arguments):
            super().on_train_batch_start(*arguments)
            self.called += 1

    lscore = Mine()
    t = trainer(lscore, max_epochs=1)
    t.fit(PlainLM(), loader(8), loader(4))
    assert lscore.called == 2 * t.global_step > 0


def test_the_sums_of_a_validation_are_compiled_on_request(trainer, monkeypatch):
    """What is compiled runs here as it stands, in place of the usual sums."""
    batches = []
    monkeypatch.setattr(compiled, "_BLOCK", VOCABULARY // 2)
    monkeypatch.setattr(
        compiled, "fused", lambda sums, x, shift: (batches.append(len(x)), sums(x, shift))[1]
    )
    for compile in (False, True):
        lscore, model = LScore(compile=compile), PlainLM()
        trainer(lscore, num_sanity_val_steps=0).fit(model, loader(8), loader(12, seed=1))
        assert bool(batches) is compile
        expected = reference_perplexity(model, loader(12, seed=1))
        assert lscore.last_record.measurements.perplexity == pytest.approx(expected, rel=1e-6)


def test_the_sanity_check_is_ignored(trainer, tmp_path):
    runs = []
    for sanity in (0, 2):
        pl.seed_everything(0, verbose=False)
        lscore = LScore(BY_TOKENS)
        t = trainer(lscore, num_sanity_val_steps=sanity, default_root_dir=tmp_path / str(sanity))
        t.fit(PlainLM(), loader(8), loader(8, seed=1))
        runs.append(counters(lscore))
        assert len(read_records(tmp_path / str(sanity))) == 1
    assert runs[0] == runs[1]


@pytest.fixture
def now(monkeypatch):
    """A monotonic clock in its only item, which moves when a test says so."""
    seconds = [0.0]
    monkeypatch.setitem(Segment.__init__.__kwdefaults__, "now", lambda: seconds[0])
    return seconds


def test_validation_takes_no_training_time(trainer, now):
    class Slow(PlainLM):
        def training_step(self, batch, batch_idx):
            now[0] += 1.0
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            now[0] += 100.0
            return super().validation_step(batch, batch_idx)

    lscore = LScore()
    t = trainer(lscore, max_epochs=2, num_sanity_val_steps=2, val_check_interval=1)
    t.fit(Slow(), loader(12), loader(8))
    assert lscore.last_record.measurements.train_hours * 3600 == 6.0
    assert lscore.last_record.measurements.capacity_flops == pytest.approx(
        6.0 * lscore.last_record.devices[0].peak_flops
    )


OF_A_VALIDATION = (
    *("on_validation_model_eval", "on_validation_start", "on_validation_epoch_start"),
    *("on_validation_epoch_end", "on_validation_end", "on_validation_model_train"),
)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_whatever_runs_in_a_validation_takes_no_training_time(order, trainer, now):
    """Of callbacks before and behind LScore, of the module, and of the data; two LScore as well."""

    def spend(*_):
        now[0] += 100.0

    class Slow(PlainLM):
        def training_step(self, batch, batch_idx):
            now[0] += 1.0
            return super().training_step(batch, batch_idx)

        def on_validation_model_train(self):
            spend()
            self.train()

    class HeldOut(torch.utils.data.IterableDataset):
        def __iter__(self):
            spend()
            yield from loader(4).dataset

    others = {n: spend for n in OF_A_VALIDATION if hasattr(pl.Callback, n)}
    lscore, second = LScore(), LScore(prefix="second_")
    callbacks = [lscore, second, type("Slow", (pl.Callback,), others)()]
    model = Slow()
    model.on_validation_end = model.on_validation_epoch_end = spend
    t = trainer(*(callbacks[i] for i in order), max_epochs=3)
    t.fit(model, loader(8), DataLoader(HeldOut(), batch_size=4))
    assert lscore.last_record.measurements.train_hours * 3600 == 4.0 + 2.0
    assert second.last_record.measurements.train_hours * 3600 == 4.0 + 2.0
    assert "run" not in vars(t.fit_loop.epoch_loop.val_loop)
    assert "save_checkpoint" not in vars(t)


class SlowSave(ModelCheckpoint):
    """Takes ten seconds."""

    def __init__(self, now, *arguments, **options):
        super().__init__(*arguments, **options)
        self._now = now

    def setup(self, trainer, pl_module, stage):
        save = trainer.strategy.save_checkpoint

        def slowly(*arguments, **options):
            self._now[0] += 10.0
            save(*arguments, **options)

        trainer.strategy.save_checkpoint = slowly
        super().setup(trainer, pl_module, stage)


@pytest.mark.parametrize("when", [{"every_n_train_steps": 2}, {"monitor": "perplexity"}])
def test_saving_a_checkpoint_takes_the_devices_time_wherever_it_is_saved(
    when, trainer, now, tmp_path
):
    """At a step, and at the end of a validation, whose own time costs nothing."""
    lscore = LScore(BY_TOKENS)
    save = SlowSave(now, tmp_path / "c", save_top_k=-1, **when)
    trainer(lscore, save, max_epochs=3).fit(PlainLM(), loader(8), loader(4))
    assert now[0] == 30.0
    saved_before = 20.0 if "monitor" in when else 30.0  # the last validation's save comes after it
    assert lscore.last_record.measurements.train_hours * 3600 == saved_before
    assert lscore.tracker.state_dict()["spent"]["train_seconds"] == 30.0


def test_after_an_exception_in_a_validation_nothing_stands_in_for_its_loop(trainer):
    """Nor for the Trainer's own saving."""

    class Fails(PlainLM):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("fails")

    t = trainer(LScore())
    with pytest.raises(RuntimeError, match="fails"):
        t.fit(Fails(), loader(8), loader(4))
    assert "run" not in vars(t.fit_loop.epoch_loop.val_loop)
    assert "save_checkpoint" not in vars(t)


def test_validating_the_same_weights_again_gives_the_same_perplexity(trainer):
    model, lscore = PlainLM(), LScore()
    t = trainer(lscore)
    t.fit(model, loader(8), loader(7, seed=1))
    fitted = lscore.last_record.measurements.perplexity
    for _ in range(2):
        (result,) = t.validate(model, loader(7, seed=1), verbose=False)
        assert result["perplexity"] == fitted


def test_validate_alone_logs_the_perplexity_and_no_l(trainer, tmp_path):
    model = HuggingFaceLM()
    t = trainer(LScore())
    (result,) = t.validate(model, loader(7, seed=1, batch=3), verbose=False)
    expected = reference_perplexity(model.model, loader(7, seed=1))
    assert result["perplexity"] == pytest.approx(expected, rel=1e-6)
    assert result["lscore/validation_tokens"] == 7 * 11
    assert "L" not in result
    assert not (tmp_path / "lscore.jsonl").exists()


def test_padding_is_neither_data_nor_text(trainer):
    rows = loader(4).dataset.rows.clone()
    mask = torch.ones_like(rows)
    mask[:, 9:] = 0
    rows[mask == 0] = 0
    batch = {"input_ids": rows, "labels": rows, "attention_mask": mask}
    lscore, model = LScore(), HuggingFaceLM()
    data = DataLoader([batch], batch_size=None)
    trainer(lscore).fit(model, data, data)
    m = lscore.last_record.measurements
    assert m.tokens == 4 * 9
    assert m.validation_tokens == 4 * 8
    short = {"input_ids": rows[:, :9], "labels": rows[:, :9]}
    assert m.perplexity == pytest.approx(reference_perplexity(model.model, [short]), rel=1e-5)


def test_gradient_accumulation_counts_batches_and_plans_with_them(trainer):
    lscore = LScore()
    t = trainer(lscore, accumulate_grad_batches=2, max_steps=4, max_epochs=-1, val_check_interval=4)
    t.fit(PlainLM(), loader(32), loader(4))
    m = lscore.last_record.measurements
    assert (m.steps, m.tokens, m.epochs) == (4, 8 * 48, 1.0)
    assert lscore.last_record.formula["D"]["reference"] == 8 * 48
    assert lscore.last_record.score.f_D == 1.0


class OfTwoOptimizers(PlainLM):
    """Each of them steps in every batch, and counts."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.embedding, self.head)]


def test_the_reference_is_what_a_run_of_two_optimizers_sees(trainer):
    """max_steps counts the steps of both; the first validation knows how many a batch has."""
    lscore = LScore()
    t = trainer(lscore, max_steps=12, max_epochs=-1, val_check_interval=2)
    t.fit(OfTwoOptimizers(), loader(16), loader(4))
    record = lscore.last_record
    assert (record.batch, record.step) == (6, 12)
    assert record.formula["D"]["reference"] == 6 * 48
    assert record.score.f_D == 1.0
    assert record.assumptions["plan"].startswith("6 micro-batches of each process, from the ratio")


class Growing(torch.utils.data.Dataset):
    """Twenty rows of 4 tokens, then twenty of 12."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        row = loader(40).dataset.rows[index][: 4 if index < 20 else 12]
        return {"input_ids": row, "labels": row}


class GrowingStream(torch.utils.data.IterableDataset):
    """The same without a length."""

    def __iter__(self):
        yield from (Growing()[i] for i in range(40))


@pytest.mark.parametrize("interval", [0.1, 0.5, 1.0])
def test_the_reference_of_growing_batches_does_not_depend_on_the_validations(interval, trainer):
    """Data in its own order is read in advance."""
    lscore = LScore()
    t = trainer(lscore, val_check_interval=interval)
    t.fit(PlainLM(), DataLoader(Growing(), batch_size=4), loader(4))
    assert lscore.last_record.formula["D"]["reference"] == 320
    assert lscore.last_record.score.f_D == 1.0


def test_a_plan_that_proves_wrong_is_said_once_with_both_numbers(trainer):
    """Here the batches until the first validation were the short ones. The reference stays."""
    lscore = LScore()
    t = trainer(lscore, max_steps=10, max_epochs=-1, val_check_interval=1)
    with pytest.warns(
        UserWarning, match="end with 160 training tokens, and now with 213"
    ) as caught:
        t.fit(PlainLM(), DataLoader(GrowingStream(), batch_size=4), loader(4))
    assert sum("end with" in str(warning.message) for warning in caught) == 1
    assert lscore.last_record.measurements.tokens == 320
    assert lscore.last_record.formula["D"]["reference"] == 160


def test_a_plan_that_proves_wrong_at_the_end_is_said(trainer):
    """The module leaves its second epoch early, after the last validation."""

    class Skips(PlainLM):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.current_epoch and batch_idx > 1 else None

    t = trainer(LScore(), max_epochs=2, check_val_every_n_epoch=1)
    with pytest.warns(UserWarning, match="end with 960 training tokens, and now with 576"):
        t.fit(Skips(), loader(40), loader(4))


def test_a_run_that_is_stopped_early_was_planned_longer(trainer):
    """That is no wrong plan."""
    t = trainer(LScore(), StopsAt(4), max_epochs=100)
    t.fit(PlainLM(), loader(8), loader(4))
    assert t.current_epoch == 2


def test_the_planned_tokens_may_be_given(trainer):
    """They are the reference, whatever the Trainer is set to do; its end tells if it differs."""
    lscore = LScore(planned_tokens=1000)
    with pytest.warns(UserWarning, match="end with 1,000 training tokens, and now with 192"):
        trainer(lscore, max_epochs=2).fit(PlainLM(), loader(8), loader(4))
    assert lscore.last_record.formula["D"]["reference"] == 1000
    assert lscore.last_record.assumptions["plan"] == "1,000 tokens, as planned_tokens says"


def test_a_given_formula_has_no_plan_that_could_be_wrong(trainer):
    """The plan serves forecasts alone."""
    lscore = LScore(BY_TOKENS)
    trainer(lscore, max_steps=10, max_epochs=-1, val_check_interval=1).fit(
        PlainLM(), DataLoader(GrowingStream(), batch_size=4), loader(4)
    )
    how = lscore.last_record.assumptions["plan"]
    assert how.startswith("10 micro-batches to come, from max_steps=10, unless the data")
    assert how.endswith("for forecasts alone, the formula was given")


class Grown(PlainLM):
    """Its batches grow from epoch to epoch, of the same eight rows."""

    def train_dataloader(self):
        return loader(8, batch=(1, 2, 4)[self.trainer.current_epoch])

    def val_dataloader(self):
        return loader(4)


@pytest.mark.parametrize("interval", [0.5, 1.0])
def test_epochs_are_counted_where_loaders_are_made_again(interval, trainer, tmp_path):
    """Three, of eight batches, four and two; and so the validations in between."""
    t = trainer(
        LScore(BY_TOKENS), max_epochs=3, reload_dataloaders_every_n_epochs=1,
        val_check_interval=interval,
    )  # fmt: skip
    t.fit(Grown())
    epochs = [record.measurements.epochs for record in read_records(tmp_path)]
    assert epochs == [interval * n for n in range(1, int(3 / interval) + 1)]


def test_the_plan_and_the_epochs_are_those_of_the_batch_size_that_was_found(trainer):
    """Lightning tries sizes in fits of its own, and puts back the state that it saved."""

    class OfASize(PlainLM):
        batch_size = 1

        def train_dataloader(self):
            return loader(8, batch=self.batch_size)

        def val_dataloader(self):
            return loader(4)

    lscore, model = LScore(), OfASize()
    finder = BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=1)
    trainer(lscore, finder, max_epochs=3).fit(model)
    assert model.batch_size == 2
    record = lscore.last_record
    assert (record.batch, record.measurements.epochs) == (12, 3)
    assert record.formula["D"]["reference"] == record.measurements.tokens == 3 * 8 * LENGTH


def test_a_state_that_is_put_back_in_the_middle_of_a_fit_leaves_the_counts(trainer):
    """As a search for a rate or a batch size does: what was spent is spent."""

    class PutsBack(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                self.state = lscore.state_dict()
            lscore.load_state_dict(self.state)

    lscore = LScore(BY_TOKENS)
    trainer(lscore, PutsBack(), max_epochs=2).fit(PlainLM(), loader(8), loader(4))
    assert lscore.last_record.measurements.tokens == 2 * 8 * LENGTH


class StopsAt(pl.Callback):
    """Ends a fit that has no end."""

    def __init__(self, batch):
        self._batch = batch

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.fit_loop.total_batch_idx + 1 >= self._batch


def test_without_a_finite_plan_the_reference_is_compute_optimal(trainer):
    lscore = LScore()
    t = trainer(lscore, StopsAt(4), max_epochs=-1, val_check_interval=1)
    t.fit(PlainLM(), loader(8), loader(4))
    assert "compute-optimal" in lscore.last_record.formula["origin"]
    how = "unknown: neither max_epochs nor max_steps ends it; planned_tokens= tells"
    assert lscore.last_record.assumptions["plan"] == how


# ---------------------------------------------------------------------- resuming

RESUME = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)


@RESUME
def test_a_resumed_run_counts_as_an_uninterrupted_one(trainer, tmp_path):
    """From a checkpoint in the middle of an epoch, between two validations."""

    def fit(name, steps, ckpt=None):
        pl.seed_everything(0, verbose=False)
        lscore = LScore()
        save = ModelCheckpoint(tmp_path / name, every_n_train_steps=1, save_top_k=-1)
        t = trainer(
            lscore,
            save,
            max_steps=steps,
            max_epochs=-1,
            val_check_interval=2,
            default_root_dir=tmp_path / name,
        )
        t.fit(PlainLM(), loader(20), loader(7, seed=1), ckpt_path=ckpt)
        return lscore, save

    whole, _ = fit("whole", 8)
    _, save = fit("part", 3)
    resumed, _ = fit("part", 8, ckpt=save.best_model_path)
    assert resumed.last_record.step == whole.last_record.step == 7
    whole_counters, resumed_counters = counters(whole), counters(resumed)
    # Lightning begins the data anew where a loader cannot say how far it was.
    del whole_counters["perplexity"], resumed_counters["perplexity"]
    assert resumed_counters == whole_counters
    # The plan was made by the first fit, of three steps.
    assert resumed.last_record.formula["D"]["reference"] == 3 * 48
    assert resumed.last_record.measurements.train_hours > 0
    records = read_records(tmp_path / "part")
    assert [r.step for r in records] == [2, 4, 7]
    assert len({r.run for r in records}) == 1
    hours = [r.measurements.train_hours for r in records]
    assert hours == sorted(hours)


@RESUME
def test_what_is_validated_again_after_a_resume_replaces_what_it_repeats(trainer, tmp_path):
    save = ModelCheckpoint(tmp_path / "c", every_n_train_steps=2, save_top_k=-1)
    options = {"max_epochs": -1, "val_check_interval": 1}
    trainer(LScore(), save, max_steps=5, **options).fit(PlainLM(), loader(40), loader(4))
    early = str(next((tmp_path / "c").glob("*step=2*")))
    trainer(LScore(), max_steps=4, **options).fit(PlainLM(), loader(40), loader(4), ckpt_path=early)
    assert [r.step for r in read_records(tmp_path)] == [1, 2, 3, 4]


@RESUME
def test_resuming_at_the_end_of_an_epoch_still_satisfies_early_stopping(trainer, tmp_path):
    save = ModelCheckpoint(tmp_path / "c", monitor="L")
    trainer(LScore(), EarlyStopping("L"), save).fit(PlainLM(), loader(8), loader(4))
    lscore = LScore()
    t = trainer(lscore, EarlyStopping("L"), max_epochs=2)
    t.fit(PlainLM(), loader(8), loader(4), ckpt_path=save.best_model_path)
    assert lscore.last_record.measurements.tokens == 2 * 8 * 12


def test_validating_a_checkpoint_leaves_the_counters_of_a_fit_alone(trainer, tmp_path):
    save, lscore = ModelCheckpoint(tmp_path / "c", monitor="L"), LScore()
    t = trainer(lscore, save, max_epochs=2)
    t.fit(PlainLM(), loader(8), loader(4))
    t.validate(PlainLM(), loader(4), ckpt_path=save.best_model_path, verbose=False)
    fresh = trainer(lscore)
    fresh.fit(PlainLM(), loader(8), loader(4))
    assert lscore.last_record.measurements.tokens == 8 * 12


def test_a_second_fit_of_the_same_trainer_goes_on_counting(trainer):
    lscore, model = LScore(), PlainLM()
    t = trainer(lscore)
    t.fit(model, loader(8), loader(4))
    t.fit_loop.max_epochs = 2
    t.fit(model, loader(8), loader(4))
    assert lscore.last_record.measurements.tokens == 2 * 8 * 12
    assert lscore.last_record.batch == 4


class FailsAtFirst(pl.Callback):
    """As a data set that is not mounted does: after the checkpoint was loaded, before a step."""

    fails = True

    def on_sanity_check_start(self, trainer, pl_module):
        if self.fails:
            raise RuntimeError("not mounted")


def test_a_resume_that_fails_before_its_first_step_leaves_nothing_behind(trainer, tmp_path):
    """Neither in the next fit, which is another run, nor out of a checkpoint saved meanwhile."""
    first, lscore = LScore(), LScore()
    t = trainer(first, max_epochs=2)
    t.fit(PlainLM(), loader(8), loader(4))
    t.save_checkpoint(tmp_path / "a.ckpt")
    t = trainer(lscore, FailsAtFirst(), max_epochs=4, num_sanity_val_steps=1)
    with pytest.raises(RuntimeError, match="not mounted"):
        t.fit(PlainLM(), loader(8), loader(4), ckpt_path=tmp_path / "a.ckpt")
    assert lscore.state_dict()["spent"] == first.state_dict()["spent"]
    trainer(lscore).fit(PlainLM(), loader(8), loader(4))
    assert lscore.last_record.measurements.tokens == 8 * 12
    assert lscore.last_record.run != first.last_record.run


def test_a_fit_that_fails_before_its_first_step_loses_nothing_of_those_before(trainer):
    """Of the same Trainer; what another Trainer did meanwhile is another run."""
    lscore, model, guard = LScore(), PlainLM(), FailsAtFirst()
    guard.fails = False
    t = trainer(lscore, guard, num_sanity_val_steps=1)
    t.fit(model, loader(8), loader(4))
    run = lscore.last_record.run
    trainer(lscore).fit(PlainLM(), loader(12), loader(4))
    guard.fails, t.fit_loop.max_epochs = True, 2
    with pytest.raises(RuntimeError, match="not mounted"):
        t.fit(model, loader(8), loader(4))
    guard.fails = False
    t.fit(model, loader(8), loader(4))
    assert lscore.last_record.measurements.tokens == 2 * 8 * 12
    assert lscore.last_record.run == run


def test_checkpoints_load_with_weights_only_and_keep_the_formula(trainer, tmp_path):
    save = ModelCheckpoint(tmp_path / "c", monitor="L")
    trainer(LScore(BY_TOKENS), save).fit(PlainLM(), loader(8), loader(4))
    checkpoint = torch.load(save.best_model_path, weights_only=True)
    (state,) = (v for k, v in checkpoint["callbacks"].items() if k.startswith("LScore"))
    assert Formula.from_dict(state["formula"]) == BY_TOKENS
    assert state["spent"]["tokens"] == 8 * 12


@RESUME
def test_another_formula_on_resume_counts_and_is_said(trainer, tmp_path):
    save = ModelCheckpoint(tmp_path / "c", monitor="L")
    trainer(LScore(BY_TOKENS), save).fit(PlainLM(), loader(8), loader(4))
    lscore = LScore(Formula(D=2.0))
    with pytest.warns(UserWarning, match="do not compare"):
        trainer(lscore, max_epochs=2).fit(
            PlainLM(), loader(8), loader(4), ckpt_path=save.best_model_path
        )
    assert lscore.last_record.score.f_D == 2.0


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formula": 3}, "expected a Formula or the path of one, got 3"),
        ({"planned_tokens": 0}, "planned_tokens: expected a finite number > 0, got 0"),
        ({"planned_tokens": "1e9"}, "planned_tokens: expected a finite number > 0, got '1e9'"),
        ({"sample_interval": 0}, "sample_interval: expected seconds > 0, got 0"),
        ({"sample_interval": "1"}, "sample_interval: expected seconds > 0, got '1'"),
        ({"flops_per_token": "cuont"}, "expected a number > 0 or \"count\", got 'cuont'"),
        ({"loss_call": "x"}, "loss_call: expected an integer, a function or None, got 'x'"),
        ({"logits_and_labels": 3}, "logits_and_labels: expected a function or None, got 3"),
        ({"count_tokens": "all"}, "count_tokens: expected a function or None, got 'all'"),
        (
            {"labels_are_shifted": "no"},
            "labels_are_shifted: expected True, False or None, got 'no'",
        ),
        ({"ignore_index": 1.5}, "ignore_index: expected an integer, got 1.5"),
        ({"prefix": 3}, "prefix: expected a string, got 3"),
        ({"price_per_device_hour": -1}, "price_per_device_hour: expected a number >= 0, got -1"),
        ({"carbon_intensity": "low"}, "carbon_intensity: expected a number >= 0, got 'low'"),
        ({"count_bytes": "gpt2"}, "count_bytes: expected a byte-level or SentencePiece tokenizer"),
        ({"measures": {"tokens": len}}, "a name .* that no other measure has, got 'tokens'"),
        ({"measures": {"a b": len}}, "a name of letters, digits and _ .*, got 'a b'"),
        ({"measures": {"rate": 3}}, "expected a function .* for 'rate', got 3"),
        (
            {"formula": Formula(D=Factor("rate", 1.0, own=True)), "measures": {"other": len}},
            r"a function for 'rate', which the formula charges for, got those of \['other'\]",
        ),
    ],
)
def test_arguments_are_checked_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        LScore(**arguments)


def test_a_formula_is_read_from_a_file(trainer, tmp_path):
    BY_TOKENS.save(tmp_path / "study.json")
    assert LScore(tmp_path / "study.json").formula == BY_TOKENS
    with pytest.raises(FileNotFoundError):
        LScore(str(tmp_path / "missing.json"))


class Returning(PlainLM):
    """validation_step returns whatever ``make`` makes of logits and labels."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def validation_step(self, batch, batch_idx):
        return self.make(self(batch["input_ids"]), batch["labels"])


def test_where_no_logits_are_found_three_ways_out_are_named(trainer):
    with pytest.raises(ValueError, match="returned a tensor") as error:
        trainer(LScore(), num_sanity_val_steps=1).fit(
            Returning(lambda logits, labels: logits.mean()), loader(8), loader(4)
        )
    for way in ("transformers model", '"logits": logits', "logits_and_labels=function"):
        assert way in str(error.value)


def test_logits_and_labels_of_different_lengths_are_refused(trainer):
    wrong = Returning(lambda logits, labels: {"logits": logits[:, 1:], "labels": labels})
    with pytest.raises(ValueError, match=r"logits \[4, 11, 32\] and labels \[4, 12\]"):
        trainer(LScore()).fit(wrong, loader(8), loader(4))


def test_a_validation_without_a_counted_token_is_an_error(trainer, tmp_path):
    empty = Returning(lambda logits, labels: {"logits": logits, "labels": labels * 0 - 100})
    with pytest.raises(ValueError, match="LScore counted no token"):
        trainer(LScore()).fit(empty, loader(8), loader(4))
    assert math.isnan(read_records(tmp_path)[-1].L)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_logged_and_training_goes_on(bad, trainer, tmp_path):
    class Breaks(PlainLM):
        def validation_step(self, batch, batch_idx):
            out = super().validation_step(batch, batch_idx)
            if self.current_epoch == 1:
                label = int(batch["labels"][0, 3])
                out["logits"][0, 2, label] = bad
            return out

    watch, checkpoint = Watch(), ModelCheckpoint(tmp_path / "c", monitor="L")
    t = trainer(LScore(), watch, checkpoint, max_epochs=3)
    t.fit(Breaks(), loader(8), loader(4))
    assert t.current_epoch == 3
    expected = math.inf if bad == -math.inf else math.nan
    for value in (watch.seen[1]["L"], watch.seen[1]["perplexity"], read_records(tmp_path)[1].L):
        assert math.isnan(value) if math.isnan(expected) else value == expected
    assert math.isfinite(watch.seen[2]["L"])
    assert "because" in read_records(tmp_path)[1].measurements.provenance["perplexity"]


def test_a_directory_that_cannot_be_written_costs_the_record_not_the_run(trainer, tmp_path):
    (tmp_path / "file").write_text("")
    t = trainer(LScore(), default_root_dir=tmp_path / "file" / "below", max_epochs=2)
    with pytest.warns(UserWarning, match="cannot write its record") as warned:
        t.fit(PlainLM(), loader(8), loader(4))
    assert len([w for w in warned if "cannot write" in str(w.message)]) == 1
    assert math.isfinite(t.callback_metrics["L"])


def test_a_measure_that_is_missing_leaves_l_out_and_says_so(trainer):
    formula = Formula(H=Factor("bits_per_byte", reference=1.0))
    t = trainer(LScore(formula))
    with pytest.warns(UserWarning, match=r"has no L to log: bits_per_byte: unavailable"):
        t.fit(PlainLM(), loader(8), loader(4))
    assert "L" not in t.callback_metrics
    assert "perplexity" in t.callback_metrics


def test_batches_without_tokens_make_the_count_missing_not_zero(trainer):
    class Floats(PlainLM):
        def training_step(self, batch, batch_idx):
            return self.head(batch).square().mean()

    lscore = LScore()
    with pytest.warns(UserWarning, match="count_tokens"):
        trainer(lscore).fit(Floats(), DataLoader([torch.randn(4, 16)], batch_size=None), loader(4))
    assert lscore.last_record.measurements.tokens is None
    lscore = LScore(count_tokens=len)
    trainer(lscore).fit(Floats(), DataLoader([torch.randn(4, 16)], batch_size=None), loader(4))
    assert lscore.last_record.measurements.tokens == 4


# ---------------------------------------------------------------------- ways of running


@pytest.mark.parametrize(
    "options",
    [
        {"fast_dev_run": True},
        {"limit_val_batches": 0.5},
        {
            "barebones": True,
            "default_root_dir": None,
            "log_every_n_steps": None,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": None,
        },
        {"inference_mode": False},
        {"precision": "bf16-mixed"},
        {"max_epochs": 2, "check_val_every_n_epoch": 2},
    ],
    ids=lambda o: next(iter(o)),
)
def test_the_trainers_options_work(options, trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(LScore(), **options).fit(PlainLM(), loader(8), loader(8))


def test_an_exception_ends_the_thread_and_removes_the_hooks(trainer):
    import threading

    class Fails(HuggingFaceLM):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("the user's own")

    lscore, model = LScore(), Fails()
    with pytest.raises(RuntimeError, match="the user's own"):
        trainer(lscore).fit(model, loader(8), loader(4))
    assert not model.model._forward_hooks
    assert not [t for t in threading.enumerate() if "lscore" in t.name]


def amount(trainer, pl_module):
    return 1.0


class Copies(pl.Callback):
    """Copies and pickles the first callback, wherever it is called."""

    def __init__(self):
        self.made = {}

    def _copy(self, where, trainer):
        lscore = trainer.callbacks[0]
        self.made[where] = [copy.deepcopy(lscore), pickle.loads(pickle.dumps(lscore))]

    def on_train_batch_end(self, trainer, *_):
        self._copy("a step", trainer)

    def on_validation_batch_end(self, trainer, *_):
        self._copy("a validation's step", trainer)

    def on_validation_end(self, trainer, *_):
        self._copy("a validation", trainer)

    def on_train_end(self, trainer, *_):
        self._copy("the end", trainer)


def test_it_is_copied_and_pickled_before_during_and_after_a_fit(trainer):
    """A copy has what was counted by then, begins another run afresh, and is small."""
    lscore, copies = LScore(measures={"one": amount}), Copies()
    copies._copy("before", trainer(lscore))
    t = trainer(lscore, copies)
    t.fit(PlainLM(), loader(8), loader(4))
    copies._copy("after", t)
    assert set(copies.made) == {
        *("before", "a step", "a validation's step", "a validation", "the end", "after")
    }
    for both in copies.made.values():
        for one in both:
            assert len(pickle.dumps(one)) < 2**15
            assert one.state_key == lscore.state_key
    for one in copies.made["a step"] + copies.made["after"]:
        assert one.tracker.batches == 2
        assert one.state_dict()["spent"]["tokens"] == 8 * 12
    for one in copies.made["after"]:
        assert one.last_record == lscore.last_record
        trainer(one).fit(PlainLM(), loader(4), loader(4))
        assert one.last_record.measurements.tokens == 4 * 12
    assert lscore.last_record.measurements.tokens == 8 * 12


@pytest.mark.parametrize("fails", [False, True])
def test_after_a_fit_it_keeps_neither_model_nor_data_alive(fails, trainer):
    class Model(PlainLM):
        def validation_step(self, batch, batch_idx):
            if fails and batch_idx:
                raise RuntimeError("the user's own")
            return super().validation_step(batch, batch_idx)

    lscore = LScore(measures={"one": lambda *_: 1.0})
    model, train, held_out = Model(), loader(8), loader(8)
    alive = [weakref.ref(model), weakref.ref(train.dataset), weakref.ref(held_out.dataset)]
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        trainer(lscore, num_sanity_val_steps=0).fit(model, train, held_out)
    del model, train, held_out
    gc.collect()
    assert [one() for one in alive] == [None] * 3


@pytest.mark.parametrize(
    ("given", "per_token", "convention"),
    [
        (None, 18720 + 192 * 12, "12 L H Q T for attention"),
        (1000, 1000, "FLOP per token as given"),
        ("count", None, "products counted in one step of 48 tokens (sequences of 12)"),
    ],
)
def test_the_flops_of_a_token_are_estimated_given_or_counted(trainer, given, per_token, convention):
    lscore = LScore(flops_per_token=given)
    trainer(lscore).fit(HuggingFaceLM(), loader(8), loader(4))
    m = lscore.last_record.measurements
    estimate = 18720 + 192 * 12
    expected = pytest.approx(estimate, rel=0.03) if per_token is None else per_token
    assert m.flops_per_token == expected
    assert m.model_flops == pytest.approx(m.tokens * m.flops_per_token)
    assert convention in m.provenance["model_flops"]


@pytest.mark.parametrize("flops", [0, -1, math.nan])
def test_flops_per_token_must_be_a_number(flops):
    with pytest.raises(ValueError, match="flops_per_token: expected a number > 0"):
        LScore(flops_per_token=flops)


@pytest.mark.parametrize(
    "price",
    [
        lambda m: [1.0, 1.01, 1.02, 1.03][m.steps // 10],
        lambda m: 1 + 0.001 * len(range(0, m.steps, 10)),
        lambda m: 1 + m.tokens.bit_length() / 1000,
    ],
)
def test_a_factor_that_cannot_be_asked_for_what_is_to_come_ends_nothing(price, trainer):
    """The forecast asks for counts that are no whole numbers, beyond what the function knows."""
    lscore = LScore(Formula(H=price))
    t = trainer(lscore, max_epochs=1, val_check_interval=2)
    t.fit(PlainLM(), loader(120), loader(4))
    assert (t.global_step, lscore.last_record.step) == (30, 30)
    assert lscore.last_record.L > 0


def test_a_measure_of_ones_own_that_raises_is_absent_and_said_once(trainer):
    """It is not asked again; L is as without it."""
    calls = []

    def fails(trainer, module):
        calls.append(1)
        raise ConnectionError("no network")

    lscore = LScore(measures={"tariff": fails})
    with pytest.warns(UserWarning, match=r"gives up the measure 'tariff' \(ConnectionError"):
        trainer(lscore, max_epochs=3).fit(PlainLM(), loader(16), loader(4))
    assert len(calls) == 1
    assert lscore.last_record.L > 0
    assert "tariff" not in lscore.last_record.measurements.own


def test_what_is_forecast_or_written_ends_nothing_whatever_it_raises(trainer, monkeypatch):
    def fails(*args, **kwargs):
        raise RecursionError("a mistake")

    monkeypatch.setattr("lightning_lscore.run.progress.predict", fails)
    monkeypatch.setattr("lightning_lscore.run.ledger.append_record", fails)
    lscore = LScore()
    with pytest.warns(UserWarning, match="gives up its ") as caught:
        trainer(lscore, max_epochs=1, val_check_interval=2).fit(PlainLM(), loader(16), loader(4))
    assert len([w for w in caught if "gives up its " in str(w.message)]) == 2
    assert lscore.last_record.L > 0


class Lazy(PlainLM):
    """Makes its weights in the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.LazyLinear(VOCABULARY)


def test_parameters_that_a_lazy_module_has_not_made_yet_end_no_fit(trainer):
    """They count once they are there."""
    lscore, module = LScore(), Lazy()
    trainer(lscore).fit(module, loader(16), loader(4))
    assert lscore.last_record.measurements.total_parameters == sum(
        p.numel() for p in module.parameters()
    )


def test_bytes_that_cannot_be_counted_cost_a_warning_and_their_measures(trainer):
    """Training goes on, and all else is logged."""

    def count(ids):
        raise KeyError("no such token")

    lscore = LScore(count_bytes=count)
    with pytest.warns(UserWarning, match="gives up counting bytes .*no such token"):
        trainer(lscore).fit(PlainLM(), loader(8), loader(4))
    m = lscore.last_record.measurements
    assert m.bits_per_byte is None
    assert m.perplexity is not None


def test_names_in_a_state_that_was_tampered_with_are_a_value_error(trainer):
    lscore = LScore()
    trainer(lscore).fit(PlainLM(), loader(8), loader(4))
    state = lscore.state_dict()
    for bad in ([], {"L": 1}, "L", {1: "L"}):
        with pytest.raises(ValueError, match="names in the state of LScore: expected a dictionary"):
            lscore.load_state_dict({**state, "names": bad})
