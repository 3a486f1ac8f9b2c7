"""A configuration as the file that says it: keys in their order, without those that say what is so anyway."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import yaml

from polyhead.client.annotate.projects.config import ProjectConfig

_WIDTH = 140


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(config: ProjectConfig) -> str:
    """`read_project` of it gives an equal configuration."""
    return str(yaml.dump(_said(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH))


def _said(config: Any) -> dict[str, Any]:
    """Of a dataclass the fields that differ from their defaults."""
    said = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        if value != default:
            said[each.name] = _plain(value)
    return said


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _said(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value
