"""The numbers in docs/reference/limits.md, read from the constants that each row names."""

from __future__ import annotations

import importlib
import re

from tests.docs.paths import DOCS

PAGE = DOCS / "reference" / "limits.md"
ROW = re.compile(r"^\| ([^|]+) \| ([\d, ]+)(?: bytes)? \| (`server\.[^|]+`) \|$", re.MULTILINE)


def page() -> str:
    return ROW.sub(_row, PAGE.read_text(encoding="utf-8"))


def _row(found: re.Match[str]) -> str:
    numbers = ", ".join(str(number) for number in values(found[3]))
    unit = " bytes" if found[0].split(" | ")[1].endswith(" bytes") else ""
    return f"| {found[1]} | {numbers}{unit} | {found[3]} |"


def values(names: str) -> list[int]:
    """Of the constants that a row names."""
    constants = re.findall(r"`(server\.[\w.]+)\.([A-Z_]+)`", names)
    return [getattr(importlib.import_module(f"polyhead.{module}"), name) for module, name in constants]
