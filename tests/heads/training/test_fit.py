"""The training loop: what it computes, and that a broken run ends with the same bits as an unbroken one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polyhead.heads.training.checkpoints import CheckpointFolder, CheckpointMismatch
from polyhead.heads.training.fit import FitConfig, Fitted, Schedule, TrainingFailed, fit, identity_of

CONFIG = FitConfig(epochs=2, batch_size=4, learning_rate=0.05, checkpoint_steps=2, average_decay=0.9, seed=3)
NUM_ITEMS = 18
STEPS = 10


class Line:
    """A small problem: weights of a linear map, fitted to fixed targets."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(NUM_ITEMS, 5, generator=generator)
        self.targets = self.inputs @ torch.randn(5, generator=generator)
        self.parameters = {"weight": nn.Parameter(torch.zeros(5)), "bias": nn.Parameter(torch.zeros(1))}
        self.batches: list[list[int]] = []

    def loss(self, items: list[int]) -> Tensor:
        self.batches.append(items)
        predicted = self.inputs[items] @ self.parameters["weight"] + self.parameters["bias"]
        return (predicted - self.targets[items]).square().mean()

    def fit(
        self, config: FitConfig = CONFIG, folder: CheckpointFolder | None = None, loss: Callable[[list[int]], Tensor] | None = None
    ) -> Fitted:
        return fit(self.parameters, [1] * NUM_ITEMS, loss or self.loss, config, folder)

    @property
    def bits(self) -> list[list[float]]:
        return [parameter.detach().tolist() for parameter in self.parameters.values()]


class Killed(Exception):
    """Stands for kill -9 between two steps."""


def checkpoints(folder: Path, config: FitConfig = CONFIG) -> CheckpointFolder:
    return CheckpointFolder(folder, identity_of(config, data="line"))


def test_it_learns_and_sees_each_item_once_an_epoch() -> None:
    line = Line()
    before = line.loss(list(range(NUM_ITEMS))).item()
    line.batches.clear()
    assert line.fit().num_steps == STEPS
    assert line.loss(list(range(NUM_ITEMS))).item() < 0.8 * before
    epochs = [sum(line.batches[:5], []), sum(line.batches[5:10], [])]  # noqa: RUF017  two short lists
    assert [sorted(epoch) for epoch in epochs] == [list(range(NUM_ITEMS))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("killed_at", range(1, STEPS + 1))
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, killed_at: int) -> None:
    whole, broken, resumed = Line(), Line(), Line()
    kept = whole.fit()

    def dying(items: list[int]) -> Tensor:
        if len(broken.batches) == killed_at:
            raise Killed
        return broken.loss(items)

    if killed_at < STEPS:
        with pytest.raises(Killed):
            broken.fit(folder=checkpoints(tmp_path), loss=dying)
    else:
        broken.fit(folder=checkpoints(tmp_path))
    again = resumed.fit(folder=checkpoints(tmp_path))
    assert resumed.bits == whole.bits
    assert {name: row.tolist() for name, row in again.average.items()} == {name: row.tolist() for name, row in kept.average.items()}
    assert len(resumed.batches) == STEPS - killed_at // 2 * 2  # checkpoints are two steps apart


def test_micro_batches_give_the_same_gradient() -> None:
    """One pass of 4 items, or passes of at most 3 tokens: 3 items and 1."""
    whole, cut = Line(), Line()
    config = FitConfig(batch_size=4, learning_rate=0.05, micro_batch_tokens=3)
    whole.fit(FitConfig(batch_size=4, learning_rate=0.05))
    cut.fit(config)
    assert [len(items) for items in cut.batches[:2]] == [3, 1]
    for first, second in zip(whole.bits, cut.bits, strict=True):
        assert first == pytest.approx(second, abs=1e-6)


def test_a_loss_that_is_not_finite_goes_back_to_the_last_checkpoint() -> None:
    """The sixth step is poisoned: steps five and six are undone, five is done again, six is left out."""
    line = Line()

    def loss(items: list[int]) -> Tensor:
        found = line.loss(items)
        return found * math.nan if len(line.batches) == 6 else found

    fitted = line.fit(loss=loss)
    assert fitted.num_rollbacks == 1
    assert all(math.isfinite(value) for row in line.bits for value in row)
    assert line.batches[6] == line.batches[4]
    assert line.batches.count(line.batches[5]) == 1
    assert len(line.batches) == STEPS + 1


