"""Hostile records, formulas and tables, by every subcommand: an answer or one line of error."""

from __future__ import annotations

import copy
import json
import math
import random

import pytest
from made_up_records import record

from lightning_lscore.cli import main
from lightning_lscore.equation.factor import Factor
from lightning_lscore.equation.formula import Formula
from lightning_lscore.record.file import RECORD_FILE
from lightning_lscore.record.lines import _hash, _json, checksum, lines_of

pytest.importorskip("numpy")  # calibrate needs it

FORMULA = Formula(D=Factor("tokens", 1e6, 0.1), A=Factor("total_parameters", 1e6, c=0), H=0.9)
VALUES = [
    None, True, False, 0, -1, 1, 2**63, -(2**63), 10**400, 1e308, -1e308, 5e-324, 0.5, -0.0,
    math.nan, math.inf, "NaN", "Infinity", "", "x", "=", "\x1b[2J\n", "9" * 5000, "ü\ud800",
    [], [[]], {}, [None], [1, "a"], {"a": 1}, [[[[[[1]]]]]], "2020-01-01", "tokens", "perplexity",
]  # fmt: skip

HISTORY = {
    "max_steps": 100, "total_flos": 1e12, "log_history": [
        {"step": 10 * i, "eval_loss": 3.0 - i / 10, "learning_rate": 0.1} for i in range(1, 6)
    ] + [{"step": 60, "train_runtime": 60.0, "total_flos": 1e12}],
}  # fmt: skip
CELLS = ["1e308", "5e-324", "nan", "-1", "0", "1e400", "1e7", "3", "", "x", "1e-9", "9" * 400]


def places(value, at=()):
    """The path of every value within a JSON value, itself included."""
    yield at
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield from places(inner, (*at, key))


def mutated(value, rng):
    """The value with one to three of its parts changed, taken out, doubled or moved."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *way, last = rng.choice(list(places(value))[1:] or [("x",)])
        inner = value
        for key in way:
            inner = inner[key]
        kind = rng.random()
        if not isinstance(inner, (dict, list)) or last == "x":
            continue
        if kind < 0.15:
            del inner[last]
        elif kind < 0.25 and isinstance(inner, list):
            inner.insert(last, inner[last])
        elif kind < 0.35 and isinstance(inner[last], float):
            inner[last] *= rng.choice((-1, 0, 1e-300, 1e300))
        else:
            inner[last] = copy.deepcopy(rng.choice(VALUES))
    return value


def text_of(value):
    """JSON as a hostile writer makes it: NaN and what else Python reads."""
    return json.dumps(value)


def scrambled(data, rng):
    """Bytes with a few changed, taken out or doubled."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.4:
            data[at] = rng.randrange(256)
        elif kind < 0.7:
            del data[at : at + rng.choice((1, 5, 500))]
        else:
            data[at:at] = data[max(0, at - rng.choice((1, 40, 400))) : at]
        if not data:
            break
    return bytes(data)


def signed(context, validations):
    """Lines as LScore would write them: with the hash and the checksums that fit."""
    body = _json({k: v for k, v in context.items() if k not in ("schema", "context")})
    key = _hash(body.encode())
    yield json.dumps({"schema": 2, "context": key}, separators=(",", ":"))[:-1] + "," + body[1:]
    for validation in validations:
        told = {**validation, "schema": 2, "context": key}
        told.pop("crc", None)
        head = {name: told.pop(name) for name in ("schema", "context")}
        line = _json({**head, **told})[:-1]
        yield line + checksum(line.encode())


@pytest.fixture
def files(tmp_path):
    """A record, another one that is left alone, a formula and a table, and their contents."""
    perplexities = (7.25, 7.2, 7.15, 6.0, 5.5, 4.5, 5.5)  # each the exp of its log, to the bit
    made = [record(step, T) for step, T in enumerate(perplexities, 1)]
    written = [lines_of(one) for one in made]
    assert len({key for key, _, _ in written}) == 1
    lines = [written[0][1], *(validation for _, _, validation in written)]
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / RECORD_FILE).write_text("".join(lines))
    (tmp_path / "spoiled").mkdir()
    sizes = [(n, d) for n in (1e7, 3e7, 1e8, 1e9) for d in (1e9, 3e9, 1e10)]
    table = "parameters,tokens,loss,step\n" + "".join(
        f"{n},{d},{2 + 50 * n**-0.25 + 50 * d**-0.25},{step}\n"
        for step, (n, d) in enumerate(sizes, 1)
    )
    return tmp_path, [json.loads(line) for line in lines], FORMULA.to_dict(), table


