"""The names under which values are logged."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.run.names import KEYS, Names

ALL = [*KEYS, "lscore/perplexity_0", "lscore/L"]  # the last may be a measure of one's own
PARTS = st.sampled_from(["L", "perplexity", "lscore", "f_D", "tokens", "lscore_L", "val"])
OTHERS = st.sets(st.lists(PARTS, min_size=1, max_size=3).map("/".join), max_size=12)


def in_the_way(a: str, b: str) -> bool:
    return a == b or b.startswith(f"{a}/")


@given(OTHERS, OTHERS, st.sampled_from(["", "strict_", "strict/", "lscore/"]))
def test_no_name_is_used_twice_nor_lies_in_the_path_of_another(first, second, prefix):
    """Whatever others log, now and later; and each value has a name."""
    keys, names = [prefix + key for key in ALL], Names(prefix)
    for others in (first, first | second):
        names.avoid(keys, others)
        ours = [names.of(key) for key in keys]
        assert len({*ours}) == len(keys)
        for name in ours:
            assert not any(in_the_way(name, x) or in_the_way(x, name) for x in others)
        assert not any(in_the_way(a, b) for a, b in permutations(ours, 2))
    assert names.avoid(keys, first | second) == {}, "found once, they stay"


@pytest.mark.parametrize(
    ("others", "moved"),
    [
        ({"loss", "val_perplexity", "lscore_tokens"}, {}),
        ({"L"}, {"L": "lscore_L"}),
        ({"perplexity"}, {"perplexity": "lscore/perplexity"}),
        ({"perplexity/dataloader_idx_0"}, {"perplexity": "lscore/perplexity"}),
        ({"f_D/train"}, {"f_D": "lscore/f_D"}),
        ({"lscore/tokens"}, {"lscore/tokens": "lscore_tokens"}),
        ({"lscore/tokens", "lscore_tokens"}, {"lscore/tokens": "lscore_tokens_2"}),
    ],
)
def test_only_what_clashes_gets_another_name(others, moved):
    names = Names("")
    assert names.avoid(ALL, others) == names.moved == moved
