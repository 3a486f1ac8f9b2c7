"""Real server processes, raw calls, heads that betray their version, and the properties that several files assert."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from polyhead.client import Client, local
from polyhead.client.local import LocalServer, local_server
from tests.e2e.forked import CONSTANTS, FORKED

PROMPT = [1, 70, 71, 72, 73, 74, 75, 76, 77, 78]
WIDTH = 32
FIRST_TOKEN = 100  # the constant policy k gives token FIRST_TOKEN + k
MODEL_WORK = ("requests", "steps", "trunk_tokens", "head_tokens", "generated_tokens")
_salts = itertools.count()


@contextlib.contextmanager
def serving(
    model: Path, store: Path, *flags: str, constants: Mapping[str, float] | None = None, **settings: object
) -> Iterator[LocalServer]:
    """`polyhead serve` on free ports; `settings` become POLYHEAD_* variables of its environment, `constants` values in its modules."""
    environment = {f"POLYHEAD_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {CONSTANTS: json.dumps(constants)} if constants else {}
    arguments = [str(model), "--store", str(store), "--split-layer", "2", "--threads", "1", "--cache-bytes", "32000000", *flags]
    with mock.patch.dict(os.environ, environment), mock.patch.object(local, "subprocess", FORKED), local_server(arguments) as server:
        try:
            yield server
        finally:
            server.process.kill()  # what a graceful end does is one test's own affair


def call(channel: grpc.Channel, method: str, *messages: Any, timeout: float = 30.0, metadata: Any = None) -> list[bytes]:
    """Any method of the contract with messages or raw bytes: on the wire all four shapes of a call are one."""
    bodies = [message if isinstance(message, bytes) else message.SerializeToString() for message in messages]
    return list(channel.stream_stream(f"/polyhead.v1.{method}")(iter(bodies), timeout=timeout, metadata=metadata))


def error_of(run: Callable[[], Any]) -> Any:
    """The RpcError that `run` ends with."""
    try:
        run()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call succeeded")


def details_of(error: Any) -> list[Any]:
    """The google.rpc details of a status, unpacked."""
    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    unpacked = []
    for detail in status_pb2.Status.FromString(packed).details:
        unpacked.append(getattr(error_details_pb2, detail.type_url.rpartition(".")[2])())
        assert detail.Unpack(unpacked[-1])
    return unpacked


def retry_infos(error: Any) -> list[Any]:
    return [detail for detail in details_of(error) if isinstance(detail, error_details_pb2.RetryInfo)]


def assert_reveals_nothing(error: Any, sent: bytes = b"") -> None:
    """No path, traceback or class name in a status, apart from values quoted from the request; and never UNKNOWN."""
    assert error.code() is not grpc.StatusCode.UNKNOWN
    said = re.sub(r"'([^']*)'", lambda quoted: "" if quoted[1].encode() in sent else quoted[0], error.details())
    assert not re.search(r"/|Traceback|\w+(Error|Exception)\b|Error\(|<class|object at 0x|File \"", said), said


def eventually(is_so: Callable[[], bool], within_s: float = 60.0, what: str = "it") -> None:
    end_at = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < end_at, f"{what} did not come true within {within_s:g} s"
        time.sleep(0.02)


def assert_blocks_returned(client: Client) -> None:
    """Nothing runs, nothing waits, and no block belongs to a sequence."""

    def is_idle() -> bool:
        now = client.status()
        return (now.num_running, now.num_waiting, now.num_used_blocks) == (0, 0, 0)

    eventually(is_idle, what=f"an idle engine: {client.status()}")


def fresh_salt() -> str:
    """A salt that nobody used: the request meets a cold cache, so two runs do the very same arithmetic."""
    return f"salt-{next(_salts)}"


def fingerprint(client: Client) -> bytes:
    """What the active policy and value heads say about one text, bit for bit."""
    item = client.score([(PROMPT, list(range(80, 110)))], heads=["policy", "value"], cache_salt=fresh_salt())[0]
    return item.scores["policy"].logprobs.tobytes() + item.scores["value"].values.tobytes()


def wait_until_running(client: Client, num_requests: int = 1) -> None:
    eventually(lambda: client.status().num_running >= num_requests, what="a running request")


# Heads whose output does not depend on the text: the last layer adds so much to every coordinate that the final norm gives ones.


def constant_policy(client: Client, token_id: int) -> dict[str, np.ndarray]:
    """Weights of a policy that gives one token, whatever it reads."""
    tensors = _flat_layers(client)
    output = np.zeros((client.trunk().vocab_size, WIDTH), np.float32)
    output[token_id] = 1.0
    return {**tensors, "lm_head.weight": output}


def constant_value(client: Client, number: float) -> dict[str, np.ndarray]:
    """Weights of a value head that answers one number, whatever it reads."""
    return {**_flat_layers(client), "score.weight": np.full((1, WIDTH), number / WIDTH, np.float32)}


def _flat_layers(client: Client) -> dict[str, np.ndarray]:
    tensors = {name: np.array(value) for name, value in client.pull_head("reference@1").items() if name != "lm_head.weight"}
    tensors["model.layers.3.mlp.down_proj.bias"] = np.full(WIDTH, 1e4, np.float32)
    tensors["model.norm.weight"] = np.ones(WIDTH, np.float32)
    return tensors


def push_pair(client: Client, number: int) -> dict[str, int]:
    """A policy and a value head of one make; what to activate."""
    return {
        "policy": client.push_head("policy", constant_policy(client, FIRST_TOKEN + number), kind="policy"),
        "value": client.push_head("value", constant_value(client, number), kind="value"),
    }


def numbers_of(token_ids: Sequence[int], values: Sequence[float]) -> set[int]:
    """Which makes of head a sample shows: a single one if it was all done on one generation."""
    return {token - FIRST_TOKEN for token in token_ids} | {round(float(value)) for value in values}
