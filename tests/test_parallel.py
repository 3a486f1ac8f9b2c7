"""How tests are shared out, and what ends one that is stuck."""

from __future__ import annotations

import subprocess
from typing import Any
from unittest.mock import MagicMock

import psutil

from tests.overdue import kill_youngest
from tests.parallel import UnitScheduling


def scheduling(*tests: str, num_nodes: int = 2) -> tuple[UnitScheduling, list[MagicMock]]:
    config = MagicMock()
    config.getvalue.return_value = [f"{num_nodes}*popen"]
    shared, nodes = UnitScheduling(config, None), [MagicMock(shutting_down=False) for _ in range(num_nodes)]
    for node in nodes:
        shared.add_node(node)
        shared.add_node_collection(node, list(tests))
    shared.schedule()
    return shared, nodes


def given(node: Any) -> list[int]:
    """Numbers of the tests that a process has been told to run."""
    return [number for call in node.send_runtest_some.call_args_list for number in call.args[0]]


def test_a_test_that_ended_its_process_is_not_run_again() -> None:
    """xdist gave it to the next process, which ended in it after six minutes as well, and so on until nobody waited any longer."""
    shared, [first, second] = scheduling("a.py::1", "a.py::2", "a.py::3", "b.py::4", "c.py::5", "d.py::6")
    assert (given(first), given(second)) == ([0, 1, 2], [3, 4])
    shared.mark_test_complete(first, 0)
    assert given(first) == [0, 1, 2, 5]
    assert shared.remove_node(first) == "a.py::2"
    for number in (3, 4, 2):
        shared.mark_test_complete(second, number)
    assert given(second) == [3, 4, 2, 5]
    assert shared.remove_node(second) == "d.py::6"


def test_killing_the_youngest_ends_whoever_waits_for_them() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 600; exit 7"]) as process:
        shell = psutil.Process(process.pid)
        while not shell.children():
            pass
        assert kill_youngest(shell, {child.pid for child in shell.children()}) == []
        [killed] = kill_youngest(shell, set())
        assert "sleep 600" in killed
        assert process.wait(60) == 7
