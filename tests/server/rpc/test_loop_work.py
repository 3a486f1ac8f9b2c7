"""No piece of work on the event loop grows with what a caller sends: counted in items, while a whole server answers large calls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from polyhead.server.config import ServeConfig
from polyhead.server.engine.work.request import Sample
from polyhead.server.metrics.metrics import Metrics
from polyhead.server.process.startup import bring_up_heads, build_services
from polyhead.server.process.workers import Workers
from polyhead.server.rpc import finishing
from polyhead.server.rpc.listen import add_servicers
from polyhead.server.rpc.messages import answers as answers_messages
from polyhead.server.rpc.messages import generation_requests, prompts, request_parts, scoring_requests
from polyhead.server.rpc.services.call import EVENT_LOOP_TOKENS
from polyhead.server.rpc.stream import hand_over
from polyhead.server.text import replies
from polyhead.server.text.tokenizer import Tokenizer
from polyhead.v1 import generation_pb2, generation_pb2_grpc, scoring_pb2, scoring_pb2_grpc, trunk_pb2, trunk_pb2_grpc, types_pb2
from tests.e2e.tiny import save_tiny_llama
from tests.server.fakes import grpc_server

LONG = 60_000  # characters, of a token each


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A whole server in this process."""
    config = ServeConfig(
        model=str(save_tiny_llama(tmp_path / "model")), split_layer=2, store=tmp_path / "store", cache_bytes=32_000_000, threads=1
    )
    workers, loop = Workers(), asyncio.get_running_loop()
    services = await workers.run(build_services, config, Metrics(), workers, lambda step: None)
    services.engine.outbox.sink = lambda outbox: hand_over(loop, outbox)
    services.engine.start()
    await workers.run(bring_up_heads, services, lambda step: None)
    async with grpc_server(lambda late: add_servicers(late, services), max_call_s=120.0) as (opened, _, _):
        yield opened
    await asyncio.to_thread(services.engine.stop)
    await asyncio.to_thread(workers.close)
    services.store.close()


@dataclass
class LoopWork:
    """Items that functions which go through items were given, within one callback of the event loop."""

    now: int = 0
    most: int = 0

    def add(self, num_items: int) -> None:
        self.now += num_items
        self.most = max(self.most, self.now)


