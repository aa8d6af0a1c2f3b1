from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

pytest.importorskip("matplotlib")

from lightning_lscore.show.pictures import (
    COLORS,
    NARROW,
    Picture,
    Series,
    _log_ticks,
    figure_of,
    save,
    svg_of,
)

X = [100.0, 200.0, 400.0]


def picture(**changes):
    return Picture(
        **{
            "key": "one",
            "title": "A <title> & more",
            "text": "What it shows.",
            "x": X,
            "x_name": "tokens",
            "series": [
                Series(name="perplexity", color="t", values=[9.0, 8.0, 7.0]),
                Series(name="L", color="l", values=[8.0, math.nan, 7.5]),
            ],
            "marks": {"lowest L": 400.0},
            **changes,
        }
    )


def parsed(svg):
    """The element; a browser reads it as HTML, which knows no prefixes of names."""
    return ElementTree.fromstring(svg)


def strips(svg):
    return [g for g in parsed(svg).iter() if g.get("class", "").startswith("at")]


@pytest.mark.parametrize("width", [8.2, NARROW])
def test_a_picture_on_a_page_takes_the_pages_colours_and_font(width):
    svg = svg_of(picture(), ["a", "b", "c"], width)
    assert not any(color in svg for color in COLORS.values())
    assert {"var(--l)", "var(--t)", "var(--line)"} <= {*re.findall(r"var\(--\w+\)", svg)}
    assert "font-family" not in svg
    root = parsed(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == "A <title> & more. What it shows."
    texts = [t.text for t in root.iter() if t.tag.endswith("text")]
    assert {"perplexity", "L", "lowest L", "tokens"} <= {*texts}


def test_each_validation_has_a_strip_over_its_place():
    """They touch, cover the axes from side to side, and say what they are."""
    found = strips(svg_of(picture(), ["one", "two", "<three>"]))
    assert [g.get("data-i") for g in found] == ["0", "1", "2"]
    assert [g[0].text for g in found] == ["one", "two", "<three>"]
    ends = [(float(g[1].get("x")), float(g[1].get("width"))) for g in found]
    for (x, width), (following, _) in pairwise(ends):
        assert x + width == pytest.approx(following, abs=0.11)


def test_lines_with_their_own_x_are_pointed_at_as_a_whole():
    series = [
        Series(name="a", color="t", values=[9.0, 8.0], x=[1.0, 2.0]),
        Series(name="b", color="d", values=[9.0, 7.0, 6.0], x=[1.0, 3.0, 5.0]),
        Series(name="front", color="l", values=[9.0], x=[1.0], named=False),
    ]
    svg = svg_of(picture(x=(), series=series, marks={}), ["a: 8", "b: 6"])
    assert [g[0].text for g in strips(svg)] == ["a: 8", "b: 6"]
    assert "front" not in svg


def test_two_pictures_on_a_page_share_no_id():
    both = [svg_of(picture(key=key), ["a"] * 3, w) for key in ("one", "two") for w in (8.2, NARROW)]
    ids = [i for svg in both for i in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len({*ids})
    for svg in both:
        assert {*re.findall(r'href="#([^"]+)"', svg)} <= {*re.findall(r'\bid="([^"]+)"', svg)}


def test_values_that_are_missing_everywhere_make_an_empty_picture():
    empty = picture(series=[Series(name="L", color="l", values=[math.nan] * 3)], log=True)
    assert len(strips(svg_of(empty, ["a"] * 3))) == 3


@pytest.mark.parametrize(("low", "high"), [(7.0, 22.0), (8.0, 8.1), (1e-3, 1e5), (15.0, 99.0)])
def test_a_logarithmic_axis_has_a_few_round_numbers(low, high):
    ticks = _log_ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert all(0.95 * low <= t <= 1.05 * high for t in ticks)


def test_ends_of_lines_are_named_apart():
    """However close they lie."""
    near = [
        Series(name=n, color="t", values=[1.0, 1.0, 1.0 + i / 1e6]) for i, n in enumerate("abc")
    ]
    (axes,) = figure_of(picture(series=near)).axes
    at = sorted(t.xy[1] for t in axes.texts if t.get_text() in "abc")
    assert min(b - a for a, b in pairwise(at)) > 0.05


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_is_written_to_a_file(ending, tmp_path):
    save(picture(), tmp_path / f"p.{ending}")
    head = (tmp_path / f"p.{ending}").read_bytes()[:100]
    assert head.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
