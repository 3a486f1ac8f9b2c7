"""What a call would cost is counted before anything of it is made: 372 KiB asked for 4096 long samples, 1.9 GB and five seconds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from polyhead.heads.format.errors import InvalidArgument, ResourceExhausted
from polyhead.server.engine.schedule.admission import check_queue
from polyhead.server.engine.work.reports import QueueLimits
from polyhead.server.engine.work.request import Priority, Request, Sample
from polyhead.server.engine.work.sampling import Draws, SamplingParams
from polyhead.server.rpc.auth import Caller, Role
from polyhead.server.rpc.errors import DeadlineExceeded
from polyhead.server.rpc.interceptors import Call, current_call
from polyhead.server.rpc.messages import generation_requests, request_parts
from polyhead.server.rpc.messages.generation_requests import count_generation, generate_request
from polyhead.server.rpc.messages.request_parts import Work
from polyhead.server.rpc.messages.scoring_requests import score_request
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.rpc.services.call import EVENT_LOOP_BYTES, EVENT_LOOP_PARTS, CallRunner
from polyhead.server.rpc.services.ood import OodFitting
from polyhead.server.rpc.services.trunk import TrunkServicer
from polyhead.server.rpc.uploads import Upload
from polyhead.v1 import generation_pb2, scoring_pb2, trunk_pb2, types_pb2
from tests.server.rpc.test_limits import NOTHING, RULE_SET, Tokenizer
from tests.server.rpc.test_limits import context as limits_context

context = limits_context
QUEUE = QueueLimits(max_tokens=20_000)


@dataclasses.dataclass
class Made:
    """What a call has caused to be made."""

    num_encoded: int = 0
    num_samples: int = 0
    asked: list[int] = dataclasses.field(default_factory=list)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made()

    def encode(self: Tokenizer, text: str, *others: object, **options: object) -> list[int]:
        made.num_encoded += 1
        return list(range(5, 5 + len(text.split())))

    def encode_after(self: Tokenizer, before: list[int], text: str, field: str) -> list[int]:
        return encode(self, text)

    def sample(*args: Any, **kwargs: Any) -> Sample:
        made.num_samples += 1
        return Sample(*args, **kwargs)

    for name, method in (("encode", encode), ("encode_after", encode_after), ("encode_behind_text", encode)):
        monkeypatch.setattr(Tokenizer, name, method, raising=False)
    monkeypatch.setattr(generation_requests, "Sample", sample)
    monkeypatch.setattr(request_parts, "Sample", sample)
    return made


@pytest.fixture
def narrow(context: RequestContext, made: Made) -> RequestContext:
    """A context before a queue of 20 000 tokens."""

    def check_room(priority: Priority, num_tokens: int, draws: Draws | None) -> None:
        made.asked.append(num_tokens)
        check_queue(Request("", NOTHING, {}, {}, priority=priority, num_least_tokens=num_tokens), [], QUEUE)

    return dataclasses.replace(context, check_room=check_room)


def prompts(text: str, ids: int, count: int) -> list[types_pb2.Prompt]:
    """As a text of so many words, or as so many ids."""
    token_ids = types_pb2.TokenIds(ids=range(5, 5 + ids))
    return [types_pb2.Prompt(text=text) if text else types_pb2.Prompt(token_ids=token_ids)] * count


def generation(given: list[types_pb2.Prompt], arms: int, n: int, num_new: int = 1, **score: Any) -> generation_pb2.GenerateRequest:
    sampling = types_pb2.Sampling(max_new_tokens=num_new, stop=["stop"])
    return generation_pb2.GenerateRequest(
        prompts=given, arms=[generation_pb2.Arm(n=n, sampling=sampling)] * arms, score=types_pb2.ScoringSpec(**score)
    )


def scoring(given: list[types_pb2.Prompt], completion: str, **score: Any) -> scoring_pb2.ScoreRequest:
    items = [scoring_pb2.ScoreItem(prompt=prompt, text=completion) for prompt in given]
    return scoring_pb2.ScoreRequest(items=items, score=types_pb2.ScoringSpec(**score))


RULES = {"heads": ["rule0".ljust(64, "-") + "@134217728"], "rules": types_pb2.RuleSelection(rule_set=RULE_SET)}
BY_COUNTS: dict[str, Callable[[RequestContext], Work]] = {
    "samples of prompts given as ids": lambda it: generate_request(generation(prompts("", 900, 4), 16, 64), it, "r"),
    "samples of texts": lambda it: generate_request(generation(prompts("a text", 0, 60), 4, 16, 50), it, "r"),
    "rules asked after each sample": lambda it: generate_request(generation(prompts("a", 0, 16), 1, 64, **RULES), it, "r"),
    "ids to score": lambda it: score_request(scoring(prompts("", 900, 40), "b", heads=["policy"]), it, "r"),
    "rules asked after each item": lambda it: score_request(scoring(prompts("a", 0, 1000), "b", **RULES), it, "r"),
}


@pytest.mark.parametrize("what", BY_COUNTS)
def test_what_counts_show_to_be_too_much_is_refused_before_anything_is_made(what: str, narrow: RequestContext, made: Made) -> None:
    with pytest.raises(ResourceExhausted, match="the whole queue holds 20000"):
        BY_COUNTS[what](narrow)
    assert (made.num_encoded, made.num_samples) == (0, 0)


def test_what_only_tokens_show_is_refused_before_samples_are_made(narrow: RequestContext, made: Made) -> None:
    """Each text is tokenised once, whatever is drawn for it."""
    with pytest.raises(ResourceExhausted, match="the request can come to 1843200 tokens"):
        generate_request(generation(prompts("word " * 899, 0, 2), 16, 64), dataclasses.replace(narrow, max_context=1024), "r")
    assert (made.num_encoded, made.num_samples) == (2, 0)


def test_ids_that_are_too_long_are_refused_before_any_text_is_tokenised(narrow: RequestContext, made: Made) -> None:
    given = [*prompts("a text", 0, 3), *prompts("", 2000, 1)]
    with pytest.raises(InvalidArgument) as caught:
        generate_request(generation(given, 1, 1), narrow, "r")
    assert (caught.value.field, made.num_encoded) == ("prompts[3]", 0)


def test_what_is_counted_is_what_the_request_comes_to(narrow: RequestContext, made: Made) -> None:
    """The count with tokens is the queue's own, so that nothing passes it and is refused behind it."""
    given = [*prompts("a b c", 0, 2), *prompts("", 7, 1)]
    for work in (
        lambda: generate_request(generation(given, 2, 3, **RULES), narrow, "r"),
        lambda: score_request(scoring(given, "d e", **RULES), narrow, "r"),
    ):
        made.asked.clear()
        num_tokens = work().request.num_tokens
        assert made.asked[-1] == num_tokens
        assert all(0 < asked <= num_tokens for asked in made.asked)


