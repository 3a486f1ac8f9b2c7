"""Limits of the queue, and what the engine reports: plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of what may wait and run together; beyond them a request is refused with RetryInfo."""

    max_requests: int = 256
    max_tokens: int = 1_000_000  # prompt + max_new over all open requests
    interactive_share: float = 0.25  # of both, for interactive callers; the rest is for batch work


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What an activation did to running requests."""

    pause_s: float  # between two steps
    num_pinned: int  # running requests that keep what they have
    num_aborted: int
    num_following: int  # running requests whose sampling goes on with the new versions


@dataclass(frozen=True, slots=True)
class RankMemory:
    """What one of several ranks holds (server/parallel)."""

    rank: int
    device: str
    num_bytes: int  # of its process, or on a GPU what torch has taken there


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """Plain numbers at one moment."""

    counters: Mapping[str, int]
    num_running: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    num_head_blocks: int
    num_filled_head_blocks: int
    last_swap_pause_s: float
    last_step_at: float  # time.monotonic()
    num_open: int  # requests that have not ended
    is_running: bool  # the engine's thread lives
    longest_gap_s: float = 0.0  # between the ends of two steps of the last minute, one right after the other
    ranks: tuple[RankMemory, ...] = ()  # of a server of several ranks (server/parallel)


@dataclass(slots=True)
class Counters:
    """What the engine has done since it started. Tests assert these; they do not drift as seconds do."""

    steps: int = 0
    trunk_tokens: int = 0  # tokens that went through the trunk
    head_tokens: int = 0  # tokens that went through some head
    rebuilt_tokens: int = 0  # of those, read again so that a running sample could follow a swap
    head_forwards: int = 0  # passes through some head's layers; adapters on one base share a pass
    prompt_tokens: int = 0
    cache_hit_tokens: int = 0  # prompt tokens found in the cache
    generated_tokens: int = 0
    scored_readings: int = 0
    requests: int = 0
    rejected_requests: int = 0
    late_requests: int = 0  # of those, and of the queue: refused since they could not have been served before their deadline
    expired_requests: int = 0  # whose deadline passed before their first step: they cost none
    failed_samples: int = 0
    aborted_requests: int = 0
    wasted_tokens: int = 0  # drawn for samples that were ended before they were whole
    swaps: int = 0
    trunk_seconds_us: int = 0  # microseconds spent in trunk passes
    head_seconds_us: int = 0

    def as_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}
