"""Each language model of transformers, in each layout of labels.

Which label a loss compares with which logits is read off its gradient, not off the model's class.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from zoo_configs import EOS, MASK, MASKED, PAD, TAGS, TASKS, WORDS, build, classes, dress
from zoo_judge import UNCOUNTED, NotBuilt, Row, Rows, Specimen, labels_by_gradient

LENGTH, PROMPT = 12, 3

Both = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""(model, batch) -> the step's loss, and the logits [B, T, V] that it is made of."""


# ---------------------------------------------------------------- batches


def _text(seed: int, rows: int, left: bool = False) -> Tensor:
    """Return words that end with EOS, padded to one length."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(5, WORDS, (rows, LENGTH), generator=generator)
    for i in range(rows):
        n = LENGTH - (3 * i) % 7
        text[i, n - 1], text[i, n:] = EOS, PAD
        text[i] = text[i].roll(LENGTH - n) if left else text[i]
    return text


def _copied(text: Tensor) -> dict[str, Tensor]:
    """Labels are a copy of the words; padding and the prompt do not count."""
    mask = (text != PAD).long()
    prompt = mask.cumsum(1) <= PROMPT
    labels = text.masked_fill((mask == 0) | prompt, UNCOUNTED)
    return {"input_ids": text, "attention_mask": mask, "labels": labels}


def _shifted(text: Tensor) -> dict[str, Tensor]:
    """Inputs, the words after them, EOS included, and the mask of the inputs."""
    after = F.pad(text[:, 1:], (0, 1), value=PAD)
    inputs = text.masked_fill(text == EOS, PAD)
    return {
        "input_ids": inputs,
        "attention_mask": (inputs != PAD).long(),
        "labels": after.masked_fill((after == PAD) | (inputs == PAD), UNCOUNTED),
    }


def _masked(text: Tensor) -> dict[str, Tensor]:
    """Every fourth word is hidden, and is the label."""
    hidden = (torch.arange(LENGTH) % 4 == 1) & (text != PAD)
    batch = {"input_ids": text.masked_fill(hidden, MASK), "attention_mask": (text != PAD).long()}
    return {**batch, "labels": text.masked_fill(~hidden, UNCOUNTED)}


def _tagged(text: Tensor) -> dict[str, Tensor]:
    """Whether the number of a word is odd."""
    mask = (text != PAD).long()
    labels = (text % 2).masked_fill(mask == 0, UNCOUNTED)
    return {"input_ids": text, "attention_mask": mask, "labels": labels}


def _pair(text: Tensor) -> dict[str, Tensor]:
    """A sentence and its translation, of another length."""
    source = text.flip(0)[:, :-2].masked_fill(text[:, :-2] == PAD, PAD)
    return {
        "input_ids": source.clamp(min=5),
        "attention_mask": torch.ones_like(source),
        "labels": text.masked_fill(text == PAD, UNCOUNTED),
    }


def _cut(text: Tensor) -> tuple[Tensor, ...]:
    batch = _pair(text)
    return batch["input_ids"], batch["attention_mask"], text


# ---------------------------------------------------------------- steps


def _own_loss(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    out = model(**batch)
    return out.loss, out.logits


def _without_labels(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(**{k: v for k, v in batch.items() if k != "labels"}).logits


def _loss_of_shifted(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    logits = _without_labels(model, batch)
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten()), logits


def _loss_of_tuple(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    ids, mask, labels = batch
    logits = model(input_ids=ids, attention_mask=mask).logits
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:]), logits


def _smoothed(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    logits = _without_labels(model, batch)
    y = batch["labels"][:, 1:].flatten()
    rows = logits[:, :-1].flatten(0, 1)
    weight = torch.linspace(0.5, 2, logits.shape[-1]).to(logits.dtype)
    return F.cross_entropy(rows, y, weight=weight, label_smoothing=0.1), logits


def _both_losses(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    out = model(**batch)
    y = batch["labels"][:, 1:].flatten()
    smoothed = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), y, label_smoothing=0.1)
    return smoothed, out.logits


def _both_in_place(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    out = model(**batch)
    y = batch["labels"].flatten()
    return F.cross_entropy(out.logits.flatten(0, 1), y, label_smoothing=0.1), out.logits


def _decoder_cut(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    source, mask, target = batch
    logits = model(
        input_ids=source, attention_mask=mask, decoder_input_ids=target[:, :-1].contiguous()
    ).logits
    y = target[:, 1:].flatten()
    return F.cross_entropy(logits.flatten(0, 1), y, ignore_index=PAD), logits


class Wrapped(Specimen):
    """A transformers model in a LightningModule that returns the loss."""

    plain = False

    def __init__(self, model: Any, both: Both) -> None:
        super().__init__()
        self.model, self.both = model, both

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.both(self.model, batch)[0]

    def truth(self, batch: Any) -> Iterable[Rows]:
        _, logits = self.both(self.model, batch)
        yield logits, self.labels(batch)

    def labels(self, batch: Any) -> Tensor:
        """Return the label of each row of logits."""
        if self.both is _own_loss and type(self.model).__name__ in SUMS_IN_PLACE:
            return batch["labels"]
        with torch.inference_mode(False), torch.enable_grad(), _even_logits(self.model):
            return labels_by_gradient(*self.both(self.model, batch))


@contextlib.contextmanager
def _even_logits(model: Any) -> Iterator[None]:
    """Let all words be about as likely meanwhile: a likely label has no gradient to speak of."""
    head = model.get_output_embeddings()
    before = None if head is None else head.weight.data
    if before is not None:
        head.weight.data = before * 1e-3
    yield
    if before is not None:
        head.weight.data = before


class Returned(Wrapped):
    """Returns logits and labels; no loss says how they belong together."""

    def __init__(self, model: Any, both: Both, in_place: bool) -> None:
        super().__init__(model, both)
        self.in_place = in_place

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": _without_labels(self.model, batch), "labels": batch["labels"]}

    def labels(self, batch: Any) -> Tensor:
        y = batch["labels"]
        return y if self.in_place else F.pad(y[:, 1:], (0, 1), value=UNCOUNTED)


class OutputOnly(Returned):
    """Batches are words, and the step returns what the model does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(input_ids=batch, labels=batch).loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(input_ids=batch)

    def truth(self, batch: Any) -> Iterable[Rows]:
        yield self.model(input_ids=batch).logits[:, :-1], batch[:, 1:]


