"""How many followers there should be: what a server reports, and what Ray asks with all reports. Nothing here imports Ray."""

from __future__ import annotations

import math
import urllib.request
from typing import Any

OPEN_REQUESTS = "open_requests"  # waiting and running, of one follower


def open_requests(metrics_port: int) -> dict[str, float]:
    """What the server with these metrics reports. OSError if it does not answer."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5.0) as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.split(" ", 1) for line in lines if not line.startswith("#"))
    return {OPEN_REQUESTS: sum(float(values[f"polyhead_requests_{which}"]) for which in ("waiting", "running"))}


class ByOpenRequests:
    """A Ray Serve autoscaling policy: one follower for each `target` open requests of all followers together."""

    def __init__(self, target: float) -> None:
        self.target = target

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """`context`: Ray's AutoscalingContext. Returns the number, which Ray keeps within its bounds, and no state."""
        reported = (context.aggregated_metrics or {}).get(OPEN_REQUESTS, {})
        if not reported:
            return context.target_num_replicas, {}  # none has reported yet, or none could: leave them as they are
        return math.ceil(sum(reported.values()) / self.target), {}
