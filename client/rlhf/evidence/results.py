"""The result files of a folder: one JSON for each finished run, written whole, never changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.client.rlhf.evidence.plan import Plan, PlanError, Unit
from polyhead.heads.training.tensor_files import write_whole


@dataclass(frozen=True)
class Results:
    """`folder`/results, of one plan."""

    folder: Path
    plan: Plan

    def path(self, unit: Unit) -> Path:
        return self.folder / "results" / f"{unit.name}.json"

    def find(self, unit: Unit) -> dict[str, Any] | None:
        """None: it has not been run to its end. Raises PlanError for a result of another plan."""
        try:
            found: dict[str, Any] = json.loads(self.path(unit).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if found["plan"] != self.plan.sha256:
            problem = f"{self.path(unit)} is a result of another plan, of other judges or of other questions"
            raise PlanError(f"{problem}\nhint: give another --folder, or the plan that it was made with")
        return found

    def keep(self, unit: Unit, found: dict[str, Any]) -> None:
        """Write it. Raises OSError if the disk is full."""
        self.path(unit).parent.mkdir(parents=True, exist_ok=True)
        about = {"plan": self.plan.sha256, "reward": unit.reward, "seed": unit.seed, "arm": unit.arm}
        write_whole(self.path(unit), json.dumps({**about, **found}, indent=1).encode())
