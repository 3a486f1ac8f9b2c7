"""A protobuf message as a dataclass whose fields have the same names. convert.py uses it, and states what differs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from polyhead.heads.format.wire_enums import wire_numbers

__all__ = ["from_message", "values_of"]

D = TypeVar("D")
Convert = Callable[[Any], Any]


def from_message(into: type[D], message: Message, **others: Any) -> D:
    """`into`, made of the message's fields of the same names and of `others`: the fields that have another name or form there.

    A field that neither of them has keeps the dataclass's default. `X | None` is None where the message's optional field is not set.
    """
    return into(**values_of(into, message, others), **others)


def values_of(into: type, message: Message, without: Collection[str] = ()) -> dict[str, Any]:
    """Values by name of the fields that `into` and the message share, in the types that `into` declares."""
    return {name: value(message) for name, value in _readers(into, message.DESCRIPTOR).items() if name not in without}


@functools.cache
def _readers(into: type, descriptor: Descriptor) -> dict[str, Convert]:
    """By field name, what takes a message and returns the field's value."""
    hints = get_type_hints(into)
    names = [field.name for field in dataclasses.fields(into) if field.name in descriptor.fields_by_name]
    return {name: _reader(descriptor.fields_by_name[name], hints[name]) for name in names}


def _reader(field: FieldDescriptor, hint: Any) -> Convert:
    name = field.name
    if NoneType not in get_args(hint):
        convert = _converter(field, hint)
        return lambda message: convert(getattr(message, name))
    convert = _converter(field, next(each for each in get_args(hint) if each is not NoneType))
    return lambda message: convert(getattr(message, name)) if message.HasField(name) else None


def _converter(field: FieldDescriptor, hint: Any) -> Convert:
    """From protobuf's value of one field to a value of the type `hint`."""
    container: Convert | None = get_origin(hint)
    if field.message_type is not None:
        return _message_converter(field.message_type, container, hint)
    if (dtype := _array_dtype(hint)) is not None:
        return lambda numbers: np.fromiter(numbers, dtype)
    if field.enum_type is not None:
        names = _enum_names(field.enum_type)
        return lambda number: hint(names.get(number, ""))
    plain: Convert = hint  # str, int, float, bool, bytes
    return container or plain  # a list or tuple of these


def _message_converter(message_type: Descriptor, container: Convert | None, hint: Any) -> Convert:
    if message_type.GetOptions().map_entry:
        return dict
    if container is tuple:
        element = get_args(hint)[0]
        return lambda messages: tuple(from_message(element, message) for message in messages)
    return functools.partial(from_message, hint)


def _array_dtype(hint: Any) -> type[np.generic] | None:
    """np.float32 for NDArray[np.float32], None for anything else. NDArray is np.ndarray in numpy 2.4, and a type of its own in 2.5."""
    for argument in get_args(hint):
        scalar = get_args(argument)[0] if get_origin(argument) is np.dtype else argument
        if isinstance(scalar, type) and issubclass(scalar, np.generic):
            return scalar
    return None


def _enum_names(enum: EnumDescriptor) -> dict[int, str]:
    """{1: "last", ...} for READ_POSITION_LAST: names as callers write them. UNSPECIFIED and numbers of a newer server have none."""
    numbers = wire_numbers({value.name: value.number for value in enum.values})
    return {number: name for name, number in numbers.items()}
