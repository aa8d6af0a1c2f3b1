"""CostEarlyStopping in real training runs."""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import lightning.pytorch as pl
import pytest
import torch
from conftest import VOCABULARY, PlainLM, loader
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import lr_scheduler

from lightning_lscore import Factor, Formula, LScore
from lightning_lscore.stopping import CostEarlyStopping

RESUME = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
)

STEPS = 2
"""Training steps, each of 4 x 12 tokens, from one validation of ``Scripted`` to the next."""

END = 15
"""Validations after which a run ends that nothing has stopped."""

BY_TOKENS = Formula(D=Factor("tokens", reference=48 * STEPS, weight=0.02, c=0))
"""L = T · n^0.02 at the n-th validation: waiting from n to m costs 0.02 · ln(m/n) nats."""


class Scripted(PlainLM):
    """Its n-th validation has the n-th of the given losses in nats a token, the last for ever."""

    def __init__(self, *losses: float, schedule=None, interval: str = "step") -> None:
        super().__init__()
        self.losses = losses
        self.schedule = schedule
        self.interval = interval

    def validation_step(self, batch, batch_idx):
        n = self.global_step // STEPS - 1
        loss = self.losses[max(0, min(n, len(self.losses) - 1))]
        # A logit a for the next token and 0 for all others cost -a + ln(e^a + V - 1).
        a = math.log(VOCABULARY - 1) - loss - math.log1p(-math.exp(-loss))
        targets = batch["labels"].roll(-1, dims=1)
        logits = torch.where(torch.nn.functional.one_hot(targets, VOCABULARY) > 0, a, 0.0)
        return {"logits": logits, "labels": batch["labels"]}

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        if self.schedule is None:
            return optimizer
        scheduler = {"scheduler": self.schedule(optimizer), "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Watch(pl.Callback):
    """Notes each validation's step and verdict."""

    def __init__(self, stopping: CostEarlyStopping) -> None:
        self.stopping = stopping
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.seen.append((trainer.global_step, self.stopping.verdict))


class Halt(pl.Callback):
    """Ends what nothing else has ended."""

    def on_validation_end(self, trainer, pl_module):
        trainer.should_stop = trainer.should_stop or trainer.global_step >= END * STEPS


@pytest.fixture
def fit(trainer):
    """Fits and returns after how many validations it ended; the plan is long, but see ``END``."""

    def run(model, stopping, *callbacks, formula=BY_TOKENS, ckpt_path=None, batches=2, **options):
        callbacks = callbacks or (LScore(formula),)
        t = trainer(stopping, *callbacks, Halt(), **{"max_epochs": 1000, **options})
        t.fit(model, loader(4 * batches), loader(4, seed=1), ckpt_path=ckpt_path)
        return t.global_step // STEPS

    return run


def first_over(patience: float, best: int, weight: float = 0.02) -> int:
    """The validation at which the price since the best one exceeds a patience in nats."""
    return next(m for m in itertools.count(best + 2) if weight * math.log(m / best) >= patience)


# ---------------------------------------------------------------------- when it stops


def test_it_stops_when_spending_no_longer_lowers_perplexity(fit):
    stopping = CostEarlyStopping()
    assert fit(Scripted(3.0), stopping) == first_over(0.005, best=1) == 3
    stopping = CostEarlyStopping(tolerance=0.02, certainty=0)
    assert fit(Scripted(3.5, 3.2, 3.0), stopping) == first_over(0.02, best=3) == 9
    assert stopping.stopped_epoch == 8
    stopping = CostEarlyStopping(validations=4)
    assert fit(Scripted(3.0), stopping) == 5


def test_it_stops_when_perplexity_falls_by_less_than_the_price(fit):
    """Perplexity falls as n^-0.01 where n^-0.02 would pay."""
    slowly = [3.0 - 0.01 * math.log(n) for n in range(1, 40)]
    assert fit(Scripted(*slowly), CostEarlyStopping(certainty=0)) == 3
    assert fit(Scripted(*slowly), EarlyStopping("perplexity"), LScore(BY_TOKENS)) == END


def test_a_ratio_stops_after_that_much_more_spending(fit):
    """The best L is the eighth validation: 25 % more is the tenth, 40 % more the twelfth."""
    curve = [2.8 - 0.1 * i for i in range(8)]
    assert fit(Scripted(*curve), CostEarlyStopping(ratio=0.25)) == 10
    stopping = CostEarlyStopping(ratio=0.4)
    assert fit(Scripted(*curve), stopping) == 12
    assert "50 % more tokens" in stopping.stopping_reason_message
    assert "the spending rose by 50.00 % of 40.00 % accepted" in stopping.stopping_reason_message


def test_it_goes_on_as_long_as_spending_pays(fit):
    enough = [3.0 - 0.03 * math.log(n) for n in range(1, 40)]
    assert fit(Scripted(*enough), CostEarlyStopping()) == END


def test_it_never_stops_where_spending_is_free(fit):
    """While perplexity stands; Lightning's own would. Where it rises, nothing is to be won."""
    assert fit(Scripted(3.0), CostEarlyStopping(), formula=Formula()) == END
    worse = [3.0 + 0.01 * n for n in range(40)]
    assert fit(Scripted(*worse), CostEarlyStopping(), formula=Formula()) == 4


def test_it_stops_where_the_rest_of_the_plan_cannot_pay(fit):
    """A price too low for the patience to end, and nothing left to win."""
    cheap = Formula(D=Factor("tokens", reference=48 * STEPS * 20, weight=0.004))
    stopping = CostEarlyStopping()
    stopped = fit(Scripted(3.5, 3.2, 3.0), stopping, formula=cheap, max_epochs=20)
    assert stopped == 12  # the stretch of 8 validations before it saw no fall
    assert "rest of the plan" in stopping.stopping_reason_message
    verdict = stopping.verdict
    assert verdict.waited < verdict.patience
    rest = -0.008 * math.log((1 + 12 / 20) / 2)  # ln f from here to the end of the plan
    assert verdict.outlook == pytest.approx(-rest - verdict.waited, abs=1e-6)
    assert fit(Scripted(3.5, 3.2, 3.0), CostEarlyStopping(), formula=cheap) == END


def test_noise_makes_it_wait(fit):
    noise = [0.0, 0.012, 0.006, 0.011, 0.004, 0.013, 0.005, 0.012] * 5
    noisy = Scripted(*(3.0 + x for x in noise))
    calm = fit(noisy, CostEarlyStopping(certainty=0))
    assert calm == 4
    assert fit(noisy, CostEarlyStopping()) > 2 * calm


def test_a_formula_of_functions_works(fit):
    formula = Formula(D=lambda m: (m.tokens / 96) ** 0.02)
    assert fit(Scripted(3.0), CostEarlyStopping(), formula=formula) == 3


@pytest.mark.parametrize("plan", [{"max_epochs": -1, "max_steps": STEPS * 20}, {}])
def test_any_plan_will_do(plan, fit):
    assert fit(Scripted(3.0), CostEarlyStopping(), **plan) == 3


def test_it_stops_by_the_clock_of_the_default_formula(fit, trainer):
    """Without a formula, weights and noise are those of a real run: only that it works."""
    stopping = CostEarlyStopping()
    assert fit(Scripted(3.0), stopping, LScore()) < END
    assert "device time" in stopping.stopping_reason_message


# ---------------------------------------------------------------------- the learning rate


def linear(to: float, steps: int):
    return lambda o: lr_scheduler.LinearLR(o, 1.0, to, total_iters=steps)


SCHEDULES = {
    "by the step": ("step", linear(0.01, 60), {}),
    "cosine": ("step", lambda o: lr_scheduler.CosineAnnealingLR(o, 60), {}),
    "by the epoch": ("epoch", linear(0.01, 30), {}),
    "by the epoch, which holds three validations": (
        "epoch",
        linear(0.01, 10),
        {"max_epochs": 10, "batches": 6, "val_check_interval": 2},
    ),
    "never reaching an end": ("step", lambda o: lr_scheduler.ExponentialLR(o, 0.999), {}),
}


@pytest.mark.parametrize(("interval", "schedule", "options"), SCHEDULES.values(), ids=SCHEDULES)
def test_it_stops_while_the_rate_decays(interval, schedule, options, fit):
    """Nearly every fine-tuning decays its rate from the first step to the last."""
    for kwargs in ({}, {"ratio": 0.25}):
        stopping = CostEarlyStopping(**kwargs)
        assert fit(Scripted(3.0, schedule=schedule, interval=interval), stopping, **options) == 3
        assert stopping.stopping_reason_message.endswith("more spending does not pay.")


def wsd(o):
    """Warm up, hold until step 40, decay."""
    parts = linear(1.0, 40)(o), linear(0.01, 20)(o)
    return lr_scheduler.SequentialLR(o, [*parts], milestones=[40])


class Own(lr_scheduler.LRScheduler):
    """A schedule without a closed form, known to nobody."""

    def get_lr(self):
        fall = 0.9 if self.last_epoch > 36 else 1.0
        return [group["lr"] * fall for group in self.optimizer.param_groups]


BEFORE_A_DECAY = {
    "held, then decayed": ("step", wsd),
    "by the epoch": ("epoch", lambda o: lr_scheduler.MultiStepLR(o, [18])),
    "a function": ("step", lambda o: lr_scheduler.LambdaLR(o, lambda n: 1.0 if n < 40 else 0.1)),
    "one's own": ("step", Own),
    "warm-up": ("step", lambda o: lr_scheduler.LinearLR(o, 0.01, 1.0, total_iters=60)),
}


@pytest.mark.parametrize(("interval", "schedule"), BEFORE_A_DECAY.values(), ids=BEFORE_A_DECAY)
def test_it_does_not_stop_on_a_plateau_before_a_decay_unless_asked(interval, schedule, fit):
    def model(*losses):
        return Scripted(*losses, schedule=schedule, interval=interval)

    stopping = CostEarlyStopping()
    assert fit(model(3.0), stopping, max_epochs=30) == END
    assert stopping.stopping_reason_message is None
    assert stopping.verdict.paid > stopping.verdict.patience
    assert "still ahead" in stopping.verdict.reason
    assert fit(model(3.0), CostEarlyStopping(while_decaying=True), max_epochs=30) == 3
    turned = CostEarlyStopping()
    assert fit(model(3.2, 3.1, 3.0, 3.1, 3.2, 3.25), turned, max_epochs=30) < END
    assert "the held-out loss is" in turned.stopping_reason_message


def test_a_decay_beyond_the_plan_keeps_nothing_from_stopping(fit):
    late = lambda o: lr_scheduler.MultiStepLR(o, [1000])  # noqa: E731
    assert fit(Scripted(3.0, schedule=late), CostEarlyStopping(), max_epochs=30) == 3


def test_of_a_rate_that_nothing_foretells_it_says_what_it_takes_for_granted(fit):
    """A scheduler that follows a metric; a stop there means that it is time to decay."""
    model = Scripted(3.0)
    scheduler = lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=100)  # noqa: E731
    model.configure_optimizers = lambda: {
        "optimizer": (o := torch.optim.SGD(model.parameters(), 0.1)),
        "lr_scheduler": {"scheduler": scheduler(o), "monitor": "perplexity"},
    }
    lscore = LScore(BY_TOKENS)
    assert fit(model, CostEarlyStopping(), lscore) == 3
    assert lscore.last_record.learning_rate.decay == "unknown"
    assert "time to decay" in lscore.last_record.assumptions["learning rate"]


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_scheduler_that_changes_nothing_keeps_nothing_from_stopping(interval, fit):
    constant = lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0)  # noqa: E731
    assert fit(Scripted(3.0, schedule=constant, interval=interval), CostEarlyStopping()) == 3


