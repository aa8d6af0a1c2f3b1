from __future__ import annotations

import math

import pytest

from lightning_lscore.curve.calibrate import calibrate
from lightning_lscore.equation.formula import Formula
from lightning_lscore.equation.measurements import Measurements
from lightning_lscore.record.record import Record
from lightning_lscore.show.gain import gains

pytest.importorskip("numpy")


def chinchilla(N, D):
    return 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658


def finished():
    N, D = zip(*((n, n * r) for n in (5e7, 2e8, 7e8) for r in (5, 20, 80)), strict=True)
    return calibrate(N, D, list(map(chinchilla, N, D)), resamples=200)


def run(loss, flops):
    m = Measurements(perplexity=math.exp(loss), tokens=10**9, model_flops=flops)
    return [
        Record(
            run="a", batch=1, step=1, epoch=0, time="", measurements=m,
            score=Formula().score(m), formula=Formula().to_dict(),
        )
    ]  # fmt: skip


def test_each_run_has_its_gain_or_the_reason_for_none():
    calibration = finished()
    loss = chinchilla(1.2e8, 2.4e9)
    cheap = run(loss, 6 * 1.2e8 * 2.4e9 / 2)
    text = gains({"a": cheap, "b": run(1.0, 1e18), "c": run(loss, None)}, calibration)
    head, a, b, c = text.splitlines()
    assert "9 finished runs" in head
    assert a.startswith("  a: ")
    assert float(a.split()[1]) == pytest.approx(2, rel=0.1)
    assert "b: refused, expected a perplexity that the law's runs cover" in b
    assert "c: not known, unavailable: not measured." in c


def test_runs_that_tell_no_law_have_no_gain():
    one = calibrate([1e8] * 3, [1e9, 2e9, 4e9], [3.5, 3.3, 3.1])
    assert "refused. The runs' number of parameters varies" in gains({"a": run(3.2, 1e18)}, one)
