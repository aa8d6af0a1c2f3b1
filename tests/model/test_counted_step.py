"""One counted training step, in real fits and under torch.compile."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import HuggingFaceLM, loader
from lightning.pytorch import Callback
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import lightning_lscore.model.counted_step as counted_step
from lightning_lscore.model.counted_step import CountedStep
from lightning_lscore.model.flops import FlopsModel, flops_of


class Hooks(Callback):
    """Counts the first batch of a fit, as LScore may."""

    def __init__(self) -> None:
        self.step = CountedStep()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.step.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.step.stop()

    def on_exception(self, trainer, pl_module, exception):
        self.step.stop()


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}])
def test_the_hooks_around_a_batch_count_it(trainer, options):
    """One step of 4 sequences of 12 tokens; the others are not in it."""
    module, hooks = HuggingFaceLM(), Hooks()
    trainer(hooks, **options).fit(module, loader(12), loader(4))
    estimate = flops_of(module)
    model = hooks.step.flops_model({12: 48}, estimate)
    assert model.per_token == hooks.step.flops / 48
    assert model.at(12) == pytest.approx(estimate.at(12), rel=0.03)
    assert model.per_position == {}
    assert model.convention.startswith("products counted in one step of 48 tokens (sequences of 12")


def test_a_step_that_fails_leaves_no_counter_behind(trainer):
    class Fails(HuggingFaceLM):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise RuntimeError("no")

    hooks = Hooks()
    with pytest.raises(RuntimeError, match="no"):
        trainer(hooks).fit(Fails(), loader(12), loader(4))
    assert hooks.step.flops > 0
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    hooks.step.stop()  # once more does no harm


def test_where_nothing_was_counted_the_estimate_stays():
    """No products, or no tokens: it says so."""
    estimate = FlopsModel(per_token=6, per_position={math.inf: 1}, convention="6 FLOP")
    model = CountedStep().flops_model({12: 48}, estimate)
    assert (model.per_token, model.per_position) == (6, {math.inf: 1})
    why = "a counted step showed no product, as may be under torch.compile"
    assert model.convention == f"6 FLOP ({why})"
    with CountedStep() as step:
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert step.flops == 48
    assert step.flops_model({}, estimate).convention == "6 FLOP (a counted step showed no token)"


@pytest.mark.parametrize("heads", [2, 4])
def test_fused_attention_counts_as_its_products_would(heads):
    """Keys' and values' heads may be fewer; the scores that are computed again do not count."""
    q, k, v = (torch.rand(3, h, 16, 8, requires_grad=True) for h in (4, heads, heads))
    with CountedStep() as step:
        scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()
    assert step.flops == 12 * (3 * 16) * (4 * 8) * 16


@pytest.mark.parametrize(
    ("a", "b", "groups"),
    [
        ((32, 8), (2, 8, 24), 1),
        ((2, 32, 8), (8, 48), 1),
        ((32, 16), (16, 24), 1),
        ((2, 32, 8), (2, 8, 24), 2),
    ],
)
def test_grouped_products_count_as_those_of_all_groups(a, b, groups):
    """Of two: rows, columns or what is between them by group, or all stacked."""
    x, y = torch.rand(a).bfloat16(), torch.rand(b).bfloat16()
    shared = {(2, 2): a[-1], (2, 3): a[0], (3, 2): b[-1]}.get((len(a), len(b)), 0)
    ends = torch.tensor([8, shared], dtype=torch.int32) if shared else None
    with CountedStep() as step:
        torch._grouped_mm(x, y.mT.contiguous().mT if len(b) == 3 else y, offs=ends)
    assert step.flops == 2 * groups * a[-2] * a[-1] * b[-1]


def test_it_says_whether_it_counts():
    """Between start and stop only, however often it stops."""
    step = CountedStep()
    assert not step.is_counting
    step.start()
    assert step.is_counting
    for _ in range(2):
        step.stop()
        assert not step.is_counting


def test_what_checkpointing_computes_again_is_in_a_count():
    """As its convention says: one forward pass more, of three parts."""
    layer = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU())
    x = torch.rand(4, 8, requires_grad=True)
    with CountedStep() as step:
        checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert step.flops == 8 * 4 * 64
    convention = step.flops_model({1: 4}, flops_of(layer)).convention
    assert "those of padding, of activation checkpointing and of the optimizer too" in convention


def test_a_module_is_compiled_though_its_first_call_is_counted():
    """Under a mode of another kind torch.compile gives a function up for good."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    layer, x = nn.Linear(8, 8, bias=False), torch.rand(4, 8, requires_grad=True)
    compiled = torch.compile(layer, backend=backend)
    for _ in range(2):
        with CountedStep() as step:
            compiled(x).sum().backward()
        assert step.flops == 6 * 4 * 64
        compiled(x).sum().backward()
        assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_with_a_function_for_its_scores_goes_on():
    """Uncounted; PyTorch's own counter stops it with a TypeError."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q = torch.rand(1, 2, 32, 16)
    expected = flex.flex_attention(q, q, q)
    with CountedStep() as step:
        assert torch.equal(flex.flex_attention(q, q, q), expected)
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert step.flops == 48


def test_without_a_way_to_leave_compiling_alone_nothing_is_counted(monkeypatch):
    """The estimate stays then."""
    monkeypatch.setattr(counted_step, "_LeavesCompileAlone", None)
    with CountedStep() as step:
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert step.flops == 0
