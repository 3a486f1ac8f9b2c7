"""A follower that is cut off from its primary while clients reach both: in a network namespace, whose link to the primary is taken down."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyhead.client import Client, Fleet
from polyhead.client.errors import Unavailable
from polyhead.client.local import SERVE, LocalServer
from tests.e2e.support import PROMPT, constant_policy, eventually, serving
from tests.e2e.tiny import save_tiny_llama
from tests.ports import free_port

PRIMARY, CLIENT = "10.231.1", "10.231.2"  # networks of the two links; .1 is here, .2 in the namespace
FLAGS = ("--split-layer", "2", "--threads", "1", "--cache-bytes", "32000000", "--host", "0.0.0.0", "--insecure")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace with a link to the primary and another to clients."""
    name = f"polyhead{os.getpid()}"
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("a network namespace needs root and the ip command")
    try:
        ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace: {error.stderr.decode().strip()}")
    try:
        ip("-n", name, "link", "set", "lo", "up")
        for link, network in (("php", PRIMARY), ("phc", CLIENT)):
            ip("link", "add", link, "type", "veth", "peer", "name", f"{link}2", "netns", name)
            ip("addr", "add", f"{network}.1/24", "dev", link)
            ip("link", "set", link, "up")
            ip("-n", name, "addr", "add", f"{network}.2/24", "dev", f"{link}2")
            ip("-n", name, "link", "set", f"{link}2", "up")
        yield name
    finally:
        ip("netns", "del", name)


@pytest.mark.long
@pytest.mark.timeout(340)
def test_a_follower_cut_off_serves_what_it_has_and_mixes_no_pinned_batch(namespace: str, tmp_path: Path) -> None:
    """Changes that require all are refused, others leave it behind; it catches up when the link is back."""
    model, port = save_tiny_llama(tmp_path / "model"), free_port()
    with contextlib.ExitStack() as running:
        running.enter_context(serving(model, tmp_path / "a", "--port", str(port), "--host", "0.0.0.0", "--insecure"))
        fleet = running.enter_context(Fleet(f"{PRIMARY}.1:{port}"))
        fleet.wait_ready()
        where = ("--store", str(tmp_path / "b"), "--port", str(port), "--advertise", f"{CLIENT}.2:{port}")
        follow = ("--follow", f"{PRIMARY}.1:{port}")
        second = LocalServer.start([str(model), *FLAGS, *where, *follow], command=["ip", "netns", "exec", namespace, *SERVE])
        running.callback(second.stop)
        follower = running.enter_context(Client(f"{CLIENT}.2:{port}"))
        follower.wait_ready(120.0)
        version = fleet.push_head("policy", constant_policy(fleet, 100), kind="policy")

        ip("link", "set", "php", "down")
        with pytest.raises(Unavailable, match="nothing was changed"):
            fleet.activate({"policy": version}, prepare_timeout=10.0)
        done = fleet.activate({"policy": version}, require="primary")
        assert len(done.behind) == 1
        old = follower.generate([PROMPT], max_new_tokens=1)[0]
        assert old.generation == 1, "clients reach it, and it serves what it has"
        with fleet.pinned(done) as pinned:
            assert {pinned.generate([PROMPT], max_new_tokens=1)[0].generation for _ in range(12)} == {done.number}
        with pytest.raises(Unavailable, match="is not here yet"):
            follower.generate([PROMPT], max_new_tokens=1, generation=done.number, history_id=done.history_id)

        ip("link", "set", "php", "up")
        eventually(lambda: follower.status().generation == done.number, 120.0, "a follower that has caught up")
        assert follower.generate([PROMPT], max_new_tokens=1)[0].token_ids == [100]
        eventually(lambda: all(each.state == "serving" for each in fleet.replicas()), what="a whole fleet")
        assert fleet.activate({"policy": 1}).behind == ()
