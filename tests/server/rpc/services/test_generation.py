"""What a slow reader gets: one piece for each sample that drew meanwhile, with nothing lost, doubled, mixed up or moved past an end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from polyhead.server.engine.schedule.leases import take_lease
from polyhead.server.engine.work.events import Drawn, Finished
from polyhead.server.engine.work.live import ActiveSet
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from polyhead.server.rpc.messages.request_parts import Work
from polyhead.server.rpc.services.generation import _Writer

RUNNER: Any = SimpleNamespace(services=SimpleNamespace(tokenizer=SimpleNamespace(decode_after=lambda before: str)))  # reads replies


def streaming_request(num_samples: int) -> Request:
    request = Request("r", lambda *_: None, {}, {}, stream_tokens=True)
    take_lease(request, ActiveSet(1))
    for index in range(num_samples):
        sample = Sample(request, 0, index // 2, index % 2, [5, 6], TokenSequence([5, 6]), SamplingParams(), head_name="policy")
        sample.finish_reason = FinishReason.LENGTH
        request.samples.append(sample)
    return request


def draw_next(sample: Sample) -> Drawn:
    """The sample's next token, as the engine announces it; every number of it is its own."""
    offset = len(sample.completion)
    token_id = 1000 * (2 * sample.arm_index + sample.sample_index) + offset
    sample.completion.append(token_id)
    sample.logprobs.append(-token_id - 0.25)
    sample.sampling_logprobs.append(-token_id - 0.5)
    return Drawn(sample, offset, token_id, sample.logprobs[-1], sample.sampling_logprobs[-1], text=f"<{token_id}>")


def place(message: Any) -> tuple[int, int]:
    return message.arm_index, message.sample_index


def test_tokens_that_wait_together_become_one_piece_for_each_sample() -> None:
    """Interleaved as the engine draws them, a token of every sample in each step."""
    request = streaming_request(3)
    events: list[Event] = [draw_next(sample) for _ in range(4) for sample in request.samples]
    messages = list(_Writer(RUNNER, Work(request, None)).messages(events))
    assert [place(message.piece) for message in messages] == [(0, 0), (0, 1), (1, 0)]
    for message, sample in zip(messages, request.samples, strict=True):
        piece = message.piece
        assert piece.offset == 0
        assert piece.token_ids == sample.completion
        assert piece.logprobs == sample.logprobs
        assert piece.sampling_logprobs == sample.sampling_logprobs
        assert piece.text == "".join(f"<{token}>" for token in sample.completion)


def test_no_token_passes_an_end_or_comes_behind_its_own() -> None:
    """a0 b0 a1, end of a with text held back, b1 b2: the tail is a piece of its own, behind a's tokens and before its sample."""
    request = streaming_request(2)
    a, b = request.samples
    events: list[Event] = [draw_next(a), draw_next(b), draw_next(a), Finished(a, tail="held back"), draw_next(b), draw_next(b)]
    first, second, tail, ended, last = _Writer(RUNNER, Work(request, None)).messages(events)
    assert (place(first.piece), first.piece.token_ids) == ((0, 0), a.completion)
    assert (place(second.piece), second.piece.offset, second.piece.token_ids) == ((0, 1), 0, b.completion[:1])
    assert (place(tail.piece), tail.piece.offset, list(tail.piece.token_ids), tail.piece.text) == ((0, 0), 2, [], "held back")
    assert (place(ended.sample), ended.sample.token_ids) == ((0, 0), a.completion)
    assert (place(last.piece), last.piece.offset, last.piece.token_ids) == ((0, 1), 1, b.completion[1:])


@given(st.data())
def test_however_events_are_cut_into_lists_the_pieces_make_the_samples(data: st.DataObject) -> None:
    """Each list gives at most one piece a sample before each end; the offsets count on from list to list."""
    request = streaming_request(4)
    writer = _Writer(RUNNER, Work(request, None))
    open_samples, received = list(request.samples), {place(sample): [] for sample in request.samples}
    while open_samples:
        events: list[Event] = []
        for sample in data.draw(st.lists(st.sampled_from(open_samples), min_size=1, max_size=12)):
            if sample in open_samples:
                events.append(draw_next(sample))
                if len(sample.completion) == 5:
                    open_samples.remove(sample)
                    events.append(Finished(sample, tail=""))
        num_ends = sum(isinstance(event, Finished) for event in events)
        pieces = 0
        for message in writer.messages(events):
            if message.HasField("sample"):
                assert received[place(message.sample)] == message.sample.token_ids, "a sample's pieces are complete before its end"
                continue
            piece = message.piece
            assert piece.offset == len(received[place(piece)])
            assert len(piece.token_ids) == len(piece.logprobs) == len(piece.sampling_logprobs)
            received[place(piece)] += piece.token_ids
            pieces += 1
        assert pieces <= len(request.samples) * (num_ends + 1)
    assert received == {place(sample): sample.completion for sample in request.samples}


def sent_rows(*, once: bool, failed: int | None = None) -> tuple[list[tuple[int, int]], int]:
    """((offset, rows) of each part of states, their bytes) of four samples of one prompt of 6 tokens, with replies of 2."""
    request = streaming_request(4)
    request.return_states = True
    for index, sample in enumerate(request.samples):
        sample.prompt, sample.completion = [5] * 6, [7, 8]
        sample.states = None if index == failed else torch.arange(8.0)[:, None].repeat(1, 4)
    messages = _Writer(RUNNER, Work(request, None, prompt_states_once=once)).messages([Finished(each, tail="") for each in request.samples])
    parts = [message.states for message in messages if message.WhichOneof("event") == "states"]
    return [(part.offset, part.states.shape[0]) for part in parts], sum(len(part.states.data) for part in parts)


def test_a_prompts_states_travel_once() -> None:
    """They were sent with every sample. 4 samples of 8 rows of 16 bytes; then 6 rows for the prompt and 2 for each reply."""
    assert sent_rows(once=False) == ([(0, 8)] * 4, 4 * 8 * 16)
    assert sent_rows(once=True) == ([(0, 8), (6, 2), (6, 2), (6, 2)], (6 + 4 * 2) * 16)


def test_they_go_with_the_first_sample_that_has_states() -> None:
    parts, _ = sent_rows(once=True, failed=0)
    assert parts == [(0, 8), (6, 2), (6, 2)]
