"""Requests for changes of heads, built from what the user gave and checked before anything is sent. Shared by both clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from polyhead.client.errors import InvalidArgument
from polyhead.client.wire.options import CopyOptions, RequireName
from polyhead.client.wire.request_fields import enum_number, generation_number, new_request_id
from polyhead.client.wire.text_check import names_bad_text
from polyhead.client.wire.unknown_options import refuse_unknown
from polyhead.v1 import heads_pb2, types_pb2

__all__ = ["activate", "copy_head", "label_head", "rollback"]


@names_bad_text
def copy_head(
    source: str,
    target: str,
    *,
    kind: str | None = None,
    bias: float | None = None,
    scale: float | None = None,
    read: str | None = None,
    append_token_id: int | None = None,
    pad_token_id: int | None = None,
    unfinished: str | None = None,
    labels: Sequence[str] = (),
    request_id: str = "",
    timeout: float | None = None,  # read by the caller
    **unknown: Any,
) -> heads_pb2.CopyHeadRequest:
    refuse_unknown(unknown, CopyOptions.__annotations__, "copy_head()")
    return heads_pb2.CopyHeadRequest(
        source=source,
        target=target,
        kind=cast(Any, enum_number(types_pb2.HeadKind, kind, "kind")),
        bias=bias,
        scale=scale,
        read=cast(Any, enum_number(heads_pb2.ReadPosition, read, "read")),
        append_token_id=append_token_id,
        pad_token_id=pad_token_id,
        unfinished=cast(Any, enum_number(heads_pb2.Unfinished, unfinished, "unfinished")),
        labels=list(labels),
        request_id=request_id or new_request_id(),
    )


@names_bad_text
def label_head(ref: str, add: Sequence[str], remove: Sequence[str], request_id: str) -> heads_pb2.LabelHeadRequest:
    return heads_pb2.LabelHeadRequest(head=ref, add=add, remove=remove, request_id=request_id or new_request_id())


@names_bad_text
def activate(
    heads: Mapping[str, int],
    digests: Mapping[str, str],
    deactivate: Sequence[str],
    expected_generation: int | None,
    expected_versions: Mapping[str, int] | None,
    request_id: str,
    note: str,
    require: RequireName | None = None,
    prepare_timeout: float | None = None,
) -> heads_pb2.ActivateHeadsRequest:
    if isinstance(deactivate, str):
        raise TypeError(f'deactivate must be a list of names: str\nhint: write ["{deactivate}"]')
    return heads_pb2.ActivateHeadsRequest(
        heads=_checked(heads, "heads"),
        digests=digests,
        deactivate=deactivate,
        expected_generation=generation_number(expected_generation, "expected_generation"),
        expected_versions=_expected(expected_versions),
        request_id=request_id or new_request_id(),
        note=note,
        require=cast(Any, enum_number(heads_pb2.Require, require, "require")),
        prepare_seconds=prepare_timeout or 0.0,
    )


@names_bad_text
def rollback(
    to: int | None,
    expected_generation: int | None,
    expected_versions: Mapping[str, int] | None,
    request_id: str,
    require: RequireName | None = None,
    prepare_timeout: float | None = None,
) -> heads_pb2.RollbackHeadsRequest:
    return heads_pb2.RollbackHeadsRequest(
        to_generation=generation_number(to, "to"),
        expected_generation=generation_number(expected_generation, "expected_generation"),
        expected_versions=_expected(expected_versions),
        request_id=request_id or new_request_id(),
        require=cast(Any, enum_number(heads_pb2.Require, require, "require")),
        prepare_seconds=prepare_timeout or 0.0,
    )


def _expected(versions: Mapping[str, int] | None) -> Mapping[str, int]:
    expected = {} if versions is None else versions
    if not isinstance(expected, Mapping) or not all(isinstance(version, int) for version in expected.values()):
        raise TypeError('expected_versions must map names to version numbers, such as {"policy": 6}; 0: none is active')
    return _checked(expected, "expected_versions")


def _checked(versions: Mapping[str, int], field: str) -> Mapping[str, int]:
    """Protobuf says of a number that is too large no more than that it is."""
    for name, version in versions.items():
        if not 0 <= version < 1 << 32:
            raise InvalidArgument(f"not a version number: {str(version)[:40]}", field=f"{field}[{str(name)[:64]}]")
    return versions
