"""What is tried with learned heads as the reward of the mix. Fixed in learned.json, and otherwise in conflict.json and lighter.json."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead.client.rlhf.arms import Arm
from polyhead.client.rlhf.evidence.plan import PlanError, Work, check_counts, keys_of, naming, read_fixed
from polyhead.heads.training.rl.config import RLConfig

DEFAULT = Path(__file__).parents[1] / "learned.json"
CONFLICT = DEFAULT.with_name("conflict.json")
LIGHTER = DEFAULT.with_name("lighter.json")
HEADS, FIXED, REFRESHED = "heads", "fixed", "refreshed"


@dataclass(frozen=True)
class Unit(Work):
    """A seed's heads, or one way to use them."""

    seed: int
    what: str  # HEADS, FIXED: RL against heads that stay as they are; REFRESHED: that learn anew on the policy's own replies

    @property
    def name(self) -> str:
        return f"learned-seed{self.seed}-{self.what}"


@dataclass(frozen=True)
class LearnedPlan:
    """The plan file, checked."""

    sha256: str  # of the plan, the judges and the questions
    seeds: Sequence[int]
    train_questions: int
    held_out_questions: int
    held_out_samples: int  # replies of a policy to each held-out question
    base_samples: int  # replies of the base to each training question that the heads of RL learn from
    fewer_samples: Sequence[int]  # likewise of heads that are measured only
    refresh_after: Sequence[int]  # rounds
    refresh_samples: int  # replies of the present policy to each training question, and as many of the base
    best_of: int  # replies of which the heads choose one
    picks: int  # choices for each held-out question
    arm: Arm
    config: RLConfig  # but for its seed
    conflict_first: bool = False  # the rule head learns from replies in the first person before all others

    @classmethod
    def read(cls, path: Path = DEFAULT) -> LearnedPlan:
        """Raises PlanError naming file and key."""
        own = keys_of(cls, made=("config", "arm", "conflict_first"))
        wanted = own | {"experiment", "rl", "preference_weight", "rule_weight"}
        plain, sha256 = read_fixed(path, wanted, optional={"conflict_first"})
        with naming(path):
            check_counts(cls, plain)
            arm, config = Arm("mix", plain["preference_weight"], plain["rule_weight"]), RLConfig(**plain["rl"])
            if not plain["seeds"]:
                raise PlanError("at least one seed is needed")
            ends = [0, *plain["refresh_after"], config.rounds]
            if any(later <= earlier for earlier, later in itertools.pairwise(ends)):
                raise PlanError(f"refresh_after must rise, between round 1 and the last: {plain['refresh_after']}")
            if max(plain["fewer_samples"], default=0) > plain["base_samples"]:
                raise PlanError(f"fewer_samples must be at most base_samples: {plain['fewer_samples']}")
            if type(conflict_first := plain.get("conflict_first", False)) is not bool:
                raise PlanError(f"conflict_first must be true or false: {conflict_first!r}")
            return cls(sha256, **{name: plain[name] for name in own}, arm=arm, config=config, conflict_first=conflict_first)

    def units(self) -> list[Unit]:
        """A seed's heads come before what uses them."""
        return [Unit(seed, what) for seed in self.seeds for what in (HEADS, FIXED, REFRESHED)]

    @property
    def stages(self) -> list[int]:
        """Rounds between two refreshes."""
        ends = [0, *self.refresh_after, self.config.rounds]
        return [later - earlier for earlier, later in itertools.pairwise(ends)]
