"""What the process does about its own memory."""

from __future__ import annotations

import gc

from polyhead.server.host.memory import return_garbage


def test_what_stays_after_loading_is_never_looked_at_again() -> None:
    """A look at all of it stops every thread for a quarter of a second, and comes while a head is built."""
    before = gc.get_freeze_count()
    try:
        return_garbage()
        assert gc.get_freeze_count() > before + 10_000
        assert len(gc.get_objects()) < 1000
    finally:
        gc.unfreeze()
