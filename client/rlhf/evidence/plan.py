"""What is run for the evidence: questions, seeds, arms and hyper-parameters, fixed in a file before the first run.

The plan's digest covers the judges and the questions, too, and stands in every result: results of another plan are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.client.rlhf import judges
from polyhead.client.rlhf.arms import Arm
from polyhead.client.rlhf.measure import QUESTIONS
from polyhead.heads.training.rl.config import RLConfig

DEFAULT = Path(__file__).parent / "plan.json"
GROUND = "base"  # the unit of a seed that comes before its arms


class PlanError(ValueError):
    """The plan cannot be run; the message names the file and the key."""


@dataclass(frozen=True)
class Unit:
    """One piece of work with a result file of its own: a seed's base rates and learned heads, or one arm of it."""

    reward: str  # "judge" or "heads"
    seed: int
    arm: str  # or GROUND

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.reward}-seed{self.seed}-{self.arm}"


@dataclass(frozen=True)
class Plan:
    """A plan file, checked."""

    sha256: str  # of the plan, the judges and the questions
    train_questions: int
    held_out_questions: int
    held_out_samples: int  # of each question
    base_samples: Mapping[str, int]  # of each training question, by reward: what learned heads learn from
    seeds: Mapping[str, Sequence[int]]  # by reward
    arms: Mapping[str, Arm]
    config: RLConfig  # but for its seed

    @classmethod
    def read(cls, path: Path = DEFAULT) -> Plan:
        """Raises PlanError naming file and key."""
        try:
            text = path.read_text(encoding="utf-8")
            plain = json.loads(text)
        except OSError as error:
            raise PlanError(f"cannot read {path}: {error.strerror}") from None
        except ValueError:
            raise PlanError(f"{path}: not JSON") from None
        wanted = {field.name for field in dataclasses.fields(cls)} - {"sha256", "config"} | {"rl"}
        if not isinstance(plain, dict) or (wrong := sorted(wanted.symmetric_difference(plain))):
            raise PlanError(f"{path}: keys that are missing, or that no plan has: {', '.join(wrong) if isinstance(plain, dict) else 'all'}")
        try:
            fixed = "\0".join([text, inspect.getsource(judges), QUESTIONS.read_text(encoding="utf-8")])
            return cls._checked(plain, hashlib.sha256(fixed.encode()).hexdigest())
        except (TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"{path}: {error}") from None

    @classmethod
    def _checked(cls, plain: dict[str, Any], sha256: str) -> Plan:
        for reward in plain["seeds"]:
            if reward not in ("judge", "heads") or not plain["seeds"][reward] or reward not in plain["base_samples"]:
                raise PlanError(f'seeds and base_samples are given for "judge", "heads" or both: {reward!r}')
        arms = {name: Arm(name, **weights) for name, weights in plain["arms"].items()}
        if GROUND in arms:
            raise PlanError(f"no arm can have this name: {GROUND!r}")
        sizes = {name: int(plain[name]) for name in ("train_questions", "held_out_questions", "held_out_samples")}
        return cls(sha256, **sizes, base_samples=plain["base_samples"], seeds=plain["seeds"], arms=arms, config=RLConfig(**plain["rl"]))

    def units(self) -> list[Unit]:
        """In the order in which they run: a seed's arms after its base, and one seed after the other."""
        names = [GROUND, *self.arms]
        return [Unit(reward, seed, name) for reward, seeds in self.seeds.items() for seed in seeds for name in names]
