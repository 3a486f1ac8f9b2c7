"""What is run for the evidence: questions, seeds, arms and hyper-parameters, fixed in a file before the first run.

The plan's digest covers the judges and the questions, too, and stands in every result: results of another plan are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from polyhead.client.rlhf import judges
from polyhead.client.rlhf.arms import Arm
from polyhead.client.rlhf.measure import QUESTIONS
from polyhead.heads.training.rl.config import RLConfig

DEFAULT = Path(__file__).parent / "plan.json"
GROUND = "base"  # the unit of a seed that comes before its arms


class PlanError(ValueError):
    """The plan cannot be run; the message names the file and the key."""


class Work(Protocol):
    """One piece of work with a result file of its own."""

    @property
    def name(self) -> str:
        """Of its file."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What the file says of the unit."""


class Fixed(Protocol):
    """A plan of any experiment."""

    @property
    def sha256(self) -> str:
        """Of the plan file, the judges and the questions."""


@dataclass(frozen=True)
class Unit:
    """A seed's base rates and learned heads, or one arm of it."""

    reward: str  # "judge" or "heads"
    seed: int
    arm: str  # or GROUND

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.reward}-seed{self.seed}-{self.arm}"

    @property
    def about(self) -> dict[str, Any]:
        """For its file."""
        return dataclasses.asdict(self)


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
        wanted = {field.name for field in dataclasses.fields(cls)} - {"sha256", "config"} | {"rl"}
        plain, sha256 = read_fixed(path, wanted)
        with naming(path):
            return cls._checked(plain, sha256)

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


def read_fixed(path: Path, wanted: AbstractSet[str]) -> tuple[dict[str, Any], str]:
    """A plan file's keys, which must be exactly those `wanted`, and the digest. Raises PlanError."""
    text, plain = _json_of(path)
    if not isinstance(plain, dict) or (wrong := sorted(wanted ^ plain.keys())):
        raise PlanError(f"{path}: keys that are missing, or that no plan has: {', '.join(wrong) if isinstance(plain, dict) else 'all'}")
    fixed = "\0".join([text, inspect.getsource(judges), QUESTIONS.read_text(encoding="utf-8")])
    return plain, hashlib.sha256(fixed.encode()).hexdigest()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of a plan's values become PlanErrors that name its file."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise PlanError(f"{path}: {error}") from None


def experiment_of(path: Path, known: Collection[str]) -> str:
    """Which experiment a plan file is of: one of `known`, "arms" where it does not say so. Raises PlanError."""
    _, plain = _json_of(path)
    found = plain.get("experiment", "arms") if isinstance(plain, dict) else "arms"
    if found not in known:
        raise PlanError(f"{path}: experiment must be one of {', '.join(known)}: {found!r}")
    return str(found)


def _json_of(path: Path) -> tuple[str, Any]:
    """(the file's text, what it holds)."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, json.loads(text)
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise PlanError(f"{path}: not JSON") from None
