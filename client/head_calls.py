"""Calls to HeadService, synchronous: weights in and out, the active set, its history."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from numpy.typing import NDArray

from polyhead.client.errors import NotFound, Unimplemented
from polyhead.client.results.records import Generation, HeadVersion, PushReport, TrunkInfo
from polyhead.client.streams import Stream
from polyhead.client.trunk_calls import TrunkCalls
from polyhead.client.weights.delta import Base
from polyhead.client.weights.pushing import PushPlan, Upload, plan_push, plan_update, with_removed
from polyhead.client.weights.tensors import RawTensor
from polyhead.client.weights.weights import Weights
from polyhead.client.wire import convert, head_requests, request_fields
from polyhead.client.wire.folding import HeadFile
from polyhead.client.wire.options import CopyOptions, PushOptions, RequireName
from polyhead.client.wire.parameters import COPYING, PUSHING, described
from polyhead.client.wire.pushed import Meant
from polyhead.v1 import heads_pb2

__all__ = ["HeadCalls"]


class HeadCalls(TrunkCalls):
    """The part of Client that administers heads."""

    # weights

    @described(PushOptions, PUSHING)
    def push_head(self, name: str, weights: Weights, **options: Unpack[PushOptions]) -> int:
        """Upload a new version and return its number (0 with validate_only). It is not active yet."""
        return self.push(name, weights, **options).version

    @described(PushOptions, PUSHING)
    def push(self, name: str, weights: Weights, **options: Unpack[PushOptions]) -> PushReport:
        """As push_head, but returns a report that says for every tensor whether it was used, converted, ignored or missing."""
        upload = self._prepare(plan_push(name, weights, options), self.trunk())
        return self._send(upload, options.get("timeout") or self._timeout)

    def pull_head(
        self, ref: str, folder: str | PathLike[str] | None = None, *, timeout: float | None = None
    ) -> dict[str, RawTensor | NDArray[Any]]:
        """Tensors of a version, checked against its digest; with `folder`, written as a head folder, too."""
        with closing(HeadFile()) as file:
            request = request_fields.message(heads_pb2.PullHeadRequest, head=ref)
            self._connection.read_all(lambda stubs: stubs.heads.PullHead, request, timeout or self._timeout, file.feed)
            file.finish()
            if folder is not None:
                file.save(Path(folder), self.trunk())
            return file.tensors()

    @described(CopyOptions, COPYING)
    def copy_head(self, source: str, target: str, **changes: Unpack[CopyOptions]) -> int:
        """Make a version of `target` from the weights of `source`, without an upload, perhaps with another kind, bias or scale."""
        request = head_requests.copy_head(source, target, **changes)
        response = self._connection.unary(lambda stubs: stubs.heads.CopyHead, request, changes.get("timeout") or self._timeout)
        self._pushed.note(convert.head_version(response.head))
        return int(response.head.version)

    # the active set

    def activate(
        self,
        heads: Mapping[str, Meant] | None = None,
        *,
        deactivate: Sequence[str] = (),
        expected_generation: int | None = None,
        expected_versions: Mapping[str, int] | None = None,
        require: RequireName | None = None,
        prepare_timeout: float | None = None,
        request_id: str = "",
        note: str = "",
        timeout: float | None = None,
    ) -> Generation:
        """Make versions active as one change; names in `deactivate` leave the active set ("policy" has to stay).

        Raises Conflict if the active generation is not `expected_generation`, or if the active version of a name in `expected_versions` is
        another one (0: none may be active). Other names may have changed, so several runs can share a server, each with its own heads.

        A version is a number, or the PushReport or HeadVersion of one. Raises FailedPrecondition if a version holds other weights than
        this client pushed under its number, or than the report says: another server answers at this address.

        Where other servers follow this one, `require` says which of them must have loaded the versions within `prepare_timeout` seconds
        (60): "all" (default), "connected", or "primary", which waits for none. Raises Unavailable or FailedPrecondition, naming the
        replica, and then nothing has changed anywhere. `behind` of the answer names replicas that do not serve the new generation yet.
        """
        versions, digests = self._pushed.of({} if heads is None else heads)
        expected = (expected_generation, expected_versions)
        request = head_requests.activate(versions, digests, deactivate, *expected, request_id, note, require, prepare_timeout)
        response = self._connection.unary(lambda stubs: stubs.heads.ActivateHeads, request, timeout or self._timeout)
        return convert.activated(response)

    def update(
        self,
        weights: Mapping[str, Weights],
        *,
        options: Mapping[str, PushOptions] | None = None,
        expected_generation: int | None = None,
        expected_versions: Mapping[str, int] | None = None,
        require: RequireName | None = None,
        prepare_timeout: float | None = None,
        request_id: str = "",
        note: str = "",
        timeout: float | None = None,
    ) -> Generation:
        """Push a new version of each name, then activate all of them as one change. Nothing is sent before all were checked.

        `options`: by name, what `push_head` takes, such as {"policy": {"metrics": {"loss": 0.3}}}. `expected_*` as in `activate`.
        """
        request_id = request_id or request_fields.new_request_id()
        trunk = self.trunk()
        plans = plan_update(weights, options or {}, request_id, note)
        uploads = [self._prepare(plan, trunk) for plan in plans]
        reports = [self._send(upload, timeout or self._timeout) for upload in uploads]
        versions = {report.head.name: report for report in reports}
        done = self.activate(
            versions,
            expected_generation=expected_generation,
            expected_versions=expected_versions,
            require=require,
            prepare_timeout=prepare_timeout,
            request_id=request_id,
            note=note,
            timeout=timeout,
        )
        return with_removed(done, reports)

    def rollback(
        self,
        to: int | None = None,
        *,
        expected_generation: int | None = None,
        expected_versions: Mapping[str, int] | None = None,
        require: RequireName | None = None,
        prepare_timeout: float | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Generation:
        """A new generation equal to `to` (default: the active one's parent). Raises Conflict as `activate` does."""
        request = head_requests.rollback(to, expected_generation, expected_versions, request_id, require, prepare_timeout)
        response = self._connection.unary(lambda stubs: stubs.heads.RollbackHeads, request, timeout or self._timeout)
        return convert.rolled_back(response)

    # listings

    def heads(self, name: str | None = None) -> list[HeadVersion]:
        """All versions, by name, newest first."""
        found: list[HeadVersion] = []
        request = request_fields.message(heads_pb2.ListHeadsRequest, name=name or "")
        while True:
            page = self._lookup(lambda stubs: stubs.heads.ListHeads, request)
            found += [convert.head_version(head) for head in page.heads]
            if not page.next_page_token:
                return found
            request = request_fields.message(heads_pb2.ListHeadsRequest, name=name or "", page_token=page.next_page_token)

    def head(self, ref: str) -> HeadVersion:
        """One version's record: "policy" (the active one) or "policy@7"."""
        response = self._lookup(lambda stubs: stubs.heads.GetHead, request_fields.message(heads_pb2.GetHeadRequest, head=ref))
        return convert.head_version(response.head)

    def label(self, ref: str, *labels: str, request_id: str = "", timeout: float | None = None) -> HeadVersion:
        """Add labels to a version ("policy@7") and return its record. The server keeps labelled versions beyond --keep-versions."""
        return self._label(head_requests.label_head(ref, labels, (), request_id), timeout)

    def unlabel(self, ref: str, *labels: str, request_id: str = "", timeout: float | None = None) -> HeadVersion:
        """Remove labels from a version and return its record. A label that the version does not have is no error."""
        return self._label(head_requests.label_head(ref, (), labels, request_id), timeout)

    def delete_head(self, ref: str) -> None:
        """Delete a version ("policy@7") that is neither active nor labelled."""
        self._lookup(lambda stubs: stubs.heads.DeleteHead, request_fields.message(heads_pb2.DeleteHeadRequest, head=ref))

    def generations(self, limit: int | None = None) -> list[Generation]:
        """The history of the active set, newest first; at most `limit`."""
        found: list[Generation] = []
        request = heads_pb2.ListGenerationsRequest(page_size=limit or 0)
        while True:
            page = self._lookup(lambda stubs: stubs.heads.ListGenerations, request)
            found += [convert.generation(each) for each in page.generations]
            if not page.next_page_token or (limit is not None and len(found) >= limit):
                return found[:limit]
            request = heads_pb2.ListGenerationsRequest(page_size=limit or 0, page_token=page.next_page_token)

    def watch(self, after: int = 0) -> Stream[Generation]:
        """The active generation, then each new one, without end. `after`: the last number already seen; later ones follow."""
        request = heads_pb2.WatchHeadsRequest(after_generation=after)
        return Stream(self._generations(request))

    # shared steps

    def _label(self, request: heads_pb2.LabelHeadRequest, timeout: float | None) -> HeadVersion:
        response = self._connection.unary(lambda stubs: stubs.heads.LabelHead, request, timeout or self._timeout)
        return convert.head_version(response.head)

    def _generations(self, request: heads_pb2.WatchHeadsRequest) -> Generator[Generation, None, None]:
        with closing(self._connection.stream(lambda stubs: stubs.heads.WatchHeads, request, None)) as messages:
            for message in messages:
                yield convert.generation(message.generation)

    def _prepare(self, plan: PushPlan, trunk: TrunkInfo) -> Upload:
        base = self._base(plan.base_reference) if plan.base_reference else None
        kind = plan.kind or (base.head.kind if base else None)
        if kind is None and plan.kind_reference:
            try:
                kind = self.head(plan.kind_reference).kind
            except NotFound:
                kind = plan.guess_kind()
        return plan.prepare(trunk, kind, base)

    def _base(self, ref: str) -> Base | None:
        """What to compare a push with; None if the server does not know it, and will say so, or is too old to compare."""
        request = request_fields.message(heads_pb2.ListHeadTensorsRequest, head=ref)
        try:
            response = self._connection.unary(lambda stubs: stubs.heads.ListHeadTensors, request, self._timeout)
        except (NotFound, Unimplemented):
            return None
        return convert.base(response)

    def _send(self, upload: Upload, timeout: float | None) -> PushReport:
        report = upload.report(self._connection.upload(lambda stubs: stubs.heads.PushHead, upload.messages, timeout))
        self._pushed.note(report.head)
        return report
