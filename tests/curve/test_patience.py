from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.curve.newest import NOISE_WINDOW, REMEMBERED
from lightning_lscore.curve.patience import HISTORY, Patience
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.learning_rate import LearningRate
from lightning_lscore.equation.measurements import Measurements

curves = st.lists(st.tuples(st.floats(0.5, 12), st.floats(0, 0.02)), max_size=60)


def feed(patience, curve):
    """Verdicts on (ln T, rise of ln f) pairs; the price adds up."""
    ln_f, verdicts = -0.05, []
    for ln_T, rise in curve:
        ln_f += rise
        verdicts.append(patience.update(ln_T=ln_T, ln_f=ln_f))
    return verdicts


def along_plan(patience, losses, total_price, validations=100):
    """Verdicts on a run of evenly spaced validations whose price rises evenly to the plan's end."""
    return [
        patience.update(
            ln_T=loss,
            ln_f=total_price * i / validations,
            spent=i,
            planned=validations,
            ln_f_at_end=total_price,
        )
        for i, loss in enumerate(losses)
    ]


def stopped_at(verdicts):
    return next((i for i, v in enumerate(verdicts) if v.stop), None)


def test_it_stops_when_the_price_since_the_best_exceeds_the_tolerance():
    flat = [(3.0, 0.001)] * 20
    assert stopped_at(feed(Patience(0.0055), flat)) == 6  # 6 · 0.001 >= 0.0055
    assert stopped_at(feed(Patience(0.0105), flat)) == 11


def test_it_waits_for_two_validations_however_high_the_price():
    assert stopped_at(feed(Patience(), [(3.0, 0), (3.0, 1.0), (3.0, 1.0)])) == 2
    assert stopped_at(feed(Patience(validations=1), [(3.0, 0), (3.0, 1.0)])) == 1


def test_it_goes_on_as_long_as_each_price_buys_a_lower_L():
    improving = [(3.0 - 0.02 * i, 0.01) for i in range(50)]
    verdicts = feed(Patience(), improving)
    assert stopped_at(verdicts) is None
    assert all(v.improved and v.waited == 0 for v in verdicts)


def test_it_never_stops_where_nothing_costs_anything():
    assert stopped_at(feed(Patience(), [(3.0, 0) for _ in range(30)])) is None


def test_the_outlook_is_what_the_last_stretch_bought_less_what_the_rest_costs():
    falling = [3.0 - 0.001 * i for i in range(101)]  # a straight line: no noise
    verdicts = along_plan(Patience(), falling, total_price=0.05)
    assert all(v.outlook is None for v in verdicts[:50])
    assert verdicts[80].outlook == pytest.approx(20 * 0.001 - 20 * 0.0005)


def test_it_stops_before_its_patience_is_over_when_the_rest_is_hopeless():
    """Flat from 60 % of the plan on, at a price that patience would never use up."""
    flat = [3.0 - 0.002 * min(i, 60) for i in range(101)]
    verdicts = along_plan(Patience(), flat, total_price=0.012)
    stop = stopped_at(verdicts)
    assert stop == next(i for i, v in enumerate(verdicts) if (v.outlook or 1) < 0.005)
    assert 75 < stop < 85  # 2 · stop - 100 < 60: the last stretch still saw some of the fall
    assert verdicts[stop].waited < verdicts[stop].patience
    assert "can lower it by" in verdicts[stop].reason
    assert stopped_at(feed(Patience(), [(y, 0.00012) for y in flat])) is None


def test_noise_makes_the_outlook_careful():
    flat = [3.0 - 0.002 * min(i, 60) for i in range(101)]
    noisy = [y + 0.004 * (-1) ** i for i, y in enumerate(flat)]
    calm = stopped_at(along_plan(Patience(), flat, total_price=0.012))
    assert (stopped_at(along_plan(Patience(), noisy, total_price=0.012)) or 999) > calm


def test_a_counter_that_begins_anew_forgets_the_stretch_before():
    patience = Patience()
    along_plan(patience, [3.0] * 101, total_price=0.01)
    again = patience.update(ln_T=3.0, ln_f=0.0, spent=0, planned=100, ln_f_at_end=0.01)
    assert again.outlook is None
    assert patience.state_dict()["history"] == [[0.0, 3.0]]


def test_beyond_the_plan_there_is_no_outlook():
    patience = Patience()
    along_plan(patience, [3.0] * 101, total_price=0.01)
    later = patience.update(ln_T=3.0, ln_f=0.02, spent=120, planned=100, ln_f_at_end=0.01)
    assert later.outlook is None


