"""Seeds, arms and hyper-parameters of the runs with three arms. Fixed in plan.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead.client.rlhf.arms import Arm
from polyhead.client.rlhf.evidence.plan import PlanError, Work, check_counts, keys_of, naming, read_fixed
from polyhead.heads.training.rl.config import RLConfig

DEFAULT = Path(__file__).parents[1] / "plan.json"
GROUND = "base"  # the unit of a seed that comes before its arms


@dataclass(frozen=True)
class Unit(Work):
    """A seed's base rates and learned heads, or one arm of it."""

    reward: str  # "judge" or "heads"
    seed: int
    arm: str  # or GROUND

    @property
    def name(self) -> str:
        return f"{self.reward}-seed{self.seed}-{self.arm}"


@dataclass(frozen=True)
class ArmsPlan:
    """The plan file, checked."""

    sha256: str  # of the plan, the judges and the questions
    train_questions: int
    held_out_questions: int
    held_out_samples: int  # of each question
    base_samples: Mapping[str, int]  # of each training question, by reward: what learned heads learn from
    seeds: Mapping[str, Sequence[int]]  # by reward
    arms: Mapping[str, Arm]
    config: RLConfig  # but for its seed

    @classmethod
    def read(cls, path: Path = DEFAULT) -> ArmsPlan:
        """Raises PlanError naming file and key."""
        own = keys_of(cls, made=("config", "arms"))
        plain, sha256 = read_fixed(path, own | {"arms", "rl"})
        with naming(path):
            for reward in plain["seeds"]:
                if reward not in ("judge", "heads") or not plain["seeds"][reward] or reward not in plain["base_samples"]:
                    raise PlanError(f'seeds and base_samples are given for "judge", "heads" or both: {reward!r}')
            check_counts(cls, plain)
            arms = {name: Arm(name, **weights) for name, weights in plain["arms"].items()}
            if GROUND in arms:
                raise PlanError(f"no arm can have this name: {GROUND!r}")
            return cls(sha256, **{name: plain[name] for name in own}, arms=arms, config=RLConfig(**plain["rl"]))

    def units(self) -> list[Unit]:
        """In the order in which they run: a seed's arms after its base, and one seed after the other."""
        names = [GROUND, *self.arms]
        return [Unit(reward, seed, name) for reward, seeds in self.seeds.items() for seed in seeds for name in names]
