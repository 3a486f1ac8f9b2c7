"""One upload, from what the caller gave to the messages on the wire and the report. Makes no calls: both clients drive it.

plan = plan_push(name, weights, options)      # collects names; reads no weights yet
upload = plan.prepare(trunk, kind, base)      # sorts, compares, lays out, hashes; nothing was sent so far
response = <PushHead>(upload.messages())      # may be called again for a retry: the same bytes, the same request_id
report = upload.report(response)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from polyhead.client.errors import InvalidArgument
from polyhead.client.results.records import Generation, LoraAdapter, PushReport, TrunkInfo
from polyhead.client.results.results import HeadKind
from polyhead.client.weights.adapters import AdapterConfig, sort_adapter
from polyhead.client.weights.canonical import CanonicalFile, serialise
from polyhead.client.weights.delta import Base, changed_tensors
from polyhead.client.weights.folders import read_json
from polyhead.client.weights.model_class import ModelClass, as_adapter, is_module
from polyhead.client.weights.names import LM_HEAD, SCORE
from polyhead.client.weights.tensors import Source
from polyhead.client.weights.weights import SortedWeights, Weights, collect, guess_kind, sort_weights
from polyhead.client.wire import convert
from polyhead.client.wire.options import PushOptions
from polyhead.client.wire.request_fields import enum_number, new_request_id, request_id_for
from polyhead.client.wire.text_check import check_text
from polyhead.client.wire.unknown_options import refuse_unknown
from polyhead.heads.format.kinds import KINDS
from polyhead.v1 import heads_pb2, types_pb2

__all__ = ["PushPlan", "Upload", "plan_push", "plan_update", "with_removed"]

# keys of head.json that a push may carry on; its trunk_id lets the server refuse a head of another trunk
_FROM_FOLDER = (
    "kind",
    "trunk_id",
    "precision",
    "untrained",
    *dict.fromkeys(name for kind in KINDS.values() for name in kind.manifest_fields),
)
_NOT_IN_UPDATE = {"request_id", "validate_only", "timeout"}  # they belong to the whole
_MANIFEST_KEYS = frozenset(_FROM_FOLDER) | {"base"}


@dataclass(frozen=True, slots=True)
class PushPlan:
    """A push that does not know the trunk yet."""

    name: str
    given: Mapping[str, Source]
    manifest: Mapping[str, Any]  # plain values by the names of head.json; what is left out is the server's to fill in
    options: PushOptions
    adapter: AdapterConfig | None = None  # of a LoRA head
    model_class: ModelClass | None = None  # that the weights come from, where that can be known

    @property
    def kind(self) -> HeadKind | None:
        """What the caller or the folder said; None: ask the server about `kind_reference`."""
        return HeadKind(self.manifest["kind"]) if self.manifest.get("kind") else None

    @property
    def kind_reference(self) -> str:
        """The version whose kind this head takes if none is given: the base, or the active version of the name.

        Empty for an adapter: the server gives it the kind of what it builds on.
        """
        return "" if self.adapter else str(self.manifest.get("base") or self.name)

    @property
    def base_reference(self) -> str:
        """The version to compare with, so that only what differs from it is sent; empty: everything is."""
        base = str(self.manifest.get("base", ""))
        return base if "@" in base and self.adapter is None else ""

    def guess_kind(self) -> HeadKind:
        """For a name that the server does not know."""
        return guess_kind(self.given)

    def prepare(self, trunk: TrunkInfo, kind: HeadKind | None, base: Base | None = None) -> Upload:
        """Everything that can be refused without sending a byte is refused here; see `sort_weights` and `sort_adapter`."""
        if self.adapter is not None:
            found, lora = sort_adapter(self.given, self.adapter, trunk)
            manifest = _manifest_message(self.manifest, None, lora)
        else:
            assert kind is not None, "only an adapter is pushed without a kind"
            found = sort_weights(self.given, trunk, kind, may_miss=bool(self.manifest.get("base")))
            plain = {**self._reading(kind, trunk), **self.manifest, **self._bias(found), "kind": kind.value}
            manifest = _manifest_message(plain, None if found.missing else _output_name(found))
        file = serialise(found.tensors, hash_each=base is not None)
        sent = changed_tensors(found.tensors, file, base, is_whole=not found.missing)
        header = heads_pb2.PushHeader(
            name=self.name,
            manifest=manifest,
            request_id=self.options.get("request_id") or new_request_id(),
            validate_only=self.options.get("validate_only", False),
            trunk_sha256=found.trunk_sha256,
            labels=list(self.options.get("labels", ())),
            metrics=_metrics(self.options.get("metrics")),
        )
        if not found.missing:
            header.num_bytes, header.sha256 = file.num_bytes, file.sha256
        if found.missing or len(sent) < len(found.tensors):
            file = serialise(sent)
            header.delta_base = str(self.manifest["base"])
            header.delta_num_bytes, header.delta_sha256 = file.num_bytes, file.sha256
        return Upload(header, file, found, sorted(sent), self.options.get("progress"))

    def _reading(self, kind: HeadKind, trunk: TrunkInfo) -> dict[str, Any]:
        """Where the class reads its score, unless the caller or head.json says so."""
        if kind is not HeadKind.PREFERENCE or self.model_class is None or self.manifest.keys() & {"read", "pad_token_id"}:
            return {}
        return self.model_class.reading(trunk.vocab_size)

    def _bias(self, found: SortedWeights) -> dict[str, float]:
        """The weights' own bias: a head subtracts what it keeps."""
        if found.output_bias is None or (not found.output_bias and "bias" in self.manifest):
            return {}
        if "bias" in self.manifest:
            raise InvalidArgument(f"the weights have a bias of their own, {found.output_bias:g}: leave bias= out", field="bias")
        return {"bias": 0.0 - found.output_bias}