def test_the_price_is_that_of_the_formula_now_and_at_the_end():
    formula = Formula.for_plan(parameters=10**8, tokens=10**9)
    now = Measurements(
        nll=3.1,
        tokens=25 * 10**7,
        trainable_parameters=10**8,
        capacity_flops=0.25 * 6e17 / 0.4,
    )
    assert formula.ln_price(now, growth=4) == pytest.approx(0)
    assert formula.ln_price(now) == pytest.approx(math.log(formula.score(now).L) - 3.1)
    assert formula.ln_price(Measurements(tokens=1)) is None
    assert Formula(D=Factor("tokens", 1e9, c=0)).ln_price(Measurements(tokens=0)) == -math.inf
    assert Formula(D=0.5).ln_price(Measurements()) == pytest.approx(math.log(0.5))


def test_a_function_that_has_no_value_ahead_has_no_price_there():
    """What it says now is an error of its own; what it would say later must not end a run."""
    m = Measurements(tokens=10)
    for function in (lambda m: 15 - m.tokens, lambda m: 1 / (20 - m.tokens)):
        formula = Formula(D=function)
        assert formula.ln_price(m) is not None
        assert formula.ln_price(m, growth=2) is None
    with pytest.raises(ValueError, match=r"Formula\.D"):
        Formula(D=lambda m: -1).ln_price(m)


def test_a_start_at_no_spending_needs_no_special_case():
    """A trained model: the first validation, at no cost, is the best for a while."""
    verdicts = feed(Patience(certainty=0), [(3.0, 0), *[(3.0, 0.0004)] * 9])
    assert stopped_at(verdicts) is None


def test_noise_makes_it_wait_longer():
    def curve(sd):
        # Scatter of a fixed pattern around a standing loss, the lowest reading first.
        return [(3 + sd * x, 0.001) for x in [-2, 1, -1, 1.2, -0.8, 1, -1.1] + [0.5, -0.5] * 60]

    calm, noisy = (stopped_at(feed(Patience(), curve(sd))) for sd in (0.0, 0.003))
    assert calm is not None
    assert noisy is not None
    assert noisy > calm
    assert stopped_at(feed(Patience(certainty=0), curve(0.003))) == calm


def test_the_noise_is_the_standard_deviation_of_independent_scatter():
    import random

    normal = random.Random(0)
    noises = []
    for _ in range(200):
        falling = [(4 - 0.01 * i + normal.gauss(0, 0.002), 0) for i in range(NOISE_WINDOW + 3)]
        verdicts = feed(Patience(), falling)
        noises.append(verdicts[-1].noise)
    assert sum(noises) / len(noises) == pytest.approx(0.002, rel=0.1)


AHEAD, UNDER_WAY, OVER = (
    LearningRate.before(1.0, rates) for rates in ([1.0, 0.1], [0.9, 0.1], [1.0, 1.0])
)


def test_before_a_decay_it_says_why_it_goes_on_and_remembers():
    patience = Patience()
    for i in range(10):
        verdict = patience.update(ln_T=3.0, ln_f=0.01 * i, learning_rate=AHEAD)
    assert not verdict.stop
    assert "a decay of the learning rate is still ahead, so the run goes on" in verdict.reason
    # What was paid before is not held against the decay, which gets two validations to show.
    first, second = (
        patience.update(ln_T=3.0, ln_f=ln_f, learning_rate=UNDER_WAY) for ln_f in (0.10, 0.11)
    )
    assert (first.stop, second.stop) == (False, True)
    assert second.waited == pytest.approx(0.02)
    assert second.paid == pytest.approx(0.11)


@pytest.mark.parametrize(("rate", "stop"), [(AHEAD, None), (UNDER_WAY, 3), (OVER, 3), (None, 3)])
def test_only_a_decay_ahead_keeps_the_price_from_ending_a_run(rate, stop):
    def run(**options):
        patience = Patience(**options)
        return stopped_at(
            [
                patience.update(ln_T=3.0, ln_f=0.004 * i, spent=1 + i, learning_rate=rate)
                for i in range(12)
            ]
        )

    assert run() == stop
    assert run(while_decaying=True) == 3
    assert run(ratio=0.25) == (stop and 2)
    assert run(ratio=0.25, while_decaying=True) == 2


def test_a_loss_that_rises_beyond_noise_ends_a_run_even_before_a_decay():
    """At the third validation in a row that is above the lowest, whatever spending costs."""
    for rise, stop in ((0.006, 10), (0.004, None)):
        patience = Patience()
        losses = [*[3.0] * 8, *[3.0 + rise] * 12]
        verdicts = [patience.update(ln_T=y, ln_f=0.0, learning_rate=AHEAD) for y in losses]
        assert stopped_at(verdicts) == stop
    noise = [0.02 * (-1) ** i for i in range(20)]
    patience = Patience()
    noisy = [patience.update(ln_T=3.0 + x, ln_f=0.0) for x in noise]
    assert stopped_at(noisy) is None


