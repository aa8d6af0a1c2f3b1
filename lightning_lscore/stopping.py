"""Early stopping whose patience is money: a run ends when more spending no longer buys enough."""

from __future__ import annotations

import math
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from .callback import LScore
from .curve.patience import Patience, Verdict
from .equation.safe_numbers import exp, percent, readable
from .packages import Callback, lightning_package
from .run.budget import Budget, Unavailable

if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
else:
    EarlyStopping = lightning_package().callbacks.EarlyStopping
    ModelCheckpoint = lightning_package().callbacks.ModelCheckpoint
    MisconfigurationException = lightning_package().utilities.exceptions.MisconfigurationException

_TOLD = {
    "unknown": "nothing foretells it, so CostEarlyStopping takes it to stay as it is; a stop on a "
    "plateau means that it is time to decay (a scheduler of torch.optim.lr_scheduler can be asked)",
}
_REMEMBERED = ("_run", "_best", "_why")


class CostEarlyStopping(EarlyStopping, Callback):
    """Stop a run when more spending no longer buys enough perplexity.

    Lightning's ``EarlyStopping`` on the L of an :class:`LScore` callback of the same Trainer, in
    any order. :class:`Patience` replaces ``patience`` and ``min_delta``: the run stops when the
    price paid since the best L exceeds what noise can hide, or when the rest of the plan can no
    longer win that much; ``stopping_reason_message`` then says why.

    It also stops a run whose held-out loss rises beyond noise, or diverges, under every schedule.
    Where the Trainer's schedulers tell that a decay of the learning rate is still ahead, which
    lowers the loss late, only such a turn stops the run. Where nothing tells, a stop on a plateau
    means that it is time to decay.

    Args:
        monitor: the key of an L: ``LScore(prefix="strict_")`` logs ``"strict_L"``.
        tolerance: price to pay for nothing, or gain to leave, in nats, > 0. 0.005: 0.5 % of L.
        certainty: how many standard deviations of noise to wait out, >= 0.
        validations: minimum number of validations without improvement, >= 1.
        ratio: a plain rule in place of ``tolerance`` and ``certainty``: stop when this much more
            has been spent since the best L, in the measure of H, else of D. 0.25: 25 % more.
        while_decaying: whether it may also stop for the price before a decay of the learning rate
            that is still ahead.
        budget: measure -> amount that the run may spend in all, across resumes: ``{"cost": 5.0}``,
            or ``device_hours``, ``energy_kwh``, ``tokens``, ``model_flops`` and others. The run
            ends, with a validation, before its next step would pass one of them.
        verbose: whether to say at each validation why the run goes on.
        strict: whether a missing L is an error.
        check_finite: whether to stop as soon as L is NaN or infinite.
        stopping_threshold: stop as soon as L is lower.
        divergence_threshold: stop as soon as L is higher.
        check_on_train_epoch_end: whether to stop only where a training epoch ends. Default: only
            where each epoch ends with the one validation that it has.
        log_rank_zero_only: whether only rank 0 prints what ``verbose`` enables.

    Raises:
        ValueError: for arguments out of these ranges.
        MisconfigurationException: if a fit starts without the LScore that logs ``monitor``.
    """

    def __init__(
        self,
        monitor: str = "L",
        tolerance: float = 0.005,
        *,
        certainty: float = 3.0,
        validations: int = 2,
        ratio: float | None = None,
        while_decaying: bool = False,
        budget: dict[str, float] | None = None,
        verbose: bool = False,
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        if not monitor.endswith("L"):
            raise ValueError(f'monitor: expected "L" after the prefix if any, got {monitor!r}.')
        super().__init__(
            monitor,
            verbose=verbose,
            strict=strict,
            check_finite=check_finite,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_on_train_epoch_end=check_on_train_epoch_end,
            log_rank_zero_only=log_rank_zero_only,
        )
        self.verdict: Verdict | None = None  # on the newest validation
        self.stopping_reason_message: str | None = None
        self._rule = Patience(
            tolerance,
            certainty=certainty,
            validations=validations,
            ratio=ratio,
            while_decaying=while_decaying,
        )
        self._budget = Budget(budget or {})
        self._every_n_epochs: int | None = None  # that the Trainer validates by itself
        self._run: list[Any] = []  # its name and formula, within which L compares
        self._best: dict[str, Any] | None = None
        self._why: str | None = None  # the newest validation is one to stop at
        self._fitting = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._check_on_train_epoch_end is None and isinstance(trainer.val_check_interval, int):
            # Lightning takes 1, which is every batch, for 1.0, which is every epoch.
            self._check_on_train_epoch_end = False
        super().setup(trainer, pl_module, stage)
        self._fitting = stage == "fit"
        if self._fitting:
            self._find_lscore(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lscore = self._find_lscore(trainer)
        lscore.is_judged = True
        self.stopping_reason_message = None
        self._budget.begin()
        if self._budget.limits:
            lscore.after_batch = partial(self._keep_to_budget, lscore)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._budget.limits and self._budget.next_look == 0:  # a resumed run may have spent it
            self._keep_to_budget(self._find_lscore(trainer), trainer, -1)

    def _keep_to_budget(self, lscore: LScore, trainer: Trainer, batch_idx: int) -> None:
        """End the run after this batch if the next step would pass the budget; on all ranks."""
        tracker, budget = lscore.tracker, self._budget
        assert tracker is not None
        if tracker.batches < budget.next_look or trainer.should_stop:
            return
        a_step = trainer.accumulate_grad_batches
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if (batch_idx + 1) % a_step and not is_last:  # within a step
            return
        try:
            why = budget.look(tracker.spent(), tracker.batches, a_step)
        except Unavailable as error:
            raise MisconfigurationException(str(error)) from error
        if why is not None:
            self.stopping_reason_message = f"Stopped at step {trainer.global_step}: {why}"
            rank_zero_info(self.stopping_reason_message)
            trainer.should_stop = True
            # Lightning validates before it obeys, in epochs that it would have validated in.
            if trainer.check_val_every_n_epoch is not None:
                self._every_n_epochs = trainer.check_val_every_n_epoch
                trainer.check_val_every_n_epoch = 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._should_skip_check(trainer):
            self._take_in(trainer)
        super().on_validation_end(trainer, pl_module)

    def _run_early_stopping_check(self, trainer: Trainer) -> None:
        key = self.monitor
        self.monitor = self._find_lscore(trainer).name_of(key)  # where the module has an L itself
        try:
            super()._run_early_stopping_check(trainer)
        finally:
            self.monitor = key

    def _take_in(self, trainer: Trainer) -> None:
        """Tells the patience of the validation that LScore has just scored, on all ranks alike."""
        self.verdict = self._why = None
        tracker = self._find_lscore(trainer).tracker
        assert tracker is not None
        record, formula = tracker.last_record, tracker.formula
        assert record is not None
        assert formula is not None
        if self._run != [record.run, dict(record.formula)]:  # L before does not compare
            self._run, self._best = [record.run, dict(record.formula)], None
            self._rule.reset()
            self.best_score, self.wait_count = torch.tensor(math.inf), 0
        if (told := _TOLD.get(record.learning_rate.decay)) is not None:
            tracker.assume("learning rate", told)
        self.verdict = tracker.judge(self._rule)
        if self.verdict is None:  # LScore has said what is missing
            return
        measured = record.measurements
        now = {"step": record.step, "L": record.L, "ln_T": formula.ln_T(measured)}
        now |= {"tokens": measured.tokens, "device time": measured.device_hours}
        if self.verdict.improved:
            self._best = now
        if self.verdict.stop:
            self._why = _sentence(self.verdict, self._best, now)
            # Where Lightning looks at the end of an epoch only, it has not seen every L.
            best = self._best["L"] if self._best else math.inf
            self.best_score = torch.tensor(best, dtype=torch.float64)

    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        # NaN and the thresholds come first. Then Lightning's patience is over if ours is.
        waited, self.patience = self.wait_count, 1 if self._why else sys.maxsize
        stop, reason = super()._evaluate_stopping_criteria(current.cpu().double())
        if self.wait_count > waited:
            reason = self._why or (self.verdict.reason if self.verdict else None)
        if stop:
            self.stopping_reason_message = reason
        if stop and not self.verbose:  # otherwise Lightning says it
            rank_zero_info(reason)
        return stop, reason

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._every_n_epochs is not None:
            trainer.check_val_every_n_epoch, self._every_n_epochs = self._every_n_epochs, None
        if self.stopping_reason_message and (kept := self._checkpoints(trainer)):
            self.stopping_reason_message += f" {kept}"
            rank_zero_info(kept)

    def _checkpoints(self, trainer: Trainer) -> str:
        """Name the best checkpoint for each purpose, of those that ModelCheckpoints keep."""
        lscore = self._find_lscore(trainer)
        paths = {
            (c.monitor, c.mode): c.best_model_path
            for c in trainer.checkpoint_callbacks
            if isinstance(c, ModelCheckpoint) and c.best_model_path
        }
        L, T = (lscore.name_of(self.monitor[:-1] + key) for key in ("L", "perplexity"))
        weights, best = paths.get((T, "min")), paths.get((L, "min"))
        found = []
        if weights:
            found.append(f"Weights to keep, of the lowest perplexity: {weights}.")
        if best:
            found.append(f"Where stopping was best, of the lowest L: {best}.")
        if best and not weights:
            found.append(f'ModelCheckpoint(monitor="{T}") would keep the best weights.')
        return " ".join(found)

    def _find_lscore(self, trainer: Trainer) -> LScore:
        callbacks, prefix = trainer.callbacks, self.monitor[:-1]  # type: ignore[attr-defined]
        found = {c.prefix: c for c in callbacks if isinstance(c, LScore) and not c.stays_out}
        if prefix in found:
            return found[prefix]
        raise MisconfigurationException(
            f"CostEarlyStopping({self.monitor!r}) expects LScore(prefix={prefix!r}) among the "
            f"Trainer's callbacks, got those of the prefixes {list(found)}. Add it."
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        ours = {name: getattr(self, name) for name in _REMEMBERED}
        ours |= {"best_score": float(self.best_score), "rule": self._rule.state_dict()}
        ours |= {"budget": self._budget.state_dict()}
        return {**super().state_dict(), **ours}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; validating a checkpoint leaves a run alone.

        Raises:
            ValueError: if it is not a state that CostEarlyStopping saves.
        """
        if not self._fitting:
            return
        try:
            best = torch.tensor(float(state_dict["best_score"]), dtype=torch.float64)
            super().load_state_dict({**state_dict, "best_score": best})
            self._rule.load_state_dict(state_dict["rule"])
            self._budget.load_state_dict(state_dict.get("budget", {"rates": {}}))
            vars(self).update({name: state_dict[name] for name in _REMEMBERED})
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"expected the state that CostEarlyStopping saves, got another one "
                f"({type(error).__name__}: {error}). Was the checkpoint edited?"
            ) from error


def _sentence(verdict: Verdict, best: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """Why the run was stopped, in spending and in perplexity."""
    if best is None:  # L never was a finite number
        return f"Stopped at step {now['step']}: {verdict.reason}"
    spent = [name for name in ("tokens", "device time") if best[name] and now[name]]
    more = " and ".join(f"{percent(now[x] / best[x] - 1)} more {x}" for x in spent)
    return (
        f"Stopped at step {now['step']}: since the best L ({readable(best['L'])} at step "
        f"{best['step']}) {more or 'more spending'}, priced at {percent(exp(verdict.paid) - 1)} of "
        f"L, {_effect(now['ln_T'] - best['ln_T'])}. {verdict.reason}"
    )


def _effect(change: float) -> str:
    """What a change of ln T did to the perplexity."""
    if not math.isfinite(change):
        return f"made perplexity {'NaN' if math.isnan(change) else 'infinite'}"
    return f"{'lowered' if change < 0 else 'raised'} perplexity by {percent(abs(exp(change) - 1))}"
