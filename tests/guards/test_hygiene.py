"""What is committed names no machine, no registry, and no folder that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.guards.tree import ROOT, listed

MACHINE_PATH = re.compile(r"(?<![\w./~$}-])/(?:root|home|work|Users)/[\w.-]")
REGISTRY = re.compile(
    r"(?:index[-_]url|trusted[-_]host|artifactory|nexus\.|pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.org|/simple/?(?:\s|$))"
)
PATTERNS = {"a path of one machine": MACHINE_PATH, "a package registry": REGISTRY}


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in listed():
        data = path.read_bytes()
        if b"\0" not in data and path != Path(__file__).resolve():
            found.append((path, data.decode("utf-8")))
    return found


@pytest.mark.parametrize("what", sorted(PATTERNS))
def test_no_file_names(what: str) -> None:
    """Every tracked text file, and every new one that is not ignored."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if PATTERNS[what].search(line)
    ]
    assert not wrong, f"{what}:\n" + "\n".join(wrong)


def test_text_files_are_plain() -> None:
    """UTF-8, Unix line ends, a last line that ends."""
    ends = {path: text.endswith("\n") or not text or path.suffix == ".json" for path, text in texts()}
    assert not [str(path.relative_to(ROOT)) for path, text in texts() if "\r" in text or not ends[path]]


def test_folders_of_the_map_exist() -> None:
    """Every folder of the folder map in docs/architecture.md: the text block under that heading, a folder a line, deeper ones indented."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = re.search(r"^#+ +Folder map\b.*?^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    assert found, "docs/architecture.md has no heading 'Folder map' with a text block"
    folders = list(mapped_folders(found[1]))
    assert len(folders) >= 4
    assert not [folder for folder in folders if not (ROOT / folder).is_dir()]


def mapped_folders(block: str) -> list[str]:
    """`heads/`, then an indented `training/` under it: `heads/`, `heads/training/`."""
    above: list[tuple[int, str]] = []
    folders = []
    for line in block.splitlines():
        found = re.match(r"([\s│├└─|`+-]*)((?:[\w.-]+/)+)", line)
        if found:
            depth = len(found[1])
            above = [(other, name) for other, name in above if other < depth]
            above.append((depth, found[2]))
            folders.append("".join(name for _, name in above))
    return folders


def test_maps_are_read_as_meant() -> None:
    assert mapped_folders("heads/     what a head is\n  training/  loops\nprotos/x/v1/  stubs\nREADME.md\n") == [
        "heads/",
        "heads/training/",
        "protos/x/v1/",
    ]
    assert mapped_folders("├── server/\n│   └── engine/   one thread\n└── client/\n") == ["server/", "server/engine/", "client/"]
