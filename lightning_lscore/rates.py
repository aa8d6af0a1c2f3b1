"""Read the learning rates off the Trainer, and ask its schedulers what they will still do.

A scheduler is never moved: a copy of it runs ahead, on a stand-in for its optimiser.
"""

from __future__ import annotations

import copy
import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import lr_scheduler

from .equation.learning_rate import LearningRate

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_LOOKS = 64  # ahead, evenly up to the end of the plan: as many validations as a run often has
_FARTHEST = 5.0  # times the batches so far: how far a schedule is asked without a finite plan
_STEPS = 10_000  # that a scheduler without a closed form is stepped through: some 50 ms

# Their rate depends on the number of the step alone.
_BY_STEP = (lr_scheduler.LambdaLR, lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR)


def learning_rate(
    trainer: Trainer, batch: int, planned: float | None, before: LearningRate | None = None
) -> LearningRate:
    """Return the rate now, summed over parameter groups, and where it stands in its decay.

    Args:
        trainer: in a fit.
        batch: micro-batches of this rank so far.
        planned: those of the whole run; None without a finite plan.
        before: the rate at the validation before.
    """
    now = math.fsum(_rates(trainer.optimizers))
    if not math.isfinite(now):
        return LearningRate()
    module = trainer.lightning_module
    if not trainer.lr_scheduler_configs:
        by_hand = before is not None and (before.now != now or before.decay == "unknown")
        return LearningRate(now=now, decay="unknown" if by_hand else "over")
    if module is None or not module.automatic_optimization:  # who knows when they are stepped
        return LearningRate(now=now)
    end = _FARTHEST * batch if planned is None else planned
    looks = (
        [batch + (end - batch) * i / _LOOKS for i in range(1, _LOOKS + 1)] if end > batch else []
    )
    try:
        ahead = [_ahead(trainer, config, batch, looks) for config in trainer.lr_scheduler_configs]
    except Exception:  # of a scheduler of the user's own: its future is unknown
        return LearningRate(now=now)
    moved = {id(config.scheduler.optimizer) for config in trainer.lr_scheduler_configs}
    still = math.fsum(_rates([o for o in trainer.optimizers if id(o) not in moved]))
    return LearningRate.before(
        now, [still + math.fsum(rates) for rates in zip(*ahead, strict=True)]
    )


def _rates(optimizers: Sequence[Any]) -> list[float]:
    return [float(g["lr"]) for o in optimizers for g in o.param_groups if "lr" in g]


def _ahead(trainer: Trainer, config: Any, batch: int, looks: Sequence[float]) -> list[float]:
    """The rates of a scheduler at these batches, summed over its groups."""
    batches = {"epoch": trainer.num_training_batches, "step": trainer.accumulate_grad_batches}
    period = config.frequency * batches[config.interval]
    # The nearest look sees the next step, however far it is.
    steps = [max(1, int(look / period) - int(batch / period)) for look in looks]
    held = (trainer, trainer.lightning_module)
    return [math.fsum(rates) for rates in rates_ahead(config.scheduler, steps, held)]


def rates_ahead(
    scheduler: Any, steps: Sequence[int], held: Sequence[Any] = ()
) -> list[list[float]]:
    """Return the rate of each parameter group so many steps from now.

    Args:
        scheduler: of ``torch.optim.lr_scheduler``, or derived from one of them.
        steps: not falling.
        held: objects that a function of the scheduler may hold, and that are not copied with it.

    Raises:
        ValueError: if nothing foretells its rates.
    """
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        raise ValueError("expected a schedule, got a scheduler that follows a metric")
    stand_in = _StandIn(scheduler.optimizer)
    kept = {id(scheduler.optimizer): stand_in, **{id(one): one for one in held}}
    ahead = copy.deepcopy(scheduler, kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of asking for a rate out of turn
        if _has_closed_form(ahead):
            now = ahead.last_epoch
            return [_rates_at(ahead, now + n) for n in steps]
        if steps and steps[-1] > _STEPS:
            raise ValueError(f"expected at most {_STEPS} steps to go through, got {steps[-1]}")
        found, done = [], 0
        for n in steps:
            for _ in range(n - done):
                ahead.step()
            done = max(done, n)
            found.append([float(group["lr"]) for group in stand_in.param_groups])
        return found


class _StandIn:
    """What a scheduler sees of an optimiser, without its parameters and their state."""

    def __init__(self, optimizer: Any) -> None:
        self.param_groups = [
            {name: copy.copy(value) for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        self.defaults = dict(getattr(optimizer, "defaults", {}))

    def step(self) -> None:
        """Called by no one; a scheduler looks whether it is there."""


def _has_closed_form(scheduler: Any) -> bool:
    if type(scheduler).__module__ != lr_scheduler.__name__:
        return False  # a class derived from one with a closed form may have another form
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        return all(map(_has_closed_form, scheduler._schedulers))
    return isinstance(scheduler, _BY_STEP) or hasattr(scheduler, "_get_closed_form_lr")


def _rates_at(scheduler: Any, step: int) -> list[float]:
    if isinstance(scheduler, lr_scheduler.SequentialLR):
        i = bisect_right(scheduler._milestones, step)
        begun = scheduler._milestones[i - 1] if i else 0
        return _rates_at(scheduler._schedulers[i], step - begun)
    scheduler.last_epoch = step
    closed = getattr(scheduler, "_get_closed_form_lr", None)
    return [float(rate) for rate in (closed or scheduler.get_lr)()]