def test_an_iterable_without_a_length_has_no_epoch_to_wait_for(trainer):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return itertools.cycle(loader(4).dataset)

    constant = lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0)  # noqa: E731
    model = Scripted(3.0, schedule=constant, interval="epoch")
    options = {"max_epochs": -1, "max_steps": 30 * STEPS, "val_check_interval": STEPS}
    t = trainer(CostEarlyStopping(), LScore(BY_TOKENS), **options)
    t.fit(model, torch.utils.data.DataLoader(Endless(), batch_size=4), loader(4))
    assert t.global_step == 3 * STEPS


# ---------------------------------------------------------------------- what it says


def test_it_says_why_in_spending_and_perplexity(fit, caplog):
    stopping = CostEarlyStopping(certainty=0)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Scripted(3.1, 3.0, 2.997), stopping)
    messages = [m for m in caplog.messages if "best" in m]
    T = [math.exp(x) for x in (3.0, 2.997)]
    expected = (
        rf"Stopped at step 8: since the best L \({T[0] * 2**0.02:.4f} at step 4\) "
        r"100 % more tokens and [0-9.]+ % more device time, priced at 1\.40 % of L, "
        r"lowered perplexity by 0\.30 %\. No better L in 2 validations, while the price rose by "
        r"1\.40 % of 0\.50 % accepted: more spending does not pay\."
    )
    assert re.fullmatch(expected, stopping.stopping_reason_message)
    assert messages == [stopping.stopping_reason_message]
    if hasattr(stopping, "stopping_reason"):  # since Lightning 2.6
        assert stopping.stopping_reason.name == "PATIENCE_EXHAUSTED"


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (math.nan, "made perplexity NaN. No better L"),
        (math.inf, "made perplexity infinite. No better L"),
        (600.0, "raised perplexity by more than 1,000,000 %. No better L"),
    ],
)
def test_it_says_so_in_few_digits_whatever_became_of_perplexity(last, expected, fit):
    """No sentence holds a number of 300 digits, or "nan %"."""
    stopping = CostEarlyStopping(certainty=0, check_finite=False)
    fit(Scripted(3.0, last), stopping)
    assert expected in stopping.stopping_reason_message
    assert max(map(len, stopping.stopping_reason_message.split())) < 20
    stopping = CostEarlyStopping(certainty=0)
    huge = {"D": 1e300, "H": Factor("tokens", 96, 0.02)}
    fit(Scripted(3.0), stopping, formula=Formula(**huge))
    assert "since the best L (2.009e+301 at" in stopping.stopping_reason_message