@dataclass(frozen=True, slots=True)
class Upload:
    """A push that is ready to go."""

    header: heads_pb2.PushHeader
    file: CanonicalFile
    found: SortedWeights
    sent: list[str]
    progress: Callable[[int, int], None] | None

    def messages(self) -> Iterator[heads_pb2.PushHeadRequest]:
        """The header, then chunks of at most 1 MiB; tells `progress` after each one was taken by the transport."""
        yield heads_pb2.PushHeadRequest(header=self.header)
        for offset, data in self.file.chunks():
            yield heads_pb2.PushHeadRequest(chunk=heads_pb2.Chunk(offset=offset, data=data))
            if self.progress is not None:
                self.progress(offset + len(data), self.file.num_bytes)

    def report(self, response: heads_pb2.PushHeadResponse) -> PushReport:
        return PushReport(
            version=response.head.version,
            head=convert.head_version(response.head),
            used=sorted(self.found.tensors),
            converted=self.found.converted,
            ignored=self.found.ignored,
            missing=self.found.missing,
            num_trunk_tensors_compared=response.num_trunk_tensors_compared,
            sent=self.sent,
            num_bytes_sent=self.file.num_bytes,
            removed=tuple(response.removed),
            num_trunk_tensors_unchanged=len(self.found.trunk_sha256),
            same_file_as=response.same_file_as,
        )


def plan_push(name: str, weights: Weights, options: PushOptions) -> PushPlan:
    """Raises TypeError or InvalidArgument for what is wrong in itself."""
    refuse_unknown(options, PushOptions.__annotations__, "push()")
    check_text(name=name, **{key: value for key, value in options.items() if key not in ("lora", "progress")})
    folder = _folder_manifest(weights)
    lora = options.get("lora") or (as_adapter(weights) if is_module(weights) else None)
    adapter = _adapter(weights, lora, folder.pop("lora", None))
    manifest = folder | {key: value for key, value in options.items() if key in _MANIFEST_KEYS and value not in (None, "")}
    if "kind" in manifest:
        enum_number(types_pb2.HeadKind, manifest["kind"], "kind")
    return PushPlan(name, collect(weights), manifest, options, adapter, _class_of(weights))


