from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import VOCABULARY, PlainLM, loader, reference_perplexity, run_python

from lightning_lscore import Factor, Formula, Tracker, read_records
from lightning_lscore.curve.patience import Patience
from lightning_lscore.equation.learning_rate import LearningRate
from lightning_lscore.record.comparable import why_incomparable
from lightning_lscore.run.segment import Segment

SCRIPT = Path(__file__).parents[1] / "loop_run.py"
BY_TOKENS = Formula(D=Factor("tokens", reference=100, weight=0.05))
IDS = torch.arange(24).view(2, 12)  # a batch


def evaluate(tracker, logits=None):
    with tracker.evaluation() as held_out:
        held_out.update(torch.zeros(2, 12, VOCABULARY) if logits is None else logits, IDS)


def train(tracker, batches=1):
    with tracker.training():
        for _ in range(batches):
            tracker.count(IDS)


@pytest.fixture
def make():
    """Makes Trackers, and closes them."""
    made = []

    def tracker(*arguments, **options):
        made.append(Tracker(PlainLM(), *arguments, **options))
        return made[-1]

    yield tracker
    for one in made:
        one.close()


# ---------------------------------------------------------------- beside the callback

# All but what depends on the clock, and the steps of a loop that nobody told.
SAME = (
    *("perplexity", "nll", "validation_tokens", "tokens", "samples", "steps", "model_flops"),
    *("trainable_parameters", "total_parameters", "flops_per_token"),
)
TIMED = ("train_hours", "wall_hours", "device_hours", "cost", "capacity_flops", "mfu")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loop_by_hand_has_the_numbers_of_the_callback(processes, tmp_path):
    """One loop twice, on one process and on two: the same measurements, formula and scores."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(launcher if processes > 1 else []), str(SCRIPT), str(tmp_path), str(processes)]
    run_python(*command, folder=tmp_path)
    by_trainer, by_hand = (read_records(tmp_path / way) for way in ("trainer", "hand"))
    assert len(by_trainer) == len(by_hand) == 8
    for a, b in zip(by_trainer, by_hand, strict=True):
        for name in SAME:
            value = a.measurements.get(name)
            assert value == pytest.approx(b.measurements.get(name), rel=1e-12), name
            assert value is not None, name
        assert (a.batch, a.step, a.score.f_D, a.score.f_A) == (
            b.batch, b.step, b.score.f_D, b.score.f_A,
        )  # fmt: skip
        assert all(a.measurements.get(n) and b.measurements.get(n) for n in TIMED)
        # f_H alone depends on the clock.
        assert a.L / a.score.f_H == pytest.approx(b.L / b.score.f_H, rel=1e-12)
        assert a.evaluation.fingerprints == b.evaluation.fingerprints
        assert {k: v for k, v in a.formula.items() if k != "origin"} == {
            k: v for k, v in b.formula.items() if k != "origin"
        }
        assert [d.peak_flops for d in a.devices] == [d.peak_flops for d in b.devices]
    assert not why_incomparable(by_trainer[-1], by_hand[-1])


# ---------------------------------------------------------------- the verbs


def test_a_loop_is_counted_evaluated_and_scored(make, tmp_path):
    """What lies in training() counts, and the record is there for whoever reads it."""
    tracker = make(BY_TOKENS, directory=tmp_path)
    for step in (1, 2):
        train(tracker, 2)
        evaluate(tracker)
        record = tracker.score()
        assert record.measurements.tokens == 48 * step
        assert record.batch == record.step == 2 * step
        assert record.measurements.perplexity == pytest.approx(VOCABULARY)
        assert record.L == pytest.approx(VOCABULARY * BY_TOKENS.D.f(0.48 * step))
    assert [r.L for r in read_records(tmp_path)][-1] == tracker.last_record.L
    assert tracker.logged["L"] == record.L
    assert tracker.logged["lscore/tokens"] == 96


def test_labels_are_aligned_and_of_any_number_of_dimensions(make):
    """Nothing is shifted: label t is what logits t predict."""
    model = PlainLM()
    (batch,) = loader(4)
    logits = model(batch["input_ids"]).detach()
    expected = reference_perplexity(model, loader(4))
    for rank in (2, 3, 4):
        tracker = make()
        train(tracker)
        with tracker.evaluation() as held_out:
            x, y = logits[:, :-1], batch["labels"][:, 1:]
            pairs = zip(x, y, strict=True) if rank == 2 else [(x, y)]
            for a, b in pairs:
                held_out.update(a[None] if rank == 4 else a, b[None] if rank == 4 else b)
        record = tracker.score()
        assert record.measurements.perplexity == pytest.approx(expected, rel=1e-6)
        assert record.measurements.validation_tokens == 4 * 11


def test_tokens_may_be_counted_by_number(make):
    """For data that holds no token numbers."""
    tracker = make(BY_TOKENS)
    with tracker.training():
        tracker.count(tokens=30)
        tracker.count(tokens=12)
    evaluate(tracker)
    m = tracker.score().measurements
    assert (m.tokens, m.samples) == (42, 0)


def test_an_evaluation_within_training_costs_no_time(make, monkeypatch):
    """Time stands still in it, goes on after it, and does not go on where it stood before."""
    now = [0.0]
    defaults = Segment.__init__.__kwdefaults__
    monkeypatch.setattr(Segment.__init__, "__kwdefaults__", {**defaults, "now": lambda: now[0]})
    tracker = make(BY_TOKENS)
    with tracker.training():
        now[0] += 2.0
        tracker.count(IDS)
        with tracker.evaluation() as held_out:
            now[0] += 100.0
            held_out.update(torch.zeros(2, 12, VOCABULARY), IDS)
        tracker.score()
        now[0] += 3.0
        tracker.count(IDS)
    now[0] += 50.0
    evaluate(tracker)
    now[0] += 50.0
    assert tracker.score().measurements.train_hours * 3600 == pytest.approx(5.0)


def test_without_an_evaluation_the_record_has_what_was_spent(make, tmp_path):
    """No L, said once; an evaluation is scored once."""
    said = []
    tracker = make(BY_TOKENS, directory=tmp_path, warn=said.append)
    train(tracker)
    evaluate(tracker)
    assert tracker.score().L is not None
    train(tracker)
    again = tracker.score()
    assert (again.L, again.measurements.perplexity, again.evaluation) == (None, None, None)
    assert again.measurements.tokens == 48
    assert [message for message in said if "has no L" in message]


def test_an_evaluation_that_failed_is_not_scored(make):
    """Half of a held-out set is another set."""
    tracker = make(BY_TOKENS, warn=lambda message: None)
    train(tracker)
    with contextlib.suppress(KeyError), tracker.evaluation() as held_out:
        held_out.update(torch.zeros(2, 12, VOCABULARY), IDS)
        raise KeyError
    assert tracker.score().L is None


def test_an_evaluation_alone_needs_no_training(make):
    """Its perplexity, by key."""
    tracker = make(prefix="test_")
    evaluate(tracker)
    values = tracker.evaluate()
    assert values["test_perplexity"] == pytest.approx(VOCABULARY)
    assert values["test_lscore/validation_tokens"] == 24
    with pytest.raises(RuntimeError, match="expected an evaluation first"):
        tracker.evaluate()


@pytest.mark.parametrize("verb", ["count", "score"])
def test_what_comes_before_training_is_an_error_that_says_so(make, verb):
    with pytest.raises(RuntimeError, match="training"):
        getattr(make(), verb)()


def test_a_patience_is_told_of_the_newest_score(make):
    """With what is spent, and the price at the end of the plan."""
    tracker = make(BY_TOKENS, planned_tokens=96)
    patience = Patience(certainty=0)
    assert tracker.judge(patience) is None
    for _ in range(3):
        train(tracker)
        evaluate(tracker)
        tracker.score()
        verdict = tracker.judge(patience)
    assert verdict.validations == 2
    assert verdict.paid == pytest.approx(math.log(BY_TOKENS.D.f(0.72) / BY_TOKENS.D.f(0.24)))
    assert verdict.stop
    tracker.plan = replace(tracker.plan, learning_rate=LearningRate(now=1.0, decay="ahead"))
    train(tracker)
    evaluate(tracker)
    record = tracker.score()
    assert (record.planned, record.learning_rate.decay) == (4.0, "ahead")
    assert not tracker.judge(patience).stop


# ---------------------------------------------------------------- the plan


def test_the_plan_is_the_reference_of_the_default_formula(make):
    """All of its tokens, whatever was counted so far; without one, the law's."""
    tracker = make(planned_tokens=480)
    train(tracker)
    evaluate(tracker)
    assert tracker.formula is None
    assert tracker.score().formula["D"]["reference"] == 480
    assert tracker.formula.D.reference == 480
    lawful = make()
    train(lawful)
    evaluate(lawful)
    assert "compute-optimal" in lawful.score().formula["origin"]


