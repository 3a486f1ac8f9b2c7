"""Numbers and versions that README.md states are those of the code, and maps of packages name every file."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib

from polyhead.server.config import ServeConfig
from polyhead.server.rpc.listen import SERVER_OPTIONS
from tests.guards.tree import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([^|]+) \| ([\d, ]+)(?: bytes)? \| (`server\.[^|]+`) \|$", re.MULTILINE)


def test_limits_are_the_codes() -> None:
    rows = ROW.findall(README)
    assert len(rows) >= 14
    for what, stated, names in rows:
        constants = re.findall(r"`(server\.[\w.]+)\.([A-Z_]+)`", names)
        numbers = [int(number) for number in stated.split(",")]
        actual = [getattr(importlib.import_module(f"polyhead.{module}"), name) for module, name in constants]
        assert numbers == actual, what


def test_both_ways_have_the_stated_message_limit() -> None:
    options = dict(SERVER_OPTIONS)
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == 4194304


def test_limits_that_are_settings_are_their_defaults() -> None:
    [text] = re.findall(r"^Context: the model's own.*?(?=\n\n)", README, re.MULTILINE | re.DOTALL)
    fields = ServeConfig.model_fields
    stated = [int(number) for number in re.findall(r"\b\d+\b", text)]
    names = [name.lower() for name in re.findall(r"POLYHEAD_([A-Z_]+)", text)]
    assert names == ["max_queue_requests", "max_queue_tokens", "default_deadline_s"]
    assert stated == [fields[name].default for name in names]


def test_the_install_table_is_the_projects() -> None:
    """Each extra exists and brings what is stated, to the letter; the client's requirements are all there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = re.findall(r"^\| [^|]+ \| `pip install '?\.(?:\[(\w+)\])?'?` \| ([^|]+) \|$", README, re.MULTILINE)
    assert [extra for extra, _ in rows] == ["", "cli", "server", "train"]
    for extra, brings in rows:
        stated = re.findall(r"`([^`]+)`", brings)
        assert len(stated) >= 2
        assert set(stated) <= set(project["optional-dependencies"][extra] if extra else project["dependencies"])
    assert set(re.findall(r"`([^`]+)`", rows[0][1])) == set(project["dependencies"])
    minimum = re.search(r"[\d.]+", project["requires-python"])
    assert minimum
    assert f"Python {minimum[0]} or newer" in README
    assert f"Python {minimum[0]}+" in README


def test_references_are_in_the_first_paragraph() -> None:
    first = README.split("\n\n")[1]
    assert {"2209.14375", "2203.02155", "2204.05862"} == set(re.findall(r"arxiv\.org/abs/([\d.]+)", first))


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
