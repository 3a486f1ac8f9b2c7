"""What callers do to a server: leave, crowd it, stop reading, and tell it to end. What it owes to the others meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyhead.client import Client
from polyhead.client.errors import DeadlineExceeded, PermissionDenied, Unauthenticated, Unavailable
from polyhead.client.local import LocalServer
from polyhead.client.wire import generation_requests
from polyhead.v1 import generation_pb2_grpc, trunk_pb2_grpc
from polyhead.v1.trunk_pb2 import GetStatusRequest
from tests.e2e.support import (
    PROMPT,
    assert_blocks_returned,
    assert_reveals_nothing,
    error_of,
    eventually,
    retry_infos,
    serving,
    wait_until_running,
)

LONG: dict[str, Any] = {"max_new_tokens": 900, "ignore_eos": True}
TOKENS = {role: f"{role}-token-of-the-tests" for role in ("worker", "trainer", "admin")}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("requests") / "store"


@pytest.fixture(scope="module")
def server(tiny_model: Path, store: Path) -> Iterator[LocalServer]:
    with serving(tiny_model, store) as opened:
        yield opened


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=120) as opened:
        yield opened
        assert_blocks_returned(opened)


def open_stream(channel: grpc.Channel, prompt: list[int] = PROMPT, timeout: float = 120.0, **options: Any) -> Any:
    """A raw stream that nobody reads yet."""
    request = generation_requests.generate([prompt], **{"delivery": "tokens", **options})
    return generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=timeout)


def is_serving(channel: grpc.Channel, timeout: float = 2.0) -> bool:
    status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout).status
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


# callers that leave


def leave(address: str, seed: int) -> None:
    """One request that its caller drops: by cancel, deadline, disconnect or an early end of the loop, at a random moment."""
    generator = random.Random(seed)
    prompt = [generator.randrange(5, 200) for _ in range(generator.choice([1, 20, 300]))]
    options = {"n": generator.randint(1, 3), "max_new_tokens": 400, "ignore_eos": True, "score": ["value"] if seed % 3 == 0 else None}
    way = ("cancel", "deadline", "disconnect", "loop")[seed % 4]
    if way == "loop":
        with Client(address) as client, client.samples([prompt], **{**options, "max_new_tokens": 5}) as samples:
            next(samples)
        return
    with grpc.insecure_channel(address) as channel:
        if way == "deadline":
            error = error_of(lambda: list(open_stream(channel, prompt, timeout=generator.uniform(0.001, 0.05), **options)))
            assert error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)  # or refused at the door
            assert_reveals_nothing(error)
            return
        stream = open_stream(channel, prompt, **options)
        for _ in itertools.islice(stream, generator.choice([0, 1, 2, 10])):
            pass
        if way == "cancel":
            time.sleep(generator.uniform(0, 0.02))
            stream.cancel()


@pytest.mark.parametrize("num_callers", [24, pytest.param(200, marks=pytest.mark.long)])
def test_callers_that_leave_give_every_block_back(server: LocalServer, client: Client, num_callers: int) -> None:
    """An abort in a waiting state never returned its blocks in other servers (vLLM #46283)."""
    before = client.status()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda seed: leave(server.address, seed), range(num_callers)))
    assert_blocks_returned(client)
    after = client.status()
    assert after.num_blocks == before.num_blocks
    assert after.counters["aborted_requests"] > before.counters["aborted_requests"]
    steps = after.counters["steps"]
    time.sleep(0.1)
    assert client.status().counters["steps"] == steps
    assert not any(head.num_leases for head in client.status().resident_heads)
    assert len(client.generate([PROMPT], max_new_tokens=5, ignore_eos=True)[0].token_ids) == 5


def test_a_cancel_stops_the_work_within_a_step_or_two(server: LocalServer, client: Client) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stream = open_stream(channel, **LONG)
        next(stream)
        stream.cancel()
        assert_blocks_returned(client)
    assert client.status().counters["generated_tokens"] >= 1
    drawn = client.status().counters["generated_tokens"]
    time.sleep(0.1)
    assert client.status().counters["generated_tokens"] == drawn


def test_our_clients_deadline_ends_the_work(client: Client) -> None:
    """With a stop string the replies could end before the deadline, so the call is not refused at once."""
    with pytest.raises(DeadlineExceeded):
        client.generate([PROMPT], n=16, timeout=0.2, stop=["never drawn"], **LONG)


