from __future__ import annotations

import contextlib
import itertools

import pytest

from lightning_lscore.run.stand_in import StandIn


class Loop:
    """Notes its calls."""

    def __init__(self):
        self.noted = []

    def run(self, *values, fail=False):
        self.noted.append(values)
        if fail:
            raise StopIteration
        return sum(values)


def noting(loop, name):
    @contextlib.contextmanager
    def around():
        loop.noted.append(f"enter {name}")
        try:
            yield
        finally:
            loop.noted.append(f"leave {name}")

    return around


def test_a_call_runs_inside_of_every_context_and_is_otherwise_the_same():
    """Arguments and result pass through, and the last one who joined is innermost."""
    loop = Loop()
    for name in "ab":
        StandIn.of(loop, "run").join(noting(loop, name))
    assert loop.run(1, 2) == 3
    assert loop.noted == ["enter a", "enter b", (1, 2), "leave b", "leave a"]


def test_an_exception_of_the_method_passes_and_ends_the_contexts():
    """Lightning ends an epoch by one."""
    loop = Loop()
    StandIn.of(loop, "run").join(noting(loop, "a"))
    with pytest.raises(StopIteration):
        loop.run(fail=True)
    assert loop.noted[-1] == "leave a"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_all_may_leave_in_any_order_and_the_last_leaves_nothing(order):
    """Leaving twice is leaving once."""
    loop = Loop()
    leave = [StandIn.of(loop, "run").join(noting(loop, name)) for name in "abc"]
    left = []
    for i in order:
        leave[i]()
        leave[i]()
        left.append("abc"[i])
        loop.noted.clear()
        loop.run()
        stay = [name for name in "abc" if name not in left]
        assert [n for n in loop.noted if n != ()][: len(stay)] == [f"enter {n}" for n in stay]
    assert set(vars(loop)) == {"noted"}


def test_what_another_put_there_is_kept_and_comes_back():
    """It is called while the stand-in is there."""
    loop = Loop()
    loop.run = theirs = lambda: "theirs"
    leave = StandIn.of(loop, "run").join(contextlib.nullcontext)
    assert loop.run() == "theirs"
    leave()
    assert loop.run is theirs


def test_what_another_puts_on_top_stays_there():
    """The stand-in below does nothing any more."""
    loop = Loop()
    leave = StandIn.of(loop, "run").join(noting(loop, "a"))
    ours = loop.run
    loop.run = lambda *values: ours(*values) + 1
    leave()
    assert loop.run(1) == 2
    assert loop.noted == [(1,)]
