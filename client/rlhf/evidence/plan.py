"""What all plans of the evidence have in common: a file that is fixed before the first run, and units with a result file each.

A plan's digest covers the judges and the questions, too, and stands in every result: results of another plan are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from polyhead.client.rlhf import judges
from polyhead.client.rlhf.measure import QUESTIONS


class PlanError(ValueError):
    """The plan cannot be run; the message names the file and the key."""


@dataclass(frozen=True)
class Work(ABC):
    """One piece of work with a result file of its own. Its fields stand in the file."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its files."""

    @property
    def about(self) -> dict[str, Any]:
        """For its file."""
        return dataclasses.asdict(self)


class Fixed(Protocol):
    """A plan of any experiment."""

    @property
    def sha256(self) -> str:
        """Of the plan file, the judges and the questions."""

    def units(self) -> Sequence[Work]:
        """In the order in which they run."""


def keys_of(plan: type[Any], made: Collection[str] = ()) -> set[str]:
    """The keys of a plan file that become fields as they are: all fields but the digest and those that are made of other keys."""
    return {field.name for field in dataclasses.fields(plan)} - {"sha256", *made}


def read_fixed(path: Path, wanted: AbstractSet[str], optional: AbstractSet[str] = frozenset()) -> tuple[dict[str, Any], str]:
    """A plan file's keys, which must be those `wanted`, some `optional` ones beside them, and the digest. Raises PlanError."""
    text, plain = _json_of(path)
    if not isinstance(plain, dict) or (wrong := sorted(wanted ^ (plain.keys() - optional))):
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


def check_counts(plan: type[Any], plain: Mapping[str, Any]) -> None:
    """Raises PlanError naming the first whole number of the plan that is none, or below 1."""
    for name in (field.name for field in dataclasses.fields(plan) if field.type == "int"):
        if type(plain[name]) is not int or plain[name] < 1:
            raise PlanError(f"{name} must be a whole number of at least 1: {plain[name]!r}")


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
