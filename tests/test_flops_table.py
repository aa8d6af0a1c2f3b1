"""``benchmarks/flops.py``: FLOP of a step by LScore and by PyTorch's counter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    import flops as table
finally:
    sys.path.remove(BENCHMARKS)

# The models' own libraries warn of what they will change.
pytestmark = pytest.mark.filterwarnings("ignore")

SLOW = {"BART", "Zamba 2", "Mamba"}
NEEDS = {"Llama with LoRA": "peft"}


@pytest.mark.parametrize("name", sorted(table.ARCHITECTURES.keys() - table.OWN_RULES - SLOW))
def test_the_flop_of_a_step_are_those_that_pytorch_counts(name):
    """Within 5 %, by whatever way: of the structure, or counted."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    ours, theirs, how = table.compare(name)
    assert ours == pytest.approx(theirs, rel=table.LIMIT)
    counted = name in ("ALBERT", "T5", "Llama, one layer 4 times") or name.startswith("own")
    assert how.startswith("products counted" if counted else "6 FLOP per trainable parameter")


def test_where_the_convention_is_another_the_number_is_that_of_plain_products():
    """A fused kernel, or checkpointing, changes nothing in what the model needs."""
    plain, counted, _ = table.compare("own GPT, products")
    assert plain == counted
    for name in ("own GPT, function", "own GPT, checkpointed"):
        assert table.compare(name)[0] == plain


def test_an_lstm_counts_by_its_weights():
    """6 FLOP a weight and token, of the LSTM and the output layer."""
    weights = 4 * 128 * (64 + 128) + 128 * table.WORDS
    tokens = table.ROWS * table.LENGTH
    assert table.compare("own LSTM")[0] == 6 * weights * tokens
