"""YAML into frozen dataclasses, where an error names the line. Knows types, not what they mean."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
Path = tuple[str, ...]


class ConfigError(ValueError):
    """The file cannot be used; the message names file, line and key."""


class _Wrong(Exception):
    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(problem)
        self.path = path
        self.problem = problem


def read_dataclass(cls: type[T], text: str, file: str) -> tuple[T, Callable[[Path], int]]:
    """The object, and a function that says on which line a key stands. Texts may be given as one string or by locale."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{file}, line {line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not YAML ({error})") from None

    def line_of(path: Path) -> int:
        return _line(root, path)

    try:
        return _object(cls, data, ()), line_of
    except _Wrong as wrong:
        where = ".".join(wrong.path)
        raise ConfigError(f"{file}, line {line_of(wrong.path)}: {where + ': ' if where else ''}{wrong.problem}") from None


def _object(cls: type[T], data: Any, path: Path) -> T:
    if not isinstance(data, dict):
        raise _Wrong(path, f"must be keys and values, not {type(data).__name__}")
    fields = {each.name: each for each in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in fields:
            raise _Wrong((*path, str(key)), f"unknown key\nhint: known are {', '.join(fields)}")
    given = {name: _value(hints[name], data[name], (*path, name)) for name in fields if name in data}
    for name, each in fields.items():
        if name not in given and each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            raise _Wrong(path, f"the key {name!r} is missing")
    return cls(**given)


def _value(hint: Any, data: Any, path: Path) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _object(typing.cast(type[Any], hint), data, path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _member(hint, data, path)
    if origin is tuple:
        if not isinstance(data, list):
            raise _Wrong(path, f"must be a list, not {type(data).__name__}")
        return tuple(_value(arguments[0], each, (*path, str(index))) for index, each in enumerate(data))
    if origin is dict:
        if arguments[1] is str and isinstance(data, str):
            return {"en": data}  # a text in one language
        if not isinstance(data, dict):
            raise _Wrong(path, f"must be keys and values, not {type(data).__name__}")
        return {str(key): _value(arguments[1], each, (*path, str(key))) for key, each in data.items()}
    return _scalar(hint, data, path)


def _member(hint: type[enum.Enum], data: Any, path: Path) -> enum.Enum:
    try:
        return hint(data if data is not None else "")
    except ValueError:
        known = ", ".join(str(member.value) or '""' for member in hint)
        raise _Wrong(path, f"must be one of {known}: {data!r}") from None


def _scalar(hint: Any, data: Any, path: Path) -> Any:
    if hint is float and type(data) is int:
        return float(data)
    if not isinstance(hint, types.UnionType) and type(data) is hint:
        return data
    wanted = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}[hint.__name__]
    raise _Wrong(path, f"must be {wanted}: {data!r}")


def _line(node: Any, path: Path) -> int:
    """Of the deepest key of the path that the file has."""
    line = node.start_mark.line + 1 if node is not None else 1
    for key in path:
        children = node.value if isinstance(node, (yaml.MappingNode, yaml.SequenceNode)) else []
        if isinstance(node, yaml.MappingNode):
            found = [(name, value) for name, value in children if name.value == key]
            if not found:
                return line
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif key.isdigit() and int(key) < len(children):
            node = children[int(key)]
            line = node.start_mark.line + 1
    return line
