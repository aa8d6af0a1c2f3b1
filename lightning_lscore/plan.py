"""Read the Trainer's plan: how many batches are still to come, and how that is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .run.loop import Loop
from .run.plan import Plan

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

RATE_BATCHES = 10
"""Fewer batches tell no rate: the first ones are slow."""


def plan_of(trainer: Trainer, *, starting: bool = False) -> Plan:
    """Return how many micro-batches each process is still going to train on, and how that is known.

    Args:
        trainer: in a fit.
        starting: in ``on_train_start``, before Lightning has found its place in an epoch.
    """
    loop = _loop_of(trainer, starting)
    length, how = _length(trainer, loop, starting)
    loop = replace(loop, length=length)
    to_come = loop.batches_to_come()
    if not trainer.lightning_module.automatic_optimization and math.isfinite(loop.max_steps):
        to_come, how = _by_steps_of_the_module(trainer, loop, how)
    if timer := _timer(trainer):
        until_then = _batches_until(timer, trainer, loop)
        if until_then is None:
            return Plan(
                how=f"unknown before {RATE_BATCHES} batches have passed, as max_time counts"
            )
        if until_then < to_come:
            to_come, how = until_then, "from the ratio so far, of batches to time, and max_time"
    return Plan(to_come=to_come if math.isfinite(to_come) else None, how=how)


def ended_early(trainer: Trainer) -> bool:
    """Whether a callback ended the fit before its plan, other than one that measures its time."""
    timer = _timer(trainer)
    return trainer.should_stop and not (timer and timer.time_remaining() <= 0)


def _loop_of(trainer: Trainer, starting: bool) -> Loop:
    progress: Any = trainer.fit_loop.epoch_progress.current
    epoch, now = progress.processed, trainer.fit_loop.epoch_loop.batch_progress.current
    batch = _batches_of_this_epoch(trainer) if starting else now.ready
    schedulers = _those(trainer, "GradientAccumulationScheduler")[-1:]
    changes = [epoch for scheduler in schedulers for epoch in scheduler.scheduling]
    return Loop(
        max_epochs=math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs,
        max_steps=math.inf if trainer.max_steps == -1 else trainer.max_steps,
        accumulate=_accumulation(trainer, schedulers, begun=epoch if batch else -1),
        same_from=max(changes, default=0),
        last_steps=not trainer.strategy.handles_gradient_accumulation,
        epoch=epoch,
        batch=batch,
        step=trainer.global_step,
    )


def _length(trainer: Trainer, loop: Loop, starting: bool) -> tuple[float, str]:
    """Return the batches of an epoch, and how they and the limits tell what is to come."""
    limits = {"max_epochs": loop.max_epochs, "max_steps": loop.max_steps}
    ends = " and ".join(f"{name}={n}" for name, n in limits.items() if math.isfinite(n))
    if not ends:
        return trainer.num_training_batches, "unknown: neither max_epochs nor max_steps ends it"
    if trainer.num_training_batches < math.inf:
        reloads = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        again = ", which is loaded again and taken to keep it" if reloads else ""
        return trainer.num_training_batches, f"counted by {ends} and the loader's length{again}"
    progress = trainer.fit_loop.epoch_loop.batch_progress
    at_end = not starting and progress.is_last_batch
    if ended := loop.epoch + at_end:
        seen = progress.total.ready - (0 if at_end else loop.batch)
        length = max(1, round(seen / ended), loop.batch)
        return length, f"from the ratio so far, of batches to epochs, and {ends}"
    if math.isfinite(loop.max_steps):
        return math.inf, f"from {ends}, unless the data, of unknown length, ends before"
    return math.inf, "unknown before an epoch has ended: the data has no length"


def _accumulation(trainer: Trainer, schedulers: list[Any], begun: int) -> Callable[[int], int]:
    """Return epoch -> batches of a step; an epoch that has begun keeps what it has."""

    def accumulate(epoch: int) -> int:
        if epoch == begun or not schedulers:
            return trainer.accumulate_grad_batches
        return int(schedulers[0].get_accumulate_grad_batches(epoch))

    return accumulate


def _batches_of_this_epoch(trainer: Trainer) -> int:
    """Return those that the checkpoint of a fit that starts has behind it."""
    loop = trainer.fit_loop.epoch_loop
    if not loop.restarting:
        return 0
    done = loop.batch_progress.current.completed
    if getattr(loop, "restarted_on_train_batch_end", False):  # saved before it was counted
        done += 1
        return 0 if done >= trainer.num_training_batches else done
    return done


def _by_steps_of_the_module(trainer: Trainer, loop: Loop, how: str) -> tuple[float, str]:
    """Under manual optimisation each optimiser's step counts, as often as the module takes it."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    steps, left = loop.step, int(loop.max_steps) - loop.step
    by_epochs = replace(loop, max_steps=math.inf).batches_to_come()
    if not steps and (not batches or math.isinf(by_epochs)):
        return math.inf, "unknown before the module's optimisers have stepped, as max_steps counts"
    by_steps = -(-left * batches // steps) if steps else math.inf
    if by_epochs <= by_steps:
        return by_epochs, how
    return by_steps, "from the ratio so far, of batches to steps of the module's optimisers"


def _batches_until(timer: Any, trainer: Trainer, loop: Loop) -> float | None:
    """Return the batches until ``max_time`` at the rate so far; None before there is one."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    seconds = timer.time_elapsed()
    if batches < RATE_BATCHES or not seconds:
        return None
    to_come = float(max(0.0, timer.time_remaining()) * batches / seconds)
    if getattr(timer, "_interval", "step") == "epoch" and math.isfinite(loop.length):
        return math.ceil((loop.batch + to_come) / loop.length) * loop.length - loop.batch
    return round(to_come)


def _timer(trainer: Trainer) -> Any:
    """Return the callback by which ``max_time``, or the user, ends the fit; None without one."""
    timers = [t for t in _those(trainer, "Timer") if t.time_remaining() is not None]
    return min(timers, key=lambda timer: timer.time_remaining(), default=None)


def _those(trainer: Trainer, name: str) -> list[Any]:
    """Return the callbacks of a class of Lightning's, which comes from two packages."""
    callbacks, packages = trainer.callbacks, ("lightning.", "pytorch_lightning.")  # type: ignore[attr-defined]
    return [
        callback
        for callback in callbacks
        if any(
            c.__name__ == name and c.__module__.startswith(packages) for c in type(callback).__mro__
        )
    ]
