"""Run by test_same_numbers.py: all its fits on one, two and four processes.

These are forked, which spares them their imports.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from ranks_fits import (
    BARE,
    CASES,
    RESUMED,
    TIMELESS,
    fit,
    fit_resumed,
    note_what_is_gathered,
    with_known_peak,
)

from lightning_lscore import LScore


def rank(here: int, processes: int, folder: Path) -> None:
    if processes > 1:
        os.environ.update(LOCAL_RANK=str(here), NODE_RANK="0")
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store{processes}",
            rank=here,
            world_size=processes,
            timeout=timedelta(seconds=60),
        )
    try:
        for name in CASES:
            fit(name, processes, folder, LScore(TIMELESS, sample_interval=60.0))
        for name in BARE if processes == 2 else ():
            fit(name, processes, folder, None)
        for name in RESUMED:
            fit_resumed(name, processes, folder)
    except Exception:
        # The others wait for this one, and would hide it behind their own errors.
        traceback.print_exc()
        os._exit(1)
    if processes > 1:
        dist.destroy_process_group()


def main(folder: Path) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with_known_peak()
    note_what_is_gathered()
    fork = multiprocessing.get_context("fork")
    for n in (1, 2, 4):
        ranks = [fork.Process(target=rank, args=(r, n, folder)) for r in range(n)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(f"of {n} processes one failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