def test_a_forecast_reaches_to_the_end_of_the_plan(make):
    """In tokens, as the plan is; of a rate that nobody tells nothing is foretold."""
    tracker = make(BY_TOKENS, planned_tokens=24 * 40)
    tracker.plan = replace(tracker.plan, learning_rate=LearningRate(now=0.1, decay="over"))
    for i in range(1, 31):
        train(tracker)
        logits = torch.zeros(2, 12, VOCABULARY)
        logits.scatter_(-1, IDS[..., None], 2 - i**-0.5)
        evaluate(tracker, logits)
        record = tracker.score()
    assert record.prediction.horizon == pytest.approx(40 / 30)


# ---------------------------------------------------------------- the checkpoint


def test_a_run_goes_on_from_its_state(make, tmp_path):
    """Counts, identity and formula; the state is what weights_only loading takes."""
    first = make(planned_tokens=480, directory=tmp_path)
    train(first, 2)
    evaluate(first)
    record = first.score()
    train(first)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    first.close()
    file.seek(0)
    second = make(planned_tokens=4800, directory=tmp_path)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.batches == 3
    train(second)
    evaluate(second)
    again = second.score()
    assert again.run == record.run
    assert again.measurements.tokens == 4 * 24
    assert again.formula == record.formula
    assert again.measurements.train_hours > record.measurements.train_hours
    assert [r.batch for r in read_records(tmp_path)] == [2, 4]


