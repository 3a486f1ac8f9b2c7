"""Every Markdown page of the repository as text: its links, the anchors of its headings, and its lines of prose."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from tests.guards.tree import ROOT, listed

INDEX = ROOT / "docs" / "index.md"
_FENCE = re.compile(r"^(`{3,}|~{3,})")
_LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\))?)\)")
_SOURCE = re.compile(r"""(?:href|src)=["']([^"']+)["']""")


def pages() -> list[Path]:
    """All of them, README and docs included."""
    return [path for path in listed() if path.suffix == ".md"]


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of what stands outside fenced blocks."""
    fence = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        mark = _FENCE.match(line)
        if mark and (not fence or line.rstrip() == fence):
            fence = "" if fence else mark[1]
        elif not fence:
            yield number, line


def links(page: Path) -> Iterator[tuple[int, str]]:
    """(line, target) of each link and picture that leads to a file or a heading of this repository."""
    for number, line in prose(page):
        text = re.sub(r"`[^`]*`", "", line)
        for target in [*_LINK.findall(text), *_SOURCE.findall(text)]:
            if not re.match(r"[a-z]+:", target):
                yield number, unquote(target)


def file_of(page: Path, target: str) -> Path:
    """The file that a link on `page` leads to."""
    path = target.partition("#")[0]
    return (page.parent / path).resolve() if path else page


def anchors(page: Path) -> set[str]:
    """What `#...` may name: each heading as GitHub and the site write it, the second of its name with -1."""
    seen: dict[str, int] = {}
    found = set()
    for _, line in prose(page):
        if heading := re.match(r"#{1,6} +(.+?) *#*$", line):
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1].replace("`", ""))
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = seen.get(name, 0)
            seen[name] = count + 1
            found.add(f"{name}-{count}" if count else name)
    return found
