"""Perplexity against an independently written float64 reference, and against torchmetrics."""

from __future__ import annotations

import copy
import math
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torchmetrics.text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import MetricCollection

from lightning_lscore.heldout import buffered, compiled, numerics, softmax
from lightning_lscore.heldout.nll import row_nll, token_nll
from lightning_lscore.heldout.perplexity import Perplexity

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def reference(logits: Tensor, labels: Tensor, ignore_index: int | None = -100) -> Tensor:
    """NLL of every token, one at a time, in float64."""
    out = []
    for x, t in zip(logits.double().reshape(-1, logits.shape[-1]), labels.flatten(), strict=True):
        if ignore_index is not None and t == ignore_index:
            out.append(torch.zeros((), dtype=torch.float64))
        else:
            top = x.max()
            out.append((x - top).exp().sum().log() + (top - x[t]))
    return torch.stack(out).view(labels.shape)


def batch(*shape: int, seed: int = 0, scale: float = 2.5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator) * scale
    return logits, torch.randint(shape[-1], shape[:-1], generator=generator)


@pytest.fixture(params=["cpu", "no looking"])
def look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run the test on both formulations; that for GPUs never decides by values."""
    if request.param == "cpu":
        return True
    monkeypatch.setattr(numerics, "may_look", lambda x: False)
    return False


# ------------------------------------------------------------------------------------- accuracy


@settings(max_examples=150, deadline=None)
@given(
    dtype=st.sampled_from(FLOATS),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, 2, 7, 513, 3000])),
    scale=st.sampled_from([0.0, 1e-3, 2.5, 30.0, 1e3, 1e4]),
    offset=st.sampled_from([0.0, -40.0, 90.0, -1e3, 1e4]),
    ignored=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    ignore_index=st.sampled_from([-100, 0, None]),
    seed=st.integers(0, 2**31),
)
def test_nll_is_that_of_float64(dtype, shape, scale, offset, ignored, ignore_index, seed):
    """Every row agrees with float64 on the rounded logits, for any dtype, magnitude and mask."""
    logits, labels = batch(*shape, seed=seed)
    logits = (logits / 2.5 * scale + offset).to(dtype)
    if ignore_index is not None:
        labels[torch.rand(labels.shape) < ignored] = ignore_index
    expected = reference(logits, labels, ignore_index)
    for look in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numerics, "may_look", lambda x, look=look: look)
            torch.testing.assert_close(
                row_nll(logits, labels, ignore_index), expected, rtol=1e-9, atol=1.2e-6
            )
            nll, count = token_nll(logits, labels, ignore_index)
    assert (nll.dtype, count.dtype) == (torch.float64, torch.int64)
    assert count == (labels.numel() if ignore_index is None else (labels != ignore_index).sum())
    if count:
        assert abs(nll - expected.sum()) / count <= 1e-6


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("vocabulary", [50_257, 262_144])
def test_mean_error_stays_below_a_millionth_of_a_nat(dtype, vocabulary, look):
    """A vocabulary of 262k, flat or peaked, sums without loss."""
    logits, labels = batch(24, vocabulary)
    logits[::2, 777] = 25  # one term beside which the others are small, but not together
    logits[1::4] = -3.0
    logits = logits.to(dtype)
    nll, count = token_nll(logits, labels)
    assert abs(nll / count - reference(logits, labels).mean()) <= 1e-6


@pytest.mark.parametrize("maximum", [-90.0, -33.0, 3.0, 33.0, 90.0, 1e4])
def test_rows_dominated_by_one_value_keep_their_digits(maximum, look):
    """The worst case of a rounded exponent, the same in all rows, still means to 1e-6."""
    for gap in (0.0, 5.3, 13.1, 14.7, 60.0, 105.0):
        logits = torch.full((8, 3000), maximum - 40)
        logits[:, :600] = maximum - gap
        logits[:, 2000] = maximum
        labels = torch.tensor([0, 1, 2, 2000, 2000, 2999, 599, 600])
        labels[:3] = 1
        error = row_nll(logits, labels) - reference(logits, labels)
        assert error.abs().max() <= 1.2e-6, (gap, error)


def test_real_logit_offsets_need_no_second_pass(monkeypatch):
    """Rows as of GPT-2, whose logits stand near -100 or -33, are done in the first pass."""
    monkeypatch.setattr(softmax, "_max_sums", lambda x: pytest.fail("done again"))
    for offset in (-100.0, -33.0, 0.0, 20.0):
        logits, labels = batch(64, 3000)
        row_nll(logits + offset, labels)
    logits.scatter_(1, labels[:, None], 60.0)  # a label far above the rest needs none either
    row_nll(logits, labels)


# -------------------------------------------------------------------------------- special values


def test_masked_vocabulary_counts_nothing(look):
    """Words at -inf do not weigh; a label among them has infinite NLL."""
    logits, labels = batch(2, 3, 1200)
    logits[..., :1100] = -math.inf
    labels.clamp_(1100)
    torch.testing.assert_close(row_nll(logits, labels), reference(logits, labels))
    labels[0, 0] = 5
    nll = row_nll(logits, labels)
    assert nll[0, 0] == math.inf
    assert nll.flatten()[1:].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", [3, 1000])
def test_nan_and_inf_spoil_their_own_row_only(value, column, look):
    """A counted row with NaN or +inf is NaN; an ignored one is 0, and the others are right."""
    logits, labels = batch(2, 3, 1200)
    expected = reference(logits, labels)
    logits[0, 1, column] = value
    nll = row_nll(logits, labels)
    assert nll[0, 1].isnan()
    labels[0, 1] = -100
    expected[0, 1] = 0
    torch.testing.assert_close(row_nll(logits, labels), expected, rtol=0, atol=1e-6)
    metric = Perplexity()
    metric.update(logits, labels)
    assert metric.compute().isfinite()


def test_row_of_minus_infinity_is_nan(look):
    """A row without any finite logit has no distribution."""
    assert row_nll(torch.full((1, 600), -math.inf), torch.tensor([1])).isnan()


def test_certain_prediction_costs_nothing(look):
    """NLL is never negative, not even by rounding."""
    logits = torch.linspace(-99, 99, 999)[:, None].repeat(1, 700) - 50.0
    logits[:, 600] += 90
    assert (row_nll(logits, torch.full((999,), 600)) >= 0).all()


# ------------------------------------------------------------------------------ inputs and modes


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :-1],
        lambda x: x.transpose(0, 1),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x[..., ::2],
        lambda x: x[:1].expand(3, -1, -1),
    ],
)
def test_views_are_read_where_they_are(view, look):
    """Sliced, transposed, strided and expanded logits give the values of their copies."""
    logits = view(batch(3, 5, 700)[0])
    labels = batch(*logits.shape)[1]
    expected = row_nll(logits.contiguous(), labels)
    torch.testing.assert_close(row_nll(logits, labels), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("autocast", [False, True])
def test_no_mode_matters(mode, autocast):
    """Gradient, inference and autocast modes change no value, no logit, and keep no graph."""
    logits, labels = batch(2, 3, 700)
    before, expected = logits.clone(), reference(logits, labels)
    logits.requires_grad_()
    metric = Perplexity()
    with mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        nll = row_nll(logits, labels)
        metric.update(logits, labels)
        value = metric(logits, labels)
    torch.testing.assert_close(nll.clone(), expected, rtol=0, atol=1e-6)
    assert not nll.requires_grad
    assert not value.requires_grad
    assert torch.equal(logits, before)
    metric.update(logits, labels)  # after inference_mode, too
    assert metric.count == 18
    torch.testing.assert_close(metric.nll(), expected.mean(), rtol=0, atol=1e-6)


def test_flat_and_empty_inputs():
    """[N, V], [V] and batches without tokens work; nothing counted is NaN, not 1."""
    logits, labels = batch(6, 40)
    assert row_nll(logits, labels).shape == (6,)
    assert row_nll(logits[0], labels[0]) == row_nll(logits, labels)[0]
    assert token_nll(logits[:0], labels[:0]) == (0, 0)
    metric = Perplexity()
    metric.update(torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.int64))
    metric.update(torch.zeros(1, 2, 5), torch.full((1, 2), -100))
    assert metric.compute().isnan()
    metric.update(torch.zeros(1, 2, 5), torch.tensor([[3, -100]]))
    assert metric.compute() == pytest.approx(5, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_integer_type(dtype):
    """Narrow integers index as well, and 156 in uint8 is not taken for -100."""
    logits, labels = batch(1, 4, 200)
    labels[0, 0] = 156 if dtype == torch.uint8 else 7
    assert torch.equal(row_nll(logits, labels.to(dtype)), row_nll(logits, labels))


def test_ignored_rows_are_not_computed(monkeypatch):
    """Only the runs of counted rows reach the sum."""
    seen = []
    sums = softmax.buffered_sums
    monkeypatch.setattr(
        softmax, "buffered_sums", lambda x, s, runs: (seen.append(runs), sums(x, s, runs))[1]
    )
    logits, labels = batch(2, 5, 30)
    labels[0, :2] = labels[1, 1] = labels[1, 4] = -100
    row_nll(logits, labels)
    assert seen == [[[2, 6], [7, 9]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_threads_share_the_rows_and_leave_no_trace(monkeypatch, dtype, mode):
    """Work spread over threads gives the same values, and the thread count is what it was."""
    monkeypatch.setattr(buffered, "_THREADED", 0)
    monkeypatch.setattr(buffered, "buffer_bytes", lambda x: 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with mode():
            logits, labels = batch(50, 700)
            logits = logits.to(dtype)
            nll = row_nll(logits, labels)
        torch.testing.assert_close(nll, reference(logits, labels), rtol=0, atol=1e-6)
        monkeypatch.setattr(torch, "add", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            row_nll(logits, labels)
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------ torchmetrics


@pytest.mark.parametrize("ignore_index", [-100, 3, None])
def test_agrees_with_torchmetrics(ignore_index):
    """Batches, forward values and results are those of torchmetrics, where that is right."""
    ours, theirs = Perplexity(ignore_index), torchmetrics.text.Perplexity(ignore_index)
    for seed in range(3):
        logits, labels = batch(4, 6, 50, seed=seed)
        if ignore_index is not None:
            labels[0, : seed + 1] = ignore_index
        torch.testing.assert_close(ours(logits, labels).float(), theirs(logits, labels))
    torch.testing.assert_close(ours.compute().float(), theirs.compute())


def test_right_where_torchmetrics_is_not():
    """Gaps of 105 are finite, bfloat16 is exact, tokens past 2^24 count."""
    logits, labels = torch.tensor([[[105.0, 0.0]]]), torch.tensor([[1]])
    metric, theirs = Perplexity(), torchmetrics.text.Perplexity()
    metric.update(logits, labels)
    theirs.update(logits, labels)
    assert theirs.compute().isinf()
    assert metric.compute() == pytest.approx(math.exp(105), rel=1e-7)

    metric.reset()
    logits, labels = batch(1, 64, 5000)
    logits = logits.bfloat16()
    metric.update(logits, labels)
    assert metric.nll() == pytest.approx(reference(logits, labels).mean().item(), abs=1e-7)

    metric.reset()
    metric.count, metric.nll_sum = metric.count + 2**24, metric.nll_sum + 2.0**24
    for _ in range(3):
        metric.update(torch.zeros(1, 1, 2), torch.tensor([[0]]))
    assert metric.count == 2**24 + 3
    assert metric.nll_sum == pytest.approx(2**24 + 3 * math.log(2), rel=1e-15)


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("logits", "labels", "error", "says"),
    [
        (
            torch.zeros(2, 4, 9),
            torch.zeros(2, 3).long(),
            ValueError,
            r"\[2, 4, 9\].*\[2, 3\].*move",
        ),
        (torch.zeros(4, 9), torch.zeros(4).long(), ValueError, r"3 dimensions.*\[4, 9\].*None"),
        (torch.zeros(2, 4), torch.zeros(2, 4).long(), ValueError, r"\[2, 4\].*NLL.*update_nll"),
        (torch.tensor(1.5), torch.zeros(2, 4).long(), ValueError, r"got shape \[\].*update_nll"),
        (torch.zeros(2, 4, 0), torch.zeros(2, 4).long(), ValueError, "expected logits"),
        (torch.zeros(2, 4, 9).long(), torch.zeros(2, 4).long(), TypeError, "torch.int64.*swapped"),
        (torch.zeros(2, 4, 9), torch.zeros(2, 4), TypeError, "torch.float32.*token ids"),
        (torch.zeros(2, 4, 9), torch.zeros(2, 4).bool(), TypeError, "torch.bool"),
        (torch.zeros(1, 1, 9), torch.tensor([[9]]), ValueError, r"\[0, 9\).*got 9.*padding"),
        (torch.zeros(1, 1, 9), torch.tensor([[-1]]), ValueError, r"ignore_index=-100, got -1\."),
        (torch.zeros(1, 1, 9), torch.zeros(1, 1, device="meta").long(), ValueError, "one device"),
    ],
)
def test_errors_say_what_to_do(logits, labels, error, says):
    """Wrong input is refused with what was expected, what came, and the remedy."""
    with pytest.raises(error, match=says.replace("None", "preds.None.")):
        Perplexity().update(logits, labels)


def test_ignore_index_is_an_integer():
    """Another type of ignore_index is refused at once."""
    with pytest.raises(ValueError, match="int or None, got 'pad'"):
        Perplexity(ignore_index="pad")


def test_invalid_targets_show_at_compute_where_looking_would_wait(monkeypatch):
    """On a GPU an invalid target poisons its row, and compute raises until the reset."""
    monkeypatch.setattr(numerics, "may_look", lambda x: False)
    labels = torch.tensor([[1, 9, -1, -100]])
    assert row_nll(torch.zeros(1, 4, 9), labels).isnan().tolist() == [[False, True, True, False]]
    assert row_nll(torch.zeros(1, 4, 9), labels, None)[0, 3].isnan()
    metric = Perplexity()
    metric.update(torch.zeros(1, 4, 9), labels)
    with pytest.raises(ValueError, match="got 2 others"):
        metric.compute()
    metric.reset()
    metric.update(torch.zeros(1, 4, 9), labels.clamp(max=8).abs().clamp(max=8))
    assert metric.compute() == pytest.approx(9)


# ------------------------------------------------------------------------------------- the metric


def updated(seed: int = 0) -> Perplexity:
    metric = Perplexity()
    metric.update(*batch(2, 3, 40, seed=seed))
    return metric


@pytest.mark.parametrize("copy_of", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy])
def test_copies_go_on(copy_of):
    """A pickled or copied metric keeps its sums, and counts on."""
    metric = updated()
    twin = copy_of(metric)
    for each in (metric, twin):
        each.update(*batch(2, 3, 40, seed=1))
    assert twin.compute() == metric.compute()
    assert twin.count == 12


def test_metrics_of_a_collection_that_ignore_other_targets_share_no_sums():
    """MetricCollection decides by the first batch, in which no target may be ignored."""
    metrics = MetricCollection(
        {
            "all": Perplexity(ignore_index=None),
            "others": Perplexity(ignore_index=2),
            "usual": Perplexity(),
            "twin": Perplexity(),
            "compiled": Perplexity(compile=True),
        }
    )
    logits, targets = torch.randn(1, 3, 9), torch.tensor([[1, 3, 4]])
    metrics.update(logits, targets)
    metrics.update(logits, torch.tensor([[2, 3, 4]]))
    counts = {name: int(metric.count) for name, metric in metrics.items()}
    assert counts == {"all": 6, "others": 5, "usual": 6, "twin": 6, "compiled": 6}
    groups = sorted(sorted(names) for names in metrics.compute_groups.values())
    assert groups == [["all"], ["compiled"], ["others"], ["twin", "usual"]]


@pytest.mark.parametrize(("one", "other"), [(128_000, 128_001), (1, -1), (0, None)])
def test_no_ignore_index_is_near_enough_to_share_sums(one, other):
    """torchmetrics compares states with a tolerance."""
    pair = {"one": Perplexity(ignore_index=one), "other": Perplexity(ignore_index=other)}
    metrics = MetricCollection(pair)
    metrics.update(torch.randn(1, 2, 9), torch.tensor([[2, 3]]))
    assert len(metrics.compute_groups) == 2


def test_merge_and_reset():
    """Merged metrics are one metric over both data sets; a reset one is empty, in its dtypes."""
    one, two, both = updated(0), updated(1), updated(0)
    both.update(*batch(2, 3, 40, seed=1))
    one.merge_state(two)
    assert one.compute() == both.compute()
    one.reset()
    assert (one.nll_sum, one.count, one.invalid) == (0, 0, 0)
    assert (one.nll_sum.dtype, one.count.dtype) == (torch.float64, torch.int64)


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.float(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.set_dtype(torch.float16),
        lambda m: torch.nn.ModuleDict({"metric": m}).to(torch.bfloat16)["metric"],
    ],
)
def test_casts_leave_the_sums_alone(cast):
    """Casting the metric, or the model that holds it, downcasts no state, now or after a reset."""
    metric = updated()
    value = metric.compute()
    metric = cast(metric)
    metric._computed = None
    assert metric.compute() == value
    metric.reset()
    assert (metric.nll_sum.dtype, metric.count.dtype) == (torch.float64, torch.int64)


def test_moves_with_its_module():
    """Moving the module moves the states."""
    assert updated().to("meta").nll_sum.device.type == "meta"


def test_states_stay_on_the_cpu_for_mps():
    """MPS has no float64: a move there leaves the states where they are."""
    metric = updated()
    mps = type("OnMps", (), {"device": torch.device("mps")})()
    metric._apply(lambda x: mps if x.numel() == 0 else pytest.fail("moved"))
    assert metric.nll_sum.device.type == "cpu"


def test_overflow_keeps_the_nll():
    """Perplexity beyond float64 is inf, and the mean NLL stays."""
    metric = Perplexity()
    metric.update(torch.tensor([[[0.0, 1e4]]]), torch.tensor([[0]]))
    assert metric.compute() == math.inf
    assert metric.nll() == 1e4


def test_known_nll_is_added_up_as_well():
    """NLL of tokens, or their mean, stands in for logits; what is ignored may hold anything."""
    logits, labels = batch(2, 3, 40)
    labels[1, 1:] = -100
    metric, expected = Perplexity(), Perplexity()
    expected.update(logits, labels)
    nll = row_nll(logits, labels)
    nll[1, 1:] = math.nan
    metric.update_nll(nll, labels)
    metric.update_nll(expected.nll().float(), labels)
    assert metric.count == 2 * expected.count == 8
    assert metric.nll() == pytest.approx(expected.nll().item(), rel=1e-7)
    metric = Perplexity(ignore_index=None)
    metric.update_nll(torch.tensor(1.5), labels)
    assert (metric.nll_sum, metric.count) == (9, 6)
    with pytest.raises(ValueError, match="3 dimensions"):
        metric.update(labels, labels)


def test_a_result_is_computed_anew_after_nll_was_added():
    """As after an update with logits: nothing stale, and no warning that nothing was added."""
    metric, labels = Perplexity(), torch.zeros(1, 2).long()
    for nll in (1.0, 3.0):
        metric.update_nll(torch.full((1, 2), nll), labels)
        metric.compute()
    assert metric.compute() == pytest.approx(math.exp(2))
    assert metric.update_count == 2


@pytest.mark.parametrize(
    ("nll", "error", "says"),
    [
        (torch.zeros(2, 4, 9), ValueError, r"\[2, 4\].*got \[2, 4, 9\]; give logits to update"),
        (torch.zeros(4), ValueError, r"got \[4\]"),
        (torch.zeros(2, 4).long(), TypeError, "torch.int64"),
    ],
)
def test_nll_has_the_shape_of_its_targets_or_is_their_mean(nll, error, says):
    """Logits given by mistake are refused, as is a shape that would be stretched to fit."""
    with pytest.raises(error, match=says):
        Perplexity().update_nll(nll, torch.zeros(2, 4).long())


def _two_ranks(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    metric = Perplexity()
    for seed in range(rank + 1):  # ranks with unequal numbers of batches
        metric.update(*batch(2, 3, 40, seed=10 * rank + seed))
    value, nll, local = metric.compute(), metric.nll(), metric.count.clone()
    torch.save((value, nll, local), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_give_the_token_weighted_perplexity(tmp_path: Path):
    """Both ranks compute the value of all tokens together, and keep their own sums."""
    ranks = mp.start_processes(_two_ranks, (str(tmp_path),), nprocs=2, join=False)
    try:
        end = time.monotonic() + 120
        while not ranks.join(timeout=5):
            assert time.monotonic() < end, "the ranks hang"
    finally:
        for process in ranks.processes:
            process.kill()
    whole = Perplexity()
    for seed in (0, 10, 11):
        whole.update(*batch(2, 3, 40, seed=seed))
    for rank in (0, 1):
        value, nll, local = torch.load(tmp_path / f"{rank}.pt")
        assert value == pytest.approx(whole.compute().item(), rel=1e-12)
        assert nll == pytest.approx(whole.nll().item(), rel=1e-12)
        assert local == 6 * (rank + 1)


@pytest.mark.parametrize("compile", [False, True])
def test_off_the_cpu_nothing_depends_on_values(compile):
    """So that no update waits for a GPU: tensors without data refuse whatever would."""
    logits = torch.zeros(2, 64, 50257, device="meta", dtype=torch.bfloat16)
    labels = torch.zeros(2, 64, device="meta", dtype=torch.int64)
    metric = Perplexity(compile=compile).to("meta")
    metric.update(logits, labels)
    metric.update(logits[:, :-1], labels[:, 1:])
    assert metric.nll_sum.device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        metric.compute()


# --------------------------------------------------------------------------------- compiled kernel


@pytest.fixture
def fresh_kernel():
    """Nothing built before the test is used in it, nor anything of it afterwards."""
    caches = [compiled._kernel.cache_clear, compiled._built.clear]
    for clear in caches:
        clear()
    yield
    for clear in caches:
        clear()


def test_without_a_compiler_the_result_is_the_same(monkeypatch, fresh_kernel, look):
    """A build that fails is tried once, silently, and the eager sum takes over."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", refuse)
    logits, labels = batch(2, 3, 3000)
    for _ in range(2):
        assert torch.equal(row_nll(logits, labels, compile=True), row_nll(logits, labels))
    assert len(tried) == 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_kernel_to_be_compiled_is_exact(monkeypatch, fresh_kernel, dtype, look):
    """The function that is compiled gives the reference's values, run here as it stands."""
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: function)
    for vocabulary in (40, 2048, 3000):
        logits, labels = batch(4, 5, vocabulary)
        logits = logits.to(dtype) / 3
        labels[1] = -100
        metric = Perplexity(compile=True)
        metric.update(logits, labels)
        expected = reference(logits, labels).sum() / 15
        atol = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(metric.nll(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("power", [-184.0, 0.0, 17.0])
@pytest.mark.parametrize("z", [(-126, 126), (-1, 1), (-0.5, 0.5)])
def test_the_kernels_exponential_is_that_of_float64_to_a_few_roundings(z, power):
    """Without a bias that a sum over a vocabulary would keep."""
    x = (torch.linspace(*z, 100_001) + power) * math.log(2)
    # Uncompiled, the product is rounded before the sum: that is not the exponential's doing.
    expected = torch.exp2((x * math.log2(math.e)).double() - power)
    error = compiled._powers(x, torch.tensor(power)).double() / expected - 1
    assert error.abs().max() < 3e-7
    assert error.mean().abs() < 2e-8


@pytest.mark.parametrize("power", [-184.0, 0.0, 184.0])
def test_the_kernels_exponential_keeps_what_is_out_of_range_apart(power):
    """Little stays nothing, much stays more than a sum may have, and NaN is seen."""
    odd_nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    large = power * math.log(2) + 90
    x = torch.tensor([-torch.inf, -1e38, -1e4, large, 400.0, 1e6, 1e38, torch.inf, torch.nan])
    y = compiled._powers(torch.cat([x, odd_nan, -odd_nan]), torch.tensor(power))
    assert ((y[:3] >= 0) & (y[:3] < 1e-37)).all()
    assert (y[3:8] > 1e37).all()
    assert y[8:].isnan().all()


def test_kernel_never_sees_a_single_row(monkeypatch, fresh_kernel):
    """Runs of one row are widened, since a size of 1 means another build, and stay right."""
    sizes = set()

    def spy(function, **kwargs):
        return lambda x, s: (sizes.add(len(x)), function(x, s))[1]

    monkeypatch.setattr(torch, "compile", spy)
    for counted in ([0], [3], [5], [0, 2, 5]):
        logits, labels = batch(6, 3000)
        labels[[i not in counted for i in range(6)]] = -100
        nll = row_nll(logits, labels, compile=True)
        torch.testing.assert_close(nll, reference(logits, labels), rtol=0, atol=1e-6)
    assert sizes == {2}
    row_nll(logits[:1], labels[:1], compile=True)
    assert sizes == {2}


def test_kernel_that_fails_later_falls_back(monkeypatch, fresh_kernel):
    """An exception of the compiled kernel leads to the eager sum."""
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: spied(function))
    fails, calls = [], []

    def spied(function):
        def run(*args):
            calls.append(function)
            return 1 / 0 if fails else function(*args)

        return run

    logits, labels = batch(4, 3000)
    expected = row_nll(logits, labels)
    torch.testing.assert_close(row_nll(logits, labels, compile=True), expected, rtol=0, atol=1e-6)
    fails.append(True)
    for _ in range(2):
        assert torch.equal(row_nll(logits, labels, compile=True), expected)
    assert len(calls) == 2, "not tried again"


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_compiled_in_earnest_is_exact(monkeypatch, fresh_kernel, dtype, look):
    """Both kernels go through the compiler as they are, for logits of several sizes."""
    monkeypatch.setattr(softmax, "buffered_sums", lambda *args: pytest.fail("not compiled"))
    monkeypatch.setattr(softmax, "_max_sums_of_parts", lambda x: pytest.fail("not compiled"))
    for rows, vocabulary in ((5, 3000), (7, 4100)):
        logits, labels = batch(rows, vocabulary)
        nll = row_nll(logits.to(dtype), labels, compile=True)
        expected = reference(logits.to(dtype), labels)
        torch.testing.assert_close(nll, expected, rtol=0, atol=1e-6)