# callers that crowd


def test_a_full_queue_says_so_at_once_and_keeps_a_share_for_people(tiny_model: Path, tmp_path: Path) -> None:
    with (
        serving(tiny_model, tmp_path / "store", max_queue_requests=8, interactive_share=0.25) as server,
        Client(server.address) as client,
        grpc.insecure_channel(server.address) as channel,
    ):
        crowd = [open_stream(channel, n=4, **LONG) for _ in range(6)]
        eventually(lambda: client.status().counters["requests"] == 6, what="a full queue")
        for _ in range(5):
            error = error_of(lambda: list(open_stream(channel, max_new_tokens=1)))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert retry_infos(error)
            assert_reveals_nothing(error)
        person = client.generate([PROMPT], max_new_tokens=3, ignore_eos=True, priority="interactive")[0]
        assert len(person.token_ids) == 3
        assert client.status().num_running >= 6  # the person did not wait for the crowd to finish
        for stream in crowd:
            stream.cancel()
        assert_blocks_returned(client)
        assert client.status().counters["rejected_requests"] == 5


def test_a_reader_that_stops_reading_slows_nobody(server: LocalServer, client: Client) -> None:
    """The engine finishes an unread request and frees its blocks; its tokens wait, merged, until they are read."""
    alone = client.generate([PROMPT], seed=3, max_new_tokens=100, ignore_eos=True)[0]
    with grpc.insecure_channel(server.address) as channel:
        unread = [open_stream(channel, n=4, **LONG) for _ in range(2)]
        wait_until_running(client, 2)
        taken = []
        for _ in range(5):  # the fewest steps count: a machine that is busy with something else adds some around a call
            steps = client.status().counters["steps"]
            beside = client.generate([PROMPT], seed=3, max_new_tokens=100, ignore_eos=True)[0]
            taken.append(client.status().counters["steps"] - steps)
            assert beside.token_ids == alone.token_ids
            if min(taken) < 150:
                break
        assert min(taken) < 150  # a token a step, and some steps around the call
        eventually(lambda: client.status().num_running == 0, within_s=60, what="the end of two unread requests")
        assert_blocks_returned(client)
        for stream in unread:
            events = list(stream)
            assert sum(len(event.piece.token_ids) for event in events) == 4 * 900
            assert [len(event.sample.token_ids) for event in events if event.HasField("sample")] == [900] * 4


def test_health_answers_while_the_engine_is_busy(server: LocalServer, client: Client) -> None:
    """Other servers' health took 30 s under load, and a probe of 4 s killed them (vLLM #38157)."""
    with grpc.insecure_channel(server.address) as channel, grpc.insecure_channel(server.address) as probe:
        streams = [open_stream(channel, list(range(5, 255)) * 2, cache_salt=f"busy{index}", n=4, max_new_tokens=300) for index in range(10)]
        wait_until_running(client)
        answers = []
        for _ in range(30):
            answers.append(is_serving(probe))
            time.sleep(0.01)
        was_busy = client.status().num_running > 0
        for stream in streams:
            stream.cancel()
        assert all(answers)
        assert was_busy


def test_two_clients_at_once_get_what_each_gets_alone(server: LocalServer, client: Client) -> None:
    """A seeded request beside others, seeded or not, draws the same tokens (vLLM #51226)."""
    options: dict[str, Any] = {"n": 3, "max_new_tokens": 40, "ignore_eos": True}
    alone = [client.generate([PROMPT], seed=seed, **options) for seed in range(6)]
    with Client(server.address) as other, ThreadPoolExecutor(8) as threads:
        noise = [threads.submit(other.generate, [PROMPT], **options) for _ in range(2)]
        together = list(threads.map(lambda seed: (client, other)[seed % 2].generate([PROMPT], seed=seed, **options), range(6)))
        for each in noise:
            each.result()
    for before, now in zip(alone, together, strict=True):
        assert [sample.token_ids for sample in now] == [sample.token_ids for sample in before]


def test_one_request_id_used_twice_at_once_makes_two_answers(client: Client) -> None:
    """A caller's id as the engine's own key crashed other servers (vLLM #10583)."""
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(
            lambda number: client.generate([PROMPT], request_id="same", max_new_tokens=20 + number, ignore_eos=True)[0], (1, 2)
        )
    assert (len(first.token_ids), len(second.token_ids), first.request_id, second.request_id) == (21, 22, "same", "same")


