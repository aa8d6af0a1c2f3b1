from __future__ import annotations

import dataclasses

import pytest

from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.equation.measures import GROWING, MEASURES, check_measure


def test_every_measure_says_its_unit_and_meaning():
    """The registry covers all fields that hold one number, and the spending to a level."""
    names = {f.name for f in dataclasses.fields(Measurements)}
    names -= {"level", "to_level", "own", "provenance"}
    assert set(MEASURES) == names | {f"{name}_to_level" for name in GROWING}
    assert {"tokens", "epochs", "device_hours"} <= set(GROWING)
    assert all(row.meaning and isinstance(row.unit, str) for row in MEASURES.values())


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [("token", "tokens"), ("device_hour", "device_hours"), ("energy", "energy_kwh")],
)
def test_an_unknown_measure_is_answered_with_a_suggestion(wrong, suggestion):
    """A typo is met with the list of measures and the closest one."""
    for ask in (check_measure, Measurements().get):
        with pytest.raises(
            ValueError, match=rf"perplexity.*got {wrong!r}\. Did you mean {suggestion!r}\?"
        ):
            ask(wrong)


@pytest.mark.parametrize("name", ["", "zzzzzz", "provenance", "measured", None, 3, [], {}, ("a",)])
def test_any_other_name_is_refused_without_a_suggestion(name):
    """A name that resembles none, or is no text at all, is still a single ValueError."""
    with pytest.raises(ValueError, match=r"expected a measure .*\.$"):
        check_measure(name)
