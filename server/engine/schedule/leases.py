"""The lease: which version of each head a request uses, decided once, at first scheduling, for all its samples."""

from __future__ import annotations

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.work.live import ActiveSet, Lease, ServedHead
from polyhead.server.engine.work.request import Request


def take_lease(request: Request, active: ActiveSet) -> Lease:
    """Resolve every head at once. FailedPrecondition if a name has gone, or has changed its kind, since the request came in."""
    heads = {name: _resolve(request, name, kind, active) for name, kind in request.head_kinds.items()}
    number, history_id = request.named_generation or (active.generation, active.history_id)
    request.lease = request.sampling_lease = Lease(number, heads, history_id)
    request.hold(request.lease.live_heads)
    return request.lease


def _resolve(request: Request, name: str, kind: HeadKind, active: ActiveSet) -> ServedHead:
    head = request.pinned.get(name) or active.heads.get(name)
    if head is None or head.manifest.kind is not kind:
        raise FailedPrecondition(f"generation {active.generation} has no {kind.value} head of this name any more: {name!r}")
    if kind is HeadKind.RULE and (request.rules is None or head.manifest.template not in request.rules.by_template):
        raise FailedPrecondition(f"{head.reference} uses a template that the server does not have: {head.manifest.template!r}")
    if kind is HeadKind.RULE and not head.manifest.has_answers:
        raise FailedPrecondition(f"{head.reference} has no answer tokens: its template was not served when it was made")
    return head