def test_a_run_that_is_never_finite_fails_with_finite_parameters() -> None:
    line = Line()
    with pytest.raises(TrainingFailed, match="not finite in 4 steps"):
        line.fit(loss=lambda items: line.loss(items) * math.nan)
    assert line.bits == [[0.0] * 5, [0.0]]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    Line().fit(folder=checkpoints(tmp_path))
    other = FitConfig(epochs=3, batch_size=4, seed=4)
    with pytest.raises(CheckpointMismatch, match=r"another run: .*epochs.*seed"):
        Line().fit(other, checkpoints(tmp_path, other))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    whole, resumed = Line(), Line()
    whole.fit(folder=checkpoints(tmp_path))
    newest = max(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    resumed.fit(folder=checkpoints(tmp_path))
    assert resumed.bits == whole.bits
    assert len(resumed.batches) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_the_average_is_the_exponential_one() -> None:
    line = Line()
    seen: list[float] = []
    config = FitConfig(batch_size=9, learning_rate=0.05, average_decay=0.8)
    fitted = fit(line.parameters, [1] * NUM_ITEMS, line.loss, config, on_step=lambda step: seen.append(line.parameters["bias"].item()))
    assert fitted.average["bias"].item() == pytest.approx((0.0 * 0.8 + seen[0] * 0.2) * 0.8 + seen[1] * 0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "warmup", "shares"),
    [
        (Schedule.CONSTANT, 0, [1, 1, 1, 1, 1]),
        (Schedule.LINEAR, 0, [1, 0.8, 0.6, 0.4, 0.2]),
        (Schedule.COSINE, 0, [1, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2]),
        (Schedule.LINEAR, 2, [0.5, 1, 1, 0.6, 0.2]),
    ],
)
def test_schedules(schedule: Schedule, warmup: int, shares: list[float]) -> None:
    config = FitConfig(schedule=schedule, warmup_steps=warmup, final_share=0.2)
    assert [config.share(step, 5) for step in range(5)] == pytest.approx(shares)


def test_tensors_may_have_learning_rates_of_their_own() -> None:
    line = Line()
    line.fit(FitConfig(batch_size=NUM_ITEMS, learning_rate=0.01, learning_rates={"bias": 0.1}))
    assert line.bits[1][0] == pytest.approx(math.copysign(0.1, line.bits[1][0]), rel=1e-3)  # Adam's first step is the learning rate
    assert max(abs(value) for value in line.bits[0]) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("learning_rate", 0.0), ("learning_rate", math.nan), ("average_decay", 1.0)])
def test_settings_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        FitConfig(**{name: value})  # type: ignore[arg-type]


def test_a_step_is_one_mean_however_it_is_cut() -> None:
    """Items count by what is in their mean, such as a reply's tokens. A micro-batch counted by its items: short replies weighed more."""
    counts = [1 + item % 5 for item in range(NUM_ITEMS)]
    found = []
    for micro_batch_tokens in (1, 3, 100):
        line = Line()

        def mean(items: list[int], line: Line = line) -> Tensor:
            errors = (line.inputs[items] @ line.parameters["weight"] + line.parameters["bias"] - line.targets[items]).square()
            weights = torch.tensor([float(counts[item]) for item in items])
            return (errors * weights).sum() / weights.sum()

        losses: list[float] = []
        config = replace(CONFIG, micro_batch_tokens=micro_batch_tokens)
        fit(line.parameters, [1] * NUM_ITEMS, mean, config, on_step=lambda step, losses=losses: losses.append(step.loss), counts=counts)  # type: ignore[misc]
        found.append((losses, line.bits))
    for losses, (weight, bias) in found[:2]:
        assert losses == pytest.approx(found[2][0], rel=1e-5)
        assert weight == pytest.approx(found[2][1][0], rel=1e-4)
        assert bias == pytest.approx(found[2][1][1], rel=1e-4)
