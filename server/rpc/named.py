"""A generation that a request names: it is answered with exactly that one, or not at all. Finds its versions, and says why it cannot.

The active one needs no look into the store; for any other one it blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument, NotFound, PolyheadError, Unavailable
from polyhead.heads.format.manifest import parse_reference
from polyhead.heads.store import records
from polyhead.server.engine.work.live import ActiveSet
from polyhead.server.process.services import Services

RETRY_S = 0.5  # a follower takes up a generation within a moment of its commit


class GenerationGone(FailedPrecondition):
    """The named generation cannot be served here, now or later. Raised when a request is checked."""

    reason: ClassVar[str] = "GENERATION_GONE"


@dataclass(slots=True)
class NamedGeneration:
    """What the caller says."""

    number: int
    history_id: str = ""  # "": not compared; known once a head was looked up

    @classmethod
    def of(cls, number: int, history_id: str) -> NamedGeneration | None:
        if history_id and not number:
            raise InvalidArgument("history_id goes with the number of a generation", field="history_id")
        return cls(number, history_id) if number else None

    def check_here(self, active: ActiveSet) -> None:
        """Unavailable if it is still to come. Does not block."""
        if self.number > active.generation:
            problem = f"generation {self.number} is not here yet: {active.generation} is active"
            raise Unavailable(f"{problem}\nhint: another replica may have it", retry_after_s=RETRY_S)

    def version_of(self, reference: str, active: ActiveSet, services: Services) -> str:
        """ "policy" as "policy@7", the version that the generation has; what names a version stays. May block."""
        name, version = parse_reference(reference, "head")
        if version:
            return reference
        heads = self._heads(active, services)
        if name not in heads:
            raise NotFound(f"generation {self.number} has no head of this name: {name!r}", metadata={"name": name})
        return f"{name}@{heads[name]}"

    def _heads(self, active: ActiveSet, services: Services) -> Mapping[str, int]:
        if self.number == active.generation:
            heads, history_id = {name: head.version for name, head in active.heads.items()}, active.history_id
        else:
            try:
                record = services.store.generation(self.number)
            except PolyheadError as error:
                raise self.gone(error.message, services) from None
            heads, history_id = dict(record.heads), records.history_id(record)
        if self.history_id and self.history_id != history_id:
            raise GenerationGone(f"generation {self.number} is another history's here: {history_id[:12]}, not {self.history_id[:12]}")
        self.history_id = history_id
        return heads

    def gone(self, why: str, services: Services) -> PolyheadError:
        """A follower may be about to get it."""
        problem = f"generation {self.number} cannot be served: {why}"
        if services.following is not None:
            return Unavailable(problem, retry_after_s=RETRY_S)
        return GenerationGone(problem, field="generation")
