"""The Lightning callback: each hook tells a :class:`Tracker` what only Lightning knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .artifacts import attach
from .equation.formula import Formula
from .heldout.capture import Capture, ChooseLoss
from .heldout.held_out import HeldOut
from .heldout.repeated_samples import repeated_samples, uncorrected
from .hyperparameters import log_formula
from .logged import Logged
from .packages import Callback
from .plan import ended_early, plan_of
from .rates import learning_rate
from .record.find import RUNS_FOLDER
from .record.record import Record
from .run.options import Options, expect, integer, switch
from .run.own_measures import OwnMeasure
from .run.plan import Plan
from .run.stand_in import StandIn
from .run.tracker import Tracker

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["LScore"]


class LScore(Callback):
    """Log the cost-adjusted perplexity L = perplexity(T) · f(D) · f(A) · f(H) at each validation.

    ``L``, ``perplexity``, ``f_D``, ``f_A``, ``f_H`` and, under ``lscore/``, what they are made of
    reach every logger, ``ModelCheckpoint(monitor="L")``, ``EarlyStopping(monitor="L")`` and the
    progress bar. Each validation adds a line to ``lscore.jsonl`` in the run's folder.

    NaN logits make perplexity and L NaN, and a held-out token of probability 0 makes them infinite.
    They are logged as such, and training goes on.

    Where the module or another callback logs one of these names itself, LScore leaves it alone,
    logs its own as ``lscore/perplexity``, say, and tells so; see :meth:`name_of`.

    Counters go on when a fit resumes from a checkpoint, and when the same Trainer fits again. A fit
    that begins at step 0 begins at zero. ``trainer.validate`` on its own logs the perplexity. A run
    without a validation leaves one line at its end: what it spent, without an L.

    Args:
        formula: what L charges for: a :class:`Formula`, or the path of one saved as JSON; in the
            YAML of LightningCLI also what such a file holds. Default: the run's own plan, see
            :meth:`Formula.for_plan`. A formula given here takes precedence over the one in a
            checkpoint.
        planned_tokens: training tokens of the whole run over all processes, the reference of the
            default formula and the horizon of forecasts. Default: the batches that the Trainer is
            set to process, times the tokens of a batch.
        directory: where the record, ``lscore.jsonl``, lies; it may be remote, such as
            ``"s3://bucket/runs/a"``. Default: the run's own folder, the parent of its
            ``checkpoints``; without a logger ``lscore/<run>/`` under the Trainer's root.
        logits_and_labels: function (module, outputs, batch) -> (logits [B, T, V], labels [B, T]),
            for modules where LScore does not find them. ``outputs`` is what validation_step
            returned.
        labels_are_shifted: whether label t is already the token after input t. Default: inferred
            from the batch; where that is impossible, LScore takes labels for a copy of the input,
            as transformers models expect them, and warns.
        from_loss: where LScore finds no logits, use the mean loss that validation_step returns as
            the mean NLL of the labels. Wrong if the loss contains anything else, such as auxiliary
            terms or label smoothing.
        count_tokens: function batch -> training tokens in it, where LScore finds others: a line at
            the start of the fit says which tensor it counts and what shows padding. Default: what
            the model reads, see :class:`~lightning_lscore.model.tokens.TokenCounter`.
        count_bytes: for bits per byte, and a T that compares across tokenizers: the tokenizer, or a
            function of the counted token ids [n] to the bytes of their text. Use ``len`` for a
            model that reads bytes.
        measures: your own measures by name, each a function (trainer, module) -> number >= 0, or
            None where it has no value. LScore calls them at each validation, logs them as
            ``lscore/<name>``, and ``Factor(name, reference=..., own=True)`` charges for them. The
            value on rank 0 counts.
        price_per_device_hour: price of one device, for the measure ``cost``.
        carbon_intensity: of the electricity, in g CO2-equivalent per kWh, for the measure
            ``emissions_kg``. It differs by grid and hour, so there is no default.
        flops_per_token: FLOP that the model needs for a training token, forward and backward, or
            "count" to count them in the first batch of each fit. Default: estimated from the
            model's structure, see :func:`~lightning_lscore.model.flops.flops_of`; counted where
            that would guess, as in a module of one's own.
        loss_call: which of the calls of ``cross_entropy`` and ``nll_loss`` in a validation step
            counts: its index from 0, or a function from the list of
            :class:`~lightning_lscore.heldout.loss_call.LossCall` to an index or several. Default:
            those whose labels are the text that the model read.
        ignore_index: label of the positions that do not count. Default: what the loss call, or the
            module's own loss, ignores, else -100 and all other labels below 0.
        compile: read the held-out logits in one compiled loop, on a GPU in one kernel. Compiling
            takes some seconds at the first validation; then it is twice as fast on a CPU in float32
            and 1.3 times in bfloat16 (benchmarks/perplexity.py). It pays where a model is small
            beside its vocabulary. Without a compiler nothing changes.
        sample_interval: seconds between readings of the hardware.
        prefix: prepended to every key and to the record's file name, so two LScore callbacks with
            different formulas can work side by side.

    Raises:
        ValueError: for invalid arguments; at the first validation batch if LScore finds no logits
            and labels; at the end of a validation that counted no token.
        FileNotFoundError: if ``formula`` is a path that does not exist.
    """

    stays_out = False
    """Whether it takes no part in the run, as one that ``LSCORE`` asked for may have to."""

    def __init__(
        self,
        formula: Formula | str | os.PathLike[str] | None = None,
        *,
        planned_tokens: float | None = None,
        directory: str | os.PathLike[str] | None = None,
        logits_and_labels: Callable[[Any, Any, Any], tuple[Tensor, Tensor]] | None = None,
        labels_are_shifted: bool | None = None,
        from_loss: bool = False,
        count_tokens: Callable[[Any], int] | None = None,
        count_bytes: Callable[[Any], int] | Any = None,
        measures: Mapping[str, OwnMeasure] | None = None,
        price_per_device_hour: float | None = None,
        carbon_intensity: float | None = None,
        flops_per_token: float | Literal["count"] | None = None,
        loss_call: ChooseLoss | None = None,
        ignore_index: int | None = None,
        compile: bool = False,
        sample_interval: float = 1.0,
        prefix: str = "",
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
        function = logits_and_labels
        fits = function is None or callable(function)
        expect(fits, "logits_and_labels", "a function or None", function)
        if labels_are_shifted is not None:
            expected = "True, False or None"
            labels_are_shifted = switch("labels_are_shifted", labels_are_shifted, expected)
        from_loss = switch("from_loss", from_loss)
        self.formula = self._options.given_formula
        self.prefix = self._options.prefix
        # Made once: Lightning asks for it at every hook of every step, for its profiler.
        self._state_key = self._generate_state_key(prefix=self.prefix)
        self.tracker: Tracker | None = None
        """Counts and scores the run; None before ``setup``."""
        self.is_judged = False
        """Whether a CostEarlyStopping follows its L in this fit."""
        if not (loss_call is None or callable(loss_call)):
            loss_call = integer("loss_call", loss_call, "an integer, a function or None")
        alone = loss_call is None or function is None
        expect(alone, "loss_call", "None beside logits_and_labels", loss_call)
        ignored = self._options.ignore_index
        self._capture = Capture(
            function, labels_are_shifted, ignored, from_loss, loss_call, self._options.compile
        )
        self._stage = ""
        self._know_no_trainer()

    def _know_no_trainer(self) -> None:
        self.after_batch: Callable[[Trainer, int], None] | None = None
        """Called once a batch is counted; for CostEarlyStopping."""
        self._fitted = WeakKeyDictionary[Any, Tracker]()  # of each Trainer's newest fit
        self._loaders: list[Any] = []  # for validation
        self._held_out: list[HeldOut] = []  # one for each of them
        self._stand_ins: list[Callable[[], None]] = []  # each ends one
        self._logged = Logged(self.prefix, self._tell_of_names)
        self._told_formula = ""  # its id

    @property
    def last_record(self) -> Record | None:
        """The newest validation of a fit; None before the first."""
        return None if self.tracker is None else self.tracker.last_record

    @property
    def formula_in_force(self) -> Formula | None:
        """What L is scored with; None until the first validation makes it from the run's plan."""
        return self.formula if self.tracker is None else self.tracker.formula

    def name_of(self, key: str) -> str:
        """Return what to monitor for a value: its key, or another where someone else logs that."""
        return self._logged.names.of(key)

    # ------------------------------------------------------------------ a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage, self.is_judged = stage, False
        if stage == "fit" or self.tracker is None:
            own = {n: partial(f, trainer, pl_module) for n, f in self._options.measures.items()}
            options = {**vars(self._options), "measures": own}
            self.tracker = Tracker(pl_module, warn=self._warn, tell=rank_zero_info, **options)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker = self._tracker
        self._go_on(trainer)
        self._choose_folder(trainer)
        self._told_formula = ""
        self._logged.avoid(trainer)
        self._publish_again(trainer)
        rate = learning_rate(trainer, 0, 0)
        tracker.plan = replace(plan_of(trainer, starting=True), learning_rate=rate)
        tracker.precision = str(trainer.precision)
        tracker.device = trainer.strategy.root_device
        tracker.start(
            trainer.model,
            device_mesh=pl_module.device_mesh,  # None without ModelParallelStrategy
            batches_per_epoch=lambda: trainer.num_training_batches,
            loaders=trainer.train_dataloader,
        )
        tracker.resume()
        self._stand_at_the_edges(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.tracker.begin_step()  # type: ignore[union-attr]  # at every step: no detour

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.tracker.count(batch)  # type: ignore[union-attr]  # at every step: no detour
        if self.after_batch is not None:
            self.after_batch(trainer, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tracker.end_epoch()  # the loader may be made again

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker = self._tracker
        tracker.pause()
        if tracker.batches and not tracker.logged:  # without a validation the record lacks the run
            tracker.plan = Plan(to_come=0, how="counted at its end")
            tracker.score(step=trainer.global_step, epoch=trainer.current_epoch)
        if not ended_early(trainer):
            tracker.finish()
        if not self.is_judged:
            tracker.look_back()
        attach(tracker.local_record_path, tracker.run, trainer.loggers, tracker.warn_once)
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        super().on_exception(trainer, pl_module, exception)
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._stop()

    def _stop(self) -> None:
        self.after_batch = None
        while self._stand_ins:
            self._stand_ins.pop()()
        self._capture.detach()
        self._logged.close()
        self._loaders, self._held_out = [], []
        if self.tracker is not None:
            self.tracker.close()

    # ------------------------------------------------------------------ a validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tracker.device = trainer.strategy.root_device
        self._loaders = _validation_loaders(trainer)
        for sentence in uncorrected(self._loaders):
            self._tracker.warn_once(sentence)
        self._held_out = self._tracker.start_evaluation(len(self._loaders))
        self._capture.attach(pl_module)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        repeated = repeated_samples(self._loaders[dataloader_idx], batch_idx)
        self._capture.start_batch(batch, self._held_out[dataloader_idx], repeated)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._capture.end_batch(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker = self._tracker
        tracker.assume("labels", self._capture.assumption)
        for doubt in self._capture.doubts:
            tracker.warn_once(doubt)
        if trainer.sanity_checking:
            return
        values = self._score(trainer)
        if not trainer.barebones:  # where Lightning logs nothing
            self._logged.log(trainer, pl_module, values)
        if not values[f"{self.prefix}lscore/validation_tokens"]:
            raise ValueError(
                "LScore counted no token in the validation set: expected labels that are not "
                "ignored (ignore_index), got none in all of its batches "
                f"({self._capture.source}). Check the labels, and limit_val_batches."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._capture.detach()
        self._logged.close()
        self._tracker.end_evaluation()

    # ------------------------------------------------------------------ a checkpoint

    @property
    def state_key(self) -> str:
        """Key of the state in a checkpoint; two instances differ by their prefix."""
        return self._state_key

    def state_dict(self) -> dict[str, Any]:
        """Return the run's memory, in plain numbers, strings, lists and dictionaries."""
        if self.tracker is None:
            return {}
        return {**self.tracker.state_dict(), "names": dict(self._logged.names.moved)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a checkpoint's run in the fit that begins; validating it leaves a run alone.

        In the middle of a fit, where a search for a batch size or a rate puts back what it saved,
        the counts go on: what was spent is spent.

        Raises:
            ValueError: if it is not a state that LScore saves.
        """
        if self._stage == "fit" and not self._tracker.is_training:
            names = state_dict.get("names", {})
            fits = isinstance(names, dict) and all(
                isinstance(n, str) for x in names.items() for n in x
            )
            expect(fits, "names in the state of LScore", "a dictionary of strings", names)
            self._tracker.load_state_dict(state_dict)
            self._logged.names.moved.update(names)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are without the fit under way: its Trainer, its data, its model."""
        theirs = ("after_batch", "_fitted", "_loaders", "_held_out", "_stand_ins", "_logged")
        return {name: value for name, value in super().__getstate__().items() if name not in theirs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._know_no_trainer()

    # ------------------------------------------------------------------ what the hooks do

    def _go_on(self, trainer: Trainer) -> None:
        """Go on with the Trainer's run, if this fit does not begin one."""
        tracker, before = self._tracker, self._fitted.get(trainer)
        self._fitted[trainer] = tracker
        if not trainer.global_step or tracker.is_restored:
            return
        if before is not None:
            tracker.load_state_dict(before.state_dict())
            return
        tracker.warn_once(
            f"was not part of the run before step {trainer.global_step}: what was spent until then "
            "is in none of its measures, and L charges too little."
        )

    def _choose_folder(self, trainer: Trainer) -> None:
        tracker = self._tracker
        if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
            tracker.directory = None
        elif tracker.directory is None and trainer.is_global_zero:
            tracker.directory = _own_folder(trainer, tracker.run)

    def _publish_again(self, trainer: Trainer) -> None:
        """Publish what the last validation logged, as it was restored.

        Lightning skips the validation of an epoch whose last batch is in the checkpoint, and
        EarlyStopping then looks for a value that nothing has logged.
        """
        for key, value in self._tracker.logged.items():
            trainer.callback_metrics[self.name_of(key)] = torch.tensor(value, dtype=torch.float64)

    def _stand_at_the_edges(self, trainer: Trainer) -> None:
        """Let time follow the loops: a validation lasts as long as its own, whoever works there.

        A checkpoint takes the devices' time wherever it is saved.
        """
        validation = StandIn.of(trainer.fit_loop.epoch_loop.val_loop, "run")
        saving = StandIn.of(trainer, "save_checkpoint")
        self._stand_ins = [
            validation.join(partial(self._around, self._tracker.standstill)),
            saving.join(partial(self._around, self._tracker.occupied)),
        ]

    def _score(self, trainer: Trainer) -> dict[str, float]:
        """Score a fit, or evaluate without one; return what to log."""
        tracker, source = self._tracker, self._capture.source
        source = source or "by the other ranks, since this one had no held-out data"
        if not tracker.is_training:
            return tracker.evaluate(source)
        plan, before = plan_of(trainer), tracker.plan.learning_rate
        rate = learning_rate(trainer, tracker.batches, plan.end(tracker.batches), before)
        tracker.plan = replace(plan, learning_rate=rate)
        tracker.score(step=trainer.global_step, epoch=trainer.current_epoch, source=source)
        self._tell_loggers(trainer)
        return tracker.logged

    # ------------------------------------------------------------------ small things

    @property
    def _tracker(self) -> Tracker:
        assert self.tracker is not None, "Lightning calls setup first"
        return self.tracker

    def _around(self, make: Callable[[], AbstractContextManager[None]]) -> Any:
        """Return the context that one of Lightning's own methods runs in."""
        return make()

    def _warn(self, message: str) -> None:
        rank_zero_warn(message)

    def _tell_loggers(self, trainer: Trainer) -> None:
        """Tell the loggers of a fit its formula, once it is settled."""
        formula = self._tracker.formula
        if formula is not None and formula.id != self._told_formula:
            self._told_formula = formula.id
            tell = partial(log_formula, formula, self.prefix, trainer.loggers)
            self._tracker.attempt("its formula in the loggers", tell)

    def _tell_of_names(self, how: str) -> None:
        self._tracker.assume("names", how)


def _own_folder(trainer: Trainer, run: str) -> str:
    """Return the parent of the run's ``checkpoints``, where ModelCheckpoint has it to itself.

    Without a logger, or one that tells no version, all runs share it: then one in ``lscore/``.
    """
    root, logger = trainer.default_root_dir, trainer.logger
    version = None if logger is None else logger.version
    if logger is None or version in (None, ""):
        return os.path.join(root, RUNS_FOLDER, run)
    version = version if isinstance(version, str) else f"version_{version}"
    return os.path.join(logger.save_dir or root, str(logger.name), version)


def _validation_loaders(trainer: Trainer) -> list[Any]:
    """Return the loaders that run in turn; a CombinedLoader of another mode counts as one.

    Such a loader makes one batch of the batches of all.
    """
    loop = getattr(trainer, "_evaluation_loop", None)
    loader = getattr(loop, "_combined_loader", None)
    in_turn = getattr(loader, "_mode", "sequential") == "sequential"
    return tree_leaves(trainer.val_dataloaders) if in_turn else [loader]
