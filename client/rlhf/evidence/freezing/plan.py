"""What is compared: how much of the model each variant trains, on which data, with which rates. Fixed in freezing.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead.client.rlhf.arms import Arm
from polyhead.client.rlhf.evidence.plan import PlanError, Work, check_counts, keys_of, naming, read_fixed
from polyhead.heads.training.rl.config import RLConfig

DEFAULT = Path(__file__).parents[1] / "freezing.json"
DATA, PREFERENCE, RL = "data", "preference", "rl"


@dataclass(frozen=True)
class Variant:
    """What is trained."""

    name: str
    trunk_layers: int  # frozen, below; 0: nothing is frozen, the embedding is trained, too, and no server takes part
    preference_rate: float  # learning rate of the preference task; the new output has one of its own
    policy_rate: float  # of the policy in RL; the value model has the same in all variants
    rank: int = 0  # of the LoRA adapters on every linear above the trunk; 0: the layers themselves are trained

    def __post_init__(self) -> None:
        if self.trunk_layers < 0 or self.rank < 0 or (self.rank and not self.trunk_layers):
            raise ValueError(f"{self.name}: trunk_layers and rank must be at least 0, and adapters stand above a trunk")


@dataclass(frozen=True)
class Unit(Work):
    """One task of one variant and seed, or the seed's data, which all of its variants share."""

    task: str  # DATA, PREFERENCE or RL
    seed: int
    variant: str = ""

    @property
    def name(self) -> str:
        return "-".join(["freezing", f"seed{self.seed}", self.task, *([self.variant] if self.variant else [])])


@dataclass(frozen=True)
class FreezingPlan:
    """The plan file, checked."""

    sha256: str  # of the plan, the judges and the questions
    seeds: Sequence[int]
    train_questions: int
    held_out_questions: int
    base_samples: int  # replies of the base to each question, of either kind: what preferences are learned and measured on
    held_out_samples: int  # replies of a trained policy to each held-out question
    variants: Mapping[str, Variant]
    epochs: int  # of the preference task
    batch_size: int  # questions of one of its steps
    measures: int  # how often it is measured on the way
    arm: Arm
    kl: Sequence[float]  # nats a reply, at which rewards are compared
    config: RLConfig  # but for seed and learning rate

    @classmethod
    def read(cls, path: Path = DEFAULT) -> FreezingPlan:
        """Raises PlanError naming file and key."""
        own = keys_of(cls, made=("config", "arm"))
        plain, sha256 = read_fixed(path, own | {"experiment", "rl", "preference_weight", "rule_weight"})
        with naming(path):
            check_counts(cls, plain)
            arm = Arm("mix", plain["preference_weight"], plain["rule_weight"])
            variants = {name: Variant(name, **what) for name, what in plain["variants"].items()}
            if not plain["seeds"] or not variants:
                raise PlanError("at least one seed and one variant are needed")
            kept = {name: plain[name] for name in own - {"variants"}}
            return cls(sha256, **kept, variants=variants, arm=arm, config=RLConfig(**plain["rl"]))

    def units(self) -> list[Unit]:
        """One seed after the other, so that whole comparisons are there early."""
        found = []
        for seed in self.seeds:
            found += [Unit(DATA, seed), *(Unit(task, seed, variant) for variant in self.variants for task in (PREFERENCE, RL))]
        return found