def spoiled_table(table, rng):
    if rng.random() < 0.3:
        return scrambled(table.encode(), rng)
    rows = [line.split(",") for line in table.splitlines()]
    for _ in range(rng.choice((1, 1, 2, 12))):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(CELLS)
    return "\n".join(map(",".join, rows)).encode()


def spoiled_record(lines, rng):
    kind = rng.random()
    plain = "\n".join(map(json.dumps, lines)) + "\n"
    if kind < 0.2:
        return scrambled(plain.encode(), rng)
    i = rng.choice((0, 0, rng.randrange(len(lines))))
    changed = [*lines[:i], mutated(lines[i], rng), *lines[i + 1 :]]
    try:
        if kind < 0.7 and all(isinstance(line, dict) for line in changed):
            return ("\n".join(signed(changed[0], changed[1:])) + "\n").encode(errors="replace")
    except (ValueError, OverflowError):  # no such JSON can be written
        pass
    return ("\n".join(map(text_of, changed)) + "\n").encode(errors="surrogatepass")


COMMANDS = [
    ["explain", "{r}"], ["explain", "{r}", "--from", "1", "--to", "5"],
    ["explain", "{r}", "--formula", "{f}"], ["explain", "--formula", "{f}"],
    ["compare", "{r}", "{w}"], ["compare", "{r}", "{w}", "--formula", "{f}"],
    ["show", "{r}"], ["show", "{r}", "{w}"], ["calibrate", "{r}", "{w}"], ["calibrate", "{t}"],
    ["explain", "{r}", "--ratio", "0.2"], ["calibrate", "{t}", "-o", "{o}"],
    ["import", "{t}", "-o", "{n}", "--loss", "loss"],
    ["import", "{s}", "-o", "{n}", "--parameters", "1e6"],
    ["report", "{r}", "-o", "{o}"], ["report", "{r}", "{w}", "-o", "{o}", "--formula", "{f}"],
]  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_hostile_files_get_an_answer_or_one_line(seed, files, capsys):
    folder, lines, formula, table = files
    rng = random.Random(seed)
    names = {"r": folder / "spoiled", "w": folder / "whole", "f": folder / "f.json"}
    names |= {"t": folder / "t.csv", "o": folder / "out", "s": folder / "trainer_state.json"}
    for i in range(200):
        names["n"] = folder / f"new{i}"
        history = text_of(mutated(HISTORY, rng)).encode(errors="surrogatepass")
        names["s"].write_bytes(scrambled(history, rng) if rng.random() < 0.2 else history)
        (names["r"] / RECORD_FILE).write_bytes(spoiled_record(lines, rng))
        of_formula = text_of(mutated(formula, rng)).encode(errors="surrogatepass")
        names["f"].write_bytes(scrambled(of_formula, rng) if rng.random() < 0.2 else of_formula)
        names["t"].write_bytes(spoiled_table(table, rng))
        command = [part.format(**names) for part in rng.choice(COMMANDS)]
        try:
            status = main(command)
        except Exception as error:
            kept = (names["r"] / RECORD_FILE).read_bytes()
            raise AssertionError(f"seed {seed}, turn {i}: {command}: {kept[:3000]!r}") from error
        err = capsys.readouterr().err
        assert status in (0, 2), (seed, i)
        if status == 2:
            *_, last = err.splitlines()
            assert last.startswith(f"lscore {command[0]}: error: "), (seed, i)
            assert len(last) < 2000
            assert all(line.startswith(f"lscore {command[0]}: ") for line in err.splitlines())


@pytest.mark.parametrize(
    "change",
    [
        lambda context: context["formula"]["H"].update(weight=2**63),
        lambda context: context["formula"]["H"].update(c=1e308, reference=5e-324),
        lambda context: context["formula"]["D"].update(what="else"),
        lambda context: context["devices"][0].update(key=[]),
        lambda context: context.update(level=1e308),
    ],
)
@pytest.mark.parametrize("command", ["explain", "compare", "show", "report"])
def test_numbers_at_the_end_of_what_can_be_computed(change, command, files, capsys):
    """In lines that state the hash they have."""
    folder, (context, *validations), _, _ = files
    change(context)
    path = folder / "spoiled" / RECORD_FILE
    path.write_text("\n".join(signed(context, validations)) + "\n")
    arguments = [command, str(path), *(["-o", str(folder / "out")] * (command == "report"))]
    assert main(arguments) in (0, 2)
    assert len(capsys.readouterr().err.splitlines()) <= 1


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "9" * 10**5, "\ufeff{}", "\x00"])
def test_a_formula_that_no_parser_likes(text, tmp_path, capsys):
    (tmp_path / "f.json").write_text(text, encoding="utf-8")
    assert main(["explain", "--formula", str(tmp_path / "f.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lscore explain: error: ")
    assert len(line) < 500
