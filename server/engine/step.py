"""A step's work once it is chosen: trunk, heads, sampler and scorer, and what each new token does to its sample."""

from __future__ import annotations

import contextlib

from torch import Tensor

from polyhead.server.engine.ahead import Ahead, Flight, LaunchDraws, only
from polyhead.server.engine.layers.cuda.timing import DeviceTimes
from polyhead.server.engine.layers.heads import HeadRunner
from polyhead.server.engine.layers.sampler import Draw, DrawRow, Draws
from polyhead.server.engine.layers.trunk import TrunkRunner
from polyhead.server.engine.requests import OpenRequests
from polyhead.server.engine.schedule.scored_rows import Part, take_rows
from polyhead.server.engine.work.batch import Batch, HeadRun
from polyhead.server.engine.work.events import Drawn
from polyhead.server.engine.work.live import LiveHead
from polyhead.server.engine.work.request import Output, Phase, Reading, Sample
from polyhead.server.engine.work.sampling import FinishReason
from polyhead.server.engine.work.tokens import add_token, finish_reason


class Stepper:
    """Carries out batches. Belongs to the engine's thread."""

    def __init__(
        self,
        trunk: TrunkRunner,
        heads: HeadRunner,
        draw: Draw,
        requests: OpenRequests,
        launch: LaunchDraws | None = None,
        times: DeviceTimes | None = None,
    ) -> None:
        """On a GPU `launch`, since draws need not be waited for, and `times`, since the host's clock does not say how long work takes."""
        self.trunk = trunk
        self.heads = heads
        self.draw = draw  # reads heads' logits
        self.requests = requests
        self.scheduler, self.outbox = requests.scheduler, requests.outbox
        self.counters = requests.counters
        self.times = times
        self.ahead = Ahead(trunk, heads, requests.scheduler, launch, self.timing) if launch is not None else None
        self._batch = Batch()  # of the present step
        self._landing: tuple[Batch, Flight] | None = None  # launched ahead, and its batch: the next step

    def forward(self, batch: Batch) -> None:
        """Compute a batch, tokens and scores included."""
        started_at, self._batch = self.requests.clock(), batch
        if self.times is not None:
            self.times.collect()
        if batch.trunk_runs:
            with self.timing("trunk"):
                self.trunk.forward(batch.trunk_runs)
            self.scheduler.commit_trunk(batch)
        trunk_done_at = self.requests.clock()
        with self.heads.on_its_device():
            for head, runs in batch.by_head():
                self._forward_head(head, [run for run in runs if run.reading.head_blocks])
        ended_at = self.requests.clock()
        self.scheduler.fit_chunk(batch, ended_at - started_at)
        self.counters.trunk_tokens += batch.num_trunk_tokens
        if self.times is None:
            self.counters.trunk_seconds_us += int((trunk_done_at - started_at) * 1e6)
            self.counters.head_seconds_us += int((ended_at - trunk_done_at) * 1e6)

    def timing(self, part: str) -> contextlib.AbstractContextManager[None]:
        """Around what is launched for "trunk" or "head"."""
        return contextlib.nullcontext() if self.times is None else self.times.measuring(part)

    def _forward_head(self, head: LiveHead, runs: list[HeadRun]) -> None:
        """Run one head. The caller has left out runs whose sample ended in this step, on another head: their blocks are given back."""
        if not runs:
            return
        with self.timing("head"):
            rows = self.heads.forward(head, runs)
        self.scheduler.commit_heads(runs)
        self.counters.head_forwards += 1
        self.counters.head_tokens += sum(run.end - run.start for run in runs)
        self.counters.rebuilt_tokens += sum(run.end - run.start for run in runs if run.reading is run.reading.sample.successor)
        self._take(runs, rows)

    def _take(self, runs: list[HeadRun], rows: Tensor) -> None:
        """Hand a head's rows to the sampler or to the scorer."""
        offset, scored = 0, list[Part]()
        to_draw: list[tuple[Sample, int]] = []
        for run in runs:
            if run.num_rows and run.reading.output is Output.NEXT_TOKEN:
                to_draw.append((run.reading.sample, offset))
            elif run.num_rows:
                scored.append(Part(run.reading, offset, run.num_rows, run.first_row))
            offset += run.num_rows
        take_rows(scored, rows, self.draw)
        for reading in (run.reading for run in runs if run.reading.output is not Output.NEXT_TOKEN):
            if reading.is_done or reading.error:
                with self.requests.giving_back():
                    self.scheduler.finish_reading(reading)
                self.counters.scored_readings += 1
        if to_draw:
            drawn_from = rows if len(to_draw) == len(rows) else rows[[row for _, row in to_draw]]
            self._draw([sample for sample, _ in to_draw], drawn_from)

    def _draw(self, samples: list[Sample], logits: Tensor) -> None:
        rows = [DrawRow(sample.params, sample.seed, len(sample.completion), sample.sequence.tokens) for sample in samples]
        if self.ahead is None:
            self._take_tokens(samples, self.draw(logits, rows))
            return
        draws = self.ahead.launch_draws(logits, rows)
        flight = self.ahead.follow(self._batch, draws)
        self._take_tokens(samples, draws.read())
        self._keep(flight)

    # ---- a step that was launched before the one before it was read (ahead.py)

    @property
    def under_way(self) -> Batch | None:
        """The batch of a step that is launched; nothing else may be done before it is read."""
        return None if self._landing is None else self._landing[0]

    def land(self, *, goes_on: bool) -> None:
        """Read the step that is under way, after the one behind it is launched if that is known and `goes_on`."""
        assert self._landing is not None
        assert self.ahead is not None
        (batch, flight), self._landing = self._landing, None
        if self.times is not None:
            self.times.collect()
        following = self.ahead.follow(batch, flight.draws) if goes_on and len(batch.head_runs) == len(flight.before.head_runs) else None
        present = {id(run.reading) for run in batch.head_runs}
        at = [index for index, run in enumerate(flight.before.head_runs) if id(run.reading) in present and _is_drawing(run.reading)]
        self.ahead.num_dropped += len(flight.before.head_runs) - len(at)
        self._take_tokens([flight.before.head_runs[index].reading.sample for index in at], only(flight.draws.read(), at))
        self._keep(following)

    def forget(self) -> None:
        """A step has failed: what is under way is never read."""
        self._landing = None

    def _keep(self, flight: Flight | None) -> None:
        """The tokens that a launched step began with are known now: note what it computes."""
        if flight is None:
            return
        assert self.ahead is not None
        batch = self.scheduler.continued(flight.before)
        if batch.is_empty:
            self.ahead.num_dropped += len(flight.before.head_runs)
            return
        self._landing = (batch, flight)
        self.scheduler.commit_trunk(batch)
        self.scheduler.commit_heads(batch.head_runs)
        self.counters.trunk_tokens += batch.num_trunk_tokens
        self.counters.head_tokens += len(batch.head_runs)
        self.counters.head_forwards += bool(batch.head_runs)

    def _take_tokens(self, samples: list[Sample], drawn: Draws) -> None:
        lists = (each.tolist() for each in (drawn.token_ids, drawn.logprobs, drawn.sampling_logprobs))
        for sample, is_finite, token_id, logprob, sampling_logprob in zip(samples, drawn.is_finite, *lists, strict=True):
            if is_finite:
                self._append(sample, token_id, logprob, sampling_logprob)
            else:
                self._fail(sample, f"{sample.head.reference if sample.head else ''} gave logits that are not finite")

    def _append(self, sample: Sample, token_id: int, logprob: float, sampling_logprob: float) -> None:
        """One more token: record it, look for an end, ask for the next."""
        text = add_token(sample, token_id, logprob, sampling_logprob, self.requests.clock())
        self.counters.generated_tokens += 1
        if sample.request.stream_tokens:
            self.outbox.add(sample.request, Drawn(sample, len(sample.completion) - 1, token_id, logprob, sampling_logprob, text))
        reason = finish_reason(sample, token_id, self.scheduler.eos_ids)
        if sample.error:
            self._fail(sample, sample.error)
        elif reason is None:
            assert sample.reading is not None
            sample.reading.first, sample.reading.end = sample.reading.end, sample.reading.end + 1
            sample.sequence.num_wanted += 1
        else:
            self._finish_generating(sample, reason)

    def _finish_generating(self, sample: Sample, reason: FinishReason) -> None:
        assert sample.reading is not None
        sample.finish_reason = reason
        sample.is_terminated = reason.is_terminated
        sample.stop = sample.text.matched_stop if sample.text and reason is FinishReason.STOP_STRING else ""
        with self.requests.giving_back():
            self.scheduler.pool.release(sample.reading)
        self.scheduler.pace.note_reply(sample, self.requests.clock())
        self.scheduler.begin_scoring(sample)

    def finish_scored(self) -> int:
        """End the samples with nothing left to compute. Returns how many there were."""
        scoring = [sample for sample in self.scheduler.running if sample.phase is Phase.SCORING and not sample.todo]
        ready = [sample for sample in scoring if sample.sequence.num_outstanding <= 0]
        for sample in ready:
            self._finish(sample)
        return len(ready)

    def end_unreadable(self) -> None:
        """End the samples whose token ids the model does not have. Requests with such ids are refused before they get here; this is
        the second line."""
        unreadable, self.scheduler.unreadable = self.scheduler.unreadable, []
        for sample in (each for each in unreadable if each.phase is not Phase.DONE):
            self._fail(sample, f"token id outside the vocabulary of {self.scheduler.vocab_size}: {sample.highest_id}")

    def _finish(self, sample: Sample) -> None:
        request = sample.request
        if sample.finish_reason is not FinishReason.FAILED:
            self._keep_states(sample)
        self.counters.prompt_tokens += len(sample.prompt)
        self.counters.cache_hit_tokens += sample.num_cached_tokens
        self.requests.remove(sample)
        request.num_open -= 1
        if request.num_open == 0:
            self.requests.end(request, None)

    def _keep_states(self, sample: Sample) -> None:
        """Take out what the caller wants of the trunk's output, before the blocks go."""
        request, slots = sample.request, self.scheduler.tree.slots(sample.sequence)
        if request.return_states:
            sample.states = self.trunk.states(slots, 0, sample.num_tokens, request.states_layer).cpu()
        if request.pooling is not None:
            sample.pooled = self.trunk.pooled(slots, len(sample.prompt), request.pooling)

    def _fail(self, sample: Sample, message: str) -> None:
        sample.finish_reason = FinishReason.FAILED
        sample.error = message
        self.counters.failed_samples += 1
        self._finish(sample)


def _is_drawing(reading: Reading) -> bool:
    """Whether its sample still draws by it: it may have been ended between two steps."""
    return reading.sample.phase is Phase.GENERATING and reading.sample.reading is reading