def test_a_state_is_loaded_before_training_begins(make):
    tracker = make()
    state = tracker.state_dict()
    train(tracker)
    with pytest.raises(RuntimeError, match="before training"):
        tracker.load_state_dict(state)


# ---------------------------------------------------------------- the end


def test_closing_ends_the_thread_and_keeps_the_numbers(make):
    tracker = make(BY_TOKENS)
    train(tracker)
    evaluate(tracker)
    record = tracker.score()
    assert "lscore-sampler" in {t.name for t in threading.enumerate()}
    tracker.close()
    tracker.close()
    assert "lscore-sampler" not in {t.name for t in threading.enumerate()}
    assert tracker.last_record is record
    assert tracker.state_dict()["spent"]["tokens"] == 24
    with pytest.raises(RuntimeError, match="make another"), tracker.training():
        pass


def test_an_exception_in_training_stops_the_clock_and_goes_on_its_way(make):
    """Whoever catches it may go on training."""
    tracker = make(BY_TOKENS)
    with contextlib.suppress(KeyError), tracker.training():
        tracker.count(IDS)
        raise KeyError
    train(tracker)
    evaluate(tracker)
    assert tracker.score().measurements.tokens == 48


def test_a_record_that_cannot_be_written_costs_a_warning_not_the_run(make, tmp_path):
    (tmp_path / "file").touch()
    tracker = make(BY_TOKENS, directory=tmp_path / "file")
    train(tracker)
    evaluate(tracker)
    with pytest.warns(UserWarning, match="LScore cannot write its record"):
        assert tracker.score().L is not None
    train(tracker)
    evaluate(tracker)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        tracker.score()


def test_an_assumption_is_told_once_and_recorded(make, tmp_path):
    told = []
    tracker = make(BY_TOKENS, directory=tmp_path, tell=told.append, warn=told.append)
    with tracker.training():
        tracker.count(tokens=8)
    for how in ("4 batches", "4 batches", "5 batches"):
        tracker.assume("plan", how)
    plans = [line for line in told if line.startswith("LScore plan")]
    assert plans == ["LScore plan: 4 batches", "LScore plan: 5 batches"]
    tracker.score()
    assert read_records(tmp_path)[-1].assumptions["plan"] == "5 batches"


def test_an_assumption_goes_to_the_log_of_the_package(make, caplog):
    with caplog.at_level("INFO", logger="lightning_lscore"):
        make(BY_TOKENS).assume("plan", "4 batches")
    assert caplog.messages == ["LScore plan: 4 batches"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"planned_tokens": 0}, "planned_tokens: expected a finite number > 0, got 0"),
        ({"planned_tokens": math.inf}, "planned_tokens"),
        ({"formula": 3}, "formula: expected a Formula"),
        ({"sample_interval": 0}, "sample_interval"),
    ],
)
def test_arguments_that_make_no_sense_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        Tracker(PlainLM(), **options)


@pytest.mark.parametrize("count", ["count", 9e9, None])
def test_flops_are_counted_or_given(make, count):
    """As with the callback; counted in the first step, unasked where the structure tells little."""
    tracker = make(BY_TOKENS, flops_per_token=count)
    model = PlainLM()
    for _ in range(2):
        with tracker.training():
            model(IDS).sum().backward()
            tracker.count(IDS)
    evaluate(tracker)
    m = tracker.score().measurements
    # The head is the only product: 2 FLOP forward, 4 backward, though without that to its input.
    expected = 9e9 if count == 9e9 else 6.0 * 16 * VOCABULARY
    assert ("as given" if count == 9e9 else "counted in one step") in m.provenance["model_flops"]
    assert m.flops_per_token == pytest.approx(expected)
