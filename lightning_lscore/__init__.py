"""Cost-adjusted perplexity for PyTorch Lightning: L = perplexity(T) · f(D) · f(A) · f(H)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .equation.factor import Factor
from .equation.formula import Formula
from .equation.measurements import Measurements
from .equation.score import Score
from .record.records import Record, read_records

if TYPE_CHECKING:
    from .callback import LScore
    from .heldout.perplexity import Perplexity
    from .heldout.text import TextEvaluation, evaluate_text
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
    "Score",
    "TextEvaluation",
    "evaluate_text",
    "read_records",
]

# These need torch, which takes seconds to import; whoever only reads records should not wait.
_LAZY = {
    "CostEarlyStopping": "stopping",
    "LScore": "callback",
    "Perplexity": "heldout.perplexity",
    "TextEvaluation": "heldout.text",
    "evaluate_text": "heldout.text",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
