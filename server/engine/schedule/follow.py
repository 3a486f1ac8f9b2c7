"""on_swap=FOLLOW: a running sample goes on with a newly activated head version between two tokens; the old one draws until then.

An activation gives the sample a `successor`: a second reading of the text so far, by the new version, scheduled like any head prefill and
computed from cached boundary states alone. The old version draws on until the successor has read as far; then the successor takes over.
An activation in between replaces the successor. Scoring keeps the request's lease.

Knows leases and head blocks; what a step computes is decided in scheduler.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from polyhead.server.engine.blocks.head_pool import HeadPool
from polyhead.server.engine.work.live import ActiveSet, Lease, LiveHead, ServedHead
from polyhead.server.engine.work.request import OnSwap, Output, Phase, Reading, Request, Sample


def lease_to_start_with(sample: Sample) -> Lease:
    """What a sample that starts now is drawn with: its request's lease, or what was activated since if it follows."""
    lease = sample.request.sampling_lease if _is_following(sample) else sample.request.lease
    assert lease is not None, "the request has taken its lease"
    return lease


class Follower:
    """Gives samples successors of the active version, and lets these take over once they have caught up."""

    def __init__(self, pool: HeadPool) -> None:
        self.pool = pool

    def turn(self, request: Request, active: ActiveSet) -> bool:
        """Make the request's samples follow `active`. Returns whether it has samples that follow, now or when they start."""
        samples = [sample for sample in request.samples if _is_following(sample) and sample.phase in (Phase.WAITING, Phase.GENERATING)]
        found = _found(active, request, {sample.head_name for sample in samples})
        if not found:
            return False
        assert request.sampling_lease is not None, "the request has taken its lease"
        heads = {**request.sampling_lease.heads, **found}
        request.sampling_lease = Lease(active.generation, heads, active.history_id)
        for sample in samples:
            if sample.phase is Phase.GENERATING:
                self._aim(sample, heads[sample.head_name])
        request.hold(_heads_in_use(request))
        return True

    def advance(self, samples: Iterable[Sample], num_unpromised: Callable[[], int]) -> None:
        """Between two steps: start successors as far as there is room for head blocks, let those that have caught up take over."""
        turned = [sample for sample in samples if sample.successor is not None]
        room = num_unpromised() if turned else 0
        for sample in turned:
            assert sample.successor is not None
            assert sample.reading is not None
            if not sample.successor.is_started:
                room -= self._start(sample.successor, sample.reading, room)
            if sample.successor.is_started and sample.successor.cursor >= sample.reading.first:
                self._take_over(sample)

    def leave(self, sample: Sample) -> None:
        """A sample draws no more: give back its successor's blocks, and stop holding weights that no other sample of its request uses."""
        self._abandon(sample)
        newest = sample.request.sampling_lease
        if sample.head is not None and newest is not None and sample.head.live not in newest.live_heads:
            sample.request.hold(_heads_in_use(sample.request))

    def _aim(self, sample: Sample, target: ServedHead) -> None:
        assert sample.head is not None
        assert sample.reading is not None
        if target.version == sample.head.version:
            self._abandon(sample)
        elif target.live.digest == sample.head.live.digest or not sample.reading.is_started:  # there is nothing to read again
            self._abandon(sample)
            sample.reading.head = target
            _draw_with(sample, target)
        elif sample.successor is not None and sample.successor.head.live.digest == target.live.digest:
            sample.successor.head = target
        else:
            self._abandon(sample)
            never = sample.most_tokens  # no row of a successor is wanted: it draws after it has taken over
            sample.successor = Reading(sample, target, sample.head_name, sample.sequence, Output.NEXT_TOKEN, never, never)

    def _start(self, successor: Reading, reading: Reading, room: int) -> int:
        """Take head blocks for the text so far and reserve the rest, as admission does. Returns how many, 0 if it must wait."""
        sequence, size = successor.sequence, self.pool.block_size
        blocks = sequence.blocks[: -(-sequence.num_computed // size)]
        num_more = -(-successor.sample.most_tokens // size) - len(blocks)
        num_needed = self.pool.num_needed(blocks, successor.head.live.digest) + num_more
        if num_needed > room or self.pool.is_pending(blocks, successor.head.live.digest):
            return 0
        self.pool.begin(successor, blocks)
        successor.num_reserved = num_more
        successor.cursor = min(self.pool.num_computed(successor), reading.first)
        return num_needed

    def _take_over(self, sample: Sample) -> None:
        """From the next token on, the successor's version draws."""
        old, new = sample.reading, sample.successor
        assert old is not None
        assert new is not None
        assert new.cursor == old.first, "a successor stands behind its sample's own reading in every step"
        new.first, new.end = old.first, old.end
        self.pool.release(old)
        sample.reading, sample.successor = new, None
        _draw_with(sample, new.head)
        sample.request.hold(_heads_in_use(sample.request))

    def _abandon(self, sample: Sample) -> None:
        if sample.successor is not None:
            self.pool.release(sample.successor)
            sample.successor = None


def _is_following(sample: Sample) -> bool:
    return sample.request.on_swap is OnSwap.FOLLOW and not sample.is_given and sample.head_name not in sample.request.pinned


def _found(active: ActiveSet, request: Request, names: set[str]) -> dict[str, ServedHead]:
    """The active heads of these names. One that is gone or has changed its kind is left out: its samples stay on what they have."""
    found = {name: active.heads[name] for name in names if name in active.heads}
    return {name: head for name, head in found.items() if head.manifest.kind is request.head_kinds[name]}


def _draw_with(sample: Sample, head: ServedHead) -> None:
    assert sample.request.sampling_lease is not None
    sample.head, sample.generation = head, sample.request.sampling_lease.generation


def _heads_in_use(request: Request) -> set[LiveHead]:
    """Weights of scoring heads and pinned arms, of the versions that samples follow or will start on, and of those that draw until then."""
    assert request.lease is not None
    assert request.sampling_lease is not None
    kept = {head.live for name, head in request.lease.heads.items() if name in request.score_heads or name in request.pinned}
    drawing = {sample.head.live for sample in request.samples if sample.head is not None and sample.phase is Phase.GENERATING}
    return kept | drawing | request.sampling_lease.live_heads
