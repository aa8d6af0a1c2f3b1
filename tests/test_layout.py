"""Which way imports point: doors → run → parts → equation. Lazy and type-only ones count too."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lightning_lscore

PACKAGE = Path(lightning_lscore.__file__).parent
PARTS = {"heldout", "hardware", "model", "record", "curve", "show"}
BETWEEN_PARTS = {("heldout", "model"), ("show", "record"), ("show", "curve")}
LEVEL = {"equation": 0, **dict.fromkeys(PARTS, 1), "run": 2, "": 3}  # "": the doors
KNOW_LIGHTNING = {"callback", "packages", "stopping", "plan", "rates"}


def modules() -> dict[str, Path]:
    """Every module but the package's own map, by its name within the package."""
    files = (path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
    }


def imported(name: str, path: Path) -> set[str]:
    """Absolute names of what a module imports, wherever in it: in functions and for types too."""
    package = ["lightning_lscore", *name.split(".")]
    if path.name != "__init__.py":
        package.pop()
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *filter(None, [node.module])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)}
    return found


def arrows() -> set[tuple[str, str]]:
    """(importer, imported) for the modules of the package."""
    known = modules()
    return {
        (name, other.removeprefix("lightning_lscore."))
        for name, path in known.items()
        for other in imported(name, path)
        if other.removeprefix("lightning_lscore.") in known or other == "lightning_lscore"
    } - {(name, name) for name in known}


def room(name: str) -> str:
    first, dot, _ = name.partition(".")
    return first if dot or first in LEVEL else ""


def upward(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those that point the wrong way, or from one part to another that it shall not know."""
    wrong = set()
    for a, b in found:
        pair = room(a), room(b)
        falls = LEVEL[pair[0]] > LEVEL[pair[1]]
        if pair[0] != pair[1] and not falls and pair not in BETWEEN_PARTS:
            wrong.add((a, b))
    return wrong


def in_a_circle(found: set[tuple[str, str]]) -> list[str]:
    """Modules that import each other; none where there is an order."""
    graph: dict[str, set[str]] = {}
    for a, b in found:
        graph.setdefault(a, set()).add(b)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_point_downwards():
    """The ground knows nothing of the rest, and parts do not know each other."""
    assert upward(arrows()) == set()


def test_no_modules_import_each_other():
    """Within a room neither."""
    assert in_a_circle(arrows()) == []


def test_nothing_inside_imports_the_package_itself():
    """It imports them."""
    assert {a for a, b in arrows() if b == "lightning_lscore"} == set()


@pytest.mark.parametrize(
    "arrow",
    [
        ("run.tracker", "equation.formula"),
        ("callback", "run.tracker"),
        ("run.tracker", "hardware.devices"),
        ("show.explain", "record.record"),
    ],
)
def test_an_arrow_that_is_turned_round_is_found(arrow):
    """The tests above can fail: on the direction, and on the circle that it closes."""
    found = arrows()
    assert arrow in found or room(arrow[0]) == "show"
    turned = (arrow[1], arrow[0])
    assert upward(found | {turned}) == {turned}
    assert in_a_circle(found | {arrow, turned})


def test_every_room_is_on_the_plan():
    """A new folder needs a level; each says what it is and where to read first."""
    rooms = {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    assert set(rooms) == set(LEVEL) - {""}
    for path in rooms.values():
        (docstring,) = ast.parse(path.read_text(encoding="utf-8")).body
        (first,) = re.findall(r"Read ``(\w+)`` first", ast.unparse(docstring))
        assert path.with_name(f"{first}.py").is_file()
    assert all(len(list(path.parent.glob("*.py"))) > 3 for path in rooms.values())


def test_the_map_names_every_door_and_room():
    """Each on a line of its own, and nothing that is not there."""
    there = {name for name in modules() if "." not in name} - {"__main__"}
    line = r"^(?:doors|core|parts|ground| {6}) +(\w+)/? "
    assert sorted(re.findall(line, lightning_lscore.__doc__, re.MULTILINE)) == sorted(there)
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"^Only (.*) import Lightning\.$", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)\.py`", sentence)) == KNOW_LIGHTNING
    doors = re.findall(r"^    doors    (.*?)^    core", page, re.MULTILINE | re.DOTALL)[0]
    assert {name for name in there if room(name) == ""} <= set(re.findall(r"\w+", doors))


def test_only_the_doors_that_say_so_import_lightning():
    """Everything else works without it."""
    heavy = {"lightning", "pytorch_lightning"}
    found = {
        name
        for name, path in modules().items()
        if heavy & {other.partition(".")[0] for other in imported(name, path)}
    }
    assert found == KNOW_LIGHTNING
