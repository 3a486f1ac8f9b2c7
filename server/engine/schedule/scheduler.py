"""Chooses a step's work: admission into the block pools, chunked prefill, decoding and scoring, all together.

Knows blocks and budgets. It touches no tensor and never waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from polyhead.heads.format.errors import PolyheadError
from polyhead.server.engine.blocks.tree import BlockTree
from polyhead.server.engine.schedule.deadlines import Deadlines, Verdict, count_rows, too_late
from polyhead.server.engine.schedule.follow import Follower, lease_to_start_with
from polyhead.server.engine.schedule.leases import take_lease
from polyhead.server.engine.schedule.pace import Pace
from polyhead.server.engine.schedule.scorer import plan_readings
from polyhead.server.engine.schedule.turns import Turns
from polyhead.server.engine.work.batch import Batch, HeadRun, TrunkRun
from polyhead.server.engine.work.live import ActiveSet
from polyhead.server.engine.work.request import Output, Phase, Priority, Reading, Request, Sample
from polyhead.server.engine.work.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds of one step and of the pools."""

    max_running: int = 128  # samples in the pools
    chunk_tokens: int = 512  # prefill tokens of a step in which no row decodes
    min_chunk_tokens: int = 32
    target_step_s: float = 0.25  # a prefill chunk shrinks until steps with decoding rows stay near this
    scoring_floor: int = 64  # blocks of either pool kept for scoring, so that one scoring job can always run


