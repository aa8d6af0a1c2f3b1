"""The record as an artifact of a run, with the loggers that take files."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


def attach(path: str | None, run: str, loggers: Sequence[Any], warn: Callable[[str], None]) -> None:
    """Give the record to Weights & Biases and MLflow. What they refuse costs a warning.

    Args:
        path: of the record on this machine; None, or no file: nothing to give.
        run: its identifier.
        loggers: the Trainer's.
        warn: called with each warning.
    """
    if path is None or not os.path.isfile(path):
        return
    for logger in loggers:
        kinds = {kind.__name__ for kind in type(logger).__mro__}
        try:
            if "WandbLogger" in kinds:
                artifact = sys.modules["wandb"].Artifact(f"lscore-{run}", type="lscore")
                artifact.add_file(path)
                logger.experiment.log_artifact(artifact)
            elif "MLFlowLogger" in kinds:
                logger.experiment.log_artifact(logger.run_id, path)
        except Exception as error:  # theirs, of any kind
            name = type(logger).__name__
            warn(f"cannot give its record to the {name} ({error}); it stays at {path}.")
