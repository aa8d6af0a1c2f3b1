"""The Lightning callback: it listens to the Trainer and wires the other parts together."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from .both import Callback
from .equation.formula import Formula
from .equation.measurements import Measurements
from .equation.prediction import Prediction, Unpredictable
from .equation.safe_numbers import as_number, short
from .hardware.devices import find_devices
from .heldout.capture import Capture
from .heldout.evaluation import Evaluation, HeldOut
from .heldout.repeated_samples import repeated_samples
from .heldout.token_bytes import make_count_bytes
from .model.counted_step import CountedStep
from .model.flops import FlopsModel, flops_of
from .model.parameters import ParameterCount, count_parameters
from .model.sharded import counts_here, peers
from .plan import learning_rates, planned_batches, rates_may_change
from .record.records import RECORD_FILE, Record, append_record, records_since, versions
from .run.own_measures import OwnMeasure, ask, check_measures
from .run.processes import gather_numbers, gather_objects
from .run.run import Run, measure
from .run.segment import Session
from .run.spending import Spending

# What Lightning calls at every step, besides on_train_batch_end.
_STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


def _expect(fits: bool, name: str, expected: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{name}: expected {expected}, got {short(value)}.")


class LScore(Callback):
    """Logs the cost-adjusted perplexity L = perplexity(T) · f(D) · f(A) · f(H) at each validation.

    ``L``, ``perplexity``, ``f_D``, ``f_A``, ``f_H`` and, under ``lscore/``, what they were made
    of reach every logger, ``ModelCheckpoint(monitor="L")``, ``EarlyStopping(monitor="L")`` and the
    progress bar. One JSON line a validation goes to ``lscore.jsonl`` in the run's log directory.

    NaN logits make perplexity and L NaN, a held-out token of probability 0 makes them infinite;
    they are logged so, and training goes on.

    Counters go on when a fit resumes from a checkpoint, and when the same Trainer fits again; a
    fit that begins at step 0 begins at zero. ``trainer.validate`` alone logs the perplexity. A run
    that is never validated leaves one line at its end: what it spent, without an L.

    Args:
        formula: what L charges for what: a :class:`Formula`, or the path of one saved as JSON.
            Default: the run's own plan, see :meth:`Formula.for_plan`. A formula given here counts
            before the one in a checkpoint.
        logits_and_labels: function (module, outputs, batch) -> (logits [B, T, V], labels [B, T]),
            for modules where they are not found by themselves. ``outputs`` is what
            validation_step returned.
        labels_are_shifted: whether label t is already the token after input t. Default: read off
            the batch; where that is not possible, labels are taken to be a copy of the input, as
            transformers models expect them, with a warning.
        from_loss: where no logits are found, take the mean loss that validation_step returns for
            the mean NLL of the labels. Wrong if the loss holds anything else: auxiliary terms,
            label smoothing.
        count_tokens: function batch -> training tokens in it, for batches without a tensor of
            token numbers, or with padding and no ``attention_mask`` by that name.
        count_bytes: for bits per byte, and a T that compares across tokenizers: the tokenizer, or
            a function of the counted token ids [n] to the bytes of their text. ``len`` for a model
            that reads bytes.
        measures: measures of your own by name, each a function (trainer, module) -> number >= 0, or
            None where it has no value. They are asked at each validation, logged as
            ``lscore/<name>``, and charged for by ``Factor(name, reference=..., own=True)``. What
            rank 0 says counts.
        price_per_device_hour: what one device costs, for the measure ``cost``.
        carbon_intensity: of the electricity, in g CO2-equivalent per kWh, for the measure
            ``emissions_kg``. It differs by grid and hour, so there is no default.
        flops_per_token: FLOP that the model needs for a training token, forward and backward;
            "count": counted in the first batch of each fit. Default: estimated from the model's
            structure, see :func:`~lightning_lscore.model.flops.flops_of`.
        ignore_index: label of the positions that are not counted.
        compile: read the held-out logits in one compiled loop, on a GPU in one kernel: some seconds
            at the first validation, then on a CPU twice as fast in float32 and 1.3 times in
            bfloat16 (benchmarks/perplexity.py). It pays where a model is small beside its
            vocabulary. Without a compiler nothing changes.
        sample_interval: seconds between readings of the hardware.
        prefix: put before every key and the record's file name, so that two LScore callbacks with
            different formulas can work side by side.

    Raises:
        ValueError: for arguments that make no sense; at the first validation batch if no logits
            and labels were found; at the end of a validation that counted no token.
        FileNotFoundError: if ``formula`` is a path that does not exist.
    """

    def __init__(
        self,
        formula: Formula | str | os.PathLike[str] | None = None,
        *,
        logits_and_labels: Callable[[Any, Any, Any], tuple[Tensor, Tensor]] | None = None,
        labels_are_shifted: bool | None = None,
        from_loss: bool = False,
        count_tokens: Callable[[Any], int] | None = None,
        count_bytes: Any = None,
        measures: Mapping[str, OwnMeasure] | None = None,
        price_per_device_hour: float | None = None,
        carbon_intensity: float | None = None,
        flops_per_token: float | Literal["count"] | None = None,
        ignore_index: int = -100,
        compile: bool = False,
        sample_interval: float = 1.0,
        prefix: str = "",
    ) -> None:
        if isinstance(formula, (str, os.PathLike)):
            formula = Formula.load(formula)
        given = formula is None or isinstance(formula, Formula)
        _expect(given, "formula", "a Formula or the path of one", formula)
        functions = {"logits_and_labels": logits_and_labels, "count_tokens": count_tokens}
        for name, function in functions.items():
            _expect(function is None or callable(function), name, "a function or None", function)
        known = labels_are_shifted is None or isinstance(labels_are_shifted, bool)
        _expect(known, "labels_are_shifted", "True, False or None", labels_are_shifted)
        _expect(isinstance(ignore_index, int), "ignore_index", "an integer", ignore_index)
        _expect(isinstance(prefix, str), "prefix", "a string", prefix)
        seconds = as_number(sample_interval) or 0.0
        _expect(0 < seconds < math.inf, "sample_interval", "seconds > 0", sample_interval)
        rates = {
            "price_per_device_hour": price_per_device_hour,
            "carbon_intensity": carbon_intensity,
        }
        for name, rate in rates.items():
            number = 0.0 if rate is None else as_number(rate)
            fits = number is not None and 0 <= number < math.inf
            _expect(fits, name, "a number >= 0", rate)
        self._price, self._carbon_intensity = price_per_device_hour, carbon_intensity
        self._own = dict(measures or {})
        check_measures(self._own, formula)
        self._count_bytes = None if count_bytes is None else make_count_bytes(count_bytes)
        self._given_flops = self._counted_step = None
        if flops_per_token == "count":
            self._counted_step = CountedStep()
        elif flops_per_token is not None:
            self._given_flops = FlopsModel.given(flops_per_token)
        self._unsharded_flops = FlopsModel(per_token=0, convention="nothing")
        self.formula = formula
        self.prefix = prefix
        # Made once: Lightning asks for it at every hook of every step, for its profiler.
        self._state_key = self._generate_state_key(prefix=prefix)
        self.last_record: Record | None = None
        """The newest validation of a fit, None before."""
        self._count_tokens = count_tokens
        self._ignore_index = ignore_index
        self._compile = compile
        self._sample_interval = sample_interval
        self._capture = Capture(logits_and_labels, labels_are_shifted, ignore_index, from_loss)
        self._held_out: list[HeldOut] = []  # one for each validation loader
        self._loaders: list[Any] = []

        self._run = Run(formula=formula)
        self._session: Session | None = None
        self._unsharded = ParameterCount(0, 0)
        self._stage = ""
        self._restored: Mapping[str, Any] | None = None
        self._record_path: str | None = None
        self._rates: list[float] | None = None  # at the last validation
        self._warned: set[str] = set()
        self._skip_idle_hooks()

    @property
    def formula_in_force(self) -> Formula | None:
        """What L is scored with; None until the first validation makes it from the run's plan."""
        return self._run.formula

    # ------------------------------------------------------------------ a fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = stage
        self._unsharded = count_parameters(pl_module)
        if stage == "fit":
            self._unsharded_flops = flops_of(pl_module)
        if trainer.world_size > 1:
            # The advice to average over the ranks: what LScore logs is the same on all of them.
            mine = re.escape(self.prefix) + "(L|perplexity|f_[DAH]|lscore/)"
            warnings.filterwarnings("ignore", rf"It is recommended to use `self.log\('{mine}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warned.clear()
        self._record_path = self._find_record_path(trainer)
        if self._restored is not None:
            self._run = self._resumed(self._restored)
            self._count_what_was_lost(trainer)
        elif trainer.global_step == 0:
            self._run = Run(formula=self.formula)
        elif not self._run.spent.batches:
            self._warn_once(
                f"was not part of the run before step {trainer.global_step}: what was spent until "
                "then is in none of its measures, and L charges too little."
            )
        self._restored = None
        if self._run.planned_batches is None and self._run.formula is None:
            self._run.planned_batches = planned_batches(trainer)
        # Lightning skips the validation of an epoch whose last batch is in the checkpoint, and
        # EarlyStopping then looks for a value that nothing has logged.
        for key, value in self._run.logged.items():
            trainer.callback_metrics[key] = torch.tensor(value, dtype=torch.float64)
        self._rates = None

        devices = find_devices(
            pl_module,
            trainer.strategy.root_device,
            str(trainer.precision),
            rank=trainer.global_rank,
            gather=gather_objects,
            interval=self._sample_interval,
        )
        # After an earlier fit ranks may differ in what they think the others spent; L must not.
        # And rank 0 alone reads what was lost.
        self._run.spent, self._run.lost_device_hours = gather_objects(
            (self._run.spent, self._run.lost_device_hours)
        )[0]
        mesh = pl_module.device_mesh  # None without ModelParallelStrategy
        self._session = Session(
            devices,
            before=self._run.spent,
            ranks=trainer.world_size // peers(mesh),
            counts=counts_here(mesh, None),
            batches_per_epoch=trainer.num_training_batches,
            flops=self._flops(trainer),
            count_tokens=self._count_tokens,
            loaders=trainer.train_dataloader,
            price_per_device_hour=self._price,
            carbon_intensity=self._carbon_intensity,
        )
        self._session.resume()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        session, step = self._session, self._counted_step
        if session is not None and step is not None and not session.tokens.batches:
            step.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._session is not None:
            self._session.tokens.add(batch)
            if self._counted_step is not None and self._session.tokens.batches == 1:
                self._counted_step.stop()
                tokens = self._session.tokens.by_length
                self._session.flops = self._counted_step.flops_model(tokens, self._session.flops)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session is not None:
            self._session.pause()
            if not self._run.logged and self._session.tokens.batches:
                # The run was never validated: what it spent would be known to nobody.
                self._held_out = []
                _, own = self._ask_all_ranks(trainer, pl_module)
                self._write(trainer, self._record(trainer, None, own, self._session))
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        self._capture.detach()
        if self._counted_step is not None:
            self._counted_step.stop()
        session, self._session = self._session, None
        if session is not None:
            session.stop()
            # A GPU that failed cannot be asked for its last counts, and raises again.
            with contextlib.suppress(RuntimeError):
                self._run.spent = session.total()

    # ------------------------------------------------------------------ a validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._session is not None:
            self._session.pause()
        self._capture.attach(pl_module)
        # A CombinedLoader of another mode makes one batch of those of all loaders.
        loop = getattr(trainer, "_evaluation_loop", None)
        loader = getattr(loop, "_combined_loader", None)
        in_turn = getattr(loader, "_mode", "sequential") == "sequential"
        self._loaders = tree_leaves(trainer.val_dataloaders) if in_turn else [loader]
        self._held_out = [
            HeldOut(self._ignore_index, pl_module.device, self._count_bytes, self._compile)
            for _ in self._loaders
        ]

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        repeated = repeated_samples(self._loaders[dataloader_idx], batch_idx)
        self._capture.start_batch(batch, self._held_out[dataloader_idx].update, repeated)

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
        if trainer.sanity_checking:
            return
        evaluation, own = self._ask_all_ranks(trainer, pl_module)
        if self._capture.guessed:
            self._warn_once(
                "could not tell whether labels are already shifted against the input, and took "
                "them as not shifted, as transformers models expect. Say "
                "LScore(labels_are_shifted=True) or False."
            )
        record = None
        values = {"perplexity": evaluation.perplexity}
        values["lscore/validation_tokens"] = evaluation.total_tokens
        if self._session is not None:
            record = self._record(trainer, evaluation, own, self._session)
            values = record.logged_values()
        if len(self._held_out) > 1:
            for index, perplexity in enumerate(evaluation.perplexities):
                values[f"perplexity/dataloader_idx_{index}"] = perplexity
        if not trainer.barebones:  # where Lightning logs nothing
            self._log(pl_module, values)
        if record is not None:
            self._run.logged = {self.prefix + key: float(v) for key, v in values.items()}
            self._write(trainer, record)
        if not evaluation.total_tokens:
            raise ValueError(
                "LScore counted no token in the validation set: expected labels other than "
                f"{self._ignore_index} (ignore_index), got none in all of its batches "
                f"({self._capture.source}). Check the labels, and limit_val_batches."
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._capture.detach()
        if self._session is not None:
            self._session.resume()

    def _ask_all_ranks(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> tuple[Evaluation, dict[str, float]]:
        """Sums the validation, and in a fit the spending, over the ranks: one small exchange."""
        own = {name: ask(name, f, trainer, pl_module) for name, f in self._own.items()}
        held_out = [numbers for h in self._held_out for numbers in h.numbers()]
        session = self._session
        mine = Spending() if session is None else session.share()
        spent = [] if session is None else session.numbers(mine)
        ranks = gather_numbers([*held_out, *own.values(), *spent], trainer.strategy.root_device)
        n, m = len(held_out), len(held_out) + len(own)
        if session is not None:
            self._run.spent = session.settle(mine, [r[m:] for r in ranks])
        width = len(HeldOut.NUMBERS)
        loaders = [[r[i : i + width] for i in range(0, n, width)] for r in ranks]
        with_bytes = self._count_bytes is not None
        source = self._capture.source or "by the other ranks, since this one had no held-out data"
        evaluation = Evaluation.over_ranks(loaders, source, with_bytes=with_bytes)
        return evaluation, dict(zip(own, ranks[0][n:m], strict=True))

    def _record(
        self,
        trainer: Trainer,
        evaluation: Evaluation | None,
        own: Mapping[str, float],
        session: Session,
    ) -> Record:
        run, parameters = self._run, self._parameters(trainer)
        batches = trainer.num_training_batches
        measurements = measure(
            evaluation,
            run.spent,
            parameters,
            flops=session.flops.convention,
            steps=trainer.global_step,
            epochs=run.spent.epochs if 0 < batches < math.inf else None,
            devices=session.devices.described,
            reasons=session.reasons(),
            own=own,
        )
        formula = run.settle_formula(parameters)
        measurements = run.with_history(measurements)
        fingerprints = run.fingerprints if evaluation is None else evaluation.fingerprints
        if run.fingerprints not in ((), fingerprints):
            self._warn_once(
                "counted other held-out tokens than at the validation before, so that the two L do "
                "not compare. Evaluate on the same part of the same set each time: without "
                "shuffling, and with the same limit_val_batches."
            )
        run.fingerprints = fingerprints
        self.last_record = Record(
            run=run.id,
            batch=run.spent.batches,
            step=trainer.global_step,
            epoch=trainer.current_epoch,
            time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            measurements=measurements,
            score=formula.score(measurements),
            formula=formula.to_dict(),
            evaluation={} if evaluation is None else evaluation.to_dict(),
            lost_device_hours=run.lost_device_hours,
            prediction=asdict(self._predict(trainer, measurements)),
            devices=session.devices.described,
            hardware={key: seen.measures() for key, seen in run.spent.devices.items()},
            versions=versions(),
        )
        return self.last_record

    def _predict(self, trainer: Trainer, measurements: Measurements) -> Prediction | Unpredictable:
        found = self._run.predict(measurements, planned_batches(trainer))
        rates, before = learning_rates(trainer), self._rates
        self._rates = rates
        if before in (None, rates) and rates_may_change(trainer):
            # On public runs three quarters of the forecasts made here were too high.
            return Unpredictable(
                reason="The learning rate stands still and has a scheduler: its decay may come, "
                "and brings more than the curve so far can tell."
            )
        return found

    def _log(self, pl_module: LightningModule, values: Mapping[str, float]) -> None:
        device = pl_module.device
        # As tensors: Lightning makes float32 of Python numbers, where 1e9 + 1 is 1e9.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        for key, value in values.items():
            tensor = torch.tensor(value, dtype=dtype, device=device)
            pl_module.log(
                self.prefix + key,
                tensor,
                prog_bar=key == "L",
                on_epoch=True,
                add_dataloader_idx=False,
            )

    def _write(self, trainer: Trainer, record: Record) -> None:
        if record.score.L is None:
            self._warn_once(f"has no L to log: {'; '.join(record.score.missing)}.")
        for message in self._session.devices.sampler.messages() if self._session else ():
            self._warn_once(message)
        if not trainer.is_global_zero or self._record_path is None:
            return
        try:
            append_record(self._record_path, record)
        except OSError as error:
            self._warn_once(
                f"cannot write its record to {self._record_path} ({error}); training and logging "
                "go on without it. Check the folder, or give the Trainer another default_root_dir."
            )

    # ------------------------------------------------------------------ a checkpoint

    @property
    def state_key(self) -> str:
        """What the callback's state is stored under; two instances differ by their prefix."""
        return self._state_key

    def state_dict(self) -> dict[str, Any]:
        """The run's memory, in plain numbers, strings, lists and dictionaries."""
        session = self._session
        return self._run.to_dict(self._run.spent if session is None else session.total())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state for the fit that follows; validating a checkpoint leaves a run alone."""
        if self._stage == "fit":
            self._restored = state_dict

    def _resumed(self, state: Mapping[str, Any]) -> Run:
        run = Run.from_dict(state, self.formula)
        saved = state["formula"]
        if run.formula is not None and saved is not None and run.formula.to_dict() != saved:
            self._warn_once(
                "was given another formula than the one in the checkpoint, and uses the one given. "
                "L before and after do not compare."
            )
        return run

    def _count_what_was_lost(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero or self._record_path is None:
            return
        run = self._run
        try:
            run.go_on_after(records_since(self._record_path, run.id, run.spent.batches))
        except (OSError, ValueError) as error:
            self._warn_once(
                f"cannot tell from {self._record_path} what the run lost since its checkpoint "
                f"({error}); training goes on. Check the file: it may be another program's."
            )

    # ------------------------------------------------------------------ small things

    def _skip_idle_hooks(self) -> None:
        """Spares each step the hooks that do nothing: Lightning passes over what is no function.

        Finding and profiling a hook takes it longer than what LScore does in a step.
        """
        for name in _STEP_HOOKS:
            own = getattr(type(self), name)
            idle = own is getattr(Callback, name) or (
                own is LScore.on_train_batch_start and self._counted_step is None
            )
            if idle:
                setattr(self, name, None)

    def _parameters(self, trainer: Trainer) -> ParameterCount:
        # A strategy that shards leaves each process a part; the whole was counted before.
        now = count_parameters(_wrapped(trainer))
        return max(now, self._unsharded, key=lambda count: count.total)

    def _flops(self, trainer: Trainer) -> FlopsModel:
        if self._given_flops is not None:
            return self._given_flops
        now, before = count_parameters(_wrapped(trainer)), self._unsharded
        if now == before or now.total < before.total:
            return self._unsharded_flops  # FSDP1 makes one parameter of several
        return flops_of(_wrapped(trainer))

    def _find_record_path(self, trainer: Trainer) -> str | None:
        directory = trainer.log_dir  # asks the other ranks, so all must ask
        if trainer.fast_dev_run or trainer.barebones:  # type: ignore[attr-defined]
            return None
        return os.path.join(directory or trainer.default_root_dir, self.prefix + RECORD_FILE)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"LScore {message}")


def _wrapped(trainer: Trainer) -> Module:
    """The model as the strategy has it: what FSDP1 knows of its shards is outside of the module."""
    model = trainer.model
    assert model is not None
    return model