# the end, and other servers


def test_sigterm_lets_streams_finish_and_takes_no_more(tiny_model: Path, tmp_path: Path) -> None:
    with serving(tiny_model, tmp_path / "store") as server, grpc.insecure_channel(server.address) as channel:
        streams = [open_stream(channel, seed=seed, **LONG) for seed in range(4)]
        for stream in streams:
            next(stream)
        assert is_serving(channel)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: not is_serving(channel), what="NOT_SERVING")
        status = trunk_pb2_grpc.TrunkServiceStub(channel).GetStatus
        for run in (lambda: list(open_stream(channel, max_new_tokens=1)), lambda: status(GetStatusRequest(), timeout=10)):
            error = error_of(run)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert retry_infos(error)
        with Client(server.address) as ours, pytest.raises(Unavailable):
            ours.pull_head("policy", timeout=20.0)  # with gRPC's own retries on a stream this hung for ever, past its deadline
        assert server.process.poll() is None
        for stream in streams:
            events = list(stream)
            assert len(events[-1].sample.token_ids) == 900
        assert server.process.wait(30) == 0


def test_a_second_server_on_the_same_store_or_port_ends_with_the_reason(
    server: LocalServer, client: Client, tiny_model: Path, store: Path, tmp_path: Path
) -> None:
    """SO_REUSEPORT is gRPC's default: a second server would take half of the first one's connections without an error."""
    with pytest.raises(Unavailable, match="exit status 2") as caught, serving(tiny_model, store):
        pass
    assert "locked by another server" in caught.value.message
    with pytest.raises(Unavailable, match="exit status 2") as caught, serving(tiny_model, tmp_path, "--port", str(server.ready["port"])):
        pass
    assert "address is in use" in caught.value.message
    assert len(client.generate([PROMPT], max_new_tokens=2, ignore_eos=True)[0].token_ids) == 2


# who may do what


def test_each_role_may_do_its_own_things(tiny_model: Path, tmp_path: Path) -> None:
    settings = {f"token_{role}": token for role, token in TOKENS.items()}
    with serving(tiny_model, tmp_path / "store", **settings) as server, contextlib.ExitStack() as stack:

        def client(token: str | None) -> Client:
            return stack.enter_context(Client(server.address, token=token))

        worker, trainer, admin = (client(TOKENS[role]) for role in ("worker", "trainer", "admin"))
        weights = trainer.pull_head("policy")
        for nobody in (client(None), client("a-token-that-nobody-knows")):
            for run in (nobody.trunk, nobody.status, lambda nobody=nobody: nobody.generate([PROMPT])):
                with pytest.raises(Unauthenticated):
                    run()
        assert len(worker.generate([PROMPT], max_new_tokens=2, ignore_eos=True)[0].token_ids) == 2
        for run in (
            lambda: worker.push_head("policy", weights, kind="policy"),
            lambda: worker.activate({"policy": 1}),
            lambda: worker.pull_head("policy"),
            lambda: worker.copy_head("policy", "mine"),
            lambda: worker.fit_ood("mine", [PROMPT]),
            worker.rollback,
            lambda: worker.delete_head("policy@1"),
            lambda: trainer.delete_head("policy@1"),
        ):
            with pytest.raises(PermissionDenied):
                run()
        version = trainer.push_head("policy", weights, kind="policy")
        assert trainer.activate({"policy": version}).heads["policy"] == version
        trainer.activate({"policy": 1})
        trainer.activate({"policy": 1})
        admin.delete_head(f"policy@{version}")
        with grpc.insecure_channel(server.address) as channel:
            assert is_serving(channel)  # probes carry no token


@pytest.mark.parametrize("settings", [{}, {"token_worker": TOKENS["worker"]}])
def test_beyond_loopback_it_starts_with_tls_and_tokens_or_not_at_all(tiny_model: Path, tmp_path: Path, settings: dict[str, str]) -> None:
    with (
        pytest.raises(Unavailable, match=r"refusing to listen on 0\.0\.0\.0"),
        serving(tiny_model, tmp_path / "store", "--host", "0.0.0.0", **settings),
    ):
        pass