def test_verbose_says_at_each_validation_why_the_run_goes_on(fit, caplog):
    stopping = CostEarlyStopping(verbose=True, certainty=0)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Scripted(3.0, 3.1), stopping)
    first, second, third = (m for m in caplog.messages if " L " in m)
    assert "New best score" in first
    assert second.startswith("No better L in 1 validation, while the price rose by 1.40 %")
    assert third == stopping.stopping_reason_message
    assert "raised perplexity by 11 %" in third


def test_a_run_that_goes_on_has_no_reason(fit):
    stopping = CostEarlyStopping()
    fit(Scripted(3.0), stopping, formula=Formula())
    assert stopping.stopping_reason_message is None
    assert stopping.stopped_epoch == 0


def test_it_names_the_weights_to_keep_and_where_stopping_was_best(fit, tmp_path, caplog):
    """Perplexity still fell after the best L: two checkpoints, each for its purpose."""

    def save(monitor):
        name = f"{monitor}-{{step}}"
        return ModelCheckpoint(tmp_path, filename=name, monitor=monitor, mode="min")

    slowly = [3.0 - 0.01 * math.log(n) for n in range(1, 40)]
    stopping = CostEarlyStopping(certainty=0)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(Scripted(*slowly), stopping, LScore(BY_TOKENS), save("perplexity"), save("L"))
    weights, best = (str(tmp_path / f"{m}-step={n}.ckpt") for m, n in (("perplexity", 6), ("L", 2)))
    said = (
        f"Weights to keep, of the lowest perplexity: {weights}. "
        f"Where stopping was best, of the lowest L: {best}."
    )
    assert stopping.stopping_reason_message.endswith(f"does not pay. {said}")
    assert said in caplog.messages
    only = CostEarlyStopping(certainty=0)
    fit(Scripted(*slowly), only, LScore(BY_TOKENS), save("L"))
    assert only.stopping_reason_message.endswith(
        'ModelCheckpoint(monitor="perplexity") would keep the best weights.'
    )
    none = CostEarlyStopping(certainty=0)
    fit(Scripted(*slowly), none, LScore(BY_TOKENS))
    assert none.stopping_reason_message.endswith("does not pay.")


