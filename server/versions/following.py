"""How a follower stands with its primary: what health, status and errors say of it. Changed by server/fleet/following.py alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class FollowState:
    """Read from any thread."""

    primary: str  # "host:port"
    has_caught_up: bool = False  # has caught up since its start, and what it serves is of the primary's history
    problem: str = ""  # why it does not follow now
