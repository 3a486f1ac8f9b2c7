"""Calls to HeadService, awaited: weights in and out, the active set, its history."""
# ruff: noqa: ASYNC109  # timeout= is the deadline that the server is told, not a local timer

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, closing
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from numpy.typing import NDArray

from polyhead.client.aio_trunk_calls import AsyncTrunkCalls
from polyhead.client.errors import NotFound, Unimplemented
from polyhead.client.results.records import Generation, HeadVersion, PushReport, TrunkInfo
from polyhead.client.streams import AsyncStream
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

__all__ = ["AsyncHeadCalls"]


class AsyncHeadCalls(AsyncTrunkCalls):
    """The part of AsyncClient that administers heads."""

    # weights

    @described(PushOptions, PUSHING)
    async def push_head(self, name: str, weights: Weights, **options: Unpack[PushOptions]) -> int:
        """Upload a new version and return its number (0 with validate_only). It is not active yet."""
        return (await self.push(name, weights, **options)).version

    @described(PushOptions, PUSHING)
    async def push(self, name: str, weights: Weights, **options: Unpack[PushOptions]) -> PushReport:
        """As push_head, but returns a report that says for every tensor whether it was used, converted, ignored or missing."""
        upload = await self._prepare(plan_push(name, weights, options), await self.trunk())
        return await self._send(upload, options.get("timeout") or self._timeout)

    async def pull_head(
        self, ref: str, folder: str | PathLike[str] | None = None, *, timeout: float | None = None
    ) -> dict[str, RawTensor | NDArray[Any]]:
        """Tensors of a version, checked against its digest; with `folder`, written as a head folder, too."""
        with closing(HeadFile()) as file:
            request = request_fields.message(heads_pb2.PullHeadRequest, head=ref)
            await self._connection.read_all(lambda stubs: stubs.heads.PullHead, request, timeout or self._timeout, file.feed)
            file.finish()
            if folder is not None:
                file.save(Path(folder), await self.trunk())
            return file.tensors()

    @described(CopyOptions, COPYING)
    async def copy_head(self, source: str, target: str, **changes: Unpack[CopyOptions]) -> int:
        """Make a version of `target` from the weights of `source`, without an upload, perhaps with another kind, bias or scale."""
        request = head_requests.copy_head(source, target, **changes)
        response = await self._connection.unary(
            lambda stubs: stubs.heads.CopyHead, request, changes.get("timeout") or self._timeout
        )
        self._pushed.note(convert.head_version(response.head))
        return int(response.head.version)

    # the active set

    async def activate(
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
        """
        versions, digests = self._pushed.of({} if heads is None else heads)
        expected = (expected_generation, expected_versions)
        request = head_requests.activate(versions, digests, deactivate, *expected, request_id, note, require, prepare_timeout)
        response = await self._connection.unary(lambda stubs: stubs.heads.ActivateHeads, request, timeout or self._timeout)
        return convert.activated(response)

    async def update(
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
        trunk = await self.trunk()
        plans = plan_update(weights, options or {}, request_id, note)
        uploads = [await self._prepare(plan, trunk) for plan in plans]
        reports = [await self._send(upload, timeout or self._timeout) for upload in uploads]
        versions = {report.head.name: report for report in reports}
        done = await self.activate(
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

    async def rollback(
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
        response = await self._connection.unary(lambda stubs: stubs.heads.RollbackHeads, request, timeout or self._timeout)
        return convert.rolled_back(response)

    # listings

    async def heads(self, name: str | None = None) -> list[HeadVersion]:
        """All versions, by name, newest first."""
        found: list[HeadVersion] = []
        request = request_fields.message(heads_pb2.ListHeadsRequest, name=name or "")
        while True:
            page = await self._lookup(lambda stubs: stubs.heads.ListHeads, request)
            found += [convert.head_version(head) for head in page.heads]
            if not page.next_page_token:
                return found
            request = request_fields.message(heads_pb2.ListHeadsRequest, name=name or "", page_token=page.next_page_token)

    async def head(self, ref: str) -> HeadVersion:
        """One version's record: "policy" (the active one) or "policy@7"."""
        response = await self._lookup(lambda stubs: stubs.heads.GetHead, request_fields.message(heads_pb2.GetHeadRequest, head=ref))
        return convert.head_version(response.head)

    async def label(self, ref: str, *labels: str, request_id: str = "", timeout: float | None = None) -> HeadVersion:
        """Add labels to a version ("policy@7") and return its record. The server keeps labelled versions beyond --keep-versions."""
        return await self._label(head_requests.label_head(ref, labels, (), request_id), timeout)

    async def unlabel(self, ref: str, *labels: str, request_id: str = "", timeout: float | None = None) -> HeadVersion:
        """Remove labels from a version and return its record. A label that the version does not have is no error."""
        return await self._label(head_requests.label_head(ref, (), labels, request_id), timeout)

    async def delete_head(self, ref: str) -> None:
        """Delete a version ("policy@7") that is neither active nor labelled."""
        await self._lookup(lambda stubs: stubs.heads.DeleteHead, request_fields.message(heads_pb2.DeleteHeadRequest, head=ref))

    async def generations(self, limit: int | None = None) -> list[Generation]:
        """The history of the active set, newest first; at most `limit`."""
        found: list[Generation] = []
        request = heads_pb2.ListGenerationsRequest(page_size=limit or 0)
        while True:
            page = await self._lookup(lambda stubs: stubs.heads.ListGenerations, request)
            found += [convert.generation(each) for each in page.generations]
            if not page.next_page_token or (limit is not None and len(found) >= limit):
                return found[:limit]
            request = heads_pb2.ListGenerationsRequest(page_size=limit or 0, page_token=page.next_page_token)

    def watch(self, after: int = 0) -> AsyncStream[Generation]:
        """The active generation, then each new one, without end. `after`: the last number already seen; later ones follow."""
        request = heads_pb2.WatchHeadsRequest(after_generation=after)
        return AsyncStream(self._generations(request))

    # shared steps

    async def _label(self, request: heads_pb2.LabelHeadRequest, timeout: float | None) -> HeadVersion:
        response = await self._connection.unary(lambda stubs: stubs.heads.LabelHead, request, timeout or self._timeout)
        return convert.head_version(response.head)

    async def _generations(self, request: heads_pb2.WatchHeadsRequest) -> AsyncGenerator[Generation, None]:
        async with aclosing(self._connection.stream(lambda stubs: stubs.heads.WatchHeads, request, None)) as messages:
            async for message in messages:
                yield convert.generation(message.generation)

    async def _prepare(self, plan: PushPlan, trunk: TrunkInfo) -> Upload:
        base = await self._base(plan.base_reference) if plan.base_reference else None
        kind = plan.kind or (base.head.kind if base else None)
        if kind is None and plan.kind_reference:
            try:
                kind = (await self.head(plan.kind_reference)).kind
            except NotFound:
                kind = plan.guess_kind()
        return await asyncio.to_thread(plan.prepare, trunk, kind, base)

    async def _base(self, ref: str) -> Base | None:
        """What to compare a push with; None if the server does not know it, and will say so, or is too old to compare."""
        request = request_fields.message(heads_pb2.ListHeadTensorsRequest, head=ref)
        try:
            response = await self._connection.unary(lambda stubs: stubs.heads.ListHeadTensors, request, self._timeout)
        except (NotFound, Unimplemented):
            return None
        return convert.base(response)

    async def _send(self, upload: Upload, timeout: float | None) -> PushReport:
        report = upload.report(await self._connection.upload(lambda stubs: stubs.heads.PushHead, upload.messages, timeout))
        self._pushed.note(report.head)
        return report
