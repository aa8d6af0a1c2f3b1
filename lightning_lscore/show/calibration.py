"""What finished runs say of the exchange rates."""

from __future__ import annotations

from ..curve.calibration import Calibration
from ..curve.calibration_warnings import ENOUGH_RUNS
from .cells import bought, columns


def explain_calibration(c: Calibration) -> str:
    """The rates that finished runs have shown, how sure they are, and what to beware of."""
    # With few runs the intervals of the public sets held in 96 to 98 % of cases.
    least = "at least " if c.runs < ENOUGH_RUNS else ""
    rows = [("   ", "", "", f"{least}90 % interval")]
    for name, text in (("e_N", "1 % more parameters lowered"), ("e_D", "1 % more tokens lowered")):
        rows.append(
            (f"   {text} perplexity by", f"{getattr(c, name):.3f} %", "", _interval(c, name, " %"))
        )
    for x in "DAH":
        rows.append(
            (f"   weight of {x}", f"{getattr(c, f'w_{x}'):.4f}", "", _interval(c, f"w_{x}"))
        )
    lines = [
        f"{c.runs} finished runs of different size or length. At {c.parameters:.3g} parameters and "
        f"{c.tokens:.3g} tokens:",
        "",
        *columns(rows, left=1),
        "",
    ]
    for name, what in (("e_N", "parameters"), ("e_D", "tokens")):
        e, i = getattr(c, name), getattr(c, f"{name}_interval")
        low, high = (f"{bought(v):.1f}" for v in (max(0.0, i.low), i.high))
        lines.append(
            f"Doubling the {what}, and so the time, bought about {bought(e):.1f} % lower "
            f"perplexity ({low} to {high} %)."
        )
    return "\n".join([*lines, *(f"Warning: {w}" for w in c.warnings)])


def _interval(c: Calibration, name: str, unit: str = "") -> str:
    interval = getattr(c, f"{name}_interval")
    return f"{interval.low:.3f} to {interval.high:.3f}{unit}"
