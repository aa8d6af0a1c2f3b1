from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lightning_lscore.run.loop import Loop


@given(
    length=st.integers(1, 9),
    max_epochs=st.just(math.inf) | st.integers(0, 6),
    max_steps=st.integers(0, 12),
    sizes=st.lists(st.integers(1, 11), min_size=1, max_size=4),
    last_steps=st.booleans(),
    epoch=st.integers(0, 3),
    batch=st.integers(0, 9),
    step=st.integers(0, 5),
)
def test_a_loop_ends_where_walking_through_it_ends(length, max_epochs, max_steps, sizes, **start):
    """Batch for batch, from any place, with any accumulation in each epoch; or it has no end."""
    start["batch"] = min(start["batch"], length)
    loop = Loop(
        length=length,
        max_epochs=max_epochs,
        max_steps=max_steps,
        accumulate=lambda epoch: sizes[min(epoch, len(sizes) - 1)],
        same_from=len(sizes) - 1,
        **start,
    )
    epoch, batch, step, walked = loop.epoch, loop.batch, loop.step, 0
    while step < max_steps and epoch < max_epochs and walked < 1000:
        if batch == length:
            epoch, batch = epoch + 1, 0
            continue
        batch, walked = batch + 1, walked + 1
        last = loop.last_steps and batch == length
        step += batch % loop.accumulate(epoch) == 0 or last
    found = loop.batches_to_come()
    assert found == (walked if walked < 1000 else math.inf)
