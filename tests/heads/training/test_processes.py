"""`fit` in two processes ends where one process ends: each takes half of every step's items, and gradients are summed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from polyhead.heads.training.checkpoints import CheckpointFolder
from polyhead.heads.training.fit import FitConfig, fit
from polyhead.heads.training.processes import Processes

CONFIG = FitConfig(epochs=2, batch_size=3, learning_rate=0.05, checkpoint_steps=2)


def fitted(folder: Path) -> tuple[torch.Tensor, list[float]]:
    """A line through ten points."""
    xs = torch.linspace(-1, 1, 10)
    weight, losses = nn.Parameter(torch.zeros(2)), []

    def loss_of(items: list[int]) -> torch.Tensor:
        chosen = xs[items]
        return (weight[0] * chosen + weight[1] - (3 * chosen + 1)).square().mean()

    fit({"line": weight}, [1] * 10, loss_of, CONFIG, CheckpointFolder(folder, {}), lambda step: losses.append(step.loss))
    return weight.detach(), losses


def test_one_process_has_everything() -> None:
    assert Processes.launched() == Processes(0, 1)
    assert Processes().share([1, 2, 3]) == [1, 2, 3]
    assert [Processes(rank, 2).share([1, 2, 3]) for rank in (0, 1)] == [[1, 3], [2]]
    assert [Processes(rank, 2).is_main for rank in (0, 1)] == [True, False]


@pytest.mark.long
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    weight, losses = fitted(tmp_path / "one")
    code = "import sys, pathlib; from tests.heads.training.test_processes import main; main(pathlib.Path(sys.argv[1]))"
    script = tmp_path / "run.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200, check=False, env=environment, cwd=root
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        theirs, their_losses = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        torch.testing.assert_close(torch.tensor(theirs), weight)
        assert their_losses == pytest.approx(losses)


def main(folder: Path) -> None:
    """What each of two processes does."""
    weight, losses = fitted(folder / "two")
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps([weight.tolist(), losses]))
