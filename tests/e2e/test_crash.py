"""kill -9 of a real server during an activation, and files that change under it: exactly the old set or exactly the new one."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from polyhead.client import Client
from polyhead.client.errors import Unavailable
from tests.e2e.support import PROMPT, fingerprint, numbers_of, push_pair, serving

# Visits of the first start: 1 is generation 1, made from the model's own layers; 2 is the acknowledged change; 3 is the one killed.
KILLED = "kill@3"


def assert_serves_one_make(client: Client, number: int) -> None:
    """Policy and value head are of the same make, and it is this one."""
    sample = client.generate([PROMPT], max_new_tokens=3, score=["value"])[0]
    assert numbers_of(sample.token_ids, sample.scores["value"].values) == {number}


@pytest.mark.parametrize(
    ("failpoint", "generation"),
    [("before_generation_rename", 2), ("after_generation_rename", 3), ("before_ack", 3)],
)
def test_a_kill_during_an_activation_leaves_the_old_or_the_new_set(
    tiny_model: Path, tmp_path: Path, failpoint: str, generation: int
) -> None:
    """The rename is the commit point. What was acknowledged before stays, and the lost request can be repeated."""
    store = tmp_path / "store"
    with serving(tiny_model, store, fp=f"{failpoint}:{KILLED}") as server, Client(server.address, timeout=60) as client:
        acknowledged = client.activate(push_pair(client, 1))
        assert acknowledged.number == 2
        lost = push_pair(client, 2)
        with pytest.raises(Unavailable):
            client.activate(lost, expected_generation=2, request_id="lost")
        assert server.process.wait(30) == -signal.SIGKILL
    with serving(tiny_model, store) as server, Client(server.address, timeout=60) as client:
        status = client.status()
        assert (status.generation, status.damage) == (generation, "")
        expected = acknowledged.heads if generation == 2 else {**acknowledged.heads, **lost}
        assert status.active == expected
        assert_serves_one_make(client, generation - 1)
        again = client.activate(lost, expected_generation=2, request_id="lost")
        assert (again.number, again.heads) == (3, {**acknowledged.heads, **lost})
        assert_serves_one_make(client, 2)


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_files_that_change_under_a_server_change_nothing_that_it_serves(own_model: Path, tmp_path: Path) -> None:
    """Weights read by mmap changed silently when their file was written to, and a truncated one killed the process (SIGBUS)."""
    store = tmp_path / "store"
    with serving(own_model, store) as server, Client(server.address, timeout=60) as client:
        client.activate({"policy": client.copy_head("policy", "policy")})
        before = fingerprint(client)
        files = [own_model / "model.safetensors", *(store / "blobs").iterdir()]
        assert len(files) == 3
        for file in files:
            size = file.stat().st_size
            file.chmod(0o600)
            with file.open("r+b") as opened:
                opened.seek(size // 2)
                opened.write(b"\xff" * (size // 2))
            assert fingerprint(client) == before
            with file.open("r+b") as opened:
                opened.truncate(10)
            assert fingerprint(client) == before
        states = client.generate([PROMPT], max_new_tokens=20, seed=1, ignore_eos=True, return_states=True)[0].states
        assert states is not None
        assert server.process.poll() is None
