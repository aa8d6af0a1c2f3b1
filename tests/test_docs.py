"""The pages in docs/ show programs that run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import run_python

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_loop_of_ones_own_measures_and_scores(devices, tmp_path):
    """With Fabric, on one process and on two, which train on as many tokens together."""
    page = (ROOT / "docs" / "fabric.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    script = tmp_path / "program.py"
    script.write_text(program.replace("devices=1", f"devices={devices}"))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    output = run_python(*(launcher if devices > 1 else []), str(script), folder=tmp_path)
    lines = re.findall(r"^(\d+) tokens, perplexity (\S+), L (\S+)$", output, re.MULTILINE)
    assert [int(tokens) for tokens, _, _ in lines] == [57344, 114688, 172032]
    perplexities = [float(T) for _, T, _ in lines]
    assert 1 < perplexities[2] < perplexities[1] < perplexities[0] < 256
    # f_D and f_A are 1 at the end of the plan, so that L / perplexity is f_H, near 1 by its weight.
    assert float(lines[2][2]) / perplexities[2] == pytest.approx(1, abs=0.3)
