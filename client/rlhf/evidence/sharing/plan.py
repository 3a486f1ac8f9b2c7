"""The round that is measured. Fixed in sharing.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polyhead.client.rlhf.evidence.plan import Work, check_counts, keys_of, naming, read_fixed

DEFAULT = Path(__file__).parents[1] / "sharing.json"
SERVED, TRL = "served", "trl"


@dataclass(frozen=True)
class Unit(Work):
    """A round by the served trunk's own loop, or by TRL: with its own generation, and with a server's."""

    what: str  # SERVED or TRL

    @property
    def name(self) -> str:
        return f"sharing-{self.what}"


@dataclass(frozen=True)
class SharingPlan:
    """The plan file, checked."""

    sha256: str  # of the plan, the judges and the questions
    rounds: int  # that are measured, behind one that is not
    prompts: int
    samples: int
    max_new_tokens: int
    learning_rate: float

    @classmethod
    def read(cls, path: Path = DEFAULT) -> SharingPlan:
        """Raises PlanError naming file and key."""
        own = keys_of(cls)
        plain, sha256 = read_fixed(path, own | {"experiment"})
        with naming(path):
            check_counts(cls, plain)
            return cls(sha256, **{name: plain[name] for name in own})

    def units(self) -> list[Unit]:
        """TRL's needs an environment of its own, and a command of its own."""
        return [Unit(SERVED), Unit(TRL)]
