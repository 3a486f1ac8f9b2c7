"""What only a long run shows. `make test-long`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polyhead.client import Client
from polyhead.client.local import local_server
from tests.conftest import NUM_THREADS, RunningServer

pytestmark = [pytest.mark.smollm, pytest.mark.long, pytest.mark.timeout(900)]

ROUNDS = 100
SETTLED = 10  # rounds after which all that is kept is kept
SLACK_BYTES = 32 << 20  # of 100 heads of 81 MiB each; 150 rounds were seen to add 8 MiB


@pytest.fixture
def long_lived(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of its own: a hundred pushes let the first versions go, which the other tests' server must keep."""
    with local_server(["--store", str(tmp_path / "store"), "--threads", str(NUM_THREADS)]) as local:
        yield RunningServer(local, RunningServer(local, 0).rss)


def test_pushes_leave_no_memory_behind(long_lived: RunningServer) -> None:
    """A head pushed and activated again and again: the resident set is flat once the versions that are kept are in memory."""
    with Client(long_lived.address, timeout=300.0) as client:
        weights = {name: np.array(tensor, dtype=np.float32) for name, tensor in client.pull_head("policy@1").items()}
        name = min(weights)
        settled = 0
        for number in range(ROUNDS):
            weights[name] = weights[name] + np.float32(1e-4)
            client.activate({"policy": client.push_head("policy", weights)})
            if number == SETTLED:
                settled = long_lived.rss
    growth = long_lived.rss - settled
    print(f"{ROUNDS - SETTLED} rounds of push and activate: {growth / (1 << 20):+.1f} MiB")
    assert growth < SLACK_BYTES