class Scheduler:
    """Keeps the waiting and the running samples and decides what the next step does."""

    def __init__(self, tree: BlockTree, limits: SchedulerLimits, eos_ids: frozenset[int], vocab_size: int) -> None:
        self.tree = tree
        self.pool = tree.heads
        self.follower = Follower(tree.heads)
        self.limits = limits
        self.eos_ids = eos_ids
        self.vocab_size = vocab_size
        self.unreadable: list[Sample] = []  # admitted, and of tokens that the model does not have; emptied by the engine
        self.waiting: list[Sample] = []
        self.running: list[Sample] = []
        self.newly_leased: list[Request] = []  # emptied by the engine
        self.refused: list[tuple[Request, PolyheadError]] = []  # without a lease, or too late; emptied by the engine
        self.turns = Turns()
        self.pace = Pace()
        self.deadlines = Deadlines(self.pace, limits.max_running)
        self._chunk = limits.chunk_tokens
        self._is_full = False  # those who wait can start only when one of those who run ends

    def add(self, request: Request) -> None:
        """Queue a request's samples behind those of the same priority and principal."""
        if not math.isinf(request.due_at):
            request.num_prefill_tokens = self._num_new_tokens(request)
        for sample in request.samples:
            self.turns.give(sample)
        self.waiting.extend(request.samples)
        self.waiting.sort(key=_place)  # stable

    def schedule(self, active: ActiveSet, now: float) -> Batch:
        """Choose the next step's work. `now`: time.monotonic()."""
        self.follower.advance(self.running, self._num_unpromised_heads)
        self._admit(active, now)
        self._start_suffixes()
        batch = Batch()
        self._add_trunk_runs(batch)
        self._add_head_runs(batch)
        return batch

    def continued(self, before: Batch) -> Batch:
        """The batch of a step that went on with every text of the batch before by the token that was drawn there, as far as they go on.

        The step was launched before those tokens were known (ahead.py): what a schedule would have noted is noted now.
        """
        batch, samples = Batch(), {id(run.reading.sample.sequence): run.reading.sample for run in before.head_runs}
        for run in before.trunk_runs:
            if samples[id(run.sequence)].phase is Phase.GENERATING:
                self._add_trunk_run(batch, run.sequence, 1)
        for head_run in before.head_runs:
            if head_run.reading.sample.phase is Phase.GENERATING:
                batch.head_runs.append(self._head_run(head_run.reading, head_run.end + 1))
        return batch

    @property
    def has_choices(self) -> bool:
        """Whether the next step may be more than one more token of each text that decodes: another may start, score, or change its head."""
        is_waiting = bool(self.waiting) and not self._is_full
        return is_waiting or any(sample.phase is not Phase.GENERATING or sample.successor is not None for sample in self.running)

    def forget_step(self) -> set[Request]:
        """Drop what a failed step has found. Returns the requests that it was about to refuse."""
        refused = {request for request, _ in self.refused}
        self.refused, self.unreadable = [], []
        self.newly_leased.clear()
        return refused

    def commit_trunk(self, batch: Batch) -> None:
        """The batch's trunk work is done."""
        for run in batch.trunk_runs:
            self.tree.advance(run.sequence, run.end - run.start)
            run.sequence.num_trunk_tokens += run.end - run.start

    def commit_heads(self, runs: list[HeadRun]) -> None:
        """These head runs are done."""
        for run in runs:
            self.pool.advance(run.reading, run.start, run.end)
            run.reading.cursor = run.end
            run.reading.sample.num_head_tokens += run.end - run.start

    def fit_chunk(self, batch: Batch, seconds: float) -> None:
        """Fit the prefill chunk to the measured step, so that a long prompt, or one that a head reads again, does not stall decoding."""
        lengths = [run.end - run.start for run in batch.trunk_runs]
        head_lengths = [run.end - run.start for run in batch.head_runs]
        num_prefill = max(sum(length for length in each if length > 1) for each in (lengths, head_lengths))  # the chunk bounds either
        if 1 not in lengths or num_prefill < self.limits.min_chunk_tokens:
            return
        fitting = int(num_prefill * self.limits.target_step_s / max(seconds, 1e-6))
        self._chunk = max(self.limits.min_chunk_tokens, min(self.limits.chunk_tokens, (self._chunk + fitting) // 2))

    def begin_scoring(self, sample: Sample) -> None:
        """A completion is known, drawn or given: plan what its heads have to read."""
        sample.phase = Phase.SCORING
        sample.sequence.num_reserved = min(sample.sequence.num_reserved, 1)  # the last token may need a block
        sample.todo = plan_readings(sample, self.eos_ids)
        self.follower.leave(sample)

    def finish_reading(self, reading: Reading) -> None:
        """A reading has all its rows: give back its blocks, and with the last one on a suffix that sequence's, too."""
        self.pool.release(reading)
        sample = reading.sample
        if reading in sample.todo:
            sample.todo.remove(reading)
        sample.done.append(reading)
        if reading.sequence is not sample.sequence and not any(other.sequence is reading.sequence for other in sample.todo):
            self.tree.release(reading.sequence)

    def remove(self, sample: Sample) -> None:
        """Take a sample out, wherever it stands, and give back all it holds."""
        if sample.phase is Phase.WAITING and sample in self.waiting:
            self.waiting.remove(sample)
            self.turns.leave(sample)
        elif sample in self.running:
            self.running.remove(sample)
        sample.phase = Phase.DONE
        self.follower.leave(sample)
        for reading in (sample.reading, *sample.todo):
            if reading is not None:
                self.pool.release(reading)
        for sequence in (*sample.suffixes, sample.sequence):
            self.tree.release(sequence)
        sample.todo = []

    # ---- admission

    def _admit(self, active: ActiveSet, now: float) -> None:
        """Move samples from the queue into the pools. The rows that ran when one had to wait are what new requests must wait for."""
        self._is_full = self._start_waiting(active, now)
        self.deadlines.most_rows = self.num_rows if self._is_full else 0

    @property
    def num_rows(self) -> int:
        """Samples that draw a token each step, or are about to. May be read from any thread."""
        return count_rows(list(self.running))

    def _start_waiting(self, active: ActiveSet, now: float) -> bool:
        """First come first served, as far as pools and deadlines go; one that needs a block being computed is passed by.

        Returns whether pools or deadlines stopped it: those who were only passed by start with one of the next steps.
        """
        if self.turns.close_gaps(self.waiting):
            self.waiting.sort(key=_place)
        num_to_draw = sum(not sample.is_given for sample in self.waiting)
        pending: set[tuple[str, int]] = set()  # prompts whose next block is being computed: their other samples wait, too
        ahead: set[Request] = set()  # their states wait to be read
        late: set[Request] = set()
        for sample in list(self.waiting):
            if len(self.running) >= self.limits.max_running:
                return True
            prompt = (sample.sequence.salt, id(sample.prompt))
            if sample.request in ahead or sample.request in late or prompt in pending:
                continue
            verdict = self.deadlines.verdict(sample, self.running, num_to_draw, now)
            if verdict is Verdict.WAIT:
                return True
            if verdict is Verdict.REFUSE:
                late.add(sample.request)
                self.refused.append((sample.request, too_late("it has waited in the queue for too long", self.pace.stay_s)))
                continue
            match = self.tree.match(sample.sequence.tokens, sample.sequence.salt)
            if match.pending is not None:
                pending.add(prompt)
                continue
            if self._is_ahead(sample):
                ahead.add(sample.request)
                continue
            num_blocks = -(-sample.most_tokens // self.tree.block_size)
            num_needed = self.tree.num_needed(match, num_blocks * self.tree.block_size)
            num_head_blocks = 0 if sample.is_given else num_blocks
            if num_needed > self._num_unpromised() or num_head_blocks > self._num_unpromised_heads():
                return True
            self.waiting.remove(sample)
            num_to_draw -= not sample.is_given
            self.turns.start(sample)
            self.running.append(sample)  # before anything that can fail: a failed step ends what is running
            sample.request.num_waiting -= 1
            if self._lease(sample, active):
                self.tree.place(sample.sequence, match)
                self._begin(sample, num_blocks, num_head_blocks)
        return False

    def _is_ahead(self, sample: Sample) -> bool:
        """Whether a sample's states must wait until more of its request's are read. A group that has begun goes on: it is read as one."""
        request = sample.request
        if not request.num_state_bytes:
            return False
        group = [each for each in request.samples if each.prompt_index == sample.prompt_index] if request.holds_groups else [sample]
        if any(each.phase is not Phase.WAITING for each in group):
            return False
        num_begun = sum(each.most_tokens for each in self.running if each.request is request)
        num_tokens = sum(each.most_tokens for each in group)
        return not request.reader.has_room(num_begun * request.num_state_bytes, num_tokens * request.num_state_bytes)

    def _lease(self, sample: Sample, active: ActiveSet) -> bool:
        """The first sample of a request takes the lease for all of them. Returns False if the lease was refused."""
        request = sample.request
        if request.lease is None:
            try:
                take_lease(request, active)
            except PolyheadError as error:
                self.running.remove(sample)
                self.refused.append((request, error))
                return False
            self.newly_leased.append(request)
            request.num_prefill_tokens = 0
        lease = lease_to_start_with(sample)
        sample.head = None if sample.is_given else lease.heads[sample.head_name]
        sample.generation = lease.generation
        return True

    def _num_new_tokens(self, request: Request) -> int:
        """Of its distinct prompts, those that the cache lacks."""
        prompts = {id(sample.prompt): sample.sequence for sample in request.samples}
        matches = [(sequence, self.tree.match(sequence.tokens, sequence.salt)) for sequence in prompts.values()]
        return sum(len(each.tokens) - len(match.shared) * self.tree.block_size - match.num_partial for each, match in matches)

    def _begin(self, sample: Sample, num_blocks: int, num_head_blocks: int) -> None:
        sequence = sample.sequence
        sequence.num_reserved = num_blocks - len(sequence.blocks)
        sample.num_cached_tokens = min(sequence.num_cached, len(sample.prompt))
        if sample.highest_id >= self.vocab_size:
            self.unreadable.append(sample)  # it would fail the step for all samples in it, and on a GPU end the process
            return
        if sample.head is None:
            self.begin_scoring(sample)
            return
        num_prompt = len(sample.prompt)
        sample.phase = Phase.GENERATING
        sequence.num_wanted = num_prompt
        sample.reading = Reading(
            sample, sample.head, sample.head_name, sequence, Output.NEXT_TOKEN, num_prompt - 1, num_prompt, num_reserved=num_head_blocks
        )

    def _num_unpromised(self) -> int:
        promised = sum(sample.sequence.num_reserved for sample in self.running)
        return self.tree.num_available - promised - self.limits.scoring_floor

    def _num_unpromised_heads(self) -> int:
        readings = (reading for sample in self.running for reading in (sample.reading, sample.successor) if reading is not None)
        promised = sum(reading.num_reserved for reading in readings)
        return self.pool.num_available - promised - self.limits.scoring_floor

    # ---- trunk

    def _start_suffixes(self) -> None:
        """Give suffix sequences their blocks as room allows; the floor guarantees that one at a time always fits."""
        for sample in self.running:
            if sample.phase is not Phase.SCORING or sample.sequence.num_outstanding > 0:
                continue
            for sequence in sample.suffixes:
                if sequence.is_placed or not any(reading.sequence is sequence for reading in sample.todo):
                    continue
                match = self.tree.match(sequence.tokens, sequence.salt)
                room = self._num_unpromised() + self.limits.scoring_floor
                if match.pending is not None:
                    continue
                if self.tree.num_needed(match, len(sequence.tokens)) > room:
                    return
                self.tree.place(sequence, match)

    def _add_trunk_runs(self, batch: Batch) -> None:
        """Decoding rows first, one token each; then prefill in order of arrival, as far as the chunk goes."""
        sequences = [sequence for sample in self._by_priority() for sequence in _placed(sample) if sequence.num_outstanding > 0]
        decoding = [sequence for sequence in sequences if sequence.num_outstanding == 1]
        for sequence in decoding:
            self._add_trunk_run(batch, sequence, 1)
        budget = self._chunk if decoding else self.limits.chunk_tokens
        for sequence in sequences:
            if sequence.num_outstanding > 1 and budget > 0:
                budget -= self._add_trunk_run(batch, sequence, budget)

    def _add_trunk_run(self, batch: Batch, sequence: TokenSequence, budget: int) -> int:
        start = sequence.num_computed
        end = start + min(sequence.num_outstanding, budget)
        num_held = (len(sequence.blocks) - 1) * self.tree.block_size + len(sequence.blocks[-1].tokens)
        if end > num_held:
            self.tree.extend(sequence, num_held)
        batch.trunk_runs.append(TrunkRun(sequence, start, end))
        return end - start

    def _by_priority(self) -> list[Sample]:
        return sorted(self.running, key=lambda sample: sample.request.priority)

    # ---- heads

    def _add_head_runs(self, batch: Batch) -> None:
        """In turn, as far as boundary states and the chunk go."""
        ready = _in_turn(self._ready_readings({id(run.sequence): run.end for run in batch.trunk_runs}))
        is_decoding = any(run.end - run.start == 1 for run in batch.trunk_runs)
        budget = self._chunk if is_decoding else self.limits.chunk_tokens
        for reading, end in ready:
            if end - reading.cursor > 1:  # as in the trunk, only these use the chunk up
                if budget <= 0:
                    return
                end = min(end, reading.cursor + budget)
                budget -= end - reading.cursor
            batch.head_runs.append(self._head_run(reading, end))

    def _ready_readings(self, computed: dict[int, int]) -> list[tuple[Reading, int]]:
        """Readings that can advance, and how far the boundary states go: `computed` has what this step adds, by sequence."""
        ready = []
        for reading in self._readings():
            if reading.sequence.is_placed and (reading.is_started or self._start(reading)):
                end = min(reading.end, computed.get(id(reading.sequence), reading.sequence.num_computed))
                if end > reading.cursor:
                    ready.append((reading, end))
        return ready

    def _readings(self) -> Iterator[Reading]:
        """In the order in which they get the chunk. A successor has its sample's place: others may need the keys that it computes."""
        ordered = self._by_priority()
        for sample in ordered:
            if sample.phase is Phase.GENERATING and sample.reading is not None:
                yield sample.reading
            if sample.successor is not None and sample.successor.is_started:
                yield sample.successor
        for sample in ordered:
            if sample.phase is Phase.SCORING:
                yield from sample.todo

    def _start(self, reading: Reading) -> bool:
        """Take the head blocks that a reading needs, all at once, unless another reading is computing some of them."""
        digest = reading.head.live.digest
        blocks = reading.sequence.blocks[: -(-reading.end // self.pool.block_size)]
        if len(blocks) * self.pool.block_size < reading.end or self.pool.is_pending(blocks, digest):
            return False
        is_sampling = reading.output is Output.NEXT_TOKEN
        room = self._num_unpromised_heads() + self.limits.scoring_floor
        if not is_sampling and self.pool.num_needed(blocks, digest) > room:
            return False
        reading.num_reserved = max(0, reading.num_reserved - len(blocks))
        self.pool.begin(reading, blocks)
        reading.cursor = min(self.pool.num_computed(reading), reading.first)
        return True

    def _head_run(self, reading: Reading, end: int) -> HeadRun:
        num_blocks = -(-end // self.pool.block_size)
        if num_blocks > len(reading.head_blocks):
            num_promised = num_blocks - len(reading.head_blocks) - (reading.next_slot > 0)
            reading.num_reserved = max(0, reading.num_reserved - num_promised)
            self.pool.hold(reading, reading.sequence.blocks[:num_blocks])
        return HeadRun(reading, reading.cursor, end, first_new_key=self.pool.num_computed(reading))


def _in_turn(ready: list[tuple[Reading, int]]) -> list[tuple[Reading, int]]:
    """Readings with one position left come first, and use nothing of the chunk; then prefill; then scoring by priority, head by head.

    The head that the first of these samples needs comes first, for all samples: one pass over many texts takes less time than many over
    one each. That a sample draws with a head meanwhile does not move its scoring forward.
    """

    def work(reading: Reading) -> tuple[int, str]:
        return reading.sample.request.priority, reading.head.live.weights.digest

    def is_scoring(reading: Reading, end: int) -> bool:
        return end - reading.cursor > 1 and reading.sample.phase is Phase.SCORING

    works = [work(reading) for reading, end in ready if is_scoring(reading, end)]
    turns = {each: turn for turn, each in enumerate(dict.fromkeys(works))}

    def place(pair: tuple[Reading, int]) -> tuple[bool, int]:
        reading, end = pair
        return end - reading.cursor > 1, turns[work(reading)] if is_scoring(reading, end) else -1

    return sorted(ready, key=place)


def _placed(sample: Sample) -> Iterator[TokenSequence]:
    yield sample.sequence
    for sequence in sample.suffixes:
        if sequence.is_placed:
            yield sequence


def _place(sample: Sample) -> tuple[Priority, int, int]:
    """In the queue."""
    return sample.request.priority, sample.turn, sample.request.serial