def test_without_it_the_end_of_a_fit_says_where_it_would_have_stopped(trainer, caplog):
    worse = [3.2, 3.1, 3.0, 3.35, 3.4, 3.5, 3.6, 3.7]
    said = "CostEarlyStopping() would have stopped at step 10 (held-out loss diverging): 38 % of"
    for callbacks, losses, told in (
        ([], worse, True),
        ([CostEarlyStopping(validations=99)], [3.0] * 8, False),
        ([], [3.0 - 0.1 * i for i in range(8)], False),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
            t = trainer(LScore(BY_TOKENS), *callbacks, max_epochs=8)
            t.fit(Scripted(*losses), loader(8), loader(4))
        assert t.current_epoch == 8
        assert any(said in m for m in caplog.messages) == told
        assert any("would have stopped" in m for m in caplog.messages) == told


# ---------------------------------------------------------------------- resuming

NOISY = [3.06, 3.05, 3.039, 3.03, 3.019, 3.01, 3.0, 2.999] + [3.001, 3.0] * 20


@RESUME
@pytest.mark.parametrize(("at_epoch_end", "cuts"), [(True, [1, 4, 9]), (False, [5, 10])])
def test_a_resumed_run_stops_as_an_uninterrupted_one(at_epoch_end, cuts, fit, tmp_path):
    """With noise, a decay that ends before it stops, and checkpoints from either moment."""

    def one(folder, **options):
        save = ModelCheckpoint(
            tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=at_epoch_end
        )
        stopping = CostEarlyStopping(check_on_train_epoch_end=not at_epoch_end or None)
        watch = Watch(stopping)
        model = Scripted(*NOISY, schedule=linear(0.1, 12))
        options |= {"max_epochs": 20, "default_root_dir": tmp_path / folder}
        fit(model, stopping, LScore(BY_TOKENS), save, watch, **options)
        return stopping, watch.seen

    def without_times(stopping):
        return re.sub("and .* device time", "", stopping.stopping_reason_message)

    whole, seen = one("whole")
    assert 10 < len(seen) < END
    for cut in cuts:
        resumed, after = one("resumed", ckpt_path=str(tmp_path / f"step={cut * STEPS}.ckpt"))
        assert after == seen[cut:]
        assert without_times(resumed) == without_times(whole)
        for key in ("best_score", "rule"):
            assert resumed.state_dict()[key] == whole.state_dict()[key]


@RESUME
def test_a_run_that_was_to_stop_stops_at_once_when_resumed(fit, tmp_path):
    """From a checkpoint between the validation that decided and the epoch's end that obeys."""
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    save._save_on_train_epoch_end = False
    fit(Scripted(3.0), CostEarlyStopping(), LScore(BY_TOKENS), save)
    stopping = CostEarlyStopping()
    assert fit(Scripted(3.0), stopping, ckpt_path=str(tmp_path / "epoch=2.ckpt")) == 3
    assert stopping.stopping_reason_message.startswith("Stopped at step 6")


@RESUME
def test_another_formula_begins_with_fresh_patience(fit, tmp_path):
    """L before and after do not compare."""
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(Scripted(3.0), CostEarlyStopping(), LScore(BY_TOKENS), save, max_epochs=2)
    dearer = Formula(D=Factor("tokens", reference=48 * STEPS, weight=0.04, c=0))
    stopping, ckpt = CostEarlyStopping(), str(tmp_path / "epoch=1.ckpt")
    with pytest.warns(UserWarning, match="do not compare"):
        stopped = fit(Scripted(3.0), stopping, formula=dearer, ckpt_path=ckpt)
    assert stopped == 5  # the third is the first
    assert "at step 6" in stopping.stopping_reason_message


def test_a_new_run_begins_with_fresh_patience(fit):
    """One callback in two Trainers; the second run is worse throughout."""
    stopping = CostEarlyStopping()
    assert fit(Scripted(3.0), stopping) == 3
    assert fit(Scripted(5.0, 4.5, 4.0), stopping) > 4
    assert "at step 6)" in stopping.stopping_reason_message


def test_the_state_is_plain_and_loads_with_weights_only(fit, tmp_path):
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    stopping = CostEarlyStopping()
    fit(Scripted(3.0), stopping, LScore(BY_TOKENS), save)
    checkpoint = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    state = checkpoint["callbacks"][stopping.state_key]
    assert json.loads(json.dumps(state)) == state == stopping.state_dict()
    other = CostEarlyStopping()
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_validating_a_checkpoint_leaves_the_patience_alone(trainer, tmp_path):
    save, stopping = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1), None
    stopping = CostEarlyStopping()
    t = trainer(stopping, LScore(BY_TOKENS), save, max_epochs=30)
    t.fit(Scripted(3.0), loader(8), loader(4))
    before = stopping.state_dict()
    ckpt = str(tmp_path / "epoch=0.ckpt")
    t.validate(Scripted(3.0), loader(4), ckpt_path=ckpt, verbose=False)
    assert stopping.state_dict() == before


