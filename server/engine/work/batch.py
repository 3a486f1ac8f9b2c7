"""What one step computes: chosen by the scheduler, carried out by the engine, recorded by the scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from polyhead.server.engine.work.live import LiveHead
from polyhead.server.engine.work.request import Reading
from polyhead.server.engine.work.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class TrunkRun:
    """The next tokens of one sequence that go through the trunk."""

    sequence: TokenSequence
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class HeadRun:
    """The next positions of one reading that go through its head, and which of them are asked for."""

    reading: Reading
    start: int
    end: int
    first_new_key: int  # keys before this position are cached: these rows only query

    @property
    def first_row(self) -> int:
        """First position whose output is wanted; `end` if none of this run is."""
        return min(max(self.start, self.reading.first), self.end)

    @property
    def num_rows(self) -> int:
        return self.end - self.first_row


@dataclass(slots=True)
class Batch:
    """One step's work."""

    trunk_runs: list[TrunkRun] = field(default_factory=list)
    head_runs: list[HeadRun] = field(default_factory=list)

    @property
    def num_trunk_tokens(self) -> int:
        return sum(run.end - run.start for run in self.trunk_runs)

    @property
    def is_empty(self) -> bool:
        return not self.trunk_runs and not self.head_runs

    def by_head(self) -> Iterator[tuple[LiveHead, list[HeadRun]]]:
        """The head runs, a group for each set of weights: a head and the adapters on it, each one's runs side by side."""
        groups: dict[str, dict[str, list[HeadRun]]] = {}
        for run in self.head_runs:
            live = run.reading.head.live
            groups.setdefault(live.weights.digest, {}).setdefault(live.digest, []).append(run)
        for by_digest in groups.values():
            runs = [run for each in by_digest.values() for run in each]
            yield runs[0].reading.head.live.weights, runs
