"""The formula in force as hyper-parameters of a run, which tell what its L was scored under."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .equation.factor import Factor
from .equation.formula import Formula


def log_formula(formula: Formula, prefix: str, loggers: Sequence[Any]) -> None:
    """Tell loggers the formula: its id, by which runs can be grouped, origin, measures and weights.

    Args:
        formula: in force.
        prefix: of LScore's names.
        loggers: the Trainer's.
    """
    found: dict[str, Any] = {"id": formula.id, "origin": formula.origin, "T": formula.T}
    for letter in "DAH":
        factor = getattr(formula, letter)
        if isinstance(factor, Factor):
            for name in ("measure", "reference", "weight", "c"):
                found[f"{letter}_{name}"] = getattr(factor, name)
        else:
            found[letter] = factor if isinstance(factor, float) else "a function"
    named = {f"{prefix}lscore/formula/{name}": value for name, value in found.items()}
    for logger in loggers:
        if "TensorBoardLogger" in {kind.__name__ for kind in type(logger).__mro__}:
            _tell_tensorboard(logger, f"{prefix}lscore/formula", named)
        else:
            logger.log_hyperparams(named)


def _tell_tensorboard(logger: Any, tag: str, named: dict[str, Any]) -> None:
    # Its own table of hyper-parameters takes one set a run, and a placeholder of a metric with it.
    logger.log_hyperparams(named, metrics={})
    rows = "\n".join(f"| {name.rpartition('/')[2]} | {value} |" for name, value in named.items())
    logger.experiment.add_text(tag, f"| | |\n|---|---|\n{rows}")
