"""The fast part of the zoo: modules of one's own, and a few classes of transformers.

``benchmarks/zoo.py`` runs every class; docs/zoo.md is its page.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:  # they find each other as the program's own neighbours
    import zoo_counts
    import zoo_judge
    import zoo_libraries
    import zoo_own
    import zoo_page
    import zoo_transformers
finally:
    sys.path.remove(BENCHMARKS)

# The models' own libraries warn of what they will change; judge() hears what LScore warns of.
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = {f"{row.name}: {row.layout}": row for row in zoo_own.all_rows()}
PLAIN = [
    name
    for name, row in ROWS.items()
    if row.group == zoo_own.LM and row.make.args[0].plain and not name.startswith("Compiled")
]

# A decoder that moves its labels, one that does not, an encoder-decoder, one that reads pictures.
CLASSES = {
    "GPT2LMHeadModel": "causal",
    "BartForCausalLM": "causal",
    "T5ForConditionalGeneration": "sequence to sequence",
    "LlavaForConditionalGeneration": "vision and language",
}


# They are for the benchmark alone.
SLOW = ("CompiledTransformers", "CompiledStep", "CompiledLoss")


@pytest.mark.parametrize("name", [k for k, row in ROWS.items() if row.name not in SLOW])
def test_a_module_of_ones_own_gets_what_is_due(name):
    found = zoo_judge.judge(ROWS[name])
    assert found.holds, found


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_transformers_gets_what_is_due(name):
    rows = [row for row in zoo_transformers.rows(CLASSES[name]) if row.name == name]
    found = [zoo_judge.judge(row) for row in rows]
    assert [one for one in found if not one.holds] == []
    assert sum(one.verdict == "exact" for one in found) >= 4


@pytest.mark.parametrize("name", zoo_counts.READS)
def test_training_tokens_are_those_that_the_module_reads(name):
    found = [zoo_judge.judge(row) for row in zoo_counts.all_rows() if row.name == name]
    assert found[0].holds, found


def test_adapters_get_what_is_due():
    rows = [row for row in zoo_libraries.all_rows() if row.group == "PEFT"]
    found = [zoo_judge.judge(row) for row in rows]
    assert [one for one in found if not one.holds] == []


@pytest.mark.parametrize("name", PLAIN)
def test_the_reference_is_what_the_module_trains_on(name):
    """Where the loss is a plain mean, the module's own value is the reference's."""
    module, batches = ROWS[name].make()
    module.eval().log = lambda *_, **__: None
    for batch in batches:
        sums = [zoo_judge.float64_nll(*rows) for rows in module.truth(batch)]
        mean = sum(nll for nll, _ in sums) / sum(n for _, n in sums)
        rounding = 2e-2 if module.dtype == torch.bfloat16 or "bf" in name else 1e-5
        assert float(module.training_step(batch, 0).detach()) == pytest.approx(mean, rel=rounding)


def test_a_wrong_perplexity_is_found():
    """The tests above can fail: labels that are shifted, declared not to be, are shifted twice."""
    row = ROWS["ByHandReturned: the same; logits and labels returned"]
    wrong = zoo_judge.judge(
        zoo_judge.Row(row.group, row.name, "", row.make, options={"labels_are_shifted": False})
    )
    assert wrong.verdict == "WRONG"
    assert not wrong.holds
    assert wrong.got != pytest.approx(wrong.expected, rel=1e-3)


def test_the_gradient_shows_which_label_belongs_to_which_logits():
    logits = torch.randn(2, 3, 7, requires_grad=True)
    labels = torch.tensor([[1, -100, 6], [0, 3, -100]])
    weight = torch.linspace(0.5, 2, 7)
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, weight=weight, label_smoothing=0.1
    )
    assert torch.equal(zoo_judge.labels_by_gradient(loss, logits), labels)


def test_the_reference_agrees_with_torch():
    logits = torch.randn(2, 3, 7, dtype=torch.float64) * 5 + 1e3
    labels = torch.tensor([[1, -100, 6], [0, 3, 2]])
    nll, n = zoo_judge.float64_nll(logits, labels)
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
    assert (nll, n) == (pytest.approx(float(expected), rel=1e-12), 5)


def test_the_page_names_every_row_and_every_class_that_is_missing():
    named = {"layout": "labels", "group": "transformers: causal", "said": ""}
    findings = [
        {**named, "name": "Here", "verdict": "exact"},
        {**named, "name": "Gone", "verdict": "skipped", "said": "too | large"},
        {**named, "name": "Own", "verdict": "refused", "group": "modules of one's own"},
    ]
    page = zoo_page.page(findings)
    assert "| `Here` | ✓ |" in page
    assert "| `Gone` | too / large |" in page
    assert "| Own | labels | refused |" in page
