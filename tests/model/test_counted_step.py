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
    assert model.total({12: 48}) == hooks.step.flops
    assert model.at(12) == pytest.approx(estimate.at(12), rel=0.03)
    assert model.per_position == estimate.per_position
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


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_what_checkpointing_computes_again_does_not_count(reentrant):
    """It teaches the model nothing: as many as without, in all its ways and with frozen weights."""
    below, layer = (
        nn.Linear(8, 8, bias=False),
        nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU()),
    )
    with CountedStep() as step:
        x = below(torch.rand(4, 8))
        x = layer(x) if reentrant is None else checkpoint(layer, x, use_reentrant=reentrant)
        x.sum().backward()
    assert step.flops == (6 + 4) * 4 * 64


def test_what_a_compiled_backward_pass_rebuilds_does_not_count():
    """Nothing in it shows what that is: a backward pass takes at most two products for each."""
    layer = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False))

    @torch.compile(backend="aot_eager")
    def forward(x):
        return checkpoint(layer, x, use_reentrant=False)

    with CountedStep() as step:
        forward(torch.rand(4, 8, requires_grad=True)).sum().backward()
    assert step.flops == 6 * 4 * 2 * 64
    convention = step.flops_model({1: 4}, flops_of(layer)).convention
    assert "no more for the backward pass than twice the forward one" in convention


def test_what_the_optimizer_multiplies_does_not_count():
    """All products behind the last backward pass; a step without one counts whole."""
    w = torch.rand(8, 8, requires_grad=True)
    with CountedStep() as step:
        (torch.rand(4, 8) @ w).sum().backward()
        (w.grad @ w.grad).sum()
    assert step.had_backward
    assert step.flops == 4 * 4 * 64
    with torch.no_grad(), CountedStep() as step:
        torch.rand(4, 8) @ w
    assert not step.had_backward
    assert step.flops == 2 * 4 * 64


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_kernels_count_by_their_weights(kind, gates):
    """PyTorch has no formula for that of an LSTM."""
    net = kind(8, 16, num_layers=2)
    with CountedStep() as step:
        net(torch.rand(5, 3, 8, requires_grad=True))[0].sum().backward()
    weights = gates * 16 * (8 + 16 + 16 + 16)
    # The state that comes before the first token is no product's result: nothing goes back to it.
    assert step.flops == pytest.approx(6 * 15 * weights, rel=0.1)


class Attention(nn.Module):
    """By hand: products, or PyTorch's function."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(32, 96), nn.Linear(32, 32), fused

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        if self.fused:
            y = scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = (q @ k.mT).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_grows_with_the_length_and_the_rest_does_not(fused, cut):
    """One count tells the FLOP at other lengths, also where the step cuts off the last token."""
    net, one = Attention(fused), FlopsModel(per_token=1, convention="")

    def count(length):
        with CountedStep() as step:
            net(torch.rand(2, length - cut, 32, requires_grad=True)).sum().backward()
        return step.flops_model({length: 2 * (length - cut)}, one)

    long, short = count(48), count(12)
    assert long.per_token == short.per_token == 6 * (32 * 96 + 32 * 32)
    (per_position,) = long.per_position.values()
    assert per_position == pytest.approx(12 * 32, rel=0.03)
    assert long.at(12) == pytest.approx(short.at(12), rel=0.03)
    assert "attention's grow with the length" in long.convention


def test_products_in_chunks_do_not_grow_with_the_length():
    """As in a linear attention: their sides are a chunk and a state, and no sequence."""
    x = torch.rand(3, 4, 6, 8, requires_grad=True)  # 3 rows of 4 chunks of 6
    with CountedStep() as step:
        (x @ x.mT @ x).sum().backward()
    model = step.flops_model({24: 72}, FlopsModel(per_token=1, convention=""))
    assert model == FlopsModel(per_token=step.flops / 72, convention=model.convention)


def test_an_operator_of_others_is_named():
    """Its products, if it has any, have no formula."""
    with torch.library._scoped_library("lscore_test", "DEF") as library:
        library.define("attend(Tensor x) -> Tensor")
        library.impl("attend", lambda x: x.clone(), "CPU")
        with CountedStep() as step:
            torch.ops.lscore_test.attend(torch.ones(2, 3) @ torch.ones(3, 4))
    model = step.flops_model({1: 2}, FlopsModel(per_token=1, convention=""))
    assert model.convention.endswith("what lscore_test.attend may multiply is not counted")


@pytest.mark.parametrize("where", ["dims_of", "CountedStep.add"])
def test_what_goes_wrong_in_counting_does_not_reach_the_step(where, monkeypatch):
    def fails(*args):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(f"lightning_lscore.model.counted_step.{where}", fails)
    with CountedStep() as step:
        product = torch.ones(2, 3) @ torch.ones(3, 4)
    assert (product.sum(), step.flops) == (24, 0)
    model = step.flops_model({1: 2}, FlopsModel(per_token=1, convention="estimated"))
    assert model.convention.startswith("estimated (a counted step showed no product")


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
    """And counts like any other; PyTorch's own counter stops it with a TypeError."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    q = torch.rand(1, 2, 32, 16)
    expected = flex.flex_attention(q, q, q)
    with CountedStep() as step:
        assert torch.equal(flex.flex_attention(q, q, q), expected)
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert step.flops == 48 + 4 * 2 * 32 * 32 * 16


def test_without_a_way_to_leave_compiling_alone_nothing_is_counted(monkeypatch):
    """The estimate stays then."""
    monkeypatch.setattr(counted_step, "_LeavesCompileAlone", None)
    with CountedStep() as step:
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert step.flops == 0
