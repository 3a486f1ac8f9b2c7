"""The head service of the fake server: it keeps pushed files, and activates without looking."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from polyhead.v1 import (
    heads_pb2,
    heads_pb2_grpc,
    types_pb2,
)
from tests.client.fake_state import FakeState, rich_error


class FakeHeads(FakeState, heads_pb2_grpc.HeadServiceServicer):
    """Versions are counted by name."""

    async def PushHead(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        header, data, largest = None, b"", 0
        async for message in request_iterator:
            if message.WhichOneof("part") == "header":
                header = message.header
                await self._took("PushHead", header, context)
            else:
                assert message.chunk.offset == len(data)
                data, largest = data + message.chunk.data, max(largest, len(message.chunk.data))
        is_delta = header is not None and bool(header.delta_base)
        if header is None or len(data) < (header.delta_num_bytes if is_delta else header.num_bytes):
            await asyncio.Event().wait()  # the client went away in the middle: wait to be cancelled
        assert largest <= 1 << 20
        declared = (header.delta_num_bytes, header.delta_sha256) if is_delta else (header.num_bytes, header.sha256)
        assert (len(data), hashlib.sha256(data).hexdigest()) == declared
        version = 0 if header.validate_only else 1 + sum(record.name == header.name for record in self.records)
        record = heads_pb2.HeadVersion(
            name=header.name, version=version, digest=header.sha256, num_bytes=len(data), manifest=header.manifest
        )
        if version:
            self.records.append(record)
            self.files[f"{header.name}@{version}"] = data
        removed = [f"{header.name}@0"] if version else []
        return heads_pb2.PushHeadResponse(head=record, num_trunk_tensors_compared=len(header.trunk_sha256), removed=removed)

    async def PullHead(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("PullHead", request, context)
        data = self.files[request.head]
        record = next(r for r in self.records if f"{r.name}@{r.version}" == request.head)
        yield heads_pb2.PullHeadResponse(head=record)
        for start in range(0, len(data), 50):
            yield heads_pb2.PullHeadResponse(chunk=heads_pb2.Chunk(offset=start, data=data[start : start + 50]))

    async def CopyHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("CopyHead", request, context)
        return heads_pb2.CopyHeadResponse(head=heads_pb2.HeadVersion(name=request.target, version=5))

    async def ActivateHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ActivateHeads", request, context)
        made = heads_pb2.Generation(number=4, parent=3, heads=dict(request.heads), note=request.note)
        self.generations.insert(0, made)
        counts = {"num_pinned_requests": 2, "num_aborted_requests": 1, "num_following_requests": 3}
        return heads_pb2.ActivateHeadsResponse(generation=made, removed=["value@1"], **counts)

    async def RollbackHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("RollbackHeads", request, context)
        return heads_pb2.RollbackHeadsResponse(generation=heads_pb2.Generation(number=5, parent=4))

    async def GetHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("GetHead", request, context)
        if request.head.partition("@")[0] != "policy":
            await context.abort(*rich_error(grpc.StatusCode.NOT_FOUND, f"no head of this name: {request.head!r}"))
        manifest = heads_pb2.HeadManifest(kind=types_pb2.HEAD_KIND_POLICY)
        version = int(request.head.partition("@")[2] or 7)
        return heads_pb2.GetHeadResponse(head=heads_pb2.HeadVersion(name="policy", version=version, manifest=manifest))

    async def ListHeadTensors(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListHeadTensors", request, context)
        if request.head not in self.files:
            await context.abort(*rich_error(grpc.StatusCode.NOT_FOUND, f"no such head version: {request.head!r}"))
        record = next(r for r in self.records if f"{r.name}@{r.version}" == request.head)
        data = self.files[request.head]
        start = 8 + int.from_bytes(data[:8], "little")
        listed = heads_pb2.ListHeadTensorsResponse(head=record)
        for name, entry in json.loads(data[8:start]).items():
            first, last = entry["data_offsets"]
            dtype = {"F32": "float32", "BF16": "bfloat16"}[entry["dtype"]]
            digest = hashlib.sha256(data[start + first : start + last]).digest()
            listed.tensors.add(name=name, dtype=dtype, shape=entry["shape"], sha256=digest)
        return listed

    async def ListHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListHeads", request, context)
        version = 2 if not request.page_token else 1
        manifest = heads_pb2.HeadManifest(kind=types_pb2.HEAD_KIND_POLICY)
        head = heads_pb2.HeadVersion(name="policy", version=version, manifest=manifest, active=version == 2, digest="ff" * 32)
        return heads_pb2.ListHeadsResponse(heads=[head], next_page_token="more" if version == 2 else "")

    async def LabelHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("LabelHead", request, context)
        name, _, version = request.head.partition("@")
        return heads_pb2.LabelHeadResponse(head=heads_pb2.HeadVersion(name=name, version=int(version), labels=request.add))

    async def DeleteHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("DeleteHead", request, context)
        return heads_pb2.DeleteHeadResponse()

    async def ListGenerations(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListGenerations", request, context)
        return heads_pb2.ListGenerationsResponse(generations=self.generations)

    async def WatchHeads(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("WatchHeads", request, context)
        try:
            yield heads_pb2.WatchHeadsResponse(generation=self.generations[0])
            await asyncio.sleep(60)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
