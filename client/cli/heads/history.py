"""Lines about generations of the active set: where each came from, whether it can be restored, where the next rollback goes."""

from __future__ import annotations

from collections.abc import Sequence

from polyhead.client.cli.heads.one_version import moment
from polyhead.client.results.records import Generation

__all__ = ["activated", "generation_line", "history_lines", "removed_lines", "rolled_back"]


def history_lines(generations: Sequence[Generation]) -> list[str]:
    """Newest first. The line below the newest states where the next rollback goes."""
    lines = [generation_line(each) for each in generations]
    return [*lines[:1], *_next_lines(generations), *lines[1:]]


def rolled_back(done: Generation, history: Sequence[Generation]) -> list[str]:
    """The answer of a rollback. `history`, newest first, states which generation the new one equals."""
    known = [each for each in history if each.number <= done.number]
    return _rolled_back(done, known) + behind_lines(done.behind)


def _rolled_back(done: Generation, known: Sequence[Generation]) -> list[str]:
    return [generation_line(known[0]), *_next_lines(known)] if known and known[0].number == done.number else [generation_line(done)]


def activated(generation: Generation) -> list[str]:
    """An activation's answer: the generation, what it did to running requests, and what it removed."""
    pinned, following, aborted = generation.num_pinned_requests, generation.num_following_requests, generation.num_aborted_requests
    running = f"running requests: {pinned} stay on older versions, {following} follow, {aborted} ended"
    return [generation_line(generation), running, *behind_lines(generation.behind), *removed_lines(generation.removed)]


def behind_lines(behind: Sequence[str]) -> list[str]:
    """Replicas that do not serve a new generation yet."""
    return [f"not served yet by: {', '.join(behind)} (`polyhead fleet` shows how they stand)"] if behind else []


def removed_lines(removed: Sequence[str]) -> list[str]:
    """Versions that a push or an activation deleted, and how to keep such a version."""
    if not removed:
        return []
    return [f"removed by the server's --keep-versions: {', '.join(removed)} (`polyhead heads label` keeps a version)"]


def generation_line(generation: Generation) -> str:
    """One generation."""
    origin = f"equals {generation.same_as}" if generation.same_as else f"from {generation.parent}" if generation.parent else "is the first"
    heads = " ".join(f"{name}@{version}" for name, version in sorted(generation.heads.items()))
    note = f"  ({generation.note})" if generation.note else ""
    gone = f"  cannot be restored, no longer stored: {', '.join(generation.gone)}" if generation.gone else ""
    return f"generation {generation.number} {origin}  {moment(generation.created_at)}  {heads}{note}{gone}"


def _next_lines(generations: Sequence[Generation]) -> list[str]:
    """Where a rollback from the newest goes."""
    if not generations or not generations[0].parent:
        return ["  there is nothing to roll back to"] if generations else []
    parent = generations[0].parent
    gone = next((each.gone for each in generations if each.number == parent), ())
    obstacle = f", which cannot be restored, as {', '.join(gone)} is gone: choose another one with --to" if gone else ""
    return [f"  the next rollback goes to {parent}{obstacle}"]
