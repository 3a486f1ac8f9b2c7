"""How `make test` is shared out between processes: which tests stay together, and which start first. Knows the folders of tests."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/smollm/", "tests/deploy/")  # folders whose tests share one server: a second process would start a second one
SLOW_FIRST = ("tests/smollm/", "tests/bench/", "tests/e2e/", "tests/deploy/", "tests/guards/", "tests/server/process/")


def unit_of(node_id: str) -> str:
    """What one process runs from start to end: a folder that shares a server, else a file with its module's fixtures."""
    return next((folder for folder in TOGETHER if node_id.startswith(folder)), node_id.partition("::")[0])


def start_order(item: pytest.Item) -> int:
    """Long units come first, so that all processes end at about the same time."""
    return next((place for place, folder in enumerate(SLOW_FIRST) if item.nodeid.startswith(folder)), len(SLOW_FIRST))


class UnitScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process a unit at a time, in the order of collection."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
