"""The store's folder is replaced, deleted and put back under a server that runs: health, status and metrics say the same of it."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from polyhead.client import Client
from polyhead.client.errors import FailedPrecondition
from polyhead.client.local import LocalServer
from tests.e2e.support import PROMPT, eventually, fingerprint, serving


def told(server: LocalServer, client: Client) -> tuple[bool, bool, bool]:
    """What health, status and metrics say: all three are True while all is well."""
    with grpc.insecure_channel(server.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ready['metrics_port']}/metrics", timeout=30) as page:
        is_fine = "\npolyhead_active_set_damaged 0.0\n" in page.read().decode()
    return check.status == check.SERVING, not client.status().damage, is_fine


def assert_refuses_changes(client: Client) -> None:
    for change in (lambda: client.activate({"policy": 1}), lambda: client.copy_head("policy@1", "other")):
        with pytest.raises(FailedPrecondition, match="folder was moved"):
            change()


def test_a_store_that_is_replaced_deleted_and_put_back(tiny_model: Path, tmp_path: Path) -> None:
    """Replies go on, from memory; nothing is written into a folder that is not the server's own, and nothing is acknowledged."""
    store, aside = tmp_path / "store", tmp_path / "aside"
    often = {"polyhead.server.versions.store_monitor.CHECK_S": 0.1}
    with serving(tiny_model, store, constants=often) as server, Client(server.address, timeout=60) as client:
        before = fingerprint(client)
        assert told(server, client) == (True, True, True)
        shutil.move(store, aside)
        shutil.copytree(aside, store)
        eventually(lambda: told(server, client) == (False, False, False), what="three reports of a replaced store")
        assert_refuses_changes(client)
        shutil.rmtree(store)
        assert_refuses_changes(client)
        assert told(server, client) == (False, False, False)
        assert fingerprint(client) == before
        assert client.generate([PROMPT], max_new_tokens=2)[0].token_ids
        assert not store.exists(), "nobody makes a folder that would be taken for the store"
        shutil.move(aside, store)
        eventually(lambda: told(server, client) == (True, True, True), what="three reports of a store that is back")
        assert client.activate({"policy": 1}).number == 2
