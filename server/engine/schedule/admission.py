"""Whether the queue takes one more request: by count and by tokens, with a share for interactive callers, and fair among principals.

Knows no blocks.
"""

from __future__ import annotations

import collections
from collections.abc import Collection

from polyhead.heads.format.errors import ResourceExhausted
from polyhead.server.engine.schedule.shares import has_room
from polyhead.server.engine.work.reports import QueueLimits
from polyhead.server.engine.work.request import Priority, Request


def check_queue(request: Request, open_requests: Collection[Request], limits: QueueLimits) -> None:
    """Raises ResourceExhausted if the share of the request's kind is full; an interactive caller may use the batch work's, too.

    In a full queue a principal below its fair share gets a place all the same, out of a reserve beyond the limits (shares.py).
    A request that the whole queue could not hold is refused for good: waiting would not help.
    """
    if request.num_tokens > limits.max_tokens:
        raise ResourceExhausted(
            f"the request can come to {request.num_tokens} tokens, the whole queue holds {limits.max_tokens} (max_queue_tokens)\n"
            "hint: send fewer prompts or samples at a time",
            metadata={"max_queue_tokens": str(limits.max_tokens)},
        )
    of_same_kind = [each for each in open_requests if each.priority is request.priority]
    is_interactive = request.priority is Priority.INTERACTIVE
    share = limits.interactive_share if is_interactive else 1.0 - limits.interactive_share
    if _has_room(of_same_kind, request.num_tokens, limits, share):
        return
    if is_interactive and _has_room(open_requests, request.num_tokens, limits, 1.0):
        return
    if _is_below_its_share(request, of_same_kind, limits, share):
        return
    num_own = sum(each.principal == request.principal for each in open_requests)
    raise ResourceExhausted(f"the queue is full: {len(open_requests)} requests are open, {num_own} of them yours", retry_after_s=1.0)


def _is_below_its_share(request: Request, of_same_kind: Collection[Request], limits: QueueLimits, share: float) -> bool:
    """Whether the reserve takes it: both by count and by tokens."""
    counts: collections.Counter[str] = collections.Counter()
    tokens: collections.Counter[str] = collections.Counter()
    for each in of_same_kind:
        counts[each.principal] += 1
        tokens[each.principal] += each.num_admitted_tokens
    return has_room(counts, request.principal, 1, limits.max_requests * share) and has_room(
        tokens, request.principal, request.num_tokens, limits.max_tokens * share
    )


def _has_room(open_requests: Collection[Request], num_tokens: int, limits: QueueLimits, share: float) -> bool:
    """Whether one more fits a share of the queue. The first open request always fits: it may take more than the share, up to the whole."""
    num_open_tokens = sum(each.num_admitted_tokens for each in open_requests)
    is_short = not open_requests or num_open_tokens + num_tokens <= limits.max_tokens * share
    return is_short and len(open_requests) < max(1.0, limits.max_requests * share)
