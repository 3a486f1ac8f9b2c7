"""On a local Ray: start, update, scale out, kill -9 of each kind of server. All servers have one generation at the end of each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import ray
import yaml
from ray import serve

from polyhead.client import Client, Fleet
from polyhead.client.errors import PolyheadError
from polyhead.client.integrations.ray.application import Arguments, application
from polyhead.client.integrations.ray.places import free_port
from polyhead.v1 import fleet_pb2, fleet_pb2_grpc
from tests.deploy.conftest import DEPLOY
from tests.deploy.yamlfile import read_one
from tests.e2e.tiny import save_tiny_llama

pytestmark = pytest.mark.timeout(900)
HTTP = 18473


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application on a Ray of this machine, and the primary's address as its HTTP route tells it."""
    folder = tmp_path_factory.mktemp("ray")
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": HTTP})
        arguments: dict[str, Any] = {
            "flags": [str(save_tiny_llama(folder / "model")), "--cache-bytes", str(64 << 20), "--no-commit-caches"],
            "store": str(folder / "store"),
            "host": "127.0.0.1",
            "port": free_port("127.0.0.1"),
            "max_followers": 3,
            "open_requests": 4,
            "primary_resources": {"num_cpus": 0.2},
            "follower_resources": {"num_cpus": 0.2},
            "upscale_delay_s": 1,
            "downscale_delay_s": 600,
            "drain_s": 5,
        }
        serve.run(application(arguments), name="polyhead", route_prefix="/polyhead")
        with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}/polyhead", timeout=60) as answer:
            yield json.load(answer)["primary"]
    finally:
        serve.shutdown()
        ray.shutdown()


def test_the_files_of_deploy_have_arguments_that_it_takes() -> None:
    files = [read_one(DEPLOY / "ray" / "serve.yaml"), yaml.safe_load(read_one(DEPLOY / "ray" / "rayservice.yaml")["spec"]["serveConfigV2"])]
    for [described] in [file["applications"] for file in files]:
        module, _, name = described["import_path"].partition(":")
        assert (module, name) == (application.__module__, application.__name__)
        assert Arguments.model_validate(described["args"]).min_followers == 1


def eventually(check: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        with contextlib.suppress(PolyheadError, grpc.RpcError):
            if check():
                return
        time.sleep(0.2)
    pytest.fail(f"not within {seconds} s: {what}")


def replicas(primary: str) -> list[fleet_pb2.Replica]:
    with grpc.insecure_channel(primary) as channel:
        [first] = fleet_pb2_grpc.FleetServiceStub(channel).ListReplicas(fleet_pb2.ListReplicasRequest(), timeout=10)
        return list(first.replicas)


def serving(primary: str) -> dict[str, int]:
    """Addresses of all that serve, and their generations; those that were lost are not counted."""
    return {each.address: each.generation for each in replicas(primary) if each.state == fleet_pb2.REPLICA_STATE_SERVING}


def update(primary: str, shift: float) -> int:
    """Push and activate a policy. The number of its generation, once all replicas say that they have it."""
    with Fleet(primary, timeout=60) as fleet:
        weights = {name: np.asarray(value, np.float32) + np.float32(shift) for name, value in fleet.pull_head("policy").items()}
        generation = fleet.update({"policy": weights})
        with fleet.pinned(generation) as pinned:
            assert len(pinned.generate([[5, 7]] * 4, max_new_tokens=3)) == 4
    return generation.number


def assert_one_generation(primary: str, number: int, count: int) -> None:
    """As each server itself says."""
    addresses = serving(primary)
    assert len(addresses) == count
    for address in addresses:
        with Client(address, timeout=30) as client:
            assert client.status().generation == number, address


def server_pid(address: str) -> int:
    """Of the process that listens there."""
    port = int(address.rpartition(":")[2])
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if b"serve" in words and str(port).encode() in words:
                return int(entry.name)
    raise AssertionError(f"nobody serves at {address}")


def test_a_fleet_on_ray(primary: str) -> None:
    eventually(lambda: len(serving(primary)) == 2, "a primary and a follower")
    assert_one_generation(primary, update(primary, 0.001), 2)

    ends = threading.Event()
    follower = next(address for address in serving(primary) if address != primary)

    def load() -> None:
        with Client(follower, timeout=60) as client:
            while not ends.is_set():
                with contextlib.suppress(PolyheadError):
                    client.generate([[5, 7]], max_new_tokens=200, ignore_eos=True)

    callers = [threading.Thread(target=load) for _ in range(12)]
    for each in callers:
        each.start()
    try:
        eventually(lambda: len(serving(primary)) == 4, "three followers under load")
    finally:
        ends.set()
        for each in callers:
            each.join()
    assert_one_generation(primary, update(primary, 0.002), 4)

    killed = next(address for address in serving(primary) if address != primary)
    before = server_pid(killed)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: len(serving(primary)) < 4, "the primary misses it")
    eventually(lambda: len(serving(primary)) == 4 and killed in serving(primary), "the same follower again")
    assert server_pid(killed) != before
    number = update(primary, 0.003)
    assert_one_generation(primary, number, 4)

    os.kill(server_pid(primary), signal.SIGKILL)
    eventually(lambda: set(serving(primary).values()) == {number} and len(serving(primary)) == 4, "the primary again, with its followers")
    assert_one_generation(primary, update(primary, 0.004), 4)
