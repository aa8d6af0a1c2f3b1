"""The training tokens and sequences of this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .batch import find_tokens
from .embedding_reads import EmbeddingReads
from .leaves import follow
from .loaders import batches_of, micro_batches
from .pad_ids import pad_ids
from .place import Measured, Place, in_words, structure
from .tally import Tally, length_of
from .token_rules import Evidence, find_padding, find_places

_NOWHERE = torch.Size([0, 0])
"""Shape of tokens whose tensor is not known."""
_LOOKS = 16
"""Kinds of batches whose data is looked at, once each: that waits for the device."""

_UNHEARD = ", with what the step may cut off, since no embedding was heard in it"
"""Said where the model's part in the rules is missing: all of it is compiled, or its own."""


class TokenCounter:
    """Count the training tokens and sequences of this process, without padding.

    A token counts each time that the model reads it in training, whatever the loss makes of it: a
    prompt with ignored labels counts, padding does not, and of T + 1 ids in a row that the step
    cuts into inputs and targets T count. Of a source and a target, as for translation, the source
    counts, as in the estimate of FLOP. Rows that a sampler or a ``CombinedLoader`` repeats, and
    those of ``overfit_batches``, are trained on again and count again.

    The rules of ``token_rules`` find where the tokens are in the first batch of each structure,
    which may wait for the device. From then on counting never does: a mask on a GPU is summed
    there, and the sum is fetched when ``total`` or ``by_length`` is read.

    Args:
        function: batch -> its number of tokens; it decides alone.
        loaders: the Trainer's loaders if there are several, see ``loaders.batches_of``.
        model: whose embeddings tell what the tokens are, in the first batch.
        ignore_index: label that does not count; padding if it is an id.
        tell: called with how tokens were found, in words, once that is known or changes.
        warn: called with what is doubtful.
    """

    def __init__(
        self,
        function: Callable[[Any], int] | None = None,
        loaders: Any = None,
        model: nn.Module | None = None,
        *,
        ignore_index: int | None = None,
        tell: Callable[[str], None] = lambda how: None,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self._function = function
        self._loaders = loaders if isinstance(loaders, (list, tuple, Mapping)) else None
        self._tell, self._warn = tell, warn
        model = model if function is None else None
        self._evidence = Evidence(EmbeddingReads(model), pad_ids(model, ignore_index))
        self._places: dict[Any, list[Place]] = {}  # by the structure of their batches
        self._looks_left, self._is_new = _LOOKS, False
        self._reads_again = False  # until the next step is over
        self._said: list[str] = []
        self._tally = Tally()
        self._with_padding: dict[int, int] | None = None  # of a batch, where asked for
        self.batches = 0
        self.uncounted = 0
        """Batches in which no tokens were found."""

    @property
    def has_function(self) -> bool:
        """Whether a function counts."""
        return self._function is not None

    def close(self) -> None:
        """Let go of the model and of the last batch; the counts stay."""
        self._evidence.reads.close()
        for place in self._all_places():
            place.latest = ()

    def add(self, batch: Any) -> None:
        """Count one batch."""
        self.batches += 1
        if self._reads_again:
            self._see_where_rows_are_cut(batch)
        if self._function is not None:
            tokens = find_tokens(batch)
            n = int(self._function(batch))
            self._tally.add(n, _NOWHERE if tokens is None else tokens.shape)
            if self.batches == 1:
                self._tell(f"{n:,} in the first batch, by the given count_tokens")
            return
        try:
            if self._loaders is not None or not self._add_as_before(batch):
                self._add_parts(batch)
        except Exception as error:  # whatever a batch is, training goes on
            self.uncounted += 1
            self._warn(
                f"could not count the tokens of a batch, a {type(batch).__name__}: {error!r}. "
                "Say LScore(count_tokens=function)."
            )
        if self.batches == 1:
            self._evidence.reads.stop()

    def add_with_padding(self, batch: Any) -> dict[int, int]:
        """Count one batch; return the places that the model computes for it, padding included.

        By the length of the sequences. With a function they are the tokens that it counts.
        """
        if self._function is not None:
            before = dict(self._tally.by_length)
            self.add(batch)
            after = self._tally.by_length
            return {T: n - before.get(T, 0) for T, n in after.items() if n != before.get(T, 0)}
        places: dict[int, int] = {}
        self._with_padding = places
        self.add(batch)
        self._with_padding = None
        return places

    def add_counted(self, tokens: int) -> None:
        """Count one batch by its number of tokens, where nothing else is known about it."""
        self.batches += 1
        self._tally.add(int(tokens), _NOWHERE)
        if self.batches == 1:
            self._evidence.reads.stop()

    def _add_as_before(self, batch: Any) -> bool:
        """Count a batch if one of its structure was seen: a search takes longer than all else."""
        measured = self._measure_as_before(structure(batch), batch)
        for one in measured:
            self._add(one)
        return bool(measured)

    def _measure_as_before(self, key: Any, batch: Any) -> list[Measured]:
        """Return the tokens of a batch at the places of its structure, or none if it has others."""
        found = []
        for place in self._places.get(key, ()):
            measured = place.measure(batch)
            if measured is None:
                return []
            found.append(measured)
        return found

    def _add_parts(self, batch: Any) -> None:
        """Count a batch by what it holds: batches of loaders, micro-batches, lists of sequences."""
        wholes = [batch] if self._loaders is None else batches_of(self._loaders, batch)
        parts = [part for whole in wholes for part in micro_batches(whole)]
        self._is_new = False
        found = [several for part in parts if (several := self._measure(part))]
        if len(wholes) > 1:  # if one loader has tokens, one number per sample in another is a label
            texts = [some for some in found if len(some) > 1 or some[0].place.dimensions > 1]
            found = texts or found
        each = [measured for several in found for measured in several]
        if each and self._is_new:
            reads = self._evidence.reads
            unheard = "" if reads.reads or not reads.has_model else _UNHEARD
            self._say(in_words(each) + unheard)
            self._doubt(each[0].place)
        for measured in each:
            self._add(measured)
            self._settle(measured.place)  # which may be of this batch alone
        self.uncounted += not each

    def _measure(self, part: Any) -> list[Measured]:
        """Return the tokens of a part: where parts of its structure had them, else by the rules."""
        key = structure(part)
        if found := self._measure_as_before(key, part):
            return found
        look = self._looks_left > 0
        places = find_places(part, self._evidence, look)
        found = [measured for place in places if (measured := place.measure(part)) is not None]
        if any(place.in_list for place in places):  # of another length the next time
            self._is_new |= self.batches == 1
            return found
        self._settle(*self._places.get(key, ()))
        self._places[key] = places
        if found and look:
            self._looks_left, self._is_new = self._looks_left - 1, True
        elif any(place.padding is None for place in places):
            self._warn(
                f"met batches of more than {_LOOKS} structures, and looks for padding in no more. "
                "Put an attention_mask into them, or say LScore(count_tokens=function)."
            )
        return found

    def _say(self, how: str) -> None:
        if how not in self._said:
            self._said.append(how)
            self._tell(f"{' | '.join(self._said)}; LScore(count_tokens=...) overrides it")

    def _doubt(self, place: Place) -> None:
        if place.doubt is not None:
            self._warn(
                f"counts id {place.doubt} at the ends of rows of {place.name} as tokens. If it is "
                "padding, put an attention_mask into the batch, or say "
                "LScore(count_tokens=function)."
            )

    def _add(self, measured: Measured) -> None:
        place, shape, n = measured
        if self._with_padding is not None:
            T = length_of(shape)
            self._with_padding[T] = self._with_padding.get(T, 0) + shape.numel()
        if n is None:
            # Added up later: a tensor operation here would cost every step a microsecond.
            place.whole[shape] = place.whole.get(shape, 0) + 1
        else:
            self._tally.add(n, shape)

    def _all_places(self) -> list[Place]:
        return [place for places in self._places.values() for place in places]

    def _settle(self, *places: Place) -> None:
        for place in places:
            for shape, times in place.whole.items():
                self._tally.add(shape.numel(), shape, times)
            place.whole.clear()

    def _see_where_rows_are_cut(self, batch: Any) -> None:
        """Count from now on as much of each row as the step that is just over read."""
        reads, self._reads_again = self._evidence.reads, False
        reads.stop()
        for place in self._places.get(structure(batch), ()):
            ids = follow(place.path, batch)
            index = (
                reads.part_of(ids) if place.cuts_rows and isinstance(ids, torch.Tensor) else None
            )
            if index is not None and index != place.index:
                self._settle(place)
                place.index = index
                if (measured := place.measure(batch)) is not None:
                    self._say(f"from batch {self.batches:,} on {in_words([measured])}")

    def _look_again(self) -> None:
        """Look for padding that the first batch had not, in the newest one.

        Rows that a step cuts may be cut elsewhere in later ones, so the next one is listened to.
        """
        if any(place.cuts_rows for place in self._all_places()):
            self._evidence.reads.listen_again()
            self._reads_again = True
        for place in self._all_places():
            watched, place.latest = place.newest(), ()
            if place.padding is None and place.doubt is None and watched:
                find_padding(place, watched, self._evidence.pads)
                self._doubt(place)
                if place.has_padding(watched) and place.padding is not None:
                    self._warn(
                        f"found padding in {place.name} ({place.padding.words}) after "
                        f"{self.batches} batches, and none in the first: until now it counted as "
                        "tokens. Put an attention_mask into the batch, or say "
                        "LScore(count_tokens=function)."
                    )

    @property
    def samples(self) -> int:
        """Number of sequences so far."""
        self._settle(*self._all_places())
        return self._tally.samples

    @property
    def by_length(self) -> Mapping[int, int]:
        """Tokens so far, by the length of their sequences (with padding; 0: not known).

        Waits for the device if masks are summed there, or ids are to be looked at again.
        """
        self._settle(*self._all_places())
        self._look_again()
        return self._tally.by_length

    @property
    def total(self) -> int:
        """Tokens so far. Waits for the device if masks are summed there."""
        return sum(self.by_length.values())
