"""What only a long run shows. `make test-long`."""

from __future__ import annotations

import numpy as np
import pytest

from polyhead.client import Client
from tests.conftest import RunningServer

pytestmark = [pytest.mark.smollm, pytest.mark.long, pytest.mark.timeout(900)]

ROUNDS = 100
SETTLED = 10  # rounds after which all that is kept is kept
SLACK_BYTES = 32 << 20  # of 100 heads of 81 MiB each; 150 rounds were seen to add 8 MiB


def test_pushes_leave_no_memory_behind(smollm: Client, smollm_server: RunningServer) -> None:
    """A head pushed and activated again and again: the resident set is flat once the versions that are kept are in memory."""
    weights = {name: np.array(tensor, dtype=np.float32) for name, tensor in smollm.pull_head("policy@1").items()}
    name = min(weights)
    settled = 0
    for number in range(ROUNDS):
        weights[name] = weights[name] + np.float32(1e-4)
        smollm.activate({"policy": smollm.push_head("policy", weights)})
        if number == SETTLED:
            settled = smollm_server.rss
    growth = smollm_server.rss - settled
    print(f"{ROUNDS - SETTLED} rounds of push and activate: {growth / (1 << 20):+.1f} MiB")
    assert growth < SLACK_BYTES