# ---------------------------------------------------------------------- Lightning's options


def test_the_stopping_threshold_stops_at_a_good_enough_l(fit):
    stopping = CostEarlyStopping(stopping_threshold=math.exp(2.95))
    assert fit(Scripted(3.5, 3.2, 2.9), stopping) == 3
    assert stopping.stopping_reason_message.startswith("Stopping threshold reached")


def test_the_divergence_threshold_stops_at_a_bad_l_even_in_a_decay(fit):
    stopping = CostEarlyStopping(divergence_threshold=math.exp(3.3))
    model = Scripted(3.2, 3.1, 3.0, 3.4, schedule=linear(0.1, 60))
    assert fit(model, stopping) == 4
    assert stopping.stopping_reason_message.startswith("Divergence threshold reached")


def test_nan_stops_at_once_or_counts_as_no_improvement(fit):
    stopping = CostEarlyStopping()
    assert fit(Scripted(3.0, math.nan), stopping) == 2
    assert "not finite" in stopping.stopping_reason_message
    stopping = CostEarlyStopping(check_finite=False)
    assert fit(Scripted(3.0, math.nan), stopping) == 3
    assert "more spending does not pay" in stopping.stopping_reason_message
    stopping = CostEarlyStopping(check_finite=False)
    assert fit(Scripted(math.nan), stopping) == 2  # even the first was none
    assert stopping.stopping_reason_message.startswith("Stopped at step 4: No better L")
    passing = Scripted(3.0, math.nan, 2.8, 2.7, 2.7)
    stopping = CostEarlyStopping(check_finite=False, certainty=0)
    assert fit(passing, stopping) == first_over(0.005, best=4) == 6


