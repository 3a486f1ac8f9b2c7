"""The one training loop: shuffled epochs, micro-batches, a schedule, clipping, a moving average, checkpoints, and a guard against NaN.

An unbroken run and one that was killed and resumed end with the same bits: the order of an epoch depends on (seed, epoch) alone, and a
checkpoint holds all that a step reads. Knows no head kind: the loss is a function of item indices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from polyhead.heads.model.family import HeadModule, trainable_parameters
from polyhead.heads.training.checkpoints import Checkpoint, CheckpointFolder, of_main
from polyhead.heads.training.optimiser import HeadOptimiser
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.tree import by_tokens


class Schedule(enum.Enum):
    """How the learning rate falls after the warm-up, from 1 to `final_share`."""

    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


@dataclass(frozen=True)
class FitConfig:
    """How a head is fitted. Checked when made; raises ValueError naming the field."""

    epochs: int = 1
    batch_size: int = 8  # items of one optimiser step
    micro_batch_tokens: int = 4096  # most tokens of one forward pass; gradients of a step's micro-batches are summed
    learning_rate: float = 1e-4
    learning_rates: Mapping[str, float] = field(default_factory=dict)  # by tensor name, in place of `learning_rate`
    schedule: Schedule = Schedule.COSINE
    final_share: float = 0.1  # of the learning rate, at the last step (InstructGPT's reward models: cosine to 10 %)
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    average_decay: float = 0.0  # of the moving average of the weights (InstructGPT: 0.992); 0: none is kept
    autocast: bool = False  # forward passes in bfloat16; weights and moments stay in float32
    checkpoint_steps: int = 50  # between two checkpoints
    most_rollbacks: int = 3  # to the last checkpoint, for losses or gradients that are not finite; then the run fails
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch_tokens", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0: {getattr(self, name)}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must be in [0, 1): {self.average_decay}")

    def share(self, step: int, num_steps: int) -> float:
        """Share of the learning rate at a step, 0 to num_steps - 1."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule is Schedule.CONSTANT:
            return 1.0
        passed = (step - self.warmup_steps) / max(1, num_steps - 1 - self.warmup_steps)
        falling = 1 - passed if self.schedule is Schedule.LINEAR else 0.5 * (1 + math.cos(math.pi * passed))
        return self.final_share + (1 - self.final_share) * falling


class TrainingFailed(RuntimeError):
    """Losses or gradients were not finite again and again. The parameters are those of the last checkpoint."""


@dataclass(frozen=True)
class Step:
    """What `on_step` is told after each optimiser step."""

    number: int  # from 1
    num_steps: int
    epoch: int  # from 0
    loss: float
    grad_norm: float  # before clipping
    learning_rate: float
    ends_epoch: bool


@dataclass(frozen=True)
class Fitted:
    """What a run ends with. The parameters themselves were trained in place."""

    num_steps: int
    average: dict[str, Tensor]  # moving average of the weights by name; empty without `average_decay`
    num_rollbacks: int


LossOf = Callable[[list[int]], Tensor]  # mean loss of these items, with its graph


