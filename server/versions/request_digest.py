"""What a request id stands for: one digest of the caller, the method and the decoded fields. Knows no method's meaning."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from polyhead.server.rpc.interceptors import current_call

# `digests` of an activation say again what its version numbers say, are checked for a repetition, too, and a client that was started anew
# does not know them any more.
LEFT_OUT = ("request_id", "digests")


def request_digest(message: Message) -> str:
    """SHA-256 of the principal, the method and every field of `message` but those in LEFT_OUT; 64 hex digits.

    Fields count by number and value, so that a field which a later server adds, and a caller leaves unset, changes nothing.
    """
    call = current_call.get()
    left_out = {field.number for name, field in message.DESCRIPTOR.fields_by_name.items() if name in LEFT_OUT}
    fields = [field for field in _plain(message) if field[0] not in left_out]
    text = json.dumps([call.caller.principal, call.method, fields], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(message: Message) -> list[list[Any]]:
    """[number, value] of each field that is set, in the order of the numbers."""
    return [[field.number, _field(field, value)] for field, value in message.ListFields()]


def _field(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return [[key, _value(value[key])] for key in sorted(value)]
    if field.is_repeated:
        return [_value(each) for each in value]
    return _value(value)


def _value(value: Any) -> Any:
    if isinstance(value, Message):
        return _plain(value)
    if isinstance(value, bytes | float):
        return value.hex()
    return value