@pytest.mark.parametrize("options", [{}, {"ratio": 0.25}])
@pytest.mark.parametrize(
    ("bend", "diverges"),
    [
        ([3.4, 3.9], True),
        ([math.nan, math.inf], True),
        ([3.4, math.nan], True),
        ([3.31, 3.30], False),  # far above, and no longer rising
        ([3.25, 3.28], False),
    ],
)
def test_a_run_that_diverges_ends_within_two_validations(bend, diverges, options):
    """10 % above the lowest and rising, or no number at all; before a decay too."""
    for falling in ([3.0], [3.2, 3.1, 3.0], [4.0, 3.5, 3.3, 3.2, 3.1, 3.05, 3.0]):
        patience = Patience(**options)
        verdicts = [
            patience.update(ln_T=y, ln_f=0.0, spent=1.0, learning_rate=AHEAD)
            for y in [*falling, *bend]
        ]
        assert stopped_at(verdicts) == (len(falling) + 1 if diverges else None)
        assert verdicts[-1].cause == ("held-out loss diverging" if diverges else "")


def test_a_small_loss_does_not_diverge_by_a_hundredth():
    patience = Patience()
    for y in (0.030, 0.034, 0.038):
        verdict = patience.update(ln_T=y, ln_f=0.0)
    assert not verdict.stop


def test_after_a_warm_restart_the_loss_may_rise():
    """A cosine of two cycles: the loss follows the rate up, and falls below its lowest at last."""

    def run(rates, losses):
        patience = Patience(certainty=0)
        return stopped_at(
            [
                patience.update(
                    ln_T=y,
                    ln_f=0.004 * i,
                    learning_rate=LearningRate.before(rates[i], rates[i + 1 :]),
                )
                for i, y in enumerate(losses)
            ]
        )

    cycle = [1.0, 0.8, 0.5, 0.2, 0.05]
    losses = [3.3, 3.2, 3.1, 3.0, 2.95, 3.1, 3.1, 3.05, 2.97, 2.7]
    assert run(cycle * 2, losses) is None
    assert run([1 - i / 20 for i in range(10)], losses) == 6
    # What the second cycle did not better, a third need not try.
    flat = [*losses[:5], 3.1, 3.1, 3.05, 2.97, 2.96, *losses[5:]]
    assert run(cycle * 3, flat) == 9


def test_a_loss_that_falls_faster_and_faster_is_not_given_up():
    """As in a warm-up, where the price runs ahead of the first gains."""
    late = [4.0, 4.0, 3.999, 3.997, 3.993, 3.986, 3.975, 3.96, 3.94, 3.91, 3.87, 3.82]
    priced = [(y, 0.006) for y in late]
    assert stopped_at(feed(Patience(), priced)) is None
    steady = [(4.0 - 0.003 * i, 0.006) for i in range(12)]
    assert stopped_at(feed(Patience(), steady)) == 2


def test_before_its_noise_is_known_a_run_gets_one_more_tolerance():
    """Three validations have no third difference."""
    assert stopped_at(feed(Patience(), [(3.0, 0.004)] * 9)) == 3
    assert stopped_at(feed(Patience(), [(3.0, 0.006)] * 9)) == 2
    assert stopped_at(feed(Patience(certainty=0), [(3.0, 0.004)] * 9)) == 2


def test_a_state_of_an_earlier_version_is_taken():
    old = Patience()
    feed(old, [(3.0, 0.001)] * 3)
    state = {k: v for k, v in old.state_dict().items() if k not in ("loss", "rates", "start")}
    patience = Patience()
    patience.load_state_dict(state)
    assert patience.best_ln_L == old.best_ln_L


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_no_numbers_are_no_improvement(bad):
    patience = Patience()
    assert not patience.update(ln_T=bad, ln_f=-0.05).improved
    assert patience.update(ln_T=bad, ln_f=-0.048).stop  # diverged from the start
    assert patience.update(ln_T=3.0, ln_f=-0.03).improved
    assert math.isfinite(patience.update(ln_T=bad, ln_f=-0.02).noise)


def test_a_price_of_zero_spending_under_a_plain_power_is_minus_infinity():
    patience = Patience()
    for _ in range(3):
        verdict = patience.update(ln_T=3.0, ln_f=-math.inf)
        assert not verdict.stop
        assert verdict.waited == verdict.paid == 0
    assert patience.update(ln_T=3.0, ln_f=-1.0).stop


