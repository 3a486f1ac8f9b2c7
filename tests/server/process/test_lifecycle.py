"""Whole servers as child processes, on a tiny model: start, ready line, restart, drain, and what a second one says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polyhead.v1 import generation_pb2, generation_pb2_grpc, heads_pb2, heads_pb2_grpc, types_pb2
from tests.e2e.forked import COMMAND, ForkedServer
from tests.heads.models import VOCAB, save_tiny

START_S = 280.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tied llama with a tokenizer of 97 words."""
    folder = tmp_path_factory.mktemp("model")
    save_tiny("llama", folder, tie_word_embeddings=True, max_position_embeddings=512)
    words = ["<unk>", "<s>", "</s>", "Yes", "No", "yes", "no", *(f"w{index}" for index in range(VOCAB - 7))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


class Server:
    """One process; `ready` is its ready line. Forked off one that has torch imported, or started as a person starts it."""

    def __init__(self, model: Path, store: Path, *flags: str, is_forked: bool = True, **environment: str) -> None:
        command = [sys.executable, "-m", COMMAND, "serve", str(model), "--store", str(store), "--json-ready", "--split-layer", "2"]
        small = ["--cache-bytes", "4000000", "--max-context", "64"]
        ports = [] if "--port" in flags else ["--port", "0"]
        start = ForkedServer if is_forked else subprocess.Popen
        with mock.patch.dict(os.environ, environment):
            arguments = [*command, *small, "--metrics-port", "0", *ports, *flags]
            self.process = start(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._watchdog = threading.Timer(START_S, self.process.kill)
        self._watchdog.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready: dict[str, Any] = json.loads(line) if line.startswith("{") else {}

    @property
    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.ready['port']}")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and what it wrote to stderr."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=60)
        self._watchdog.cancel()
        return self.process.returncode, stderr


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    opened: list[Server] = []
    yield opened
    for server in opened:
        server.end(signal.SIGKILL)


def health(channel: grpc.Channel, service: str = "") -> int:
    return int(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status)


def generate(channel: grpc.Channel, max_new_tokens: int) -> Any:
    sampling = types_pb2.Sampling(max_new_tokens=max_new_tokens, ignore_eos=True, seed=1)
    prompt = types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[7, 8, 9]))
    request = generation_pb2.GenerateRequest(prompts=[prompt], arms=[generation_pb2.Arm(sampling=sampling)])
    return generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=60)


def test_start_serve_drain_restart(model: Path, tmp_path: Path, servers: list[Server]) -> None:
    servers.append(first := Server(model, tmp_path / "store", is_forked=False))
    assert first.ready["event"] == "ready", first.end()
    assert first.ready["heads"] == {"policy": 1, "preference": 1, "reference": 1, "rule": 1, "value": 1}
    with first.channel as channel:
        for service in ("", "polyhead.v1.GenerationService", "polyhead.v1.head/policy", "liveness"):
            assert health(channel, service) == health_pb2.HealthCheckResponse.SERVING
        events = list(generate(channel, 5))
        assert events[0].accepted.served.generation == 1
        assert len(events[-1].sample.token_ids) == 5
        heads = heads_pb2_grpc.HeadServiceStub(channel)
        heads.CopyHead(heads_pb2.CopyHeadRequest(source="policy", target="policy"))
        assert heads.ActivateHeads(heads_pb2.ActivateHeadsRequest(heads={"policy": 2})).generation.number == 2
    assert first.end()[0] == 0
    servers.append(second := Server(model, tmp_path / "store"))
    assert (second.ready["generation"], second.ready["heads"]["policy"]) == (2, 2)
    assert second.end(signal.SIGINT)[0] == 0


