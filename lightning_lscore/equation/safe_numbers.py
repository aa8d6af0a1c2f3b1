"""Numbers as users and files give them: read, checked, shown in an error, exponentiated.

JSON and users may give anything where a number belongs, integers beyond a float included. These
functions raise nothing but the ``ValueError`` that they state.
"""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from typing import Any


def as_number(value: Any) -> float | None:
    """Return a real number as a float; None for anything else, also for bools and overflows.

    Numbers of numpy and of ``decimal``, and tensors without dimensions, are real numbers too.
    """
    if type(value) is float:
        return value
    if isinstance(value, bool) or not _is_real(value):
        return None
    try:
        return float(value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):  # too large, or a complex one
        return None


def _is_real(value: Any) -> bool:
    if isinstance(value, (numbers.Real, Decimal)):
        return True
    kind = str(getattr(value, "dtype", ""))
    return getattr(value, "ndim", None) == 0 and ("int" in kind or "float" in kind)


def positive(value: Any, what: str) -> float:
    """Return a finite number > 0 as a float.

    Raises:
        ValueError: if it is anything else; the message begins with ``what``.
    """
    number = as_number(value)
    if number is None or not 0 < number < math.inf:
        raise ValueError(f"{what}: expected a finite number > 0, got {short(value)}.")
    return number


def short(value: Any) -> str:
    """Return a value's repr for an error message, cut to about a line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or an int of too many digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + " ..."


def readable(value: float) -> str:
    """Return a number for a sentence or a table, with four decimals unless it is very large."""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def percent(share: float, decimals: int | None = None) -> str:
    """Return a share in percent, in few characters whatever it is.

    Args:
        share: 0.01 is 1 %.
        decimals: Default: 2 below 10 %, 0 from there.

    >>> percent(0.0123), percent(0.5), percent(1e300), percent(math.nan)
    ('1.23 %', '50 %', 'more than 1,000,000 %', 'an unknown share')
    """
    if math.isnan(share):
        return "an unknown share"
    if share > 1e4:
        return "more than 1,000,000 %"
    decimals = (0 if share >= 0.1 else 2) if decimals is None else decimals
    return f"{100 * share:.{decimals}f} %"


def exp(nll: float) -> float:
    """Return e to the power ``nll``; infinity beyond a float, where ``math.exp`` raises."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf


def expm1(change: float) -> float:
    """Return e to the power ``change``, less 1; infinity beyond a float, where ``math`` raises."""
    try:
        return math.expm1(change)
    except OverflowError:
        return math.inf