def test_encode_is_counted_before_its_ids_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []

    def check_room(priority: Priority, num_tokens: int, draws: Draws | None) -> None:
        refused.append(num_tokens)
        raise ResourceExhausted("full", retry_after_s=1.0)

    servicer = TrunkServicer(cast(Any, SimpleNamespace(check_room=check_room, services=NOTHING)))
    message = trunk_pb2.EncodeRequest(sequences=[types_pb2.TokenIds(ids=[5] * 100)] * 7)
    with pytest.raises(ResourceExhausted):
        servicer._encode_work(message)
    assert refused == [700]


def test_a_probe_has_its_callers_principal_and_deadline() -> None:
    """A refusal by counts must be the one that the whole request would get."""
    asked: list[Request] = []
    runner = CallRunner(cast(Any, SimpleNamespace(engine=SimpleNamespace(check_room=asked.append))))
    current_call.set(Call("/polyhead.v1.GenerationService/Generate", "", Caller(Role.WORKER, "a"), 9.0, NOTHING, due_at=7.0))
    runner.check_room(Priority.INTERACTIVE, 15_000, Draws(2, SamplingParams()))
    [probe] = asked
    assert (probe.num_tokens, probe.due_at, probe.principal, probe.priority) == (15_000, 7.0, "a", Priority.INTERACTIVE)
    assert probe.to_draw == Draws(2, SamplingParams())


