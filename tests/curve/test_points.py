from __future__ import annotations

from made_up_curves import power_law

from lightning_lscore.curve.points import points_of


def test_long_curves_are_thinned():
    few, many = (
        points_of([i / n for i in range(1, n + 1)], power_law(range(1, n + 1))) for n in (90, 9000)
    )
    assert sum(n for _, _, n in few) == 90 - 1  # 6 doublings back, all but the first
    assert len(many) <= 16 * 6 + 1
