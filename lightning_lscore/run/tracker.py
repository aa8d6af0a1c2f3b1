"""One run, without Lightning: what is counted, measured and scored of it, from five verbs."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from ..curve.judgement import judge
from ..curve.patience import Patience, Verdict
from ..equation.formula import Formula
from ..equation.measurements import Measurements
from ..hardware.devices import find_devices
from ..heldout.evaluation import Evaluation
from ..heldout.held_out import HeldOut
from ..model.epoch_shape import epoch_shape
from ..model.sharded import counts_here, peers
from ..model.tokens import TokenCounter
from ..record.record import Record
from . import measure, processes
from .architecture import Architecture
from .arithmetic import Arithmetic
from .epochs import Epochs
from .extras import Extras
from .ledger import Ledger
from .options import Options
from .own_measures import OwnMeasure, values_of
from .plan import Plan, proves_wrong
from .scoring import score_run
from .segment import Segment
from .spending import Spending
from .state import RunState


class Tracker:
    """Counts, measures and scores one run of any training loop; ``LScore`` is built on it.

    The same numbers as those of the callback, in Lightning Fabric, plain PyTorch or under
    ``torchrun``. Make it before the model is wrapped or sharded, on every process alike. Training
    that lies in :meth:`training` counts; evaluation does not::

        tracker = Tracker(model, planned_tokens=1e9, directory="runs/a")
        for epoch in range(epochs):
            with tracker.training():
                for batch in train_batches:
                    ...                      # the optimiser's step
                    tracker.count(batch)
            with tracker.evaluation() as held_out:
                for batch in validation_batches:
                    held_out.update(logits, labels)
            record = tracker.score()
        tracker.close()

    Args:
        model: whose parameters are counted, and whose structure tells FLOP per token.
        formula: what L charges for what; see :class:`~lightning_lscore.LScore` for this and for
            all arguments that are not named here. ``measures`` are functions without arguments.
        planned_tokens: training tokens of the whole run over all processes, the reference of the
            default formula and the horizon of forecasts. Default: no finite plan.
        directory: where rank 0 keeps the record, ``lscore.jsonl``. Default: no record.
        precision: of the matrix products, as the Trainer and Fabric name it, such as
            ``"bf16-mixed"``: peaks are those of this precision.
        warn: called with each warning, once. Default: :func:`warnings.warn` on rank 0.
        tell: called with each assumption about the loop, once. Default: the logger
            ``lightning_lscore`` at level INFO, on rank 0.

    Raises:
        ValueError: for arguments that make no sense.
        FileNotFoundError: if ``formula`` is a path that does not exist.

    >>> tracker = Tracker(nn.Linear(4, 8), planned_tokens=64)
    >>> with tracker.training():
    ...     for _ in range(4):
    ...         tracker.count(torch.zeros(2, 8, dtype=torch.int64))
    >>> with tracker.evaluation() as held_out:
    ...     held_out.update(torch.zeros(2, 8, 16), torch.zeros(2, 8, dtype=torch.int64))
    >>> record = tracker.score()
    >>> record.measurements.tokens, round(record.measurements.perplexity, 6), record.score.f_D
    (64, 16.0, 1.0)
    >>> tracker.close()
    """

    def __init__(
        self,
        model: nn.Module,
        formula: Formula | str | os.PathLike[str] | None = None,
        *,
        planned_tokens: float | None = None,
        directory: str | os.PathLike[str] | None = None,
        count_tokens: Callable[[Any], int] | None = None,
        count_bytes: Any = None,
        measures: Mapping[str, OwnMeasure] | None = None,
        price_per_device_hour: float | None = None,
        carbon_intensity: float | None = None,
        flops_per_token: float | Literal["count"] | None = None,
        ignore_index: int | None = None,
        compile: bool = False,
        sample_interval: float = 1.0,
        precision: str = "32-true",
        prefix: str = "",
        warn: Callable[[str], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._options = Options(
            formula=formula,
            planned_tokens=planned_tokens,
            directory=directory,
            count_tokens=count_tokens,
            count_bytes=count_bytes,
            measures=measures or {},
            price_per_device_hour=price_per_device_hour,
            carbon_intensity=carbon_intensity,
            flops_per_token=flops_per_token,
            ignore_index=ignore_index,
            compile=compile,
            sample_interval=sample_interval,
            prefix=prefix,
        )
        self.plan = Plan()
        self.precision = precision
        self.device: torch.device | None = None
        """Where the sums lie, and what processes exchange. Default: the model's."""
        self.last_record: Record | None = None
        """The newest validation, None before."""
        self._architecture = Architecture(model, flops_per_token)
        self._state = RunState(formula=self._options.given_formula)
        self.has_failed = False
        """Whether all processes know that one of them cannot go on."""
        self._failed: Exception | None = None  # of this process
        self._resumed = False
        self._expected: float | None = None  # tokens of the whole run, when this fit began
        self._told_wrong = False
        self._segment: Segment | None = None
        self._held_out: list[HeldOut] = []
        self._resume_after = False  # the evaluation
        self._warn = warn or _warn_on_rank_0
        self._warned: set[str] = set()
        self._tell = tell or _tell_on_rank_0
        self._assumed: dict[str, str] = {}
        self._extras = Extras(self.warn_once)
        self._ledger = Ledger(prefix, self.warn_once)
        self.directory = self._options.directory

    @property
    def directory(self) -> str | os.PathLike[str] | None:
        """Where rank 0 keeps the record; None: there is none."""
        return self._ledger.directory

    @directory.setter
    def directory(self, directory: str | os.PathLike[str] | None) -> None:
        self._ledger.directory = directory

    @property
    def plan(self) -> Plan:
        """How far the run is set to go; replace it when that changes."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        given = self._options.planned_tokens
        self._plan = plan if given is None else replace(plan, tokens=given)

    @property
    def record_path(self) -> str | None:
        """The file of the record; None on other processes than rank 0, and without a directory."""
        return self._ledger.path

    @property
    def local_record_path(self) -> str | None:
        """The same on this machine, where the record's folder is remote; until :meth:`close`."""
        return self._ledger.local_path

    @property
    def run(self) -> str:
        """Identifies the run; a resumed one keeps it."""
        return self._state.id

    @property
    def formula(self) -> Formula | None:
        """What L is scored with; None until the first score makes it from the run's plan."""
        return self._state.formula

    @property
    def logged(self) -> dict[str, float]:
        """What the newest score tells loggers, by key; empty before."""
        return dict(self._state.logged)

    @property
    def batches(self) -> int:
        """Micro-batches that this process has counted, and those before a resume."""
        segment = self._segment
        return self._state.spending.batches if segment is None else segment.batches

    @property
    def is_restored(self) -> bool:
        """Whether it goes on with a run that was saved."""
        return self._resumed

    @property
    def is_training(self) -> bool:
        """Whether training has begun, and :meth:`close` has not ended it."""
        return self._segment is not None

    # ------------------------------------------------------------------ training

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Count time and devices inside of the ``with``. The first one is collective."""
        self.start()
        self.resume()
        self.begin_step()
        try:
            yield
        except BaseException:
            self.pause(wait=False)  # a device that failed would raise again, or hang
            raise
        self.pause()

    def start(
        self,
        model: nn.Module | None = None,
        *,
        device_mesh: Any = None,
        batches_per_epoch: float | Callable[[], float] = math.inf,
        loaders: Any = None,
    ) -> None:
        """Begin to count, from what was restored; :meth:`training` does so by itself. Collective.

        Args:
            model: as the strategy has wrapped it. Default: that of the constructor.
            device_mesh: of a strategy with tensor parallelism.
            batches_per_epoch: of one process, or a function that tells them as they are now;
                infinite if the training set has no length.
            loaders: the training loaders, where one batch holds those of several.
        """
        if self._segment is not None:
            return
        model = model or self._architecture.model
        if model is None:
            raise RuntimeError("expected an open Tracker, got one after close(); make another.")
        state, options = self._state, self._options
        with self._all_or_none(), processes.together(self._failed) as gather:
            self._architecture.begin(model)
            self.device = self.device or _device_of(model)
            if self._resumed:
                self._ledger.go_on(state)
            state.begin_fit()
            state.record = self._ledger.path or state.record
            if options.given_formula is None:
                length = Epochs(batches_per_epoch).length
                state.shape = epoch_shape(loaders, length, options.count_tokens)
            self._note_the_plan()
            devices = find_devices(
                model,
                self.device,
                self.precision,
                rank=processes.rank(),
                gather=gather,
                interval=options.sample_interval,
            )
            # After an earlier fit processes may differ in what they think the others spent; L must
            # not. And rank 0 alone reads what was lost.
            shared = ("spending", "lost_device_hours", "planned_batches", "planned_tokens", "shape")
            everyone = gather({name: getattr(state, name) for name in shared})
        vars(state).update(everyone[0])
        self._segment = Segment(
            devices,
            before=state.spending,
            ranks=processes.world_size() // peers(device_mesh),
            counts=counts_here(device_mesh, None),
            batches_per_epoch=batches_per_epoch,
            arithmetic=Arithmetic(self._architecture),
            tokens=TokenCounter(
                options.count_tokens,
                loaders,
                model,
                ignore_index=options.ignore_index,
                tell=partial(self.assume, "tokens"),
                warn=self.warn_once,
            ),
            price_per_device_hour=options.price_per_device_hour,
            carbon_intensity=options.carbon_intensity,
        )
        self.assume("flops", self._segment.arithmetic.assumed)
        if unknown := ", ".join(self._architecture.parameters.unknown):
            self.warn_once(
                f"counts the packed weights of {unknown} by the elements that hold them, since it "
                "does not know the packing: there are more parameters than it says."
            )

    def resume(self) -> None:
        """Let time count from now on; without effect while it does."""
        if self._segment is not None:
            self._segment.resume()

    def pause(self, *, wait: bool = True) -> None:
        """Let time stand still; without effect while it does.

        Args:
            wait: whether to wait for the GPU first, whose queued steps are training.
        """
        if self._segment is not None:
            self._segment.pause(wait=wait)

    @contextlib.contextmanager
    def standstill(self) -> Iterator[None]:
        """Let time stand still inside of the ``with``, and afterwards do what it did before."""
        runs = self._segment is not None and self._segment.runs
        self.pause()
        try:
            yield
        finally:
            if runs:
                self.resume()

    @contextlib.contextmanager
    def occupied(self) -> Iterator[None]:
        """Let time count inside of the ``with``, and afterwards do what it did before."""
        stood = self._segment is not None and not self._segment.runs
        self.resume()
        try:
            yield
        finally:
            if stood:
                self.pause(wait=False)

    def begin_step(self) -> None:
        """Tell that the next step begins; :meth:`training` does so for the first one in it.

        The FLOP of some steps are counted, and some begin with a look at which parameters learn.
        """
        if self._segment is not None:
            self._segment.begin_step()

    def count(self, batch: Any = None, *, tokens: int | None = None) -> None:
        """Count a batch that the model was trained on, on this process.

        Args:
            batch: its tokens are found as ``LScore`` finds them, without padding.
            tokens: how many there are, in place of the batch.

        Raises:
            RuntimeError: before the first :meth:`training`.
        """
        if self._segment is None:
            raise RuntimeError(
                "expected count() after training has begun, got it before; put the loop into "
                "`with tracker.training():`."
            )
        self._segment.count(batch, tokens)

    def end_epoch(self) -> None:
        """Tell that an epoch ends, where the next may have other batches."""
        if self._segment is not None:
            self._segment.end_epoch()

    # ------------------------------------------------------------------ evaluation

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[HeldOut]:
        """Measure the held-out set inside of the ``with``; time stands still meanwhile.

        Yields:
            the sums of this process: ``update(logits, labels)`` takes logits [..., V] and labels
            [...] that are aligned with them, so label t is what logits t predict.
        """
        (held_out,) = self.start_evaluation()
        try:
            yield held_out
        except BaseException:
            self._held_out = []
            raise
        finally:
            self.end_evaluation()

    def start_evaluation(self, loaders: int = 1) -> list[HeldOut]:
        """Begin an evaluation of so many sets, each with sums of its own."""
        segment, options = self._segment, self._options
        device = self.device or _device_of(self._architecture.model)
        self._held_out = [
            HeldOut(options.held_out_index, device, options.bytes_counter, options.compile)
            for _ in range(loaders)
        ]
        self._resume_after = segment is not None and segment.runs
        self.pause()
        if segment is not None:
            segment.look()
        return list(self._held_out)

    def end_evaluation(self) -> None:
        """Let training go on, if it did before the evaluation."""
        if self._resume_after:
            self.resume()

    def evaluate(self, source: str = "given by the loop") -> dict[str, float]:
        """Sum the newest evaluation over all processes, without a score. Collective.

        Args:
            source: how logits and labels were found, in words.

        Returns:
            What loggers get, by key.
        """
        evaluation, _ = self._exchange(source)
        if evaluation is None:
            raise RuntimeError("expected an evaluation first, got none; see evaluation().")
        values = {"perplexity": evaluation.perplexity, **_each_loader(evaluation)}
        values["lscore/validation_tokens"] = float(evaluation.total_tokens)
        prefix = self._options.prefix
        return {prefix + key: value for key, value in values.items()}

    # ------------------------------------------------------------------ the score

    def score(
        self,
        *,
        step: int | None = None,
        epoch: int | None = None,
        source: str = "given by the loop",
    ) -> Record:
        """Score the run as it stands, with the newest evaluation, and add it to the record.

        Collective: the one exchange between processes. Without an evaluation since the last score
        the record has what was spent, and no L.

        Args:
            step: optimiser steps so far. Default: the batches counted.
            epoch: Default: that of the batches counted.
            source: how logits and labels were found, in words.
        """
        segment = self._segment
        if segment is None:
            raise RuntimeError("expected score() after training has begun; see training().")
        running = segment.runs
        try:
            self.pause()
            if not self._held_out:  # else the evaluation's start did so
                segment.look()
            self.assume("flops", segment.arithmetic.assumed)
        except Exception as error:  # the others wait at the exchange
            self.abandon(error)
        evaluation, own = self._exchange(source)
        self._note_the_plan()
        record = self.last_record = score_run(
            self._state,
            segment,
            evaluation,
            self._architecture.parameters,
            self.plan,
            own=own,
            assumptions=self._assumed,
            extras=self._extras,
            step=step,
            epoch=epoch,
        )
        self._note_the_set(evaluation)
        self._hold_against_the_plan(self._state.spending)
        values = record.logged_values() | _each_loader(evaluation)
        self._state.logged = {self._options.prefix + key: float(v) for key, v in values.items()}
        if record.score.L is None:
            self.warn_once(f"has no L to log: {'; '.join(record.score.missing)}.")
        for message in segment.messages():
            self.warn_once(message)
        self._extras.run("its record", partial(self._ledger.write, record))
        if running:
            self.resume()
        return record

    def judge(self, patience: Patience) -> Verdict | None:
        """Tell ``patience`` of the newest score; call it once for each.

        Args:
            patience: the rule by which the run is given up.

        Returns:
            The verdict; None where the score has no L.
        """
        record, formula = self.last_record, self.formula
        if record is None or formula is None:
            return None
        return judge(
            patience,
            formula,
            record.measurements,
            batch=record.batch,
            planned=record.planned,
            learning_rate=record.learning_rate,
        )

    def spent(self) -> Measurements:
        """Return what all processes have spent in training until now. Collective.

        It waits for no reading of a device.

        Raises:
            RuntimeError: before training has begun.
        """
        segment = self._segment
        if segment is None:
            raise RuntimeError("expected spent() after training has begun; see training().")
        mine = Spending()

        def say() -> dict[str, list[float]]:
            nonlocal mine
            mine = segment.spending(wait=False)
            return {"spent": segment.numbers(mine)}

        size, device = len(segment.numbers(mine)), self.device or torch.device("cpu")
        with self._all_or_none():
            everyone = processes.exchange(say, size, device, self._failed)
        spending = segment.settle(mine, [one["spent"] for one in everyone])
        self._state.spending = spending
        return measure.everything(
            None,
            spending,
            segment,
            self._architecture.parameters,
            steps=spending.batches,
            own_values={},
        )

    def look_back(self) -> None:
        """Tell when ``CostEarlyStopping()`` would have stopped the run, where it would have.

        From the record, on the process that keeps it; without one nothing is told.
        """
        replay = partial(self._ledger.replay, self._state.id)
        if (found := self._extras.run("its look back", replay)) and found.saved > 0:
            self._tell(f"LScore: CostEarlyStopping() {found}.")

    def _exchange(self, source: str) -> tuple[Evaluation | None, dict[str, float]]:
        """Sum the evaluation, and in training the spending, over all processes."""
        segment, held_out = self._segment, {f"set {i}": h for i, h in enumerate(self._held_out)}
        self._held_out = []
        own, mine = {}, Spending()

        def say() -> dict[str, list[float]]:
            nonlocal own, mine
            said = {name: h.numbers() for name, h in held_out.items()}
            for error in {repr(h.bytes_error) for h in held_out.values() if h.bytes_error}:
                self.warn_once(f"gives up counting bytes ({error}); training goes on without them.")
            if segment is not None:
                own, mine = values_of(self._options.measures, self._extras), segment.spending()
                to_come = math.nan if self.plan.to_come is None else self.plan.to_come
                spent = segment.numbers(mine)
                said |= {"own": [*own.values()], "to come": [to_come], "spent": spent}
            return said

        size = len(HeldOut.NUMBERS) * len(held_out)
        if segment is not None:
            size += len(self._options.measures) + 1 + len(segment.numbers(mine))
        device = self.device or torch.device("cpu")
        with self._all_or_none():
            everyone = processes.exchange(say, size, device, self._failed)
        if segment is not None:
            self._state.spending = segment.settle(mine, [one["spent"] for one in everyone])
            own = dict(zip(own, everyone[0]["own"], strict=True))
            (to_come,) = everyone[0]["to come"]  # by the time so far each may know another
            self.plan = replace(self.plan, to_come=None if math.isnan(to_come) else to_come)
        if not held_out:
            return None, own
        evaluation = Evaluation.over_ranks(
            [[one[name] for name in held_out] for one in everyone],
            source,
            with_bytes=self._options.count_bytes is not None,
        )
        return evaluation, own

    def finish(self) -> None:
        """Tell that the run is at its planned end: a plan that was wrong is said."""
        if self._segment is not None:
            self.plan = Plan(to_come=0)
            self._hold_against_the_plan(self._segment.total())

    def _note_the_plan(self) -> None:
        """Keep the first plan that is known; it makes the reference of the default formula."""
        state, plan, starting = self._state, self.plan, self._segment is None
        if state.formula is not None:
            if starting and (state.planned_tokens or plan.to_come is not None):
                self.assume("plan", plan.of_a_later_fit(state.planned_tokens))
            return
        known = state.planned_batches is not None
        if not known:
            state.planned_batches = plan.batches_in_all(state.spending)
        if starting or not known:
            is_read = state.shape is not None and state.shape.is_read
            self.assume("plan", plan.in_words(state.planned_batches, is_read))

    def _hold_against_the_plan(self, spending: Spending) -> None:
        """Say once if this fit's plan proves wrong; a fit that resumes may have another."""
        now, planned = (
            self.plan.tokens_in_all(spending, self._state.shape),
            self._state.planned_tokens,
        )
        if not now or planned is None or (self.plan.tokens is not None and self.plan.to_come):
            return
        if self._expected is None:
            self._expected = now if self._resumed else planned
        if not self._told_wrong and (wrong := proves_wrong(self._expected, now)):
            self._told_wrong = True
            self.warn_once(wrong)

    def abandon(self, error: Exception) -> None:
        """Make the next exchange fail on all processes, since this one cannot go on.

        The others wait for that exchange, so this process must take part in it.
        """
        self._failed = error

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """What fails here fails on all processes."""
        try:
            yield
        except Exception:
            self.has_failed = True
            raise

    def _note_the_set(self, evaluation: Evaluation | None) -> None:
        if evaluation is None:
            return
        before, self._state.fingerprints = self._state.fingerprints, evaluation.fingerprints
        if before not in ((), evaluation.fingerprints):
            self.warn_once(
                "counted other held-out tokens than at the validation before, so the two L do not "
                "compare. Evaluate on the same part of the same set each time: without shuffling, "
                "and with the same limit_val_batches."
            )

    # ------------------------------------------------------------------ the checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Return the run's memory up to this moment, in plain values. Not collective."""
        return self._state.to_dict(self._spent())

    def _spent(self) -> Spending:
        if self._segment is None:
            return self._state.spending
        with self._segment.uncharged():
            return self._segment.total()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run of a checkpoint. Call it before training begins.

        Raises:
            ValueError: if the state is of another schema or incomplete, or its formula holds a
                function and none was given.
        """
        if self._segment is not None:
            raise RuntimeError("expected load_state_dict() before training has begun.")
        given = self._options.given_formula
        self._state, self._resumed = RunState.from_dict(state, given), True
        if given is not None and state["formula"] not in (None, given.to_dict()):
            self.warn_once(
                "was given another formula than the one in the checkpoint, and uses the one given. "
                "L before and after do not compare."
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy is closed: it has what was counted, and neither the model nor the devices."""
        options = copy.copy(self._options)
        object.__setattr__(options, "measures", {})  # functions of the loop
        state = replace(self._state, spending=self._spent())
        ours: dict[str, Any] = {"_segment": None, "_held_out": [], "_options": options}
        return {**vars(self), **ours, "_state": state}

    def close(self) -> None:
        """End the run on this process, and let go of the model; waits for no other process.

        The thread that reads the hardware ends. What was counted stays.
        """
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.stop()
            # A GPU that failed cannot be asked for its last counts, and raises again.
            with contextlib.suppress(RuntimeError):
                self._state.spending = segment.total()
        self._ledger.close()
        self._held_out, self._architecture.model = [], None
        self._options.measures.clear()  # type: ignore[attr-defined]  # functions of the loop

    def assume(self, subject: str, how: str) -> None:
        """Tell and record what is taken for granted about the loop, once for each change.

        Args:
            subject: of the assumption, such as ``"plan"``, ``"tokens"`` or ``"labels"``.
            how: it was found, and the argument that overrides it.
        """
        if self._assumed.get(subject) != how:
            self._assumed[subject] = how
            self._tell(f"LScore {subject}: {how}")

    def attempt(self, what: str, function: Callable[[], None]) -> None:
        """Do what a run can do without: where it raises, that is said once and given up.

        Args:
            what: in words.
            function: what is to be done.
        """
        self._extras.run(what, function)

    def warn_once(self, message: str) -> None:
        """Warn, but not again of the same."""
        if message not in self._warned:
            self._warned.add(message)
            self._warn(f"LScore {message}")


def _each_loader(evaluation: Evaluation | None) -> dict[str, float]:
    """The perplexity of each validation loader by key, where there are several."""
    each = () if evaluation is None else evaluation.perplexities
    return {f"lscore/perplexity_{i}": T for i, T in enumerate(each) if len(each) > 1}


def _device_of(model: nn.Module | None) -> torch.device:
    parameters = () if model is None else model.parameters()
    return next((p.device for p in parameters), torch.device("cpu"))


def _tell_on_rank_0(message: str) -> None:
    if processes.rank() == 0:
        logging.getLogger("lightning_lscore").info(message)


def _warn_on_rank_0(message: str) -> None:
    if processes.rank() == 0:
        warnings.warn(message, stacklevel=4)
