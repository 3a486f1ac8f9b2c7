"""The pages hold together: links lead somewhere, every page can be reached, lines are short, and what is named as a file exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guards.documents import INDEX, anchors, file_of, links, pages, prose
from tests.guards.tree import ROOT

MAX_LINE = 160
MAX_README_LINES = 130
NAMED_FILE = re.compile(r"`((?:client|deploy|docs|heads|protos|server|tests)/[\w./-]+\.(?:md|proto|py|svg|toml|yaml|yml))`")
HISTORY = ("CHANGELOG.md", "docs/notebook.md")  # they name what was there then


def shown(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", pages(), ids=shown)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for number, target in links(page):
        file, anchor = file_of(page, target), target.partition("#")[2]
        if not file.exists():
            wrong.append(f"{shown(page)}:{number}: no such file: {target}")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            wrong.append(f"{shown(page)}:{number}: no such heading: {target}")
    assert not wrong, "\n".join(wrong)


def test_every_page_can_be_reached() -> None:
    """From docs/index.md, link by link; and the README leads to it."""
    reached, waiting = set(), [INDEX]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            waiting += [file_of(page, target) for _, target in links(page)]
    unreached = [shown(page) for page in pages() if page.is_relative_to(ROOT / "docs") and page not in reached]
    assert not unreached, f"no page links to: {', '.join(unreached)}\nhint: a guide belongs in the list of docs/guides/index.md"
    shown_first = {shown(file_of(ROOT / "README.md", target)) for _, target in links(ROOT / "README.md")}
    assert shown_first >= {f"docs/{name}.md" for name in ("quickstart", "concepts", "operations", "architecture", "benchmarks")}


def test_every_page_is_in_the_list_of_an_index() -> None:
    """The site's tables of contents are made of these lists (docs/conf.py), each page in one of them."""
    listed = []
    for index in (page for page in pages() if page.name == "index.md"):
        names = re.findall(r"^- \[[^\]]+\]\(([^)#]+\.md)\)", index.read_text(encoding="utf-8"), re.MULTILINE)
        listed += [shown(file_of(index, name)) for name in names]
    wanted = [shown(page) for page in pages() if page.is_relative_to(ROOT / "docs") and page != INDEX]
    assert sorted(listed) == sorted([*wanted, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])


@pytest.mark.parametrize("page", pages(), ids=shown)
def test_lines_of_prose_are_short(page: Path) -> None:
    """A table's row is one line whatever its length; prose is not."""
    lines = [(number, len(line)) for number, line in prose(page) if not line.startswith("|")]
    assert not [f"{shown(page)}:{number}: {length} characters" for number, length in lines if length > MAX_LINE]


def test_the_readme_fits_one_look() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", [page for page in pages() if shown(page) not in HISTORY], ids=shown)
def test_files_that_are_named_exist(page: Path) -> None:
    named = set(NAMED_FILE.findall(page.read_text(encoding="utf-8")))
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()], shown(page)


@pytest.mark.parametrize("title", ["A request's way", "A pushed head's way"])
def test_a_walk_names_each_file_once(title: str) -> None:
    """A newcomer reads from step to step and never has to go back."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walk = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| `([\w/]+\.py)` \|", walk, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    assert len({file for _, file in rows}) == len(rows) >= 12


def test_a_broken_link_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "# One `a` & two\n\n# Once\n\n# Once\n\n[x](other.md#y) `[no](link.md)`\n\n```text\n[no](link.md)\n```\n[z](#once-1)\n"
    page.write_text(text, encoding="utf-8")
    assert [target for _, target in links(page)] == ["other.md#y", "#once-1"]
    assert anchors(page) == {"one-a--two", "once", "once-1"}
    assert not file_of(page, "other.md#y").exists()