def test_a_missing_l_is_an_error_if_strict(fit):
    missing = Formula(H=Factor("bits_per_byte", reference=1.0))
    with (
        pytest.warns(UserWarning, match="has no L"),
        pytest.raises(RuntimeError, match="`L` which is not available"),
    ):
        fit(Scripted(3.0), CostEarlyStopping(), formula=missing)
    stopping = CostEarlyStopping(strict=False)
    with pytest.warns(UserWarning, match="has no L"):
        assert fit(Scripted(3.0), stopping, formula=missing, max_epochs=4) == 4
    assert stopping.verdict is None


@pytest.mark.parametrize(("interval", "batches"), [(1, 8), (1.0, 1)])
def test_it_stops_at_any_validation_unless_told_otherwise(interval, batches, trainer):
    """Lightning takes an interval of one batch, 1, for that of one epoch, 1.0."""
    t = trainer(CostEarlyStopping(), LScore(BY_TOKENS), max_epochs=9, val_check_interval=interval)
    t.fit(Scripted(3.0), loader(4 * batches), loader(4, seed=1))
    assert t.global_step == 3


@pytest.mark.parametrize("at_epoch_end", [None, True, False])
def test_it_may_obey_at_the_end_of_an_epoch(at_epoch_end, fit):
    """Every validation counts, wherever it stops."""
    stopping = CostEarlyStopping(check_on_train_epoch_end=at_epoch_end)
    options = {"batches": 8, "val_check_interval": 2}
    assert fit(Scripted(3.0), stopping, max_epochs=5, **options) == (4 if at_epoch_end else 3)


def test_epochs_without_a_validation_are_no_validations(fit):
    """Though Lightning looks at the same L again."""
    stopping = CostEarlyStopping(check_on_train_epoch_end=True, strict=False)
    assert fit(Scripted(3.0), stopping, check_val_every_n_epoch=4) == 12
    assert "in 2 validations" in stopping.stopping_reason_message


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"min_epochs": 6}])
def test_the_trainers_options_work(options, fit):
    expected = {"fast_dev_run": 0, "min_epochs": 6}
    assert fit(Scripted(3.0), CostEarlyStopping(), **options) == expected[next(iter(options))]


def test_the_sanity_check_is_ignored(fit):
    stopping = CostEarlyStopping()
    assert fit(Scripted(3.0), stopping, num_sanity_val_steps=2) == 3


