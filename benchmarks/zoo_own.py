"""Every module of one's own in the zoo, in the order of the table."""

from __future__ import annotations

# Each puts its classes into ROWS when it is imported.
import zoo_architectures
import zoo_batches
import zoo_by_hand
import zoo_inputs
import zoo_loss_calls
import zoo_others
import zoo_several_losses
from zoo_forms import ELSE, LM, ROWS
from zoo_judge import Row

_PARTS = (
    zoo_loss_calls,
    zoo_batches,
    zoo_inputs,
    zoo_architectures,
    zoo_several_losses,
    zoo_by_hand,
    zoo_others,
)


def all_rows() -> list[Row]:
    """Language models first, then what is none."""
    place = [part.__name__ for part in _PARTS]
    return sorted(ROWS, key=lambda row: place.index(row.make.args[0].__module__))  # type: ignore[attr-defined]


__all__ = ["ELSE", "LM", "all_rows"]
