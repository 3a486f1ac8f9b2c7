"""Requests for the trunk's states, built from what the user gave and checked before anything is sent. Shared by both clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from polyhead.client.errors import InvalidArgument
from polyhead.client.wire import prompts as prompt_forms
from polyhead.client.wire.request_fields import enum_number
from polyhead.client.wire.text_check import names_bad_text
from polyhead.v1 import trunk_pb2, types_pb2

__all__ = ["encode", "layer_number", "sequences"]


def sequences(ids: Any) -> tuple[Sequence[Any], bool]:
    """(list of sequences, whether one single sequence was given)."""
    if isinstance(ids, (str, bytes)) or not hasattr(ids, "__len__"):
        raise TypeError(f"ids must be a list of token ids or a list of such lists: {type(ids).__name__}")
    is_single = len(ids) == 0 or not hasattr(ids[0], "__len__") or getattr(ids[0], "shape", None) == ()
    return ([ids] if is_single else ids), is_single


@names_bad_text
def encode(sequences: Sequence[Any], request_id: str, layer: int = 0, pooling: str | None = None) -> trunk_pb2.EncodeRequest:
    ids = [types_pb2.TokenIds(ids=prompt_forms.token_ids(each, f"ids[{i}]")) for i, each in enumerate(sequences)]
    number = cast(Any, enum_number(trunk_pb2.Pooling, pooling, "pooling"))
    return trunk_pb2.EncodeRequest(sequences=ids, request_id=request_id, layer=layer_number(layer), pooling=number)


def layer_number(layer: int) -> int:
    """Which layers there are is the server's to say."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise TypeError(f"layer must be an int: {type(layer).__name__}")
    if not 0 <= layer < 1 << 32:
        raise InvalidArgument(f"layer must be 0 or a layer's number: {layer}", field="layer")
    return layer
