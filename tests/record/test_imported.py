from __future__ import annotations

import math

import pytest

from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.record.file import append_record, read_run
from lightning_lscore.record.foreign_logs import ForeignLog
from lightning_lscore.record.imported import Import, records_of

CURVE = {10: 3.0, 20: 2.5, 40: 2.4}
LOG = ForeignLog(
    source="metrics.csv",
    kind="a test",
    values={s: {"val_loss": y, "lr-AdamW": 1 / s, "epoch": s / 20} for s, y in CURVE.items()},
    facts={"max_steps": 50},
)
GIVEN = Import(
    parameters=1e6, tokens_per_step=100, train_hours=2.0, devices=4, peak_tflops=10,
    price_per_device_hour=3.0,
)  # fmt: skip


def test_each_validation_is_a_record_whose_values_say_where_they_come_from():
    a, b, c = records_of(LOG, GIVEN)
    assert [r.step for r in (a, b, c)] == [10, 20, 40]
    m = c.measurements
    assert m.nll == 2.4
    assert m.perplexity == pytest.approx(math.exp(2.4))
    assert (m.tokens, m.steps, m.trainable_parameters) == (4000, 40, 1_000_000)
    assert (m.train_hours, m.device_hours, m.cost) == (2.0, 8.0, 24.0)
    assert b.measurements.device_hours == 4.0
    assert m.capacity_flops == 8 * 3600 * 1e13
    assert m.model_flops == 6 * 1e6 * 4000
    assert m.mfu == m.model_flops / m.capacity_flops
    assert m.provenance["nll"] == "imported: val_loss of metrics.csv"
    for name in ("tokens", "device_hours", "capacity_flops", "model_flops", "cost"):
        assert m.provenance[name].startswith("imported: ")
    assert c.learning_rate.now == 1 / 40
    assert c.planned == 50
    assert len(c.devices) == 4
    assert a.run == c.run
    assert c.formula["origin"] == "the run's own plan of 5000 tokens"
    assert c.L == pytest.approx(m.perplexity * c.score.f_D * c.score.f_H)
    slope = (2.4 - 2.5) / math.log(2)
    assert m.elasticity == pytest.approx(slope)
    assert m.elasticity_needed == pytest.approx(Formula.from_dict(c.formula).elasticity_needed(m))


def test_what_nobody_knows_is_absent_and_not_charged():
    """L is then the perplexity, and the formula says what it leaves out."""
    (*_, last) = records_of(LOG, Import())
    m = last.measurements
    assert (m.tokens, m.device_hours, m.cost) == (None, None, None)
    assert m.provenance["tokens"] == "unavailable: say --tokens-per-step"
    assert last.L == pytest.approx(m.perplexity)
    assert "nothing is charged" in last.formula["origin"]
    (*_, last) = records_of(LOG, Import(parameters=1e6, tokens_per_step=100))
    assert last.formula["H"] == 1.0
    assert "H is not in the log" in last.formula["origin"]
    assert last.L == pytest.approx(last.score.perplexity * last.score.f_D)


def test_keys_may_be_named_and_usual_names_are_found():
    log = ForeignLog(
        source="x",
        kind="a test",
        values={1: {"my_ppl": 9.0, "seen": 7.0, "t": 3600.0}, 2: {"my_ppl": 8.0, "tokens": 11.0}},
    )
    options = Import(perplexity="my_ppl", tokens="seen", seconds="t")
    first, second = records_of(log, options)
    assert (first.measurements.perplexity, first.measurements.tokens) == (9.0, 7)
    assert (second.measurements.tokens, second.measurements.train_hours) == (7, 1.0)
    (*_, second) = records_of(log, Import(perplexity="my_ppl"))
    assert second.measurements.tokens == 11
    with pytest.raises(ValueError, match=r"a held-out loss or perplexity in x, got my_ppl, seen"):
        records_of(log, Import())
    with pytest.raises(ValueError, match=r"expected a key of the log \(.*\), got 'val'"):
        records_of(log, Import(loss="val"))


def test_time_and_arithmetic_of_transformers_are_spread_over_the_steps():
    log = ForeignLog(
        source="trainer_state.json",
        kind="transformers",
        values={10: {"eval_loss": 3.0}, 40: {"eval_loss": 2.0}},
        facts={"train_runtime": 7200.0, "total_flos": 4e15, "max_steps": 40},
    )
    first, last = (r.measurements for r in records_of(log, Import(peak_tflops=1)))
    assert (first.train_hours, last.train_hours) == (0.5, 2.0)
    assert (first.model_flops, last.model_flops) == (1e15, 4e15)
    assert "spread evenly" in last.provenance["train_hours"]


def test_one_log_with_other_facts_given_is_another_run():
    """Else a comparison would take the two for one, and leave out the first."""
    small, again, large = (records_of(LOG, Import(parameters=n))[-1].run for n in (1e6, 1e6, 2e6))
    assert small == again != large


def test_imported_runs_compare_where_they_name_one_held_out_set(tmp_path):
    """Written and read again, like any other record."""
    for r in records_of(LOG, Import(held_out="c4", formula=Formula(D=Factor("tokens", 1.0)))):
        append_record(tmp_path / "lscore.jsonl", r)
    again = read_run(tmp_path)
    assert [r.step for r in again] == [10, 20, 40]
    assert again[-1].evaluation.fingerprints == ("imported c4",)
    assert records_of(LOG, Import())[-1].evaluation.fingerprints == ()
    assert again[-1].score.missing == ("tokens: unavailable: say --tokens-per-step",)


@pytest.mark.parametrize(
    "options",
    [
        {"tokens_per_step": 0},
        {"parameters": math.nan},
        {"devices": 0},
        {"loss": "a", "perplexity": "b"},
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        Import(**options)
