"""Cost-adjusted perplexity for PyTorch Lightning: L = perplexity(T) · f(D) · f(A) · f(H).

The map. Imports point downwards only, and parts do not know each other (``tests/test_layout.py``):

======= =============== ========================================================================
doors   callback        ``LScore``: each of Lightning's hooks tells the Tracker what it knows
        stopping        ``CostEarlyStopping``, which obeys the verdict of the Tracker
        plan            what a Trainer is set to do, and how that is known
        rates           the Trainer's learning rates, now and by its schedulers
        logged          what LScore logs, under names that nobody else has
        hyperparameters the formula in force, for loggers
        artifacts       the record, for loggers that take files
        packages        ``lightning`` and ``pytorch_lightning``, whichever is there
        factory         ``LSCORE=1 python train.py``
        environment     the LScore that it makes, which is never in the way
        cli             the command ``lscore``
core    run/            one run over time: ``Tracker``, clock, spending, exchange, checkpoint state
parts   heldout/        T: logits and labels out of a module, and their NLL
        model/          D and A: the tokens of a batch, a model's parameters and FLOP
        hardware/       H: devices, their readings and their peaks
        record/         ``lscore.jsonl``: write it, read it, tell which validations compare
        curve/          what a curve says: when to stop, where L ends, what more would buy
        show/           records as tables, sentences, pictures and pages
ground  equation/       Measurements, Factor, Formula, Score: the standard library only
======= =============== ========================================================================

To follow a fit, start at ``run/tracker.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .equation.factor import Factor
from .equation.formula import Formula
from .equation.measurements import Measurements
from .equation.score import Score
from .record.file import read_records
from .record.record import Record

if TYPE_CHECKING:
    from .callback import LScore
    from .heldout.perplexity import Perplexity
    from .heldout.text import TextEvaluation, evaluate_text
    from .run.tracker import Tracker
    from .show.notebook import Run, read_run
    from .stopping import CostEarlyStopping

__version__ = "0.1.0"

__all__ = [
    "CostEarlyStopping",
    "Factor",
    "Formula",
    "LScore",
    "Measurements",
    "Perplexity",
    "Record",
    "Run",
    "Score",
    "TextEvaluation",
    "Tracker",
    "evaluate_text",
    "read_records",
    "read_run",
]

# These need torch, which takes seconds to import; whoever only reads records should not wait.
_LAZY = {
    "CostEarlyStopping": "stopping",
    "LScore": "callback",
    "Perplexity": "heldout.perplexity",
    "Run": "show.notebook",
    "TextEvaluation": "heldout.text",
    "Tracker": "run.tracker",
    "evaluate_text": "heldout.text",
    "read_run": "show.notebook",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in ("CostEarlyStopping", "LScore"):  # pytorch_lightning may be there only now
        import_module(".packages", __name__).join_packages()
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