class NoLanguageModel(Wrapped):
    """Has no perplexity, though it reads words and has labels of them."""

    def truth(self, batch: Any) -> Iterable[Rows]:
        return ()


class ReturnedPair(Wrapped):
    """Returns the logits and labels of an encoder-decoder."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self.model(**batch).logits, "labels": batch["labels"]}


# Whose loss compares label t with logits t, over several rows of logits for each label.
SUMS_IN_PLACE = {"ProphetNetForCausalLM", "ProphetNetForConditionalGeneration"}


# ---------------------------------------------------------------- what a class does


@dataclasses.dataclass(frozen=True)
class Animal:
    """A small model, and the batches that it takes."""

    model: Any
    kind: str

    def two(self, make: Callable[[Tensor], Any], left: bool = False) -> list[Any]:
        """Return two batches, of four rows and of three."""
        made = [make(_text(0, 4, left)), make(_text(1, 3, left))]
        return [dress(self.kind, b) if isinstance(b, dict) else b for b in made]

    @functools.cached_property
    def moves_labels(self) -> bool:
        """Whether the class's own loss compares label t + 1 with logits t."""
        if type(self.model).__name__ in SUMS_IN_PLACE:
            return False
        batch = self.two(_copied)[0]
        out = copy.deepcopy(self.model)(**batch)
        length = batch["labels"].shape[1]
        found = labels_by_gradient(out.loss, out.logits)[:, -length:]
        return not torch.equal(found, batch["labels"])

    @functools.cached_property
    def looks_ahead(self) -> bool:
        """Whether logits depend on words after their own, so that they predict nothing."""
        text = torch.randint(5, WORDS, (2, LENGTH))
        other = text.clone()
        other[:, -1] = 5 + (text[:, -1] - 4) % (WORDS - 5)
        with torch.no_grad():
            a, b = (self.model(input_ids=t).logits[:, :-1] for t in (text, other))
        return not torch.allclose(a, b, atol=1e-4)


@functools.lru_cache(maxsize=1)
def _born(task: str, name: str, kind: str) -> Animal | NotBuilt:
    try:
        animal = Animal(build(task, name, kind), kind)
        text = _pair if animal.model.config.is_encoder_decoder else _copied
        text = {MASKED: _masked, TAGS: _tagged}.get(task, text)
        with torch.no_grad():
            out = animal.model(**animal.two(text)[0])
        head = animal.model.get_output_embeddings()
        if head is not None:  # logits that are all alike show no difference of right and wrong
            head.weight.data.mul_(2 / out.logits.std().clamp(min=0.05))
    except (Exception, SystemExit) as error:
        return NotBuilt(f"{type(error).__name__}: {' '.join(str(error).split())[:90]}")
    if getattr(out, "loss", None) is None or getattr(out, "logits", None) is None:
        return NotBuilt("returns no loss, or no logits")
    return animal


# ---------------------------------------------------------------- layouts

Made = tuple[Specimen, Sequence[Any]]


def _own(animal: Animal, left: bool = False, against: bool = False) -> Made:
    make = _copied if animal.moves_labels != against else _shifted
    return Wrapped(animal.model, _own_loss), animal.two(make, left)


def _half(layout: Callable[[Animal], Made], animal: Animal) -> Made:
    module, batches = layout(animal)
    halved = [
        {k: v.bfloat16() if v.is_floating_point() else v for k, v in b.items()} for b in batches
    ]
    return module.bfloat16(), halved


