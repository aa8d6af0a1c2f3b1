from __future__ import annotations

import torch

from lightning_lscore.model.padding import doubtful_run


def test_an_id_that_stands_in_the_text_too_is_no_padding():
    """A space at the ends of lines, in a model of bytes, is a token like any other."""
    text = torch.tensor([[1, 2, 3, 4, 0, 0, 0], [5, 6, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6, 7]])
    assert doubtful_run(text) == 0
    text[2, 3] = 0
    assert doubtful_run(text) is None
    assert doubtful_run(torch.tensor([[1, 0, 0, 0], [2, 3, 4, 5]])) is None