def plan_update(weights: Mapping[str, Weights], options: Mapping[str, PushOptions], request_id: str, note: str = "") -> list[PushPlan]:
    """One push for each name, all of one request id. `note` is for the activation, but refused before the first push."""
    check_text(request_id=request_id, note=note)
    if unknown := sorted(options.keys() - weights.keys()):
        raise InvalidArgument(f"options for a name that is not pushed: {unknown[0]!r}", field="options")
    plans = []
    for name, each in weights.items():
        if unusual := sorted(options.get(name, {}).keys() & _NOT_IN_UPDATE):
            raise InvalidArgument(f"an update cannot take this option for one of its names: {unusual[0]!r}", field="options")
        own = PushOptions(**{**options.get(name, PushOptions()), "request_id": request_id_for(request_id, name)})
        plans.append(plan_push(name, each, own))
    return plans


def _folder_manifest(weights: Weights) -> dict[str, Any]:
    """What head.json beside the weights says, without what does not apply (-1 and "")."""
    if not isinstance(weights, (str, os.PathLike)) or not (file := Path(weights) / "head.json").is_file():
        return {}
    plain = read_json(file)
    taken = (*_FROM_FOLDER, "base", "lora") if plain.get("lora") else _FROM_FOLDER
    found = {key: plain[key] for key in taken if key in plain and plain[key] not in (-1, "")}
    return {"pad_token_id": -1, **found} if "read" in found else found


def _class_of(weights: Weights) -> ModelClass | None:
    if isinstance(weights, (str, os.PathLike)):
        return ModelClass.of_folder(Path(weights))
    return ModelClass.of_module(weights) if is_module(weights) else None


def with_removed(done: Generation, reports: Sequence[PushReport]) -> Generation:
    """An update's answer, with what its pushes removed, too."""
    return dataclasses.replace(done, removed=(*(ref for report in reports for ref in report.removed), *done.removed))


def _adapter(weights: Weights, given: Mapping[str, Any] | None, of_head: Any) -> AdapterConfig | None:
    """From head.json, adapter_config.json or the caller; None for a plain head."""
    if of_head is not None:
        found: AdapterConfig | None = AdapterConfig.of_head(of_head)
    else:
        found = AdapterConfig.read(weights) if isinstance(weights, (str, os.PathLike)) else None
    if found is None:
        return None if given is None else AdapterConfig.of(given)
    if given is not None:
        raise InvalidArgument("the folder holds the configuration of its adapter: leave lora= out", field="lora")
    return found


def _metrics(metrics: Mapping[str, float] | None) -> dict[str, float]:
    """Plain floats; names, number and finiteness are the server's to check."""
    try:
        return {str(name): float(value) for name, value in (metrics or {}).items()}
    except (TypeError, ValueError, AttributeError):
        raise InvalidArgument("metrics must map names to numbers", field="metrics") from None


def _output_name(found: SortedWeights) -> str:
    """What a whole file says about the head's output."""
    if SCORE in found.tensors:
        return "score"
    if LM_HEAD in found.tensors:
        return "own"
    return "tied"


def _manifest_message(plain: Mapping[str, Any], output: str | None, lora: LoraAdapter | None = None) -> heads_pb2.HeadManifest:
    values = {key: value for key, value in plain.items() if key not in ("kind", "read", "unfinished")}
    try:
        return heads_pb2.HeadManifest(
            kind=cast(Any, enum_number(types_pb2.HeadKind, plain.get("kind"), "kind")),
            output=cast(Any, enum_number(heads_pb2.OutputKind, output, "output")),
            read=cast(Any, enum_number(heads_pb2.ReadPosition, plain.get("read"), "read")),
            unfinished=cast(Any, enum_number(heads_pb2.Unfinished, plain.get("unfinished"), "unfinished")),
            lora=None if lora is None else heads_pb2.LoraAdapter(**dataclasses.asdict(lora)),
            **values,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"the head's manifest holds a value of a wrong type or range: {error}", field="manifest"
        ) from None
