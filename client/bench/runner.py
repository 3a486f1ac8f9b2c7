"""Runs the measures of a plan one after the other, keeps what is done in a file, and says it all at the end, whatever happened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from polyhead.client import PolyheadError
from polyhead.client.bench import report
from polyhead.client.bench.interrupt import Interrupt
from polyhead.client.bench.measures.decoding import decode, deterministic, wire
from polyhead.client.bench.measures.experience import experience
from polyhead.client.bench.measures.fleet import fleet
from polyhead.client.bench.measures.growth import growth
from polyhead.client.bench.measures.overload import overload
from polyhead.client.bench.measures.quality import quality
from polyhead.client.bench.measures.scoring import four_heads, one_more_head, rules
from polyhead.client.bench.measures.soak import soak
from polyhead.client.bench.measures.swapping import push, swaps, weights
from polyhead.client.bench.plan import BadPlan, Plan
from polyhead.client.bench.results import OURS, Check, Row, Series
from polyhead.client.bench.session import Session
from polyhead.client.bench.worker import WorkerFailed

FAILED = "could not be measured"
Measure = Callable[[Session], Row | list[Row]]
RUNS: Mapping[str, Measure] = {
    **{name: partial(decode, measure=name) for name in ("P1", "P2", "P3")},
    "P4": experience,
    "P5": four_heads,
    "P6": rules,
    "P7": weights,
    "P8": wire,
    "P9": swaps,
    "P10": push,
    "P11": one_more_head,
    "P12": overload,
    "deterministic": deterministic,
    "quality": quality,
    "growth": growth,
    "fleet": fleet,
    "soak": soak,
}


class Notebook:
    """Rows so far, in a file after each of them, so that an interrupted run can go on."""

    def __init__(self, file: Path | None, command: Sequence[str]) -> None:
        self.file = file
        self.command = list(command)
        self.rows: list[Row] = []
        self.head: dict[str, Any] = {}

    def resume(self) -> set[str]:
        """Read the file of an earlier run, with what it says about machine and engines; the measures that it has. BadPlan if it is none.

        Those that failed are forgotten, and measured again.
        """
        if self.file is None or not self.file.is_file():
            return set()
        try:
            plain = json.loads(self.file.read_text(encoding="utf-8"))
            rows = [Row.from_json(row) for row in plain["rows"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BadPlan(f"{self.file} is no result of `polyhead bench --json`: {error}") from None
        self.head = {key: value for key, value in plain.items() if key != "rows"}
        self.rows = [row for row in rows if row.what != FAILED]
        return {row.id.split(" ")[0] for row in self.rows}

    def add(self, rows: Sequence[Row], head: dict[str, Any]) -> None:
        """Rows of one measure. `head` is this run's; engines that only an earlier one loaded keep their versions."""
        self.rows += rows
        versions = {**self.head.get("versions", {}), **head["versions"]}
        self.head = {"command": self.command, **head, "versions": versions}
        if self.file is not None:
            partial_file = self.file.with_name(f"{self.file.name}.partial")
            partial_file.write_text(self.json + "\n", encoding="utf-8")
            os.replace(partial_file, self.file)

    @property
    def json(self) -> str:
        return report.as_json(self.head or {"command": self.command}, self.rows)


def run(
    plan: Plan, notebook: Notebook, done: set[str], interrupt: Interrupt, tell: Callable[[str], None], show: Callable[[str], None]
) -> None:
    """`show` gets every row as it comes, `tell` what is going on meanwhile."""
    with Session(plan, interrupt, tell) as session:
        for name in plan.measures:
            if name in done:
                tell(f"{name}: done before")
                continue
            tell(f"measuring {name}")
            rows = measured(session, name)
            interrupt.check()  # or what was broken off were a row that says "could not be measured"
            head = {
                "machine": report.machine(plan.num_threads, session.idle_loads, session.stolen),
                "versions": report.versions(session.versions),
                "runs": plan.runs,
                "quick": plan.is_quick,
            }
            notebook.add(rows, head)
            for row in rows:
                show(report.block(row) + "\n")


def measured(session: Session, name: str) -> list[Row]:
    """The rows of one measure; a failure of ours or of a worker is a row that says so."""
    try:
        rows = RUNS[name](session)
    except (WorkerFailed, PolyheadError) as error:
        why = str(error).splitlines()[0]
        return [Row(name, FAILED, "", True, (Series(OURS, (), why),), (Check("measured", None, None),))]
    return rows if isinstance(rows, list) else [rows]
