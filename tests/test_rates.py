"""What schedulers are asked for their future."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import lr_scheduler as ls

from lightning_lscore.rates import rates_ahead


def optimizer(kind=torch.optim.AdamW):
    model = torch.nn.Linear(2, 2)
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.02}]
    return kind(groups)


class Halving(ls.LRScheduler):
    """Its own class, without a closed form."""

    def get_lr(self):
        return [group["lr"] * 0.5 for group in self.optimizer.param_groups]


class Other(ls.CosineAnnealingLR):
    """Derived from one with a closed form, which it does not follow."""

    def get_lr(self):
        return [base / (1 + self.last_epoch) for base in self.base_lrs]


SCHEDULERS = {
    "LambdaLR": lambda o: ls.LambdaLR(o, lambda n: 1 / (1 + n)),
    "StepLR": lambda o: ls.StepLR(o, 7),
    "MultiStepLR": lambda o: ls.MultiStepLR(o, [5, 11]),
    "ExponentialLR": lambda o: ls.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: ls.PolynomialLR(o, 30, power=2.0),
    "CosineAnnealingLR": lambda o: ls.CosineAnnealingLR(o, 30),
    "OneCycleLR": lambda o: ls.OneCycleLR(o, 0.1, total_steps=40),
    "CyclicLR": lambda o: ls.CyclicLR(o, 0.01, 0.1, 6, cycle_momentum=False),
    "CosineAnnealingWarmRestarts": lambda o: ls.CosineAnnealingWarmRestarts(o, 8, 2),
    "MultiplicativeLR": lambda o: ls.MultiplicativeLR(o, lambda n: 0.95),
    "SequentialLR": lambda o: ls.SequentialLR(
        o, [ls.LinearLR(o, 0.1, total_iters=4), ls.CosineAnnealingLR(o, 20)], [4]
    ),
    "ChainedScheduler": lambda o: ls.ChainedScheduler([ls.LinearLR(o), ls.ExponentialLR(o, 0.9)]),
    "one's own": Halving,
    "one derived": lambda o: Other(o, 30),
}


@pytest.mark.parametrize("begun", [0, 3, 9])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_a_scheduler_goes_on_as_foretold_and_is_not_moved_by_the_question(make, begun):
    opt = optimizer()
    scheduler = make(opt)

    def go_on():
        opt.step()
        scheduler.step()
        return [group["lr"] for group in opt.param_groups]

    for _ in range(begun):
        go_on()
    before = copy.deepcopy([{**g, "params": None} for g in opt.param_groups])
    state = copy.deepcopy({k: v for k, v in scheduler.state_dict().items() if k != "_schedulers"})
    foretold = rates_ahead(scheduler, [1, 2, 2, 5, 20])
    assert [{**g, "params": None} for g in opt.param_groups] == before
    assert {k: v for k, v in scheduler.state_dict().items() if k != "_schedulers"} == state
    came = [go_on() for _ in range(20)]
    for rates, n in zip(foretold, [1, 2, 2, 5, 20], strict=True):
        assert rates == pytest.approx(came[n - 1], rel=1e-6, abs=1e-12)


def test_a_scheduler_that_follows_a_metric_has_no_future():
    with pytest.raises(ValueError, match="follows a metric"):
        rates_ahead(ls.ReduceLROnPlateau(optimizer()), [1])


def test_a_far_future_is_asked_of_closed_forms_only():
    opt = optimizer()
    (rates,) = rates_ahead(ls.CosineAnnealingLR(opt, 10**9), [10**9])
    assert rates == pytest.approx([0, 0], abs=1e-9)
    with pytest.raises(ValueError, match="at most"):
        rates_ahead(Halving(optimizer()), [10**9])


def test_what_a_function_of_a_scheduler_holds_is_not_copied():
    class Heavy:
        def __deepcopy__(self, memo):
            raise AssertionError

        def factor(self, step):
            return 0.5**step

    heavy = Heavy()
    scheduler = ls.LambdaLR(optimizer(), heavy.factor)
    assert rates_ahead(scheduler, [2], [heavy]) == [pytest.approx([0.025, 0.005])]
