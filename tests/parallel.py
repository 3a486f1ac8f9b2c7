"""How `make test` is shared out between processes: which tests stay together, and which start first. Knows the folders of tests."""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

SHARED = {  # tests that use one server together: a second process would start a second one
    "the embedded model": ("tests/smollm/", "tests/guards/test_python_blocks.py"),
    "tests/guards": ("tests/guards/",),  # one audited server, and syntax trees of all files
    "tests/deploy": ("tests/deploy/",),
    "tests/e2e/recipes": ("tests/e2e/recipes/",),
}
# The embedded model's server compiles for a minute on a new machine: what needs nothing compiled comes beside it. Then what is long.
ORDER = (*SHARED["the embedded model"], "tests/heads/", "tests/guards/", "tests/client/", "tests/bench/", "tests/e2e/", "tests/deploy/")


def unit_of(node_id: str) -> str:
    """What one process runs from start to end: tests that share a server, else a file with its module's fixtures."""
    return next((unit for unit, places in SHARED.items() if node_id.startswith(places)), node_id.partition("::")[0])


def start_order(item: pytest.Item) -> int:
    """Place in ORDER, or behind it: short units come last, so that all processes end at about the same time."""
    return next((place for place, folder in enumerate(ORDER) if item.nodeid.startswith(folder)), len(ORDER))


class UnitScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process a unit at a time, in the order of collection."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def remove_node(self, node: WorkerController) -> str | None:
        """A process is gone: the test that it was in, if any, has failed; others do the rest of its units.

        xdist's own gives that test to the next process, which a test that is stuck ends as well, after minutes, one after the other.
        """
        units = self.assigned_work.pop(node)
        left = [test for unit in units.values() for test, is_done in unit.items() if not is_done]
        for name, unit in units.items():
            if rest := {test: False for test in unit if test in left[1:]}:
                self.workqueue[name] = rest
        for other in self.assigned_work:
            self._reschedule(other)
        return left[0] if left else None
