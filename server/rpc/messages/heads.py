"""Head messages to dataclasses and back: the one place where heads.proto meets the registry. Checks fields only."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.lora import LoraAdapter
from polyhead.heads.format.manifest import HeadManifest, check_name
from polyhead.heads.format.precision import FILE_DTYPES, Precision
from polyhead.heads.store.delta import TensorHash
from polyhead.heads.store.records import check_metrics, history_id
from polyhead.heads.store.store import GenerationRecord, PastGeneration
from polyhead.heads.store.versions import MAX_LABELS
from polyhead.server.rpc.messages import enums
from polyhead.server.versions.consent import PREPARE_S, Require, Wish
from polyhead.server.versions.lookup import VersionView
from polyhead.server.versions.manifests import ManifestPatch
from polyhead.server.versions.push_requests import CopyRequest, Delta, PushRequest
from polyhead.v1 import heads_pb2

DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_EXPECTED = 64  # names of one activation's condition
MAX_NOTE = 1024  # characters
MAX_PREPARE_S = 3600.0  # of replicas
_SHA256 = re.compile(r"[0-9a-f]{64}")


def push_request(header: heads_pb2.PushHeader, request_digest: str) -> PushRequest:
    """The header without size and hash, which the store checks. Unset manifest fields become None."""
    for name, digest in header.trunk_sha256.items():
        if not _SHA256.fullmatch(digest.lower()):
            raise InvalidArgument(
                f"not a SHA-256 of 64 hex digits: {digest[:80]!r}", field=f"header.trunk_sha256[{name[:120]}]"
            )
    delta = _delta(header)
    if delta is None or header.sha256:
        _check_sha256(header.sha256, "header.sha256")
    return PushRequest(
        name=check_name(header.name, "header.name"),
        manifest=_patch(header.manifest),
        request_id=header.request_id,
        request_digest=request_digest,
        is_dry_run=header.validate_only,
        trunk_sha256=dict(header.trunk_sha256),
        labels=check_labels(header.labels, "header.labels"),
        metrics=check_metrics(header.metrics),
        delta=delta,
    )


def _delta(header: heads_pb2.PushHeader) -> Delta | None:
    if not header.delta_base:
        for name in ("delta_num_bytes", "delta_sha256"):
            if getattr(header, name):
                raise InvalidArgument(f"{name} is only taken together with delta_base", field=f"header.{name}")
        return None
    _check_sha256(header.delta_sha256, "header.delta_sha256")
    if not header.delta_num_bytes:
        raise InvalidArgument("the file that follows has at least one byte", field="header.delta_num_bytes")
    return Delta(header.delta_base, header.delta_num_bytes, header.delta_sha256, header.num_bytes, header.sha256)


def _check_sha256(text: str, field: str) -> None:
    if not _SHA256.fullmatch(text):
        raise InvalidArgument(f"not a SHA-256 of 64 lower-case hex digits: {text[:80]!r}", field=field)


def copy_request(message: heads_pb2.CopyHeadRequest, request_digest: str) -> CopyRequest:
    return CopyRequest(
        source=message.source,
        target=check_name(message.target, "target"),
        kind=enums.HEAD_KINDS.member(message.kind, "kind"),
        bias=message.bias if message.HasField("bias") else None,
        scale=message.scale if message.HasField("scale") else None,
        read=enums.READ_POSITIONS.member(message.read, "read"),
        append_token_id=message.append_token_id if message.HasField("append_token_id") else None,
        pad_token_id=_pad(message, "pad_token_id"),
        unfinished=enums.UNFINISHED.member(message.unfinished, "unfinished"),
        request_id=message.request_id,
        request_digest=request_digest,
        labels=check_labels(message.labels, "labels"),
    )


def activation_heads(message: heads_pb2.ActivateHeadsRequest) -> dict[str, int]:
    """Name to version, checked; the names that leave are, too."""
    if not message.heads and not message.deactivate:
        raise InvalidArgument("an activation needs at least one head", field="heads")
    if len(message.note) > MAX_NOTE:
        raise InvalidArgument(f"note is longer than {MAX_NOTE} characters: {len(message.note)}", field="note")
    for name, version in message.heads.items():
        field = f"heads[{name[:64]}]"
        check_name(name, field)
        if not 1 <= version < 1_000_000_000:
            raise InvalidArgument(f"not a version number: {version}", field=field)
    for index, name in enumerate(message.deactivate):
        check_name(name, f"deactivate[{index}]")
    return dict(message.heads)


def expected_versions(message: heads_pb2.ActivateHeadsRequest | heads_pb2.RollbackHeadsRequest) -> dict[str, int]:
    """Name to the version that must be active, checked."""
    if len(message.expected_versions) > MAX_EXPECTED:
        raise InvalidArgument(f"{len(message.expected_versions)} names, at most {MAX_EXPECTED}", field="expected_versions")
    for name, version in message.expected_versions.items():
        field = f"expected_versions[{name[:64]}]"
        check_name(name, field)
        if version >= 1_000_000_000:
            raise InvalidArgument(f"not a version number: {version}", field=field)
    return dict(message.expected_versions)


def activation_digests(message: heads_pb2.ActivateHeadsRequest) -> dict[str, str]:
    """Name to the digest of the version that is to become active, checked."""
    for name, digest in message.digests.items():
        field = f"digests[{name[:64]}]"
        if name not in message.heads:
            raise InvalidArgument(f"the name is not in heads: {name[:64]!r}", field=field)
        if not _SHA256.fullmatch(digest):
            raise InvalidArgument(f"not a SHA-256 of 64 hex digits: {digest[:80]!r}", field=field)
    return dict(message.digests)


def wish(message: heads_pb2.ActivateHeadsRequest | heads_pb2.RollbackHeadsRequest, default: Require) -> Wish:
    """Whom the change waits for, and how long."""
    seconds = message.prepare_seconds
    if not 0 <= seconds <= MAX_PREPARE_S:
        raise InvalidArgument(f"prepare_seconds must lie between 0 and {MAX_PREPARE_S:g}: {seconds}", field="prepare_seconds")
    return Wish(enums.REQUIREMENTS.member_or(message.require, "require", default), seconds or PREPARE_S)


def version_message(view: VersionView) -> heads_pb2.HeadVersion:
    record = view.record
    return heads_pb2.HeadVersion(
        name=record.name,
        version=record.version,
        digest=record.digest,
        num_bytes=record.num_bytes,
        manifest=manifest_message(record.manifest),
        active=view.is_active,
        resident=view.is_resident,
        created_at=record.created_at,
        labels=record.labels,
        metrics=record.metrics,
        file_sha256=record.blob,
    )


def tensor_message(tensor: TensorHash) -> heads_pb2.StoredTensor:
    return heads_pb2.StoredTensor(
        name=tensor.name, dtype=FILE_DTYPES[tensor.dtype], shape=tensor.shape, sha256=tensor.sha256
    )


def past_message(past: PastGeneration) -> heads_pb2.Generation:
    """A generation with what became of it."""
    message = generation_message(past.record)
    message.gone.extend(past.gone)
    message.same_as = past.same_as
    return message


def generation_message(record: GenerationRecord) -> heads_pb2.Generation:
    return heads_pb2.Generation(
        number=record.number,
        parent=record.parent or 0,
        heads=dict(record.heads),
        created_at=record.created_at,
        note=record.note,
        history_id=history_id(record),
    )


def manifest_message(manifest: HeadManifest) -> heads_pb2.HeadManifest:
    """A token id that is not used is 0 on the wire."""
    return heads_pb2.HeadManifest(
        kind=enums.HEAD_KINDS.number(manifest.kind),
        trunk_id=manifest.trunk_id,
        precision=manifest.precision,
        output=enums.OUTPUT_KINDS.number(manifest.output),
        base=manifest.base,
        untrained=manifest.untrained,
        bias=manifest.bias,
        scale=manifest.scale,
        read=enums.READ_POSITIONS.number(manifest.read),
        append_token_id=max(0, manifest.append_token_id),
        pad_token_id=manifest.pad_token_id,
        unfinished=enums.UNFINISHED.number(manifest.unfinished),
        violated_token_id=max(0, manifest.violated_token_id),
        followed_token_id=max(0, manifest.followed_token_id),
        template=manifest.template,
        lora=None if manifest.lora is None else heads_pb2.LoraAdapter(**manifest.lora.to_plain()),
    )


def page_size(size: int) -> int:
    if size < 0:
        raise InvalidArgument(f"page_size must not be negative: {size}", field="page_size")
    return min(size or DEFAULT_PAGE, MAX_PAGE)


def page_token(kind: str, *position: str | int) -> str:
    """Opaque, url-safe; says which list it belongs to and after which row it goes on."""
    return base64.urlsafe_b64encode(json.dumps([kind, *position]).encode()).decode().rstrip("=")


def page_position(token: str, kind: str, *types: type) -> list[Any] | None:
    """What `page_token` was given; None for the first page."""
    if not token:
        return None
    try:
        plain = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        plain = None
    if not isinstance(plain, list) or [type(value) for value in plain] != [str, *types] or plain[0] != kind:
        raise InvalidArgument("not a page token of this list", field="page_token")
    return plain[1:]


def _patch(message: heads_pb2.HeadManifest) -> ManifestPatch:
    prefix = "header.manifest"
    return ManifestPatch(
        kind=enums.HEAD_KINDS.member(message.kind, f"{prefix}.kind"),
        trunk_id=message.trunk_id or None,
        precision=Precision.parse(message.precision, f"{prefix}.precision") if message.precision else None,
        output=enums.OUTPUT_KINDS.member(message.output, f"{prefix}.output"),
        base=message.base or None,
        untrained=message.untrained,
        bias=message.bias if message.HasField("bias") else None,
        scale=message.scale if message.HasField("scale") else None,
        read=enums.READ_POSITIONS.member(message.read, f"{prefix}.read"),
        append_token_id=message.append_token_id if message.append_token_id or message.read == heads_pb2.READ_POSITION_APPEND else None,
        pad_token_id=_pad(message, f"{prefix}.pad_token_id"),
        unfinished=enums.UNFINISHED.member(message.unfinished, f"{prefix}.unfinished"),
        violated_token_id=message.violated_token_id or None,
        followed_token_id=message.followed_token_id or None,
        template=message.template or None,
        lora=_lora(message.lora) if message.HasField("lora") else None,
    )


def _lora(message: heads_pb2.LoraAdapter) -> LoraAdapter:
    if message.fan_in_fan_out:
        raise InvalidArgument(
            "fan_in_fan_out is for layers that hold (in, out)\nhint: linears hold (out, in), and PEFT itself sets it to false for them",
            field="header.manifest.lora.fan_in_fan_out",
        )
    lora = LoraAdapter(
        rank=message.rank,
        alpha=message.alpha,
        use_rslora=message.use_rslora,
        rank_pattern=dict(message.rank_pattern),
        alpha_pattern=dict(message.alpha_pattern),
    )
    lora.validate()
    return lora


def _pad(message: heads_pb2.HeadManifest | heads_pb2.CopyHeadRequest, field: str) -> int | None:
    """-1: no token is padding; None: as before."""
    if not message.HasField("pad_token_id"):
        return None
    if message.pad_token_id < -1:
        raise InvalidArgument(f"pad_token_id is a token id, or -1 for none: {message.pad_token_id}", field=field)
    return message.pad_token_id


def check_labels(labels: Any, field: str) -> tuple[str, ...]:
    """At most 16, each by the rule for head names. InvalidArgument."""
    if len(labels) > MAX_LABELS:
        raise InvalidArgument(f"at most {MAX_LABELS} labels: {len(labels)}", field=field)
    return tuple(check_name(label, field) for label in labels)