def _step(both: Both, make: Callable[[Tensor], Any], animal: Animal) -> Made:
    return Wrapped(animal.model, both), animal.two(make)


def _returned(animal: Animal, in_place: bool) -> Made:
    _needs_causal(animal)
    make = _shifted if in_place else _copied
    return Returned(animal.model, _loss_of_shifted, in_place), animal.two(make)


def _output(animal: Animal) -> Made:
    _needs_causal(animal)
    whole = [torch.randint(5, WORDS, (n, LENGTH)) for n in (4, 3)]
    return OutputOnly(animal.model, _own_loss, False), whole


def _needs_causal(animal: Animal) -> None:
    if animal.looks_ahead:
        raise NotBuilt("its logits see the words after them")


def _two_losses(animal: Animal) -> Made:
    if animal.moves_labels:
        return _step(_both_losses, _copied, animal)
    return _step(_both_in_place, _shifted, animal)


def _pair_own(animal: Animal) -> Made:
    return _step(_own_loss, _pair, animal)


ANY = ("exact", "exact, doubted", "refused", "doubtful")
AGAINST = "against its convention"
Layouts = dict[str, Callable[[Animal], Made]]

_WITH_LABELS: Layouts = {
    "labels to the model": _own,
    "left padding": functools.partial(_own, left=True),
    AGAINST: functools.partial(_own, against=True),
    "bfloat16": functools.partial(_half, _own),
    "the model's loss and an own one": _two_losses,
}
_CAUSAL: Layouts = {
    **_WITH_LABELS,
    "own loss of shifted labels": functools.partial(_step, _loss_of_shifted, _shifted),
    "own loss of (ids, mask, labels)": functools.partial(
        _step, _loss_of_tuple, lambda text: tuple(_copied(text).values())
    ),
    "smoothed, weighted": functools.partial(_step, _smoothed, _copied),
    "logits and labels returned": functools.partial(_returned, in_place=False),
    "the same, labels shifted": functools.partial(_returned, in_place=True),
    "no labels": _output,
}
_SEQ2SEQ: Layouts = {
    "labels to the model": _pair_own,
    "bfloat16": functools.partial(_half, _pair_own),
    "the model's loss and an own one": functools.partial(_step, _both_in_place, _pair),
    "decoder's words cut in the step": functools.partial(_step, _decoder_cut, _cut),
    "logits and labels returned": lambda a: (ReturnedPair(a.model, _own_loss), a.two(_pair)),
}
LAYOUTS = {
    "causal": _CAUSAL,
    "sequence to sequence": _SEQ2SEQ,
    "vision and language": _WITH_LABELS,
    "speech": _WITH_LABELS,
    MASKED: {
        "labels to the model": lambda a: (NoLanguageModel(a.model, _own_loss), a.two(_masked)),
        "own loss": lambda a: (NoLanguageModel(a.model, _loss_of_shifted), a.two(_masked)),
    },
    TAGS: {"labels to the model": lambda a: (NoLanguageModel(a.model, _own_loss), a.two(_tagged))},
}
_NONE = ("none", "refused", "doubtful")
_DUE = {
    "logits and labels returned": ("exact", "refused"),  # where pictures have logits as well
    AGAINST: ("exact, doubted", "doubtful", "refused"),
    "the same, labels shifted": ANY,
}


def rows(task: str) -> Iterator[Row]:
    """Every class of a task in every layout."""
    for name, kind in classes(task).items():
        for layout in LAYOUTS[task]:
            yield Row(
                f"transformers: {task}",
                name,
                layout,
                functools.partial(_make, task, layout, name, kind),
                _NONE if task in (MASKED, TAGS) else _DUE.get(layout, ("exact",)),
                fits=layout == "labels to the model",
                contradicts=layout == AGAINST,
            )


def _make(task: str, layout: str, name: str, kind: str) -> Made:
    animal = _born(task, name, kind)
    if isinstance(animal, NotBuilt):
        raise animal
    made = LAYOUTS[task][layout]
    if task in (MASKED, TAGS):
        if animal.model.config.is_encoder_decoder:
            raise NotBuilt("an encoder-decoder predicts its labels one after the other")
    elif animal.model.config.is_encoder_decoder and layout in _SEQ2SEQ:
        made = _SEQ2SEQ[layout]
    elif layout in _WITH_LABELS and not animal.model.config.is_encoder_decoder:
        made = _WITH_LABELS[layout]
    elif task != "causal":
        raise NotBuilt("no such layout of an encoder-decoder, or of a decoder alone")
    own = dataclasses.replace(animal, model=copy.deepcopy(animal.model))
    own.__dict__.update({k: v for k, v in vars(animal).items() if k not in ("model", "kind")})
    return made(own)


def all_rows() -> Iterator[Row]:
    """Every class of every task."""
    for task in TASKS:
        yield from rows(task)