@pytest.mark.parametrize("is_asked", [True, False])
def test_the_memory_of_the_caches_is_taken_when_asked(model: Path, tmp_path: Path, servers: list[Server], is_asked: bool) -> None:
    servers.append(server := Server(model, tmp_path / "store", POLYHEAD_COMMIT_CACHES=str(is_asked)))
    with server.channel as channel:
        assert all(list(generate(channel, 20)) for _ in range(5))  # a thousand pages take less
    code, stderr = server.end()
    assert (code, "the memory of the caches was allocated" in stderr) == (0, is_asked), stderr


def test_a_second_server_learns_what_is_taken(model: Path, tmp_path: Path, servers: list[Server]) -> None:
    servers.append(first := Server(model, tmp_path / "store"))
    servers.append(same_store := Server(model, tmp_path / "store"))
    servers.append(same_port := Server(model, tmp_path / "other", "--port", str(first.ready["port"])))
    code, stderr = same_store.end()
    assert (code, "locked by another server" in stderr) == (2, True), stderr
    code, stderr = same_port.end()
    assert (code, "address is in use" in stderr) == (2, True), stderr


def test_drain_lets_a_running_request_finish(model: Path, tmp_path: Path, servers: list[Server]) -> None:
    servers.append(server := Server(model, tmp_path / "store"))
    with server.channel as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        events = generate(channel, 60)
        next(events)
        server.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert len(list(events)[-1].sample.token_ids) == 60
    assert server.end()[0] == 0


def test_a_damaged_active_set_is_not_served(model: Path, tmp_path: Path, servers: list[Server]) -> None:
    servers.append(first := Server(model, tmp_path / "store"))
    assert first.end()[0] == 0
    blob = max((tmp_path / "store" / "blobs").iterdir())
    blob.write_bytes(blob.read_bytes()[:-1] + b"\xff")
    servers.append(second := Server(model, tmp_path / "store"))
    assert second.ready["event"] == "damaged"
    with second.channel as channel:
        assert health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            list(generate(channel, 2))
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    code, stderr = second.end()
    assert (code, "polyhead heads rollback --to" in stderr) == (0, True)


def test_a_damaged_version_that_is_not_active_is_said_and_the_rest_is_served(model: Path, tmp_path: Path, servers: list[Server]) -> None:
    servers.append(first := Server(model, tmp_path / "store"))
    with first.channel as channel:
        heads_pb2_grpc.HeadServiceStub(channel).CopyHead(heads_pb2.CopyHeadRequest(source="policy", target="policy"))
    assert first.end()[0] == 0
    (tmp_path / "store" / "versions" / "policy" / "2.json").write_bytes(b"torn")
    servers.append(second := Server(model, tmp_path / "store"))
    assert second.ready["event"] == "ready"
    code, stderr = second.end()
    assert (code, "polyhead heads delete policy@2" in stderr) == (0, True)


def test_a_kill_after_the_commit_point_leaves_the_new_set(model: Path, tmp_path: Path, servers: list[Server]) -> None:
    activation = heads_pb2.ActivateHeadsRequest(heads={"policy": 2}, request_id="a", expected_generation=1)
    servers.append(first := Server(model, tmp_path / "store", POLYHEAD_FP="before_ack:kill@2"))
    with first.channel as channel:
        heads = heads_pb2_grpc.HeadServiceStub(channel)
        heads.CopyHead(heads_pb2.CopyHeadRequest(source="policy", target="policy"))
        with pytest.raises(grpc.RpcError):
            heads.ActivateHeads(activation, timeout=30)
    assert first.end()[0] == -signal.SIGKILL
    servers.append(second := Server(model, tmp_path / "store"))
    assert second.ready["generation"] == 2
    with second.channel as channel:
        again = heads_pb2_grpc.HeadServiceStub(channel).ActivateHeads(activation)
        assert again.generation.number == 2


def test_bad_settings_end_with_status_2(model: Path, tmp_path: Path, servers: list[Server]) -> None:
    servers.append(server := Server(model, tmp_path / "store", "--host", "0.0.0.0"))
    code, stderr = server.end()
    assert (code, "refusing to listen" in stderr) == (2, True)