def fit(
    parameters: Mapping[str, nn.Parameter],
    sizes: Sequence[int],
    loss_of: LossOf,
    config: FitConfig,
    checkpoints: CheckpointFolder | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    counts: Sequence[int] | None = None,
) -> Fitted:
    """Train `parameters` in place on len(sizes) items; sizes[i] is item i's tokens. Goes on from the newest checkpoint of the folder.

    `counts[i]` is how many numbers item i has in the mean that `loss_of` returns, such as the tokens of its reply; left out, one each. So
    a step's loss is one mean, however it is cut into micro-batches and processes. Raises TrainingFailed, CheckpointMismatch for a folder
    of another run, and OtherProcessFailed.
    """
    counts = [1] * len(sizes) if counts is None else counts
    run = _Run(parameters, config, checkpoints)
    run.start()
    steps = list(_steps(len(sizes), config))
    while run.step < len(steps):
        epoch, items = steps[run.step]
        if run.step in run.skipped:
            run.pass_by()
            continue
        loss = run.backward(items, sizes, counts, loss_of)
        grad_norm = run.optimiser.clip(config.max_grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            run.roll_back()
            continue
        rate = run.update(config.share(run.step, len(steps)))
        ends_epoch = run.step == len(steps) or steps[run.step][0] != epoch
        on_step(Step(run.step, len(steps), epoch, loss, grad_norm, rate, ends_epoch))
        if run.step % config.checkpoint_steps == 0 or run.step == len(steps):
            run.keep()
    return Fitted(len(steps), run.optimiser.average, run.num_rollbacks)


@torch.no_grad()
def become_average(head: HeadModule, fitted: Fitted) -> None:
    """Put the moving average in place of the weights, if one was kept."""
    own = trainable_parameters(head)
    for name, kept in fitted.average.items():
        own[name].copy_(kept)


def _steps(num_items: int, config: FitConfig) -> Iterator[tuple[int, list[int]]]:
    """(epoch, items) of each optimiser step."""
    for epoch in range(config.epochs):
        shuffle = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        for batch in torch.randperm(num_items, generator=shuffle).split(config.batch_size):
            yield epoch, batch.tolist()


class _Run:
    """What changes while a run goes on, and its way to the disk and back."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: FitConfig, checkpoints: CheckpointFolder | None) -> None:
        self.config = config
        self.checkpoints = checkpoints
        self.processes = Processes.launched()
        self.step = 0
        self.skipped: set[int] = set()  # steps whose loss was not finite
        rates = config.learning_rate, config.learning_rates
        self.optimiser = HeadOptimiser(parameters, *rates, config.betas, config.weight_decay, config.average_decay)
        self._last: Checkpoint | None = None

    @property
    def num_rollbacks(self) -> int:
        return len(self.skipped)

    def start(self) -> None:
        """Go on from the newest checkpoint, or keep the beginning."""
        if (found := of_main(self.processes, self.checkpoints.newest if self.checkpoints is not None else lambda: None)) is not None:
            self._restore(found)
        else:
            self.keep()

    def backward(self, items: list[int], sizes: Sequence[int], counts: Sequence[int], loss_of: LossOf) -> float:
        """Gradients of the mean loss over the items, a micro-batch at a time; returns that loss."""
        self.optimiser.zero_grad()
        total, own, count = 0.0, self.processes.share(items), sum(counts[item] for item in items)
        for micro in by_tokens([sizes[item] for item in own], self.config.micro_batch_tokens):
            chosen = [own[index] for index in micro]
            with self._precision():
                loss = loss_of(chosen) * (sum(counts[item] for item in chosen) / count)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        self.processes.sum_gradients(self.optimiser.parameters.values())
        return self.processes.sums([total])[0]

    def update(self, share: float) -> float:
        """One optimiser step at `share` of the learning rates; returns the first of them."""
        self.step += 1
        return self.optimiser.step(share)

    def pass_by(self) -> None:
        """A step that is left out."""
        self.step += 1

    def keep(self) -> None:
        """Remember this state, on disk if there is a folder."""
        tensors = {name: tensor.detach().clone() for name, tensor in self.optimiser.tensors().items()}
        self._last = Checkpoint(self.step, tensors, {"skipped": sorted(self.skipped), "num_updates": self.optimiser.num_updates})
        if self.checkpoints is not None:
            self.processes.on_main(functools.partial(self.checkpoints.save, self._last))

    def roll_back(self) -> None:
        """Return to the last checkpoint and leave the step out that went wrong."""
        assert self._last is not None, "a run keeps its beginning"
        skipped = {*self.skipped, self.step}
        self._restore(self._last)
        self.skipped = skipped
        if len(skipped) > self.config.most_rollbacks:
            raise TrainingFailed(f"the loss or its gradient was not finite in {len(skipped)} steps: {sorted(skipped)}")

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._last = checkpoint
        self.step = checkpoint.step
        self.skipped = set(checkpoint.facts["skipped"])
        self.optimiser.restore(checkpoint.tensors, checkpoint.facts["num_updates"])

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        device = next(iter(self.optimiser.parameters.values())).device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self.config.autocast else contextlib.nullcontext()


def identity_of(config: FitConfig, **facts: Any) -> dict[str, Any]:
    """What a checkpoint folder's identity should hold: the settings, and what the caller says of head and data."""
    plain = dataclasses.asdict(config) | {"schedule": config.schedule.value, "betas": list(config.betas)}
    return {**plain, "learning_rates": dict(config.learning_rates), **facts}
