"""Read the Trainer's plan: how long it trains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def planned_batches(trainer: Trainer) -> float | None:
    """Return the micro-batches that each rank is set to process; None: no finite plan."""
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(trainer.max_epochs * trainer.num_training_batches)
    if trainer.max_steps >= 0:
        limits.append(trainer.max_steps * trainer.accumulate_grad_batches)
    least = min(limits, default=math.inf)
    return float(least) if 0 < least < math.inf else None