@pytest.fixture
def work(channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch) -> LoopWork:
    loop_thread, found, run = threading.get_ident(), LoopWork(), asyncio.Handle._run

    def begin(handle: asyncio.Handle) -> None:
        found.now = 0
        run(handle)

    monkeypatch.setattr(asyncio.Handle, "_run", begin)

    def count(owner: Any, name: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == loop_thread:
                found.add(max(_num_items(each) for each in args))
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    for name in ("encode", "decode"):
        count(Tokenizer, name)
    for name in ("checked_ids", "prompt_ids", "completion_ids"):
        count(prompts, name)
    count(generation_requests, "generate_request")
    count(scoring_requests, "score_request")
    for owner in (scoring_requests, request_parts):
        count(owner, "given_sample")
    for name in ("sample_message", "scored_item", "piece"):
        count(answers_messages, name)
    for owner in (finishing, replies):
        count(owner, "check_reply")
    return found


def _num_items(given: Any) -> int:
    if isinstance(given, Sample):
        return given.num_tokens
    if isinstance(given, (generation_pb2.GenerateRequest, scoring_pb2.ScoreRequest)):
        return given.ByteSize()
    return len(given) if hasattr(given, "__len__") else 0


async def test_large_calls_are_worked_on_beside_the_event_loop(channel: grpc.aio.Channel, work: LoopWork) -> None:
    """Detokenising four million ids, checking those of a pooled Encode, and making a group's messages held everybody up."""
    trunk, text = trunk_pb2_grpc.TrunkServiceStub(channel), "a" * LONG
    ids = (await trunk.Tokenize(trunk_pb2.TokenizeRequest(prompt=types_pb2.Prompt(text=text), without_special_tokens=True))).token_ids
    assert len(ids) == LONG
    several = [types_pb2.Prompt(text=text[:size]) for size in (3, LONG // 2)]
    batch = (await trunk.Tokenize(trunk_pb2.TokenizeRequest(prompts=several, without_special_tokens=True))).sequences
    assert [each.ids for each in batch] == [ids[:3], ids[: LONG // 2]]
    assert (await trunk.Detokenize(trunk_pb2.DetokenizeRequest(token_ids=ids))).text == text
    sequences = [types_pb2.TokenIds(ids=ids[:100])] * 100
    pooled = trunk.Encode(trunk_pb2.EncodeRequest(sequences=sequences, pooling=trunk_pb2.POOLING_LAST))
    assert len([message async for message in pooled]) == 100
    scored = scoring_pb2.ScoreItem(prompt=types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=ids[:1000])), text="b" * 1000)
    request = scoring_pb2.ScoreRequest(items=[scored] * 5, score=types_pb2.ScoringSpec(heads=["policy"]))
    assert len((await scoring_pb2_grpc.ScoringServiceStub(channel).Score(request)).items) == 5
    arm = generation_pb2.Arm(n=16, sampling=types_pb2.Sampling(max_new_tokens=4, ignore_eos=True))
    prompt = types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=ids[:1000]))
    group = generation_pb2.GenerateRequest(prompts=[prompt], arms=[arm], delivery=generation_pb2.DELIVERY_GROUPS)
    answers = [each async for each in generation_pb2_grpc.GenerationServiceStub(channel).Generate(group)]
    assert [len(each.group.samples) for each in answers if each.HasField("group")] == [16]
    assert work.most <= EVENT_LOOP_TOKENS


async def test_a_scores_answer_is_written_item_by_item(channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """protobuf stops every thread while it writes a message: one of 18 MiB took a third of a second, on whatever thread it was written."""
    stub, whole, num_items = scoring_pb2_grpc.ScoringServiceStub(channel), scoring_pb2.ScoreResponse, list[int]()

    def made(**fields: Any) -> scoring_pb2.ScoreResponse:
        num_items.append(len(fields.get("items", ())))
        return whole(**fields)

    items = [scoring_pb2.ScoreItem(prompt=types_pb2.Prompt(text="a"), text="b" * size) for size in (1, 2, 3)]
    monkeypatch.setattr(scoring_pb2, "ScoreResponse", made)
    answer = await stub.Score(scoring_pb2.ScoreRequest(items=items, score=types_pb2.ScoringSpec(heads=["policy"]), request_id="mine"))
    assert sorted(num_items) == [0, 1, 1, 1]
    assert [len(each.token_ids) for each in answer.items] == [1, 2, 3]
    assert (answer.request_id, set(answer.served.head_versions)) == ("mine", {"policy"})


async def test_a_small_reply_needs_no_other_thread(channel: grpc.aio.Channel, work: LoopWork) -> None:
    """What the counter sees: this one is made on the event loop."""
    arm = generation_pb2.Arm(sampling=types_pb2.Sampling(max_new_tokens=4, ignore_eos=True))
    request = generation_pb2.GenerateRequest(prompts=[types_pb2.Prompt(text="abc")], arms=[arm])
    assert [each async for each in generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)]
    assert 4 <= work.most <= 100


async def test_a_text_that_must_be_too_long_is_not_tokenised(channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen of 4 MB kept every worker for half a minute, to be refused then."""
    tokenised: list[int] = []
    encode = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, text, special=True: (tokenised.append(len(text)), encode(self, text, special))[1])
    too_long = types_pb2.Prompt(text="a" * LONG)
    items = [scoring_pb2.ScoreItem(prompt=too_long, text="b")]
    score = scoring_pb2.ScoreRequest(items=items, score=types_pb2.ScoringSpec(heads=["policy"]))
    for call in (
        generation_pb2_grpc.GenerationServiceStub(channel).Generate(generation_pb2.GenerateRequest(prompts=[too_long])).read(),
        scoring_pb2_grpc.ScoringServiceStub(channel).Score(score),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "bytes of text are more than 4096 tokens" in (caught.value.details() or "")
    assert not tokenised
