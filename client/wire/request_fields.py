"""What requests of all services are made of: ids of requests, names of enums, plain fields, numbers in their range. Pure functions."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from polyhead.client.errors import InvalidArgument
from polyhead.client.wire.text_check import lone_surrogate
from polyhead.heads.format.wire_enums import ContractEnum, wire_numbers

__all__ = ["count", "enum_number", "generation_number", "message", "new_request_id", "request_id_for"]

M = TypeVar("M")


def new_request_id() -> str:
    """Every mutating call carries one, so that a retry gets the first call's answer."""
    return str(uuid.uuid4())


def request_id_for(request_id: str, part: str) -> str:
    """The id of one part of a call made of several: the same whenever the whole is repeated."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{request_id}/{part}"))


def message(kind: Callable[..., M], **fields: Any) -> M:
    """A small message of plain fields. TypeError or InvalidArgument, naming the field, for a value that it cannot hold."""
    try:
        return kind(**fields)
    except UnicodeEncodeError:
        raise lone_surrogate(**fields) from None
    except TypeError:
        for name, value in fields.items():
            try:
                kind(**{name: value})
            except TypeError:
                raise TypeError(f"{name} has a wrong type: {type(value).__name__}") from None
        raise


def enum_number(enum: ContractEnum, name: str | None, field: str) -> int:
    """The number of READ_POSITION_LAST for "last"; 0, the server's default, for None."""
    if name is None:
        return 0
    known = wire_numbers(enum)
    if name not in known:
        raise InvalidArgument(f"{field} must be one of {', '.join(known)}: {str(name)[:40]!r}", field=field)
    return known[name]


def count(n: int, field: str) -> int:
    """0 would mean 1 on the wire: refused here, because a caller who writes n=0 does not mean that."""
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"{field} must be an int: {type(n).__name__}")
    if n < 1:
        raise InvalidArgument(f"{field} must be at least 1: {n}", field=field)
    return n


def generation_number(number: int | None, field: str) -> int | None:
    if isinstance(number, int) and not 0 <= number < 1 << 64:
        raise InvalidArgument(f"not a generation's number: {str(number)[:40]}", field=field)
    return number
