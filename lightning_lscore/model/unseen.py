"""Keep torch.compile out of what listens to a module that is compiled, or lies beside one.

Where compiled code breaks off and goes on in Python, torch.compile looks at each function that is
called then, and would compile a listener, for which it takes longer than for the model's own parts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def unseen(function: Function) -> Function:
    """Return a function that torch.compile sees nothing of, nor of what it calls.

    A graph that holds a call of it breaks there.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return function
    disable: Any = torch.compiler.disable
    hidden: Function = disable(function)
    return hidden


def begin_at_no(*functions: Callable[..., Any]) -> None:
    """Let torch.compile not begin at these functions; in a graph their calls are traced as ever."""
    dynamo: Any = sys.modules.get("torch._dynamo.decorators")
    for function in functions if hasattr(dynamo, "skip_code") else ():
        dynamo.skip_code(function.__code__)