# ---------------------------------------------------------------------- beside other callbacks


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_order_of_callbacks_will_do(order, trainer, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "best", monitor="L")
    stopping = CostEarlyStopping(certainty=0)
    callbacks = [LScore(BY_TOKENS), stopping, checkpoint]
    t = trainer(*(callbacks[i] for i in order), max_epochs=30)
    t.fit(Scripted(3.1, 3.0), loader(8), loader(4))
    assert t.current_epoch == first_over(0.005, best=2) == 4
    assert float(checkpoint.best_model_score) == float(stopping.best_score)


def test_it_follows_the_l_of_its_prefix(trainer):
    lax, strict = CostEarlyStopping(), CostEarlyStopping("strict_L")
    assert lax.state_key != strict.state_key
    formulas = LScore(Formula()), LScore(BY_TOKENS, prefix="strict_")
    t = trainer(lax, strict, *formulas, max_epochs=30)
    t.fit(Scripted(3.0), loader(8), loader(4))
    assert t.current_epoch == 3
    assert lax.stopping_reason_message is None
    assert strict.stopping_reason_message.startswith("Stopped at step 6")


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [([], r"prefixes \[\]"), ([LScore(prefix="lax_")], r"prefixes \['lax_'\]")],
    ids=["none", "another prefix"],
)
def test_without_its_lscore_a_fit_does_not_start(callbacks, message, trainer):
    t = trainer(CostEarlyStopping("strict_L"), *callbacks)
    with pytest.raises(MisconfigurationException, match=message) as error:
        t.fit(PlainLM(), loader(8), loader(4))
    assert "LScore(prefix='strict_')" in str(error.value)


def test_validating_alone_needs_no_lscore(trainer):
    trainer(CostEarlyStopping()).validate(PlainLM(), loader(4), verbose=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        # By the clock, which no two processes read alike, and by what both have trained on.
        {"certainty": 99.0, "validations": 99, "budget": {"train_hours": 1.0, "tokens": 700}},
    ],
    ids=["rule", "budget"],
)
def test_all_ranks_stop_at_the_same_step_for_the_same_reason(options, tmp_path):
    script = Path(__file__).with_name("ddp_stopping.py")
    command = [sys.executable, str(script), str(tmp_path), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2))
    assert first == second
    assert first["why"].startswith(f"Stopped at step {first['step']}")
    assert (done.stdout + done.stderr).count(first["why"]) == 1
    if not options:
        assert first["verdicts"][-1]["stop"]
    else:  # 2 processes of 4 x 12 tokens a step
        assert first["step"] == 700 // 96
        assert "672 of 700 tokens are spent" in first["why"]


# ---------------------------------------------------------------------- a budget

A_STEP = 4 * 12  # tokens


@pytest.mark.parametrize("stopping_first", [True, False])
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 7),
        ({"val_check_interval": 2}, 7),
        ({"check_val_every_n_epoch": 5}, 7),
        ({"accumulate_grad_batches": 2}, 3),
    ],
)
def test_a_budget_ends_the_run_before_it_would_be_passed(
    options, steps, stopping_first, trainer, tmp_path
):
    """With a validation and a checkpoint first, wherever in an epoch it is."""
    stopping = CostEarlyStopping(validations=99, budget={"tokens": 7 * A_STEP + 20})
    save = ModelCheckpoint(tmp_path, filename="{step}", monitor="L")
    watch, lscore = Watch(stopping), LScore(BY_TOKENS)
    order = [stopping, lscore] if stopping_first else [lscore, stopping]
    t = trainer(*order, save, watch, max_epochs=50, **options)
    t.fit(PlainLM(), loader(16), loader(4))
    batches = steps * options.get("accumulate_grad_batches", 1)
    assert (t.global_step, lscore.last_record.measurements.tokens) == (steps, batches * A_STEP)
    assert stopping.stopping_reason_message.startswith(
        f"Stopped at step {steps}: {batches * A_STEP} of 356 tokens are spent, and the next"
    )
    assert watch.seen[-1][0] == steps
    assert (tmp_path / f"step={steps}.ckpt").is_file()
    assert t.check_val_every_n_epoch == options.get("check_val_every_n_epoch", 1)


