"""What an RL run has to remember from round to round beside its two heads: plain JSON, kept in every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from polyhead.heads.training.rl.guards import Measured
from polyhead.heads.training.rl.prompts import Sourced


@dataclass
class State:
    """Of one run. Every process has the same."""

    number: int = 0  # rounds that are done
    attempt: int = 0  # rollbacks so far: each draws anew
    value_bias: float = 0.0  # of the value head's manifest: see Learner
    value_scale: float = 1.0
    offset: float | None = None  # mean reward of the first round less what the value head said of it, taken off every reward
    spread: float | None = None  # of the preference over the first round
    measured: list[Measured] = field(default_factory=list)  # of the rounds that are done
    reports: list[dict[str, Any]] = field(default_factory=list)
    continued: list[Sourced] = field(default_factory=list)  # self-play's prompts for the next round

    def facts(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**vars(self), "measured": [vars(each) for each in self.measured]}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> State:
        """What `facts` were taken from; other keys are passed over."""
        plain = {name: value for name, value in facts.items() if name in cls.__dataclass_fields__}
        return cls(**{**plain, "measured": [Measured(**each) for each in facts["measured"]]})
