"""The page: what it says, that it loads nothing, and that a browser shows it."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from made_up_records import FALLING, FORMULA, record, run

from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.show.report import report

pytest.importorskip("matplotlib")

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;'


class Elements(HTMLParser):
    """Tags that were opened, and every attribute."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_of_a_run_says_what_its_records_hold():
    records = run([*FALLING, *[8.0] * 40])
    made = report({"my run": records})
    text = html.unescape(made.html)
    assert re.search(r"<h1>\d+ % more data and \d+ % more machine time after the lowest L", text)
    assert f"formula {FORMULA.id} (a budget)" in text
    for r in (records[0], records[-1]):
        assert f"<td>{r.score.L:.4f}</td>" in text
    assert text.count("<em>lowest L</em>") == 1
    assert "The peak of a CPU was measured, not published: measured: once." in text
    assert "energy_kwh: unavailable: not measured." in text
    assert "10 batches, counted" in text
    assert [p.key for p in made.pictures] == ["perplexity", "parts", "worth", "use"]


def test_a_page_loads_nothing_and_is_light():
    """Of one run below a megabyte, and with none of others' megabytes of script."""
    made = report({"a": run(FALLING * 30)})
    assert len(made.html) < 1_000_000
    addresses = {*re.findall(r"(?:https?:)?//[a-z][^\s\"')<]*", made.html)}
    assert {a for a in addresses if "www.w3.org" not in a} == set()
    found = Elements(made.html)
    assert not {"link", "img", "iframe", "object"} & {*found.tags}
    assert found.tags.count("script") == 1
    assert not [name for name, value in found.attributes if name == "src"]
    assert "default-src 'none'" in made.html


def test_names_cannot_leave_their_place():
    """Whatever a run, a device, a version or a formula is called."""
    formula = replace(FORMULA, origin=HOSTILE)
    device = replace(record(1, 9.0).devices[0], name=HOSTILE, peak_source=HOSTILE)
    records = [
        replace(r, devices=(device,), versions={HOSTILE: HOSTILE}, assumptions={"x": HOSTILE})
        for r in run(formula=formula)
    ]
    others = {HOSTILE: records, f"{HOSTILE} two": run(formula=formula, run="b")}
    for made in (report({HOSTILE: records}), report(others)):
        found = Elements(made.html)
        assert found.tags.count("script") == 1
        assert "img" not in found.tags
        assert not [name for name, _ in found.attributes if name.startswith("on")]


def test_several_runs_are_held_against_a_baseline():
    """The headline names the cheapest way; parts of the difference of L are bars."""
    fast = run([15.0, 9.0, 8.0, 7.9], run="b")
    made = report({"a": run(), "b": fast})
    text = html.unescape(made.html)
    reached = math.log(8.02 / 8.0)  # between its second and third validation
    share = (2 + (math.log(9.0 / 8.02)) / math.log(9.0 / 8.0)) / 10
    assert reached > 0
    assert f"b reaches a's perplexity of 8.02 with {share:.2f} of its device time." in text
    assert [p.key for p in made.pictures] == ["front-tokens", "front-device-hours"]
    assert text.count('class="bar"') == 5
    assert "does not reach it" in html.unescape(report({"b": fast, "a": run()}).html)
    with pytest.raises(ValueError, match=r"one of the runs \(a, b\), got c"):
        report({"a": run(), "b": fast}, baseline="c")


def test_runs_of_different_plans_are_not_ranked_by_L():
    other = Formula(D=Factor("tokens", 7.0, 1.0))
    text = report({"a": run(), "b": run(formula=other, run="b")}).html
    assert "scored under formulas of their own" in text
    assert "Why L differs" not in text
    again = report({"a": run(), "b": run(formula=other, run="b")}, formula=FORMULA)
    assert "Why L differs" in again.html


def test_spending_on_the_x_axis_can_be_chosen():
    made = report({"a": run()}, over="device_hours")
    assert {p.x_name for p in made.pictures} == {"device time [h]"}
    with pytest.raises(ValueError, match="expected a measure of spending"):
        report({"a": run()}, over="mfu")
    with pytest.raises(ValueError, match="cost': unavailable: not measured"):
        report({"a": run()}, over="cost")


def test_one_validation_and_a_run_without_an_L_have_a_page():
    assert "bought a perplexity of 9" in report({"a": [record(1, 9.0)]}).html
    lacking = [record(i, 9.0, Formula(H=Factor("energy_kwh", 1.0))) for i in (1, 2)]
    assert "No L was scored: energy_kwh: unavailable" in report({"a": lacking}).html
    assert "holds a function" in report({"a": run(formula=Formula(D=lambda m: 1.0))}).html


def test_of_a_long_run_a_part_is_shown_and_said():
    long = [record(i, 20.0 / i**0.1) for i in range(1, 2001)]
    text = report({"a": long}).html
    assert "202 of 2000 validations" in text or "200 of 2000 validations" in text
    assert len(text) < 1_000_000


def test_pictures_are_written_beside_the_page(tmp_path):
    made = report({"a": run()})
    written = list(made.save_pictures(tmp_path / "new", "png"))
    assert [p.name for p in written] == ["perplexity.png", "parts.png", "worth.png", "use.png"]
    assert all(p.stat().st_size > 1000 for p in written)


# ---------------------------------------------------------------- in a browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
KEYS = """
<script>
const svg = document.querySelector("figure svg"), said = [];
const press = key => svg.dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
const caption = () => said.push(document.querySelector("figcaption").textContent);
press("Home"); caption(); press("ArrowRight"); caption(); press("End"); caption();
said.push(document.querySelectorAll(".at.on").length, document.querySelectorAll("tr.on").length);
press("Escape"); caption(); said.push(document.querySelectorAll(".on").length);
document.title = JSON.stringify(said);
</script></html>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the PATH")
def test_the_arrow_keys_walk_through_validations_in_all_pictures_and_the_table(tmp_path):
    page = report({"a": run()}).html.replace("</html>", KEYS)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=2000", "--dump-dom", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (said,) = re.findall(r"<title>(\[.*?\])</title>", shown)
    first, second, last, strips, rows, nothing, left = json.loads(html.unescape(said))
    assert first.startswith("step 1, 100 tokens")
    assert second.startswith("step 2, 200 tokens")
    assert last.startswith("step 10, 1.00k tokens")
    assert "perplexity 8.02" in last
    assert (strips, rows, nothing, left) == (8, 1, "", 0)  # four pictures in two widths
