"""How many followers there should be. Ray calls it with what the followers report; nothing here imports Ray."""

from __future__ import annotations

import math
from typing import Any

OPEN_REQUESTS = "open_requests"  # waiting and running, of one follower


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
