from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.run.epochs import Epochs


@given(st.lists(st.integers(1, 50), max_size=8), st.integers(1, 50), st.data())
def test_each_epoch_counts_by_its_own_length(lengths, last, data):
    """Whole ones count 1 whatever their length, and the present one its share."""
    now = [1]
    epochs, batches = Epochs(lambda: now[0]), 0
    for length in lengths:
        now[0] = length
        batches += length
        epochs.end(batches)
    now[0] = last
    part = data.draw(st.integers(0, last))
    assert epochs.after(batches + part) == pytest.approx(len(lengths) + part / last)
    assert epochs.known


def test_a_length_that_stays_needs_no_ends():
    """A loop of one's own tells none."""
    assert Epochs(4).after(10) == 2.5


def test_an_epoch_that_is_left_counts_as_what_was_seen_of_it():
    """By max_steps, or because the module goes on to the next."""
    epochs = Epochs(4)
    epochs.end(1)
    epochs.end(1)
    assert epochs.after(5) == 1.25


def test_without_a_length_there_are_no_epochs():
    """Not even later, when the set has one: those before cannot be counted."""
    now = [math.inf]
    epochs = Epochs(lambda: now[0])
    assert not epochs.known
    assert epochs.after(7) == 0
    epochs.end(7)
    now[0] = 4
    assert not epochs.known


def test_an_empty_epoch_divides_nothing():
    """Lightning trains on none then."""
    assert Epochs(0).after(0) == 0