@pytest.mark.parametrize("ln_f", [math.nan, math.inf])
def test_a_price_that_is_no_number_is_refused(ln_f):
    with pytest.raises(ValueError, match="ln_f: expected a number"):
        Patience().update(ln_T=3.0, ln_f=ln_f)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0}, "tolerance: expected nats > 0"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"ratio": 0}, "ratio: expected a share > 0"),
        ({"ratio": math.inf}, "ratio"),
        ({"certainty": -1}, "certainty: expected standard deviations >= 0"),
        ({"validations": 0}, "validations: expected a whole number >= 1"),
        ({"validations": 2.5}, "validations"),
        ({"validations": True}, "validations"),
    ],
)
def test_senseless_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Patience(**arguments)


@given(curves, st.integers(0, 60))
def test_a_resume_from_its_state_changes_nothing(curve, cut):
    one, first, second = Patience(), Patience(), Patience()
    ln_f, whole, verdicts = -0.05, [], []
    for i, (ln_T, rise) in enumerate(curve):
        if i == cut:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        ln_f += rise
        whole.append(one.update(ln_T=ln_T, ln_f=ln_f, spent=i, planned=40, ln_f_at_end=0.1))
        verdicts.append(
            (first if i < cut else second).update(
                ln_T=ln_T, ln_f=ln_f, spent=i, planned=40, ln_f_at_end=0.1
            )
        )
    if cut < len(curve):
        assert verdicts == whole


@given(curves, st.floats(-5, 5))
def test_what_a_constant_factor_charges_does_not_matter(curve, constant):
    """Multiplying L by a number moves no verdict, up to rounding at a tie."""
    a, b, ln_f = Patience(), Patience(), 0.0
    for ln_T, rise in curve:
        ln_f += rise
        one, other = a.update(ln_T=ln_T, ln_f=ln_f), b.update(ln_T=ln_T, ln_f=ln_f + constant)
        if one.improved != other.improved:
            return  # a tie
        assert other.waited == pytest.approx(one.waited, abs=1e-9)
        assert other.patience == one.patience


@given(curves)
def test_it_stops_only_after_paying_its_patience_for_nothing(curve):
    for v in feed(Patience(), curve):
        assert v.turned or not (v.stop and (v.improved or not v.impatient or v.held_back))
        assert v.impatient == (v.waited >= v.patience and v.validations >= 2)
        assert v.patience >= 0.005
        assert v.reason.endswith(".")


def test_a_ratio_stops_when_that_much_more_has_been_spent():
    """25 % since the best L, and two validations that brought nothing, whatever they cost."""

    def stop(validations=2, first=10.0):
        patience = Patience(ratio=0.25, validations=validations)
        spent = [first, 10, 11, 12, 12.5, 13]
        return [
            patience.update(ln_T=3.0 - (s <= 10), ln_f=s / 1e6, spent=s, planned=99, ln_f_at_end=9)
            for s in spent
        ]

    assert stopped_at(stop()) == 4
    assert stopped_at(stop(validations=5)) == 5
    last = stop()[4]
    assert (last.waited, last.outlook) == (pytest.approx(math.log(1.25)), None)
    assert last.paid == pytest.approx(2.5e-6), "the price is still reported"
    assert "the spending rose by 25.00 % of 25.00 % accepted" in last.reason


def test_a_ratio_of_nothing_spent_is_exceeded_by_anything():
    """The weakness of the plain rule, and no exception."""
    patience = Patience(ratio=0.25)
    verdicts = [patience.update(ln_T=3.0, ln_f=s, spent=s) for s in (0, 1, 2)]
    assert [v.stop for v in verdicts] == [False, False, True]
    with pytest.raises(ValueError, match="spent: expected a number"):
        patience.update(ln_T=3.0, ln_f=3.0)


def test_a_reset_forgets_everything():
    """As if it were new."""
    patience = Patience()
    feed(patience, [(3.0, 0.01)] * 5)
    patience.reset()
    assert patience.state_dict() == Patience().state_dict()


def test_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match="expected the state of a Patience"):
        Patience().load_state_dict({"wait_count": 3})


def test_the_state_is_plain_and_bounded():
    patience = Patience()
    feed(patience, [(3.0, 0.001)] * 500)
    state = patience.state_dict()
    assert len(state["recent"]) == REMEMBERED
    assert {type(v) for v in state.values()} <= {int, float, list, type(None)}


def test_of_a_long_stretch_a_checkpoint_keeps_a_bounded_part():
    """The outlook at any time is that of the whole curve, however often a run validates."""
    patience, planned = Patience(), 20_000
    for spent in range(1, planned):
        verdict = patience.update(
            ln_T=3 + spent**-0.5, ln_f=0.0, spent=spent, planned=planned, ln_f_at_end=0.0
        )
        assert len(patience.state_dict()["history"]) <= HISTORY + 1
        if spent in (12_000, 15_000, 19_999):
            then = 2 * spent - planned
            assert verdict.outlook == pytest.approx(then**-0.5 - spent**-0.5, rel=1e-3, abs=1e-8)
