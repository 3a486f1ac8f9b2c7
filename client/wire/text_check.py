"""Text that no wire can carry: a str with a lone surrogate, such as half of an emoji. Names the argument that holds it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

from polyhead.client.errors import InvalidArgument

__all__ = ["check_text", "lone_surrogate", "names_bad_text"]

P = ParamSpec("P")
R = TypeVar("R")

_HINT = 'text that was cut within an emoji holds half of it; text.encode("utf-8", "replace").decode() puts a ? there'


def check_text(**given: Any) -> None:
    """Raises InvalidArgument if a text among these values, at any depth, cannot be sent."""
    for name, value in given.items():
        for path, text in _texts(value, name):
            if not text.isascii() and (at := _bad_position(text)) is not None:
                raise InvalidArgument(
                    f"{path} is not Unicode text: it holds a lone surrogate, {text[at]!r} at character {at}\nhint: {_HINT}", field=path
                )


def lone_surrogate(**given: Any) -> InvalidArgument:
    """The error to raise for a UnicodeEncodeError that came from one of these values."""
    try:
        check_text(**given)
    except InvalidArgument as error:
        return error
    return InvalidArgument(f"a text is not Unicode: it holds a lone surrogate\nhint: {_HINT}")


def names_bad_text(build: Callable[P, R]) -> Callable[P, R]:
    """Of a function that builds a message: its UnicodeEncodeError becomes an InvalidArgument that names the argument.

    Nothing is looked at before it happens: prompts may be long.
    """
    signature = inspect.signature(build)

    @functools.wraps(build)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return build(*args, **kwargs)
        except UnicodeEncodeError:
            given = signature.bind(*args, **kwargs).arguments
            raise lone_surrogate(**{**given.pop("sampling", {}), **given}) from None

    return run


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, text) of every str in a value that callers nest: lists, mappings and our dataclasses."""
    if isinstance(value, str):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _texts(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key, f"a key of {path}")
            yield from _texts(each, f"{path}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _texts(each, f"{path}[{index}]")


def _bad_position(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
