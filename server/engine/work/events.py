"""What a request's reader is told, in order: accepted, tokens as they are drawn, samples as they finish, the end."""

from __future__ import annotations

from dataclasses import dataclass

from polyhead.heads.format.errors import PolyheadError
from polyhead.server.engine.work.live import Lease
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Sample


@dataclass(frozen=True, slots=True)
class Accepted(Event):
    """The request has its lease."""

    lease: Lease
    waited_s: float  # since it was submitted


@dataclass(frozen=True, slots=True)
class Drawn(Event):
    """One token of one sample."""

    sample: Sample
    offset: int  # index of the token within the sample
    token_id: int
    logprob: float
    sampling_logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """A sample is complete, scores included."""

    sample: Sample
    tail: str  # text held back until now


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """Nothing follows. `error` is None unless the request as a whole failed."""

    error: PolyheadError | None
