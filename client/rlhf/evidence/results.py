"""The result files of a folder: one JSON for each finished run, written whole, never changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from polyhead.client.rlhf.evidence.plan import Fixed, PlanError, Work
from polyhead.heads.training.tensor_files import write_whole

P = TypeVar("P", bound=Fixed, covariant=True)
Found = Mapping[str, Any]
COLUMNS = "columns"  # the one key of a table that is stored by column
DIGITS = 6  # significant ones of a number in a published file


@dataclass(frozen=True)
class Results(Generic[P]):
    """`folder`/results, of one plan."""

    folder: Path
    plan: P

    def path(self, unit: Work) -> Path:
        return self.folder / "results" / f"{unit.name}.json"

    def find(self, unit: Work) -> dict[str, Any] | None:
        """None: it has not been run to its end. Raises PlanError for a result of another plan."""
        try:
            found: dict[str, Any] = _unpacked(json.loads(self.path(unit).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        if found["plan"] != self.plan.sha256:
            problem = f"{self.path(unit)} is a result of another plan, of other judges or of other questions"
            raise PlanError(f"{problem}\nhint: give another --folder, or the plan that it was made with")
        return found

    def keep(self, unit: Work, found: Mapping[str, Any]) -> None:
        """Write it. Raises OSError if the disk is full."""
        self.path(unit).parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path(unit), json.dumps({"plan": self.plan.sha256, **unit.about, **found}, indent=1).encode())

    def publish(self, units: Iterable[Work], folder: Path) -> int:
        """Copy the units' files to `folder`/results, a quarter of the size: replies by column, numbers of six digits. Returns how many."""
        published, count = Results(folder, self.plan), 0
        for unit in units:
            if (found := self.find(unit)) is not None:
                published.path(unit).parent.mkdir(parents=True, exist_ok=True)
                write_whole(published.path(unit), _compact(found).encode())
                count += 1
        return count


def _compact(found: Found) -> str:
    """JSON with a line for each key."""
    lines = [f"{json.dumps(name)}: {json.dumps(_packed(value), separators=(',', ':'))}" for name, value in found.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _packed(value: Any) -> Any:
    """Rows of the same numbers by column, and no more digits than are meant."""
    if _is_table(value):
        return {COLUMNS: {name: [_packed(row[name]) for row in value] for name in value[0]}}
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {name: _packed(each) for name, each in value.items()}
    return [_packed(each) for each in value] if isinstance(value, list) else value


def _is_table(value: Any) -> bool:
    is_rows = isinstance(value, list) and bool(value) and all(isinstance(row, dict) and row.keys() == value[0].keys() for row in value)
    return is_rows and all(isinstance(each, int | float) for row in value for each in row.values())


def _unpacked(value: Any) -> Any:
    """What `_packed` made columns of as rows again."""
    if isinstance(value, list):
        return [_unpacked(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {COLUMNS}:
        return [dict(zip(value[COLUMNS], row, strict=True)) for row in zip(*value[COLUMNS].values(), strict=True)]
    return {name: _unpacked(each) for name, each in value.items()}
