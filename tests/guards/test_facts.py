"""Versions that README and quickstart state are the project's, maps of packages name every file, and promises name their tests."""

from __future__ import annotations

import ast
import re
import tomllib

from tests.guards.tree import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


def test_the_install_table_is_the_projects() -> None:
    """Each extra exists and brings what is stated, to the letter; the client's requirements are all there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = re.findall(r"^\| [^|]+ \| `pip install '?\.(?:\[(\w+)\])?'?` \| ([^|]+) \|$", QUICKSTART, re.MULTILINE)
    assert [extra for extra, _ in rows] == ["", "cli", "server", "train", "annotate"]
    for extra, brings in rows:
        stated = re.findall(r"`([^`]+)`", brings)
        assert len(stated) >= 2
        assert set(stated) <= set(project["optional-dependencies"][extra] if extra else project["dependencies"])
    assert set(re.findall(r"`([^`]+)`", rows[0][1])) == set(project["dependencies"])
    minimum = re.search(r"[\d.]+", project["requires-python"])
    assert minimum
    assert f"Python {minimum[0]} or newer" in QUICKSTART
    assert f"Python {minimum[0]}+" in README


def test_the_sources_of_the_design_are_named() -> None:
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    for text in (README, concepts.split("\n\n")[1]):
        assert set(re.findall(r"arxiv\.org/abs/([\d.]+)", text)) == {"2209.14375", "2203.02155", "2204.05862"}


ENGINE = "server/engine"
MAPPED = (ENGINE, *(f"{ENGINE}/{name}" for name in ("work", "schedule", "blocks", "layers", "layers/cuda", "compiled")), "client/bench")


def test_the_maps_of_packages_are_whole() -> None:
    """A package whose docstring says what each file is for forgets none, and names none that is gone."""
    for package in MAPPED:
        folder = ROOT / package
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
        assert docstring
        named = set(re.findall(r"\b\w+\.py\b", docstring))
        assert files <= named, package
        assert all(any((ROOT / top).rglob(name)) for name in named for top in [package.split("/")[0]]), package


def test_every_promise_of_security_names_tests_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| (`tests/[^|]+`) \|$", text, re.MULTILINE)
    assert len(rows) >= 10
    for row in rows:
        for name in re.findall(r"`([^`]+)`", row):
            assert (ROOT / name).is_file(), name
