"""``make gpu`` writes its page whole or not at all, whatever becomes of its parts."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
OLD = "# An older page\n"
OUTPUT = """\
tests/test_a.py::test_one[32-true] PASSED      [ 25%]
tests/test_a.py::test_two[a name] FAILED       [ 50%]
tests/hardware/test_b.py::test_three SKIPPED (a reason that is too lo...) [ 75%]
tests/test_a.py::test_four PASSED             [100%]
measured: 12 W
FAILED tests/test_a.py::test_two[a name] - AssertionError: 1 is not 2
SKIPPED [2] tests/hardware/test_b.py:7: a part of a GPU
"""


@pytest.fixture
def program(monkeypatch) -> Iterator[ModuleType]:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmarks_gpu", module)  # dataclasses look there
    spec.loader.exec_module(module)
    before = signal.getsignal(signal.SIGTERM)
    yield module
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def gpu(program, monkeypatch) -> ModuleType:
    """The same, where torch sees a GPU."""
    monkeypatch.setattr(program, "missing_gpu", lambda: "")
    monkeypatch.setattr(program, "machine", lambda: {"device": "a | GPU"})
    return program


@pytest.fixture
def page(tmp_path) -> Path:
    path = tmp_path / "gpu.md"
    path.write_text(OLD)
    return path


def python(tmp_path: Path, code: str) -> str:
    script = tmp_path / "part.py"
    script.write_text(code)
    return str(script)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_skips_with_a_sentence(program, page, capsys):
    assert program.main(["--page", str(page)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Skipped: torch")
    assert page.read_text() == OLD


def test_a_part_that_fails_is_shown_and_the_others_run(gpu, page, tmp_path, monkeypatch, capsys):
    good = python(tmp_path, "print('figures')")
    bad = str(tmp_path / "nothing.py")
    made = [gpu.Part("Bad", "about", bad, 60), gpu.Part("Good", "about", good, 60)]
    monkeypatch.setattr(gpu, "parts", lambda: made)
    assert gpu.main(["--page", str(page)]) == 1
    text = page.read_text()
    assert "**Failed: Bad.**" in text
    assert "**Failed: exit status 2.**" in text
    assert "nothing.py" in text
    assert "```text\nfigures\n```" in text
    assert "| device | a \\| GPU |" in text
    assert "figures" in capsys.readouterr().out
    assert [p.name for p in tmp_path.glob("*.part")] == []


def test_a_part_that_takes_too_long_is_stopped_and_shown_as_far_as_it_came(
    gpu, page, tmp_path, monkeypatch
):
    hangs = python(tmp_path, "import time; print('first', flush=True); time.sleep(600)")
    monkeypatch.setattr(gpu, "AT_LEAST", 0.0)
    monkeypatch.setattr(gpu, "parts", lambda: [gpu.Part("Hangs", "about", hangs, 2.0)])
    assert gpu.main(["--page", str(page)]) == 1
    assert "not done after 2 s, and stopped" in page.read_text()
    assert "```text\nfirst\n```" in page.read_text()


def test_without_time_a_part_is_left_out(gpu, page, tmp_path, monkeypatch):
    part = gpu.Part("Late", "about", python(tmp_path, "print('figures')"), 60)
    monkeypatch.setattr(gpu, "parts", lambda: [part])
    assert gpu.main(["--page", str(page), "--minutes", "0"]) == 1
    assert "left out: no time was left" in page.read_text()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_part_and_leaves_the_page(gpu, page, tmp_path, monkeypatch, how):
    started = tmp_path / "pid"
    code = f"import os, time; open({str(started)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    part = gpu.Part("Hangs", "about", python(tmp_path, code), 300)
    monkeypatch.setattr(gpu, "parts", lambda: [part])

    def interrupt() -> None:
        while not (started.exists() and started.read_text()):
            pass
        time.sleep(0.5)  # the process is started, but may not have been handed over yet
        os.kill(os.getpid(), how)

    threading.Thread(target=interrupt, daemon=True).start()
    assert gpu.main(["--page", str(page)]) == 130
    assert page.read_text() == OLD
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_tests_are_counted_and_those_that_did_not_pass_are_named(gpu):
    text = "\n".join(gpu.test_results(OUTPUT))
    assert "2 passed, 1 failed, 1 skipped." in text
    assert "- failed: `tests/test_a.py::test_two[a name] - AssertionError: 1 is not 2`" in text
    assert "- skipped 2 times: `tests/hardware/test_b.py:7: a part of a GPU`" in text
    assert "- 12 W" in text


def test_every_part_can_be_run_and_every_gpu_test_is_found(gpu):
    tests, *others = gpu.parts()
    assert {"tests/test_gpu.py", "tests/hardware/test_nvml.py"} <= set(tests.command.split())
    for part in others:
        program = part.command.split()[0]
        assert program == "-m" or (PROGRAM.parents[1] / program).exists()
    assert sum(part.seconds for part in (tests, *others)) < 10 * 60
