"""Whether labels are shifted is read off the data."""

from __future__ import annotations

import pytest
import torch

from lightning_lscore.heldout.shift_evidence import alignment

ROWS = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4]])
IGNORED = torch.tensor([[-100, 6, 7, 8], [-100, -100, 3, 4]])


@pytest.mark.parametrize(
    ("labels", "tokens", "expected"),
    [
        (ROWS, ROWS, False),
        (IGNORED, ROWS, False),
        (ROWS[:, 1:], ROWS[:, :-1], True),
        (ROWS[:, 1:], ROWS, True),
        (ROWS[:, :-1], ROWS, False),
        (ROWS + 9, ROWS, None),
        (torch.full_like(ROWS, -100), ROWS, None),
        (torch.ones_like(ROWS), torch.ones_like(ROWS), None),
        (ROWS[:, 2:], ROWS, None),
        (ROWS[0], ROWS[0], None),
        (ROWS, ROWS[:1], None),
    ],
)
def test_alignment_is_read_off_the_data_or_left_open(labels, tokens, expected):
    assert alignment(labels, tokens) is expected


@pytest.mark.parametrize(("start", "expected"), [(0, False), (1, True)])
def test_ignored_labels_of_any_number_fit_any_token(start, expected):
    tokens = torch.tensor([[5, 6, 7, 8, 0], [1, 2, 3, 4, 0]])
    labels = tokens[:, start : start + 4].clone()
    labels[:, :2] = 9  # prompts
    assert alignment(labels, tokens[:, :4], ignore_index=9) is expected
    assert alignment(labels, tokens[:, :4]) is None
