"""One text by sliding windows, against references that were written from the definitions."""

from __future__ import annotations

import math
import re
import sysconfig
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lscore.heldout.text import TextEvaluation, evaluate_text

WORDS = 31  # of the tests' vocabulary; the next id is the beginning of a sequence
BOS = 31
VOCABULARY = 32
LOOKS = 2  # calls that look whether the model is causal


class Letters:
    """A tokenizer of one token a character, such as transformers' fast ones are called."""

    is_fast = True

    def __init__(self, bos_token_id: int | None = BOS) -> None:
        self.bos_token_id = bos_token_id

    def __call__(self, text, *, add_special_tokens, verbose, return_offsets_mapping=False):
        assert not add_special_tokens
        assert not verbose
        ids = [ord(letter) % WORDS for letter in text]
        offsets = {"offset_mapping": [(i, i + 1) for i in range(len(ids))]}
        return {"input_ids": ids, **(offsets if return_offsets_mapping else {})}


class Counter(torch.nn.Module):
    """Each prediction depends on all that the window holds before it, and on nothing else.

    Where the inputs so far are x, the logits are row (sum of x_i² + number of them) of a table.
    """

    def __init__(self, keeps: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(97, VOCABULARY, generator=generator, dtype=torch.float64)
        self.table *= 3
        self.seen: list[list[int]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.grad_enabled = self.was_training = False
        if keeps:
            self.forward = self.forward_keeping

    def forward(self, input_ids):
        self.grad_enabled |= torch.is_grad_enabled()
        self.was_training |= self.training
        self.seen += input_ids.tolist()
        self.shapes.append(tuple(input_ids.shape))
        return self.table[(input_ids**2 + 1).cumsum(-1) % 97]

    def forward_keeping(self, input_ids, use_cache=True, logits_to_keep=0):
        assert not use_cache
        assert 0 < logits_to_keep <= input_ids.shape[1]
        return Counter.forward(self, input_ids)[:, -logits_to_keep:]

    def cost(self, context: list[int], token: int) -> float:
        """-log p(token | context), nats, without tensors."""
        row = self.table[sum(x * x + 1 for x in context) % 97].tolist()
        return math.log(sum(math.exp(x) for x in row)) - row[token]


def context_begins(target: int, predicted: int, context: int, stride: int, full_last: bool) -> int:
    """Where the context of token ``target`` begins, from the definition, for one token alone."""
    if target <= context:
        return 0
    window = math.ceil((target - context) / stride)
    last = window == math.ceil((predicted - context) / stride)
    return predicted - context if last and full_last else window * stride


def expected_sum(cost, ids, context, stride, full_last=False) -> float:
    """Sum over tokens, each by its own, of cost(context, token)."""
    n = len(ids) - 1
    begins = [context_begins(i, n, context, stride, full_last) for i in range(1, n + 1)]
    return math.fsum(
        cost(ids[begin:i], ids[i]) for i, begin in zip(range(1, n + 1), begins, strict=True)
    )


@st.composite
def settings_of_windows(draw):
    context = draw(st.integers(1, 12))
    return {
        "context_length": context,
        "stride": draw(st.integers(1, context)),
        "batch_size": draw(st.integers(1, 4)),
        "full_last": draw(st.booleans()),
    }


@settings(deadline=None)
@given(
    text=st.text(st.characters(min_codepoint=32, max_codepoint=500), min_size=2, max_size=50),
    options=settings_of_windows(),
    bos=st.booleans(),
    keeps=st.booleans(),
)
def test_every_token_counts_once_with_the_context_of_its_window(text, options, bos, keeps):
    """Whatever the length, context, stride and batch; the sum is that of a loop over tokens."""
    model = Counter(keeps)
    result = evaluate_text(model, Letters(), text, add_bos=bos, **options)
    ids = [BOS] * bos + [ord(letter) % WORDS for letter in text]
    context, stride = options["context_length"], options["stride"]
    assert result.tokens == len(ids) - 1 == len(text) - (not bos)
    expected = expected_sum(model.cost, ids, context, stride, options["full_last"])
    assert result.nll_sum == pytest.approx(expected, rel=1e-12)
    assert result.utf8_bytes == len((text if bos else text[1:]).encode())
    assert all(len(window) <= context for window in model.seen)
    if options["full_last"] and len(ids) > context:
        assert {len(window) for window in model.seen[LOOKS:]} == {context}


def test_only_windows_of_one_shape_are_batched():
    """The first window scores more than the others, and the last is shorter: each is alone."""
    model = Counter()
    evaluate_text(model, Letters(), "x" * 31, context_length=8, stride=4, batch_size=3)
    assert model.shapes[LOOKS:] == [(1, 8), (3, 8), (2, 8), (1, 7)]
    model = Counter()
    evaluate_text(model, Letters(), "x" * 32, context_length=8, stride=8, batch_size=3)
    assert model.shapes[LOOKS:] == [(3, 8), (1, 8)]


def test_a_text_shorter_than_a_window_is_one_forward():
    """Stride and context do not matter then."""
    model = Counter()
    one = evaluate_text(model, Letters(), "short", context_length=100, stride=7)
    assert model.shapes[LOOKS:] == [(1, 5)]
    assert one.nll_sum == evaluate_text(model, Letters(), "short", context_length=5).nll_sum
    assert (one.context_length, one.stride) == (100, 7)


# --------------------------------------------------------------------------- the first token, spans


def test_without_bos_the_first_token_is_only_read():
    """Its bytes and its words are not charged to the others."""
    with_bos = evaluate_text(Counter(), Letters(), "äb cd", context_length=9)
    assert (with_bos.tokens, with_bos.utf8_bytes, with_bos.words, with_bos.bos) == (5, 6, 2, BOS)
    without = evaluate_text(Counter(), Letters(None), "äb cd", context_length=9)
    assert (without.tokens, without.utf8_bytes, without.words, without.bos) == (4, 4, 2, None)
    assert (
        without.nll_sum
        == evaluate_text(Counter(), Letters(), "äb cd", context_length=9, add_bos=False).nll_sum
        == pytest.approx(
            expected_sum(Counter().cost, [ord(letter) % WORDS for letter in "äb cd"], 9, 4)
        )
    )


def test_another_token_can_begin_the_text():
    """As where there is no BOS token and the end of a text serves as one."""
    result = evaluate_text(Counter(), Letters(None), "abc", context_length=9, bos_token_id=5)
    ids = [5, *(ord(letter) % WORDS for letter in "abc")]
    assert (result.tokens, result.bos) == (3, 5)
    assert result.nll_sum == pytest.approx(expected_sum(Counter().cost, ids, 9, 4))


def test_a_text_that_begins_with_bos_gets_no_second_one():
    """A BOS token after a BOS token is nothing that a model has learned to predict."""
    own = ord("a") % WORDS
    result = evaluate_text(Counter(), Letters(own), "abc", context_length=9)
    assert (result.tokens, result.bos, result.utf8_bytes) == (2, own, 2)


def test_special_tokens_of_a_fast_tokenizer_do_not_enter(capfd):
    """One that adds BOS and EOS by itself gives only the text's; length is no warning."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "to": 2, "be": 3}
    inner = Tokenizer(models.WordLevel(words))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", model_max_length=4
    )
    assert tokenizer("to be")["input_ids"] == [0, 2, 3, 1]
    capfd.readouterr()
    model = Counter()
    result = evaluate_text(model, tokenizer, "to be " * 3, context_length=6)
    assert model.seen[LOOKS:] == [[0, 2, 3, 2, 3, 2]]
    assert (result.tokens, result.utf8_bytes, result.bos) == (6, 18, 0)
    assert result.words == 7, "as lm-evaluation-harness counts: the empty one at the end too"
    without = evaluate_text(Counter(), tokenizer, "to be be", context_length=6, add_bos=False)
    assert (without.tokens, without.utf8_bytes) == (2, len(" be be"))
    assert capfd.readouterr() == ("", "")


def test_bytes_of_an_unknown_span_are_none():
    """The first token ends within a character, or the tokenizer does not say where."""

    class Bytes(Letters):
        def __call__(self, text, **options):
            at = [i for i, letter in enumerate(text) for _ in letter.encode()]
            ids = [byte % WORDS for byte in text.encode()]
            return {"input_ids": ids, "offset_mapping": [(i, i + 1) for i in at]}

    class Slow(Letters):
        is_fast = False

    for tokenizer in (Bytes(), Slow()):
        known = evaluate_text(Counter(), tokenizer, "äb", context_length=4)
        assert (known.utf8_bytes, known.words) == (3, 1)
        result = evaluate_text(Counter(), tokenizer, "äb", context_length=4, add_bos=False)
        assert result.utf8_bytes is result.words is None
        assert result.bits_per_byte is result.byte_perplexity is result.word_perplexity is None
        assert result.perplexity > 1


# ------------------------------------------------------------------------- the model as it was left


def test_the_model_is_left_as_it_was():
    """Dropout is off while evaluating, no gradient is kept, each module has its mode back."""
    model = Counter()
    model.frozen, model.trained = torch.nn.Dropout().eval(), torch.nn.Dropout()
    evaluate_text(model, Letters(), "abc", context_length=2)
    assert (model.training, model.frozen.training, model.trained.training) == (True, False, True)
    assert not model.was_training
    assert not model.grad_enabled
    assert torch.is_grad_enabled()


def test_the_mode_comes_back_after_an_error():
    """A training run that evaluates a sample must not go on in eval mode."""

    class Failing(torch.nn.Module):
        def forward(self, input_ids):
            raise RuntimeError("out of memory")

    model = Failing().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate_text(model, Letters(), "abc", context_length=2)
    assert model.training


def test_inputs_go_where_the_weights_are():
    """Weights that are offloaded (meta) do not tell where."""

    class Placed(Counter):
        def __init__(self):
            super().__init__()
            self.offloaded = torch.nn.Parameter(torch.empty(1, device="meta"))
            self.weight = torch.nn.Parameter(torch.empty(1))

        def forward(self, input_ids):
            assert input_ids.device == self.weight.device
            return super().forward(input_ids)

    assert evaluate_text(Placed(), Letters(), "abc", context_length=2).tokens == 3


def test_progress_is_shown_on_request(capsys):
    """In tokens; nothing is printed otherwise."""
    evaluate_text(Counter(), Letters(), "x" * 40, context_length=4)
    assert capsys.readouterr() == ("", "")
    evaluate_text(Counter(), Letters(), "x" * 40, context_length=4, progress=True)
    assert "40/40" in capsys.readouterr().err


# -------------------------------------------------------------------------------- result and errors


def test_the_result_says_how_it_was_measured():
    """It is frozen; a perplexity beyond all floats is infinite, its NLL is not."""
    result = evaluate_text(Counter(), Letters(), "abcdef", context_length=4)
    assert re.fullmatch(
        r"perplexity [\d.]+ of 6 tokens \(context 4, stride 2, BOS 31\)", str(result)
    )
    with pytest.raises(FrozenInstanceError):
        result.tokens = 7
    settings = {"context_length": 1, "stride": 1, "bos": None, "full_last": False}
    huge = TextEvaluation(nll_sum=1e6, tokens=1, utf8_bytes=4, words=1, **settings)
    assert huge.perplexity == huge.word_perplexity == huge.byte_perplexity == math.inf
    assert huge.nll == 1e6
    assert huge.bits_per_byte == pytest.approx(250_000 / math.log(2))
    assert "without BOS" in str(huge)


@pytest.mark.parametrize(
    ("text", "options", "error", "says"),
    [
        ("", {}, ValueError, "a text with a token to predict, got ''"),
        ("a", {"add_bos": False}, ValueError, "so two are needed"),
        (["a", "b"], {}, TypeError, "one text, a str, got list"),
        ("ab", {"stride": 5}, ValueError, "from 1 to context_length=4, got 5"),
        ("ab", {"stride": 0}, ValueError, "from 1 to context_length=4, got 0"),
        ("ab", {"context_length": 0}, ValueError, "context_length of at least 1, got 0"),
        ("ab", {"batch_size": 0}, ValueError, "batch_size of at least 1, got 0"),
        ("ab", {"context_length": None}, ValueError, "Give context_length"),
    ],
)
def test_errors_say_what_to_do(text, options, error, says):
    """What was expected, what was got."""
    with pytest.raises(error, match=re.escape(says)):
        evaluate_text(Counter(), Letters(), text, **{"context_length": 4, **options})


def test_asking_for_bos_where_there_is_none_is_an_error():
    """Silently going without would compare unlike with unlike."""
    with pytest.raises(ValueError, match="Give bos_token_id"):
        evaluate_text(Counter(), Letters(None), "ab", context_length=4, add_bos=True)


@pytest.mark.parametrize(
    ("output", "found"), [((torch.zeros(1, 2, 3),), "tuple"), (torch.zeros(2, 3), r"\[2, 3\]")]
)
def test_a_model_that_returns_no_logits_is_an_error(output, found):
    """A classifier, or a model of another kind."""

    class Other(torch.nn.Module):
        def forward(self, input_ids):
            return output

    with pytest.raises(ValueError, match=rf"logits \[1, 2, vocabulary\].*got {found}"):
        evaluate_text(Other(), Letters(), "ab", context_length=4)


# ------------------------------------------------------------- a transformers model, and the others


@pytest.fixture(scope="module")
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        initializer_range=0.5,  # far from uniform, so that context matters
    )
    return LlamaForCausalLM(config).double().eval()


def text_of(n: int) -> str:
    generator = torch.Generator().manual_seed(n)
    return "".join(chr(97 + i) for i in torch.randint(26, (n,), generator=generator).tolist())


def ids_of(text: str) -> list[int]:
    return [BOS, *(ord(letter) % WORDS for letter in text)]


def cost_by(model):
    """-log p(token | context) by one forward pass of the context alone, in float64."""

    def cost(context: list[int], token: int) -> float:
        with torch.no_grad():
            x = model(torch.tensor([context])).logits[0, -1].double()
        x = x - x.max()
        return float(x.exp().sum().log() - x[token])

    return cost


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 8), (16, 5), (16, 1), (80, 40)])
@pytest.mark.parametrize("full_last", [False, True])
def test_a_transformers_model_is_measured_exactly(llama, context, stride, full_last):
    """The sum is that of a forward pass for each token by its own."""
    text = text_of(67)
    options = {"context_length": context, "stride": stride, "full_last": full_last}
    expected = expected_sum(cost_by(llama), ids_of(text), context, stride, full_last)
    for batch_size in (1, 3):
        result = evaluate_text(llama, Letters(), text, batch_size=batch_size, **options)
        assert result.nll_sum == pytest.approx(expected, rel=1e-12)


def test_defaults_are_the_models_context_and_half_of_it(llama):
    """Also where the config of the language model lies in that of a larger one."""
    result = evaluate_text(llama, Letters(), text_of(30))
    assert (result.context_length, result.stride) == (24, 12)

    class Whole(torch.nn.Module):
        class config:
            max_position_embeddings = 7  # of its images
            text_config = llama.config

        def forward(self, input_ids):
            return llama(input_ids)

    assert evaluate_text(Whole(), Letters(), text_of(30)) == result


def test_only_the_new_tokens_logits_are_computed(llama):
    """The first window's are all of them, a later one's a stride."""
    rows = []
    hook = llama.lm_head.register_forward_hook(lambda *call: rows.append(call[-1].shape[1]))
    evaluate_text(llama, Letters(), text_of(23), context_length=16, stride=4)
    hook.remove()
    assert rows[LOOKS:] == [16, 4, 3]


def windows_of_the_guide(model, ids, max_length, stride):
    """Mean loss and number of its tokens, for each window of transformers' guide on perplexity."""
    tokens, scored, windows = torch.tensor([ids]), 0, []
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        labels = tokens[:, begin:end].clone()
        labels[:, : scored - begin] = -100
        with torch.no_grad():
            loss = model(tokens[:, begin:end], labels=labels).loss.item()
        windows.append((loss, end - scored, int((labels[:, 1:] != -100).sum())))
        scored = end
        if end == len(ids):
            break
    return windows


@pytest.mark.parametrize("n", [60, 67])
@pytest.mark.parametrize("stride", [12, 5])
def test_agrees_with_the_guide_of_transformers_token_by_token(llama, n, stride):
    """Its max_length M reads M - 1 tokens for each prediction, when its means are made sums."""
    text, context = text_of(n), 12
    windows = windows_of_the_guide(llama, ids_of(text), context + 1, stride)
    result = evaluate_text(llama, Letters(), text, context_length=context, stride=stride)
    assert sum(counted for _, _, counted in windows) == result.tokens == n
    total = sum(loss * counted for loss, _, counted in windows)
    assert result.nll_sum == pytest.approx(total, rel=1e-6)  # the model's loss is float32


def test_agrees_with_the_guide_of_transformers_on_a_single_window(llama):
    """There the guide is exact, whatever its stride."""
    text = text_of(20)
    ((loss, new, counted),) = windows_of_the_guide(llama, ids_of(text), 24, 24)
    result = evaluate_text(llama, Letters(), text)
    assert (new - 1, counted) == (20, 20)
    assert result.nll == pytest.approx(loss, rel=1e-6)


def test_the_guides_averages_are_not_those_of_its_tokens(llama):
    """Weighting a window of n new tokens by n - 1, or all windows alike, is an approximation."""
    text, context, stride = text_of(67), 12, 4
    windows = windows_of_the_guide(llama, ids_of(text), context + 1, stride)
    exact = sum(loss * counted for loss, _, counted in windows) / 67
    weighted = sum(loss * (new - 1) for loss, new, _ in windows) / sum(
        new - 1 for _, new, _ in windows
    )
    plain = sum(loss for loss, _, _ in windows) / len(windows)
    result = evaluate_text(llama, Letters(), text, context_length=context, stride=stride)
    assert result.nll == pytest.approx(exact, rel=1e-6)
    for approximation in (weighted, plain):
        assert 1e-3 < abs(approximation - result.nll) < 0.2


def test_the_guide_leaves_out_tokens_where_windows_do_not_overlap(llama):
    """The first token of each window after the first has nothing that predicts it there."""
    text = text_of(59)  # with BOS, five windows of 12
    windows = windows_of_the_guide(llama, ids_of(text), 12, 12)
    result = evaluate_text(llama, Letters(), text, context_length=12, stride=12)
    assert sum(counted for _, _, counted in windows) == 55
    assert result.tokens == 59


def rolling_loglikelihood(model, tokens, prefix, max_length):
    """Sum of log p over lm-evaluation-harness' rolling windows, context and continuation apart.

    Each window predicts max_length tokens that none before it did, or those that remain; the model
    reads the max_length tokens before the last of them, of which the prefix is the very first.
    """
    total, done, everything = 0.0, 0, [prefix, *tokens]
    while done < len(tokens):
        upto = min(done + max_length, len(tokens))
        continuation = tokens[done:upto]
        context = everything[max(0, upto - max_length) : done + 1]
        sequence = (context + continuation)[:-1]
        assert len(sequence) <= max_length
        with torch.no_grad():
            log_p = model(torch.tensor([sequence])).logits[0].double().log_softmax(-1)
        rows = log_p[-len(continuation) :]
        total += float(rows.gather(-1, torch.tensor(continuation)[:, None]).sum())
        done = upto
    return total


@pytest.mark.parametrize("n", [1, 15, 16, 17, 48, 67])
@pytest.mark.parametrize("prefix", [BOS, 3])
def test_agrees_with_the_rolling_loglikelihood_of_lm_eval(llama, n, prefix):
    """One call gives its word_perplexity, byte_perplexity and bits_per_byte."""
    text = " ".join(re.findall(".{1,5}", text_of(n)))[:n]
    tokens = ids_of(text)[1:]
    loglikelihood = rolling_loglikelihood(llama, tokens, prefix, 16)
    result = evaluate_text(
        llama,
        Letters(None),
        text,
        context_length=16,
        stride=16,
        full_last=True,
        bos_token_id=prefix,
        batch_size=2,
    )
    words, size = len(re.split(r"\s+", text)), len(text.encode("utf-8"))
    assert result.tokens == n
    assert result.nll_sum == pytest.approx(-loglikelihood, rel=1e-12)
    assert result.word_perplexity == pytest.approx(math.exp(-loglikelihood / words))
    assert result.byte_perplexity == pytest.approx(math.exp(-loglikelihood / size))
    assert result.bits_per_byte == pytest.approx(-loglikelihood / size / math.log(2))
    assert result.bits_per_byte == pytest.approx(math.log2(result.byte_perplexity))


# ------------------------------------------------------------------------------------- a real model


@pytest.mark.filterwarnings("ignore")  # of the GGUF reader, which is not ours to judge
def test_a_real_model_on_real_text(smollm2):
    """135M parameters, 49152 words, Python source: whole, overlapping, and disjoint windows."""
    model, tokenizer = smollm2
    text = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_text()[2000:2800]
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
    assert 130 < len(ids) < 600
    with torch.inference_mode():
        x = model(torch.tensor([ids])).logits[0].double()
    x = x - x.amax(-1, keepdim=True)
    costs = x.exp().sum(-1).log()[:-1] - x[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    whole = evaluate_text(model, tokenizer, text, context_length=1024)
    assert whole.tokens == len(ids) - 1
    assert whole.nll_sum == pytest.approx(float(costs.sum()), rel=1e-6)
    assert 2 < whole.perplexity < 100, "a real model on real text"
    assert 0.3 < whole.bits_per_byte < 3

    options = {"context_length": 64, "batch_size": 2}
    half = evaluate_text(model, tokenizer, text, **options)
    windows = windows_of_the_guide(model, ids, 65, 32)
    # Its loss is summed up in float32.
    assert half.nll_sum == pytest.approx(sum(loss * n for loss, _, n in windows), rel=1e-5)
    disjoint = evaluate_text(model, tokenizer, text, stride=64, full_last=True, **options)
    expected = rolling_loglikelihood(model, ids[1:], ids[0], 64)
    assert disjoint.nll_sum == pytest.approx(-expected, rel=1e-6)
    assert whole.perplexity < half.perplexity < disjoint.perplexity, "context helps"
