"""What tests of the schedule share."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from tests.server.engine.harness import Bench


@pytest.fixture
def slow(llama_folder: Path) -> Bench:
    """Reads a text again in chunks of 8, so that there is time for another swap."""
    return Bench.open(llama_folder, 2, scheduler=SchedulerLimits(chunk_tokens=8, min_chunk_tokens=8))
