"""The active set and its history: a change is one generation record, and its commit is the point from which it holds.

After a crash the set is exactly the old or exactly the new one. A damaged set is repaired by a new generation, never replaced in silence.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polyhead.heads.format.errors import AlreadyExists, Conflict, DataLoss, InvalidArgument
from polyhead.heads.store import records
from polyhead.heads.store.damage import StoreDamage
from polyhead.heads.store.pack import Retention
from polyhead.heads.store.parts import StoreParts
from polyhead.heads.store.records import GenerationRecord


@dataclass(frozen=True, slots=True)
class PastGeneration:
    """A generation as the history shows it."""

    record: GenerationRecord
    gone: tuple[str, ...]  # of its versions those that are deleted or damaged: a rollback cannot restore it
    same_as: int  # the first generation with the same heads; 0 if it is this one


class ActiveSets(StoreParts):
    """The generations of a store: the current one, earlier ones, and how a new one is committed."""

    @property
    def current(self) -> GenerationRecord | None:
        """The active set; None before the first activation. DataLoss if it is damaged. Takes no lock and does not block."""
        if damage := self.damage:
            raise DataLoss(damage.what)
        return self._generations.current

    def generation(self, number: int) -> GenerationRecord:
        """NotFound; DataLoss if its record is damaged."""
        with self._lock:
            return self._generations.get(number)

    def history(self) -> list[GenerationRecord]:
        """Every readable generation, newest first."""
        with self._lock:
            return self._generations.history()

    def past(self, generations: Sequence[GenerationRecord]) -> list[PastGeneration]:
        """What became of these generations: which of their versions are gone, and which earlier generation had the same heads."""
        found: dict[tuple[str, int], bool] = {}
        with self._guard("could not look at the history"):
            for generation in generations:
                for head in generation.heads.items():
                    if head not in found:
                        found[head] = bool(self._inspector.find_problem(*head))
            return [self._past(generation, found) for generation in generations]

    def _past(self, generation: GenerationRecord, is_gone: Mapping[tuple[str, int], bool]) -> PastGeneration:
        gone = tuple(f"{name}@{version}" for name, version in sorted(generation.heads.items()) if is_gone[name, version])
        return PastGeneration(generation, gone, self._generations.same_as(generation))

    def generation_of_request(self, request_id: str) -> GenerationRecord | None:
        """The generation that this request id made. Look here before merging a change into the current set:
        a retry merged into a newer set asks for other heads, and would be taken for another request."""
        with self._lock:
            return self._generations.find_request(request_id)

    def commit_generation(
        self,
        heads: Mapping[str, int],
        *,
        request_id: str = "",
        expected_generation: int | None = None,
        parent: int | None,
        note: str = "",
        answer: Mapping[str, Any] | None = None,
        request_digest: str = "",
    ) -> GenerationRecord:
        """Make `heads` the active set, durably: the commit point. The caller flips its pointer and answers after it returns.

        A known request id returns its first record before `expected_generation` is looked at; with another request digest it is
        AlreadyExists, without digests other heads are.
        `expected_generation` 0 expects that nothing was ever active; Conflict (metadata `current_generation`) if the active set
        has moved on. NotFound for an unknown version, DataLoss for a damaged one, FailedPrecondition while `damage` is set.
        After all these nothing has changed; after CommitUncertain it is unknown whether the record lasts: end the process.
        """
        with self.request_ids.storing(request_id, request_digest), self._guard("could not store the activation"):
            record = self._next_generation(heads, request_id, parent, note, answer, request_digest)
            if first := self._generations.find_request(request_id):
                if not (first.request_digest and request_digest) and first.heads != record.heads:
                    problem = f"the request id was used for other heads: it made generation {first.number}"
                    raise AlreadyExists(problem, field="request_id")
                return first
            self._refuse_while_damaged()
            current = self._generations.highest
            if expected_generation is not None and expected_generation != current:
                raise Conflict(
                    f"the active set has moved on: generation {current}, not {expected_generation}",
                    metadata={"current_generation": str(current)},
                )
            if not record.heads:
                raise InvalidArgument("an active set needs at least one head", field="heads")
            self._check_heads(record.heads)
            self._generations.commit(record)
            return record

    def _next_generation(
        self,
        heads: Mapping[str, int],
        request_id: str,
        parent: int | None,
        note: str,
        answer: Mapping[str, Any] | None,
        request_digest: str,
    ) -> GenerationRecord:
        if parent is not None and not 1 <= parent <= self._generations.highest:
            raise InvalidArgument(f"no such parent generation: {parent}", field="parent")
        return GenerationRecord(
            number=self._generations.highest + 1,
            parent=parent,
            heads=MappingProxyType(dict(heads)),
            created_at=time.time(),
            request_id=records.check_request_id(request_id),
            note=records.check_note(note),
            answer=None if answer is None else MappingProxyType(dict(answer)),
            request_digest=request_digest,
            previous=self._generations.sha256_of(self._generations.highest),
        )

    def _check_heads(self, heads: Mapping[str, int]) -> None:
        for name, version in heads.items():
            self._versions.get(name, version)
            if problem := self._inspector.find_problem(name, version, is_thorough=True):
                raise DataLoss(f"cannot be activated: {problem}\nhint: push the same head again: that repairs it")

    def verify(self, heads: Mapping[str, int]) -> None:
        """Read the bytes of these versions unless they were read since their files last changed: what a commit of them would do while
        all other calls wait. DataLoss; NotFound."""
        blobs = []
        with self._lock:
            for record in (self._versions.get(*head) for head in heads.items()):
                blobs.append(record.blob)
                if record.manifest.lora is not None:
                    blobs.append(self._versions.get(*record.manifest.base_version()).blob)
        for blob in blobs:
            self._blobs.verify(blob)
        with self._guard("could not verify the heads"):
            self._check_heads(heads)

    def verify_active(self) -> StoreDamage | None:
        """Read and hash every blob of the active set; what is wrong, or None. Sets `damage`. Call it before serving."""
        with self._guard("could not verify the active set"):
            self.damage = self._inspector.find_active_damage(is_thorough=True)
            return self.damage

    def repair_to(self, number: int, *, request_id: str = "", request_digest: str = "") -> GenerationRecord:
        """Get out of a damaged active set: a new generation equal to an intact one; 0 means no heads at all.

        NotFound, DataLoss if that generation is damaged, too.
        """
        with self.request_ids.storing(request_id, request_digest), self._guard("could not repair the store"):
            if first := self._generations.find_request(request_id):
                return first
            heads = self._generations.get(number).heads if number else {}
            note = f"repair: back to generation {number}"
            record = self._next_generation(heads, request_id, number or None, note, None, request_digest)
            self._check_heads(record.heads)
            self._generations.commit(record)
            self.damage = self._inspector.find_active_damage()
            self.other_damage = tuple(self._inspector.find_other_damage())
            return record

    def compact(self, limits: Retention | None = None) -> int:
        """Pack old generations into one file and drop those that need not be kept; how many files are gone for it.

        Does nothing while `damage` is set, and seldom anything at all: see `Retention`.
        """
        with self._guard("could not pack the history"):
            return 0 if self.damage else self._generations.compact(limits or Retention(), time.time())
