"""FLOP of a segment's tokens: each counts by what the model needed when it was trained on it."""

from __future__ import annotations

from collections.abc import Mapping

from ..model.counted_step import CountedStep
from ..model.flops import FlopsModel
from .architecture import Architecture

# Steps to count until one has a backward pass: manual optimisation may postpone it.
_TRIES = 8

# Steps that begin with a look at the model, of the fit and after each validation. Callbacks change
# it before the first, the hooks of the module in it.
_LOOKS = 2


class Arithmetic:
    """What the model needs for a token, and since when.

    The model is looked at when the first two steps after a validation begin, and at the next one.
    A change that the steps show counts from that validation on. One that only the next validation
    shows came somewhere between the two: half of the tokens count either way.

    Args:
        architecture: as it is trained now.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.flops = architecture.flops
        """For the tokens since the newest change."""
        self.step: CountedStep | None = None
        """The one that is being counted."""
        self._architecture = architecture
        self._tries = _TRIES if architecture.is_to_be_counted else 0
        self._looks = _LOOKS
        self._flops_before = 0.0
        self._tokens_before: Mapping[int, int] = {}  # by length, like all that follow
        self._tokens_looked_at: Mapping[int, int] = {}
        self._batch_looked_at = 0
        self._change = ""

    @property
    def convention(self) -> str:
        """What is counted, and how: part of a sentence in a record's provenance."""
        return self.flops.convention + self._change

    @property
    def assumed(self) -> str:
        """How the FLOP of a token are found, for who starts the run."""
        how = self.convention
        if self._tries:
            guess = self._architecture.flops.lacks
            how = "counted in the next training step" + f"; an estimate guesses: {guess}" * bool(
                guess
            )
        return f"{how}; flops_per_token=... overrides it"

    def begin_step(self, batch: int) -> None:
        """Look at the model, and start to count the step, if one of them is due.

        Args:
            batch: so many were trained on before.
        """
        if self._looks:
            self._looks -= 1
            if (old := self._changed()) is not None:
                self._close(self._tokens_looked_at, old)
                self._change = f"; other parameters learn since batch {self._batch_looked_at}"
        if self._tries and self.step is None:
            self.step = CountedStep()
            self.step.start()

    def end_step(self, tokens_by_length: Mapping[int, int]) -> None:
        """End the step that is being counted, and go by it from the newest change on."""
        step, self.step = self.step, None
        if step is None:
            return
        step.stop()
        self._tries = 0 if step.had_backward else self._tries - 1
        if not self._tries:
            self.flops = step.flops_model(tokens_by_length, self.flops)

    def look(self, tokens_by_length: Mapping[int, int], batch: int) -> None:
        """Look at the model at a validation, after so many tokens and batches."""
        if (old := self._changed()) is not None:
            self._close(self._tokens_looked_at, old)
            at_once = self.total(tokens_by_length)
            late = self._flops_before + old.total(_minus(tokens_by_length, self._tokens_before))
            self._flops_before, self._tokens_before = (at_once + late) / 2, {**tokens_by_length}
            self._change = (
                f"; other parameters learn since some batch from {self._batch_looked_at} to {batch}"
                ", half of whose tokens count either way"
            )
        self._looks = _LOOKS
        self._tokens_looked_at, self._batch_looked_at = {**tokens_by_length}, batch

    def stop(self) -> None:
        """Leave no counter behind."""
        if self.step is not None:
            self.step.stop()

    def total(self, tokens_by_length: Mapping[int, int]) -> float:
        """Return the FLOP of the segment's tokens."""
        since = _minus(tokens_by_length, self._tokens_before)
        return self._flops_before + self.flops.total(since)

    def _changed(self) -> FlopsModel | None:
        """Return what a token needed before the model changed; None if it is as it was."""
        architecture, old, estimated = self._architecture, self.flops, self._architecture.flops
        if not architecture.look():
            return None
        self.flops = architecture.flops
        if architecture.is_to_be_counted:
            # Until the next step is counted, what was counted goes with the estimate.
            self._tries = _TRIES
            self.flops = old.times(self.flops.per_token / max(1.0, estimated.per_token))
        return old

    def _close(self, tokens_by_length: Mapping[int, int], flops: FlopsModel) -> None:
        """Let the tokens until then count by ``flops``, whatever comes."""
        self._flops_before += flops.total(_minus(tokens_by_length, self._tokens_before))
        self._tokens_before = tokens_by_length


def _minus(a: Mapping[int, int], b: Mapping[int, int]) -> dict[int, int]:
    return {length: n - b.get(length, 0) for length, n in a.items()}