@RESUME
def test_a_budget_counts_across_resumes(trainer, tmp_path):
    def run(budget, ckpt_path=None, **options):
        stopping = CostEarlyStopping(validations=99, budget={"tokens": budget})
        save = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
        t = trainer(stopping, LScore(BY_TOKENS), save, **options)
        t.fit(PlainLM(), loader(8), loader(4), ckpt_path=ckpt_path)
        return t.global_step

    assert run(10**6, max_epochs=3) == 6
    last = str(tmp_path / "step=6.ckpt")
    assert run(9 * A_STEP, last, max_epochs=50) == 9
    # What is spent already is not passed by another step.
    assert run(6 * A_STEP + 1, last, max_epochs=50) == 6
    assert run(A_STEP, last, max_epochs=50) == 6


def test_a_budget_by_the_clock_holds(trainer):
    """The start of the first step, however long, is no measure of the next.

    A step that the machine holds up after the last look may pass it, so there is room for one.
    """
    stopping = CostEarlyStopping(validations=99, budget={"cost": 1.0, "train_hours": 0.1 / 3600})
    lscore = LScore(BY_TOKENS, price_per_device_hour=1.0)
    t = trainer(stopping, lscore, max_epochs=10**6, val_check_interval=1.0)
    t.fit(PlainLM(), loader(16), loader(4))
    assert "(train_hours)" in stopping.stopping_reason_message
    assert lscore.last_record.measurements.train_hours <= 2 * 0.1 / 3600


def test_a_budget_that_no_step_fits_in_ends_after_the_first(trainer):
    stopping = CostEarlyStopping(budget={"tokens": 1})
    t = trainer(stopping, LScore(BY_TOKENS), max_epochs=9)
    t.fit(PlainLM(), loader(16), loader(4))
    assert t.global_step == 1


@pytest.mark.parametrize("measure", ["cost", "emissions_kg"])
def test_a_budget_of_what_is_not_measured_is_an_error_at_the_start(measure, trainer):
    t = trainer(CostEarlyStopping(budget={measure: 5.0}), LScore(BY_TOKENS), max_epochs=9)
    with pytest.raises(MisconfigurationException, match=f"in which {measure} is measured, got"):
        t.fit(PlainLM(), loader(16), loader(4))
    assert t.global_step <= 1


# ---------------------------------------------------------------------- as an object


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": "perplexity"}, 'monitor: expected "L"'),
        ({"tolerance": 0}, "tolerance: expected nats > 0"),
        ({"certainty": -1}, "certainty"),
        ({"ratio": -0.25}, "ratio: expected a share > 0"),
        ({"validations": 0}, "validations"),
        ({"budget": {"cost": 0}}, "budget: expected cost > 0, got 0"),
        ({"budget": {"wall_hours": 1}}, "expected amounts of tokens, .*, got 'wall_hours'"),
        ({"budget": {"dollars": 1}}, "max_time"),
    ],
)
def test_senseless_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CostEarlyStopping(**arguments)


@pytest.mark.parametrize("key", ["best_score", "rule", "wait_count", "_run"])
@pytest.mark.parametrize("value", ["missing", None, "x", [], {}])
def test_a_state_that_was_tampered_with_is_a_value_error(key, value):
    """Or a state: what is no number, list or dictionary where one belongs raises nothing else."""
    state = CostEarlyStopping().state_dict()
    state[key] = value
    if value == "missing":
        del state[key]
    try:
        CostEarlyStopping().load_state_dict(state)
    except ValueError as error:
        assert "the state that CostEarlyStopping saves" in str(error)  # noqa: PT017
    else:
        assert value != "missing"
        assert key not in ("best_score", "rule")


def test_it_pickles_before_and_after_a_fit(fit):
    stopping = CostEarlyStopping()
    pickle.loads(pickle.dumps(stopping))
    fit(Scripted(3.0), stopping)
    copy = pickle.loads(pickle.dumps(stopping))
    assert copy.state_dict() == stopping.state_dict()


def test_every_argument_is_typed_and_documented():
    """LightningCLI makes its options of them."""
    arguments = [*inspect.signature(CostEarlyStopping).parameters]
    hints = get_type_hints(CostEarlyStopping.__init__)
    for name in arguments:
        assert name in hints
        assert f"\n        {name}: " in CostEarlyStopping.__doc__
