"""A module's own loss call says which label belongs to which logits."""

from __future__ import annotations

import math

import pytest
import torch
from test_capture import Heard
from torch import nn
from torch.nn.functional import cross_entropy as imported_by_name

from lightning_lscore.heldout.capture import Capture
from lightning_lscore.heldout.nothing_found import NoLanguageModel
from lightning_lscore.heldout.perplexity import Perplexity

F = nn.functional
WORDS, LENGTH = 40, 9
ROWS = torch.randint(1, WORDS, (6, LENGTH), generator=torch.Generator().manual_seed(0))
X, Y = ROWS[:, :-1], ROWS[:, 1:]


class Model(nn.Module):
    """Reads tokens through an embedding; a recurrent layer keeps positions apart."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(words, 16)
        self.layer = nn.GRU(16, 16, batch_first=True)
        self.head = nn.Linear(16, words)
        self.second = nn.Linear(16, words)

    def hidden(self, ids):
        return self.layer(self.embedding(ids))[0]

    def forward(self, ids):
        return self.head(self.hidden(ids))


def captured(step, batch=ROWS, model=None, repeated=0, **options):
    """The sums of one batch, and the capture."""
    model = model or Model()
    capture = Capture(**options)
    perplexity = Perplexity(options.get("ignore_index") or -100)
    capture.attach(model)
    try:
        capture.start_batch(batch, perplexity, repeated)
        with torch.no_grad():
            outputs = step(model, batch)
        capture.end_batch(model, outputs, batch)
    finally:
        capture.detach()
    return perplexity, capture


def by_hand(logits, labels):
    """Sum of NLL in float64 and number of the labels that are not negative."""
    log_p = torch.log_softmax(logits.detach().double(), -1)
    nll = -log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return float(nll[labels >= 0].sum()), int((labels >= 0).sum())


def sums(perplexity):
    return pytest.approx(float(perplexity.nll_sum), rel=1e-6), int(perplexity.count)


def flat(loss):
    return lambda model, b: loss(model(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten())


def chunked(model, b):
    logits, labels = model(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten()
    parts = zip(logits.split(7), labels.split(7), strict=True)
    return sum(F.cross_entropy(x, y, reduction="none").sum() for x, y in parts) / labels.numel()


def in_chunks_of_time(model, b):
    logits, labels = model(b[:, :-1]), b[:, 1:]
    parts = zip(logits.split(3, 1), labels.split(3, 1), strict=True)
    return sum(F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum") for x, y in parts)


def time_first(model, b):
    logits = model(b[:, :-1]).transpose(0, 1)
    return F.cross_entropy(logits.flatten(0, 1), b[:, 1:].t().flatten())


def in_halves(model, b):
    return sum(flat(F.cross_entropy)(model, half) for half in b.split(3))


def in_one_row(model, b):
    return F.cross_entropy(model(b[:, :-1].reshape(1, -1))[0], b[:, 1:].flatten())


def logits_cut(model, b):
    return F.cross_entropy(model(b)[:, :-1].flatten(0, 1), b[:, 1:].flatten())


def labels_padded(model, b):
    labels = F.pad(b[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(model(b).flatten(0, 1), labels.flatten())


def one_step_at_a_time(model, b):
    loss, state = 0.0, None
    for t in range(b.shape[1] - 1):
        hidden, state = model.layer(model.embedding(b[:, t : t + 1]), state)
        loss = loss + F.cross_entropy(model.head(hidden[:, 0]), b[:, t + 1])
    return loss


def in_uneven_chunks_of_time(model, b):
    """The last chunk is a single step."""
    logits, labels = model(b[:, :-1]), b[:, 1:]
    parts = zip(logits.split(7, 1), labels.split(7, 1), strict=True)
    return sum(F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum") for x, y in parts)


STEPS = {
    "cross_entropy": flat(F.cross_entropy),
    "imported by name": flat(imported_by_name),
    "a module": flat(nn.CrossEntropyLoss()),
    "label smoothing": flat(nn.CrossEntropyLoss(label_smoothing=0.3)),
    "class weights": flat(nn.CrossEntropyLoss(weight=torch.rand(WORDS) + 0.1)),
    "a sum": flat(nn.CrossEntropyLoss(reduction="sum")),
    "log-probabilities": flat(lambda x, y: F.nll_loss(x.log_softmax(-1), y)),
    "classes second": lambda m, b: F.cross_entropy(m(b[:, :-1]).transpose(1, 2), b[:, 1:]),
    "chunks": chunked,
    "chunks of time": in_chunks_of_time,
    "uneven chunks of time": in_uneven_chunks_of_time,
    "one step at a time": one_step_at_a_time,
    "time first": time_first,
    "halves of the batch": in_halves,
    "logits cut": logits_cut,
    "labels padded": labels_padded,
    "returned as well": lambda m, b: {"loss": flat(F.cross_entropy)(m, b), "n": 3},
    "returns nothing": lambda m, b: flat(F.cross_entropy)(m, b) and None,
    "twice the same": lambda m, b: flat(F.cross_entropy)(m, b) + flat(F.cross_entropy)(m, b),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_the_loss_call_of_any_form_is_scored(step):
    found, capture = captured(step)
    assert sums(found) == by_hand(Model()(X), Y)
    assert "its labels continue what was read" in capture.source
    assert capture.doubts == []
    assert f"; {Y.numel()} of {found_total(step)} tokens counted in" in capture.assumption


def found_total(step):
    return ROWS.numel() if step is labels_padded else Y.numel()


def test_a_batch_of_time_first_is_seen_through():
    def step(model, b):  # data [T, B] and targets [T·B], as in torch's own example
        x, y = b
        return F.cross_entropy(model(x.t()).transpose(0, 1).flatten(0, 1), y)

    batch = (X.t().contiguous(), Y.t().flatten())
    assert sums(captured(step, batch)[0]) == by_hand(Model()(X), Y)


@pytest.mark.parametrize("ignored", [0, -1, -100])
def test_what_the_loss_ignores_does_not_count(ignored):
    def step(model, b):
        labels = b[:, 1:].masked_fill(b[:, 1:] < 9, ignored)
        return F.cross_entropy(
            model(b[:, :-1]).flatten(0, 1), labels.flatten(), ignore_index=ignored
        )

    found, capture = captured(step)
    expected = by_hand(Model()(X), Y.masked_fill(Y < 9, -100))
    assert sums(found) == expected
    assert f"{ignored} ignored as it states" in capture.source
    assert f"; {expected[1]} of {Y.numel()} tokens counted in" in capture.assumption


def test_a_class_of_weight_0_is_ignored():
    weight = torch.ones(WORDS)
    weight[7] = 0
    found, _ = captured(flat(nn.CrossEntropyLoss(weight=weight)))
    assert sums(found) == by_hand(Model()(X), Y.masked_fill(Y == 7, -100))


def test_a_declared_ignore_index_goes_before_that_of_the_loss():
    found, _ = captured(flat(nn.CrossEntropyLoss(ignore_index=3)), ignore_index=5)
    assert sums(found) == by_hand(Model()(X), Y.masked_fill(Y == 5, -100))


def test_repeated_samples_do_not_count_in_flattened_rows():
    found, _ = captured(flat(F.cross_entropy), repeated=2)
    assert sums(found) == by_hand(Model()(X)[:4], Y[:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_any_dtype_are_measured_exactly(dtype):
    step = lambda m, b: F.cross_entropy(m(b[:, :-1]).to(dtype).flatten(0, 1), b[:, 1:].flatten())  # noqa: E731
    assert sums(captured(step)[0]) == by_hand(Model()(X).to(dtype), Y)


def test_a_prefix_stands_in_front_of_what_is_read():
    """As of a picture: the first token is predicted as well."""

    def step(model, b):
        hidden = torch.cat([torch.ones(len(b), 2, 16), model.embedding(b)], 1)
        logits = model.head(model.layer(hidden)[0])
        return F.cross_entropy(logits[:, 1:-1].flatten(0, 1), b.flatten())

    found, capture = captured(step)
    assert found.count == ROWS.numel()
    assert ["at the same rows" in doubt for doubt in capture.doubts] == [True]
    assert captured(step, loss_call=0)[1].doubts == []


def test_a_decoder_that_moves_its_labels_itself_is_text():
    def step(model, b):
        source, target = b
        start = F.pad(target[:, :-1], (1, 0), value=1)
        logits = model.head(
            model.layer(model.embedding(start), model.hidden(source)[None, :, -1])[0]
        )
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    found, capture = captured(step, (ROWS, ROWS.flip(0).flip(1)))
    assert found.count == ROWS.numel()
    assert "continue what was read" in capture.source


def test_labels_that_are_picked_are_found_in_their_order():
    keep = torch.rand(Y.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    step = lambda m, b: F.cross_entropy(m(b[:, :-1])[keep], b[:, 1:][keep])  # noqa: E731
    found, capture = captured(step)
    assert sums(found) == by_hand(Model()(X), Y.masked_fill(~keep, -100))
    assert "picked" in capture.source


# ---------------------------------------------------------------------- several losses


def two_heads(model, b):
    hidden = model.hidden(b[:, :-1])
    later = F.cross_entropy(model.second(hidden[:, :-1]).flatten(0, 1), b[:, 2:].flatten())
    return later + F.cross_entropy(model.head(hidden).flatten(0, 1), b[:, 1:].flatten())


def with_a_classifier(model, b):
    kinds = model.second(model.hidden(b[:, :-1])[:, -1])
    return F.cross_entropy(kinds, torch.arange(len(b))) + flat(F.cross_entropy)(model, b)


@pytest.mark.parametrize("step", [two_heads, with_a_classifier])
def test_of_several_losses_the_one_of_the_next_token_counts(step):
    found, capture = captured(step)
    assert sums(found) == by_hand(Model()(X), Y)
    assert capture.doubts == []


def early_exit(model, b):
    hidden = model.hidden(b[:, :-1])
    heads = model.second, model.head
    return sum(F.cross_entropy(h(hidden).flatten(0, 1), b[:, 1:].flatten()) for h in heads)


def test_two_losses_of_one_text_are_said_and_the_user_chooses():
    found, capture = captured(early_exit)
    model = Model()
    hidden = model.hidden(X)
    first, second = by_hand(model.second(hidden), Y), by_hand(model.head(hidden), Y)
    assert sums(found) == first
    (doubt,) = capture.doubts
    assert "LScore(loss_call=index)" in doubt
    for choice in (1, -1, lambda calls: [i for i, call in enumerate(calls) if i], lambda c: 1):
        found, capture = captured(early_exit, loss_call=choice)
        assert (sums(found), capture.doubts) == (second, [])


def test_of_two_losses_of_one_text_the_one_that_is_returned_counts():
    def step(model, b):
        logits, labels = model(b[:, :-1]).flatten(0, 1), b[:, 1:]
        F.cross_entropy(logits, labels.flatten())  # logged
        completions = labels.clone()
        completions[:, :3] = -100
        return F.cross_entropy(logits, completions.flatten())

    found, capture = captured(step)
    assert (int(found.count), capture.doubts) == (Y[:, 3:].numel(), [])


def test_a_decoder_that_reads_one_token_at_a_time_after_a_start_is_text():
    start, targets = torch.zeros(1, dtype=torch.int64), ROWS[0]

    def step(model, b):
        loss, state, token = 0.0, None, start
        for target in b:
            hidden, state = model.layer(model.embedding(token.view(1, 1)), state)
            loss = loss + F.cross_entropy(model.head(hidden[0]), target[None])
            token = target
        return loss

    found, capture = captured(step, targets)
    read = torch.cat([start, targets[:-1]])[None]
    assert sums(found) == by_hand(Model()(read), targets[None])
    assert capture.doubts == []


def test_each_sequence_of_a_list_counts():
    batch = [row[: 4 + i] for i, row in enumerate(ROWS[:5])]

    def step(model, rows):
        losses = [flat(F.cross_entropy)(model, row[None]) for row in rows]
        return sum(losses) / len(losses)

    found, capture = captured(step, batch)
    each = [by_hand(Model()(row[None, :-1]), row[None, 1:]) for row in batch]
    assert sums(found) == tuple(map(sum, zip(*each, strict=True)))
    assert capture.doubts == []


def test_the_texts_of_several_loaders_in_one_batch_count():
    batch = {"a": {"input_ids": ROWS[:4]}, "b": {"input_ids": ROWS[4:].clone()}}

    def step(model, b):
        return sum(flat(F.cross_entropy)(model, one["input_ids"]) for one in b.values())

    found, capture = captured(step, batch)
    assert sums(found) == by_hand(Model()(X), Y)
    assert capture.doubts == []


def test_texts_that_the_loss_is_not_made_of_are_said():
    """As those of a preferred and of a rejected answer."""
    batch = {"chosen_input_ids": ROWS[:4], "rejected_input_ids": ROWS[4:].clone()}

    def step(model, b):
        chosen, rejected = (flat(F.cross_entropy)(model, one) for one in b.values())
        return -F.logsigmoid(rejected - chosen)

    found, capture = captured(step, batch)
    assert int(found.count) == Y.numel()
    (doubt,) = capture.doubts
    assert "counts 2 texts" in doubt


def test_windows_that_overlap_count_once_each_token():
    text = torch.randint(1, WORDS, (1, 40), generator=torch.Generator().manual_seed(0))
    windows = []
    for start in range(0, 32, 8):
        labels = text[:, start : start + 16].clone()
        labels[:, : 8 if start else 0] = -100
        windows.append((text[:, start : start + 16], labels))

    def step(model, b):
        return sum(
            F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
            for ids, labels in windows
        )

    found, capture = captured(step, text)
    each = [by_hand(Model()(ids)[:, :-1], labels[:, 1:]) for ids, labels in windows]
    assert sums(found) == tuple(map(sum, zip(*each, strict=True)))
    assert (int(found.count), capture.doubts) == (39, [])


def test_a_text_that_is_read_backwards_as_well_counts_once():
    def step(model, b):
        return flat(F.cross_entropy)(model, b) + flat(F.cross_entropy)(model, b.flip(1))

    found, capture = captured(step)
    assert sums(found) == by_hand(Model()(X), Y)
    assert ["LScore(loss_call=index)" in doubt for doubt in capture.doubts] == [True]


def test_labels_that_the_loss_leaves_out_do_not_count_where_all_are_returned():
    def step(model, b):
        logits, labels = model(b[:, :-1]), b[:, 1:].masked_fill(b[:, 1:] < 9, -100)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits, "labels": b[:, 1:]}

    found, capture = captured(step)
    assert sums(found) == by_hand(Model()(X), Y.masked_fill(Y < 9, -100))
    assert "by the loss call" in capture.source


@pytest.mark.parametrize("choice", [2, lambda calls: [], -3])
def test_a_choice_of_no_call_is_named(choice):
    with pytest.raises(ValueError, match=r"loss_call=.*of 2 that were heard"):
        captured(early_exit, loss_call=choice)


# ---------------------------------------------------------------------- what is none


def classify(classes):
    def step(model, b):
        x, y = b
        return F.cross_entropy(nn.Linear(16, classes)(model.hidden(x)[:, -1]), y)

    return step


def tag(model, b):
    return F.cross_entropy(model(b[0]).flatten(0, 1), b[1].flatten())


def fill_masks(model, b):
    hidden = torch.rand(b.shape, generator=torch.Generator().manual_seed(2)) < 0.15
    labels = b.masked_fill(~hidden, -100)
    return F.cross_entropy(model(b.masked_fill(hidden, 0)).flatten(0, 1), labels.flatten())


def contrast(model, b):
    states = model.hidden(b)[:, -1]
    return F.cross_entropy(states @ states.t(), torch.arange(len(b)))


def segment(model, b):
    return F.cross_entropy(torch.zeros(2, 40, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))


TAGS = torch.randint(1, WORDS, X.shape, generator=torch.Generator().manual_seed(3))
NONE = {
    "few classes": (classify(5), (X, torch.arange(6) % 5)),
    "many classes": (classify(1000), (X, torch.arange(6))),
    "tags": (tag, (X, TAGS)),
    "masked words": (fill_masks, ROWS),
    "pairs": (contrast, ROWS),
    "pixels": (segment, ROWS),
    "probabilities": (lambda m, b: F.cross_entropy(m(b), torch.rand(6, LENGTH, WORDS)), ROWS),
}


@pytest.mark.parametrize(("step", "batch"), NONE.values(), ids=NONE)
def test_a_loss_of_something_else_is_no_language_model(step, batch):
    with pytest.raises(NoLanguageModel):
        captured(step, batch)


def test_what_is_declared_counts_whatever_it_is():
    found, capture = captured(tag, (X, TAGS), loss_call=0)
    assert sums(found) == by_hand(Model()(X), TAGS)
    assert "declared" in capture.source


@pytest.mark.parametrize(("classes", "counts"), [(5, False), (40, False)])
def test_logits_of_classes_with_labels_are_no_language_model(classes, counts):
    outputs = {"logits": torch.zeros(6, classes), "labels": torch.zeros(6, dtype=torch.long)}
    with pytest.raises(NoLanguageModel, match="labels_are_shifted"):
        captured(lambda m, b: outputs)
    assert captured(lambda m, b: outputs, labels_are_shifted=True)[0].count == 6


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_of_frames_with_labels_are_no_language_model(compiled):
    """Unless embeddings may be in what is compiled, where nothing is heard of them."""
    batch = {"features": torch.rand(4, 9, 16), "labels": torch.randint(40, (4, 9))}

    def step(model, b):
        logits = model.second(b["features"])
        loss = F.cross_entropy(logits.flatten(0, 1), b["labels"].flatten())
        return {"loss": loss, "logits": logits, "labels": b["labels"]}

    model = Model()
    if compiled:
        model.layer.compile(backend="eager")
        found, _ = captured(step, batch, model)
        assert int(found.count) == 4 * 9
    else:
        with pytest.raises(NoLanguageModel, match="looks up no word"):
            captured(step, batch, model)
        found, _ = captured(step, batch, model, labels_are_shifted=True)
        assert int(found.count) == 4 * 9


def test_few_words_are_a_vocabulary_where_labels_are_text():
    """Letters, or the bases of DNA."""
    rows = torch.randint(0, 4, (6, 30), generator=torch.Generator().manual_seed(0))
    found, _ = captured(flat(F.cross_entropy), rows, Model(4))
    assert sums(found) == by_hand(Model(4)(rows[:, :-1]), rows[:, 1:])


def test_a_tagger_that_returns_its_loss_is_no_language_model():
    """Its loss says how tags and logits are aligned, and not that they are words."""

    def step(model, b):
        logits = model(b["input_ids"])[..., :5]
        loss = F.cross_entropy(logits.flatten(0, 1), b["labels"].flatten())
        return {"loss": loss, "logits": logits, "labels": b["labels"]}

    tags = {"input_ids": X, "labels": TAGS % 5}
    with pytest.raises(NoLanguageModel, match="of 32 words or more"):
        captured(step, tags)
    many = {"input_ids": X, "labels": TAGS}
    outputs = lambda m, b: {"logits": m(b["input_ids"]), "labels": b["labels"]}  # noqa: E731
    assert captured(outputs, many)[1].doubts
    large = {"input_ids": X + 100, "labels": TAGS}
    with pytest.raises(NoLanguageModel):
        captured(lambda m, b: {"logits": m(b["input_ids"])[..., :40], **b}, large, Model(150))


def test_classes_of_frames_are_no_language_model():
    """The only integers of the batch are its labels: they are not what is read."""
    batch = {"features": torch.rand(6, LENGTH, 16), "labels": ROWS % 5}

    def step(model, b):
        logits = model.head(model.layer(b["features"])[0])[..., :5]
        F.cross_entropy(logits.flatten(0, 1), b["labels"].flatten())
        return {"logits": logits, "labels": b["labels"]}

    with pytest.raises(NoLanguageModel):
        captured(step, batch)


# ---------------------------------------------------------------------- what it costs


def test_the_data_is_looked_into_once_for_each_pattern_of_sizes(monkeypatch):
    from lightning_lscore.heldout import own_loss

    looked, find = [], own_loss.find_texts
    monkeypatch.setattr(own_loss, "find_texts", lambda *args: looked.append(1) or find(*args))
    model, capture, step = Model(), Capture(), flat(F.cross_entropy)
    capture.attach(model)
    for rows in (ROWS, ROWS, ROWS[:4], ROWS):
        capture.start_batch(rows, Heard())
        capture.end_batch(model, step(model, rows), rows)
    capture.detach()
    assert len(looked) == 2


def test_a_batch_without_a_label_that_counts_is_passed_over():
    model, capture, heard = Model(), Capture(), Heard()
    capture.attach(model)
    for ignored in (0, WORDS):
        labels = Y.masked_fill(Y < ignored, -100)
        capture.start_batch(ROWS, heard)
        loss = F.cross_entropy(model(X).flatten(0, 1), labels.flatten())
        capture.end_batch(model, loss, ROWS)
    capture.detach()
    assert [int((labels != -100).sum()) for labels in heard.labels] == [Y.numel(), 0]


def test_a_batch_that_the_step_skips_is_left_out_and_said():
    model, capture, perplexity = Model(), Capture(), Perplexity(-100)
    capture.attach(model)
    for skips in (False, True, False):
        capture.start_batch(ROWS, perplexity)
        capture.end_batch(model, None if skips else flat(F.cross_entropy)(model, ROWS), ROWS)
    assert int(perplexity.count) == 2 * Y.numel()
    (doubt,) = capture.doubts
    assert "left out batches" in doubt
    capture.start_batch(ROWS, perplexity)
    F.cross_entropy(torch.zeros(2, 5), torch.tensor([1, 3]))
    with pytest.raises(NoLanguageModel):  # something was computed, and none of it is of the text
        capture.end_batch(model, None, ROWS)
    capture.detach()


def test_nothing_is_kept_and_nothing_stays_in_place():
    before = torch._C._nn.cross_entropy_loss, torch._C._nn.nll_loss_nd, torch.embedding
    _, capture = captured(flat(F.cross_entropy))
    assert (torch._C._nn.cross_entropy_loss, torch._C._nn.nll_loss_nd, torch.embedding) == before
    assert capture._losses.heard == capture._losses.read == []


def test_training_is_not_listened_to():
    capture, model = Capture(), Model()
    capture.attach(model)
    flat(F.cross_entropy)(model, ROWS).backward()  # between two validation steps
    assert capture._losses.heard == []
    capture.detach()


def test_an_ignore_index_of_the_user_that_the_loss_does_not_have_is_said():
    def step(model, b):
        labels = b[:, 1:].masked_fill(b[:, 1:] < 9, 0)
        logits = model(b[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)
        return {"logits": logits, "labels": labels}

    found, capture = captured(step, ignore_index=-100)
    assert found.count == Y.numel()
    assert math.isfinite(float(found.compute()))
    assert ["ignores 0" in doubt for doubt in capture.doubts] == [True]
