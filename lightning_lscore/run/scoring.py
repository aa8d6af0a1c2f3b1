"""A score of the run as it stands: measurements, the formula in force, and what lies ahead."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from functools import partial

from ..equation.formula import Formula
from ..equation.measurements import Measurements
from ..equation.prediction import Prediction, Unpredictable
from ..heldout.evaluation import Evaluation
from ..model.parameters import ParameterCount
from ..record.record import Record
from ..record.versions import versions
from . import measure
from .extras import Extras
from .plan import Plan
from .segment import Segment
from .state import RunState


def score_run(
    state: RunState,
    segment: Segment,
    evaluation: Evaluation | None,
    parameters: ParameterCount,
    plan: Plan,
    *,
    own: Mapping[str, float],
    assumptions: Mapping[str, str],
    extras: Extras,
    step: int | None,
    epoch: int | None,
) -> Record:
    """Score what was spent and evaluated, and add it to the run's progress.

    Args:
        state: settled: what all processes have spent. Settles the formula, takes in a validation.
        segment: of the training under way.
        evaluation: over all processes; None if there was none.
        parameters: of the whole model.
        plan: as known now.
        own: the user's own measures.
        assumptions: what was taken for granted about the loop, by subject.
        extras: runs the forecast, which may fail.
        step: optimiser steps so far; None: the batches counted.
        epoch: None: that of the batches counted.
    """
    spending = state.spending
    step = spending.batches if step is None else int(step)
    measured = measure.everything(
        evaluation, spending, segment, parameters, steps=step, own_values=own
    )
    formula = state.settle_formula(parameters, plan)
    measured = state.progress.take_in(formula, measured, spending.batches)
    state.progress.see_rate(plan.learning_rate, spending.batches)
    return Record(
        run=state.id,
        batch=spending.batches,
        step=step,
        epoch=int(spending.epochs if epoch is None else epoch),
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        measurements=measured,
        score=formula.score(measured),
        formula=formula.to_dict(),
        evaluation=None if evaluation is None else evaluation.summary(),
        lost_device_hours=state.lost_device_hours,
        planned=plan.batches_in_all(spending),
        learning_rate=plan.learning_rate,
        prediction=extras.run("its forecast", partial(_look_ahead, state, formula, measured, plan))
        or Unpredictable(reason="The forecast failed."),
        devices=segment.devices.described,
        hardware={key: seen.use() for key, seen in spending.devices.items()},
        versions=versions(),
        assumptions=dict(assumptions),
        fits=state.fits,
    )


def _look_ahead(
    state: RunState, formula: Formula, measured: Measurements, plan: Plan
) -> Prediction | Unpredictable:
    spending, planned = state.spending, plan.batches_in_all(state.spending)
    passes = spending.epochs / spending.batches * (planned or 0.0) if spending.batches else 0.0
    if passes > 1 + 1e-9:
        return Unpredictable(
            reason=f"The plan passes over the data {passes:.4g} times: the loss may turn, which no "
            "curve foretells."
        )
    return state.progress.forecast(formula, measured, planned)
