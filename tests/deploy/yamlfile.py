"""Reads YAML as strictly as a careful operator: a key that stands twice in one mapping is an error, not the last one."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        written = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in written]  # type: ignore[no-untyped-call]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ValueError(f"{self.name}: twice in one mapping, line {node.start_mark.line + 1}: {sorted(map(str, twice))}")
        return super().construct_mapping(node, deep)


def read_all(path: Path) -> list[Any]:
    """Every document of a file."""
    with path.open(encoding="utf-8") as file:
        loader = _Strict(file)
        found = []
        while loader.check_data():
            found.append(loader.get_data())
        return found


def read_one(path: Path) -> Any:
    [document] = read_all(path)
    return document
