"""The Python in README and docs is true: it runs, page by page, against a real server on the embedded model.

    <!-- runs -->                   the next block, ```python, is executed; the blocks of one page share one namespace, in order
    <!-- runs on a tiny model -->   the same, in a test of the page's own (test_reward_model.py)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningServer
from tests.guards.documents import pages
from tests.guards.tree import ROOT

DEFAULT_ADDRESS = "127.0.0.1:50051"


def marked(mark: str) -> re.Pattern[str]:
    return re.compile(rf"^<!-- {mark} -->\s*\n```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


RUNS, RUNS_ON_A_TINY_MODEL = marked("runs"), marked("runs on a tiny model")
PAGES = [path for path in pages() if RUNS.search(path.read_text(encoding="utf-8"))]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, mark: re.Pattern[str]) -> list[str]:
    """The code of each marked block, behind as many empty lines as stand before it: a traceback names the page's own line."""
    text = path.read_text(encoding="utf-8")
    return ["\n" * text[: found.start(1)].count("\n") + found[1] for found in mark.finditer(text)]


@pytest.mark.smollm
@pytest.mark.usefixtures("smollm")  # puts the first heads back, whatever a page activates
@pytest.mark.parametrize("path", PAGES, ids=shown)
def test_python_runs(path: Path, smollm_server: RunningServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In order, in one namespace, as a reader would paste it: assertions in it hold, nothing raises."""
    monkeypatch.setenv("POLYHEAD_SERVER", smollm_server.address)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for source in blocks(path, RUNS):
        exec(compile(source.replace(DEFAULT_ADDRESS, smollm_server.address), str(path), "exec"), namespace)


def test_pages_have_python_that_runs() -> None:
    names = {shown(path) for path in PAGES}
    assert names >= {"README.md", "docs/quickstart.md", "docs/guides/generate.md", "docs/guides/score.md", "docs/guides/push-and-swap.md"}