class TestRefusalOnTheLoop:
    """Under load most calls are refused for their counts: a hop to a worker thread took a third of a refusal's processor time."""

    @pytest.fixture
    def on_worker(self) -> list[int]:
        """Sizes of messages that a worker was asked to look at."""
        return []

    @pytest.fixture
    def full(self, context: RequestContext, on_worker: list[int], monkeypatch: pytest.MonkeyPatch) -> CallRunner:
        """In front of an engine that has no room."""

        def check_room(request: Request) -> None:
            raise ResourceExhausted("full", retry_after_s=1.0)

        async def run_sized(num_bytes: int, check: Callable[..., Work], *args: Any) -> Work:
            on_worker.append(num_bytes)
            return check(*args)

        current_call.set(Call("/polyhead.v1.GenerationService/Generate", "", Caller(Role.WORKER, "a"), 9.0, NOTHING))
        services = SimpleNamespace(engine=SimpleNamespace(check_room=check_room), workers=SimpleNamespace(run_sized=run_sized))
        runner = CallRunner(cast(Any, services))
        with_room = dataclasses.replace(context, check_room=runner.check_room)
        monkeypatch.setattr(CallRunner, "context", lambda self, named: contextlib.nullcontext(with_room))
        return runner

    @staticmethod
    async def call(frontend: CallRunner, message: generation_pb2.GenerateRequest) -> None:
        async with frontend.admitted(count_generation, generate_request, message, len(message.prompts), "r"):
            pass

    def test_a_short_call_is_refused_without_a_worker(self, full: CallRunner, made: Made, on_worker: list[int]) -> None:
        with pytest.raises(ResourceExhausted, match="full"):
            asyncio.run(self.call(full, generation(prompts("a text", 0, 3), 2, 2)))
        assert (on_worker, made.num_encoded) == ([], 0)

    def test_wrong_input_is_named_all_the_same(self, full: CallRunner) -> None:
        """A client would send it again for ever."""
        with pytest.raises(InvalidArgument) as caught:
            asyncio.run(self.call(full, generation(prompts("a text", 0, 3), 2, 65)))
        assert caught.value.field == "arms[0].n"

    def test_a_long_message_is_looked_at_by_a_worker(self, full: CallRunner, made: Made, on_worker: list[int]) -> None:
        """The event loop is everybody's."""
        message = generation(prompts("", 900, 16), 1, 1)
        assert message.ByteSize() > EVENT_LOOP_BYTES
        with pytest.raises(ResourceExhausted, match="full"):
            asyncio.run(self.call(full, message))
        assert (on_worker, made.num_samples) == ([message.ByteSize()], 0)

    def test_a_message_of_many_parts_is_looked_at_by_a_worker(self, full: CallRunner, made: Made, on_worker: list[int]) -> None:
        """A thousand prompts in ten kilobytes took the event loop ten milliseconds."""
        message = generation(prompts("a", 0, EVENT_LOOP_PARTS + 1), 1, 1)
        assert message.ByteSize() < EVENT_LOOP_BYTES
        with pytest.raises(ResourceExhausted, match="full"):
            asyncio.run(self.call(full, message))
        assert (on_worker, made.num_encoded) == ([message.ByteSize()], 0)


class TestFit:
    """FitOod tokenised a message of up to 256 prompts before anything was counted."""

    @staticmethod
    def fitting(context: RequestContext, check_room: Callable[..., None]) -> OodFitting:
        async def run(function: Callable[..., Any], *args: Any) -> Any:
            return function(*args)

        services = SimpleNamespace(workers=SimpleNamespace(run=run), spec=SimpleNamespace(d_model=8))
        runner = SimpleNamespace(services=services, check_room=check_room, context=lambda: contextlib.nullcontext(context))
        return OodFitting(cast(Any, runner))

    @staticmethod
    def upload(given: list[types_pb2.Prompt], clock: list[float] | None = None, every_s: float = 0.0) -> Upload[trunk_pb2.FitOodRequest]:
        """A message for each prompt, so many seconds apart by a clock that only they move."""
        clock = clock or [0.0]

        async def messages() -> AsyncIterator[trunk_pb2.FitOodRequest]:
            for prompt in given:
                clock[0] += every_s
                yield trunk_pb2.FitOodRequest(prompts=trunk_pb2.FitOodPrompts(prompts=[prompt]))

        return Upload(messages(), "fit", 60.0, lambda: clock[0])

    def test_what_the_queue_cannot_hold_is_refused_before_it_is_tokenised(self, context: RequestContext, made: Made) -> None:
        def check_room(priority: Priority, num_tokens: int, draws: Draws | None) -> None:
            made.asked.append(num_tokens)
            raise ResourceExhausted("the whole queue could not hold it")

        wanted = cast(Any, SimpleNamespace(num_prompts=2))
        with pytest.raises(ResourceExhausted):
            asyncio.run(self.fitting(context, check_room)._gather(self.upload(prompts("a text", 0, 2)), wanted))
        assert (made.asked, made.num_encoded) == ([1], 0)

    def test_ids_that_are_too_long_are_refused_by_their_count(self, context: RequestContext, made: Made) -> None:
        asked = self.fitting(context, context.check_room)
        with pytest.raises(InvalidArgument) as caught:
            asyncio.run(asked._wait_for_room([*prompts("a text", 0, 1), *prompts("", context.max_context + 1, 1)], 5))
        assert (caught.value.field, made.num_encoded) == ("prompts[6]", 0)

    def test_a_fit_that_drips_is_given_up(self, context: RequestContext) -> None:
        """A prompt a minute kept one of two places for hours."""

        async def read(every_s: float) -> int:
            fitting, upload = self.fitting(context, context.check_room), self.upload(prompts("a", 0, 200), every_s=every_s)
            return len([before async for before, _ in fitting._prompts(upload, 200)])

        assert asyncio.run(read(0.05)) == 200
        with pytest.raises(DeadlineExceeded, match=r"the fit was ended: .* at least 64 a second"):
            asyncio.run(read(30.0))
