"""HeadService: versions in and out, and the active set. Hashing, disks and building run beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc

from polyhead.heads.format.errors import DataLoss, InvalidArgument, NotFound, PolyheadError
from polyhead.heads.format.pauses import pause_point
from polyhead.heads.store import failpoints
from polyhead.heads.store.store import OpenBlob, Staging
from polyhead.server.engine.schedule.shares import Shares
from polyhead.server.process.services import Services
from polyhead.server.process.workers import carried_through
from polyhead.server.rpc.interceptors import current_call
from polyhead.server.rpc.messages import heads as convert
from polyhead.server.rpc.uploads import Upload
from polyhead.server.versions.consent import Require, Wish
from polyhead.server.versions.lookup import VersionView
from polyhead.server.versions.preconditions import Expected
from polyhead.server.versions.publisher import MAX_PUSHES
from polyhead.server.versions.push_requests import DeltaBase, Published, PushRequest
from polyhead.server.versions.registry import Activation
from polyhead.server.versions.request_digest import request_digest
from polyhead.server.versions.tensor_hashes import TensorHashes
from polyhead.v1 import heads_pb2 as pb
from polyhead.v1 import heads_pb2_grpc

MAX_CHUNK = 1 << 20
MAX_WATCHES = 256
MAX_PULLS = 64  # each holds a file open
MAX_ANNOUNCEMENTS = 16
MIN_BYTES_PER_S = 16 << 10  # of a push, over each minute that was waited for it
GATHERED_BYTES = 1 << 20  # received bytes that are written at once
Context = grpc.aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)


class HeadServicer(heads_pb2_grpc.HeadServiceServicer):
    """Thin: reads a request, calls registry or publisher on a worker thread, writes the answer."""

    def __init__(self, services: Services) -> None:
        self._registry = services.registry
        self._publisher = services.publisher
        self._store = services.store
        self._workers = services.workers
        self._push_idle_s = services.config.push_idle_s
        self._on_received = services.metrics.observe_received  # ("whole" or "delta", bytes of a chunk)
        self._pushes = Shares("pushes", MAX_PUSHES, hint="wait for one to end")
        self._watches = Shares("watches", MAX_WATCHES, hint="use one watch for the whole process", retry_after_s=10.0)
        self._pulls = Shares("pulls", MAX_PULLS, hint="wait for one to end")
        self._announcements: dict[int, asyncio.Future[pb.WatchHeadsResponse | None]] = {}  # of the newest generations
        self._tensors = TensorHashes(services.store)

    # ---- versions

    async def PushHead(self, request_iterator: AsyncIterator[pb.PushHeadRequest], context: Context) -> pb.PushHeadResponse:  # noqa: N802
        """Header, then chunks. Whatever goes wrong, the staged bytes are gone when the call has ended."""
        upload = Upload(request_iterator, "push", self._push_idle_s)
        header: pb.PushHeader = await upload.header()
        request = convert.push_request(header, await self._bound(header))
        self._publisher.check_served(request)
        self._publisher.check_size(header.num_bytes, "header.num_bytes")
        self._publisher.check_size(header.delta_num_bytes, "header.delta_num_bytes")
        first = await self._workers.run(self._publisher.answered, request, header.sha256)
        if first is not None:
            return await self._pushed(Published(first, len(request.trunk_sha256)))
        with self._pushes.held(current_call.get().caller.principal):
            published = await self._push(_Chunks(upload), request, header)
        return await self._pushed(published, await self._tidy_up())

    async def _pushed(self, published: Published, removed: Sequence[str] = ()) -> pb.PushHeadResponse:
        return pb.PushHeadResponse(
            head=convert.version_message(self._registry.view(published.record)),
            num_trunk_tensors_compared=published.num_trunk_tensors_compared,
            removed=removed,
            same_file_as=await self._workers.run(self._publisher.same_file_as, published.record),
        )

    async def _push(self, chunks: _Chunks, request: PushRequest, header: pb.PushHeader) -> Published:
        """Receive what is sent, whole or only what changed, and make it a version."""
        if request.delta is None:
            await self._workers.finish(self._registry.check_disk, header.num_bytes, "header.num_bytes")
            return await self._push_file(chunks, request, header.num_bytes, header.sha256)
        base = await self._workers.open(self._publisher.open_base, request.delta, request.manifest)
        with base:
            num_bytes = request.delta.num_bytes + max(request.delta.whole_num_bytes, base.record.num_bytes)
            await self._workers.finish(self._registry.check_disk, num_bytes, "header.delta_num_bytes")
            return await self._push_file(chunks, request, request.delta.num_bytes, request.delta.sha256, base)

    async def _push_file(
        self, chunks: _Chunks, request: PushRequest, num_bytes: int, sha256: str, base: DeltaBase | None = None
    ) -> Published:
        staging = await self._workers.open(self._store.begin_push, num_bytes, sha256)
        try:
            await self._receive(chunks, staging, "whole" if base is None else "delta")
            return await self._workers.finish(self._publisher.publish, staging, request, base)
        finally:
            await self._workers.finish(staging.abort)  # nothing after a publish

    async def _receive(self, chunks: _Chunks, staging: Staging, form: str) -> None:
        """Chunks to disk, gathered so that a storm of tiny ones costs no thread switch each; written and hashed while the next arrive."""
        gathered, writing = bytearray(), asyncio.ensure_future(asyncio.sleep(0))
        try:
            async for data in chunks.read(staging.declared_bytes):
                self._on_received(form, len(data))
                gathered += data
                if len(gathered) >= GATHERED_BYTES:
                    await writing
                    writing = asyncio.ensure_future(self._workers.finish(self._publisher.take, staging, gathered))
                    gathered = bytearray()
        finally:  # a staging file belongs to one thread at a time, whatever went wrong here
            await writing
        if gathered:
            await self._workers.finish(self._publisher.take, staging, gathered)

    async def PullHead(  # noqa: N802
        self, request: pb.PullHeadRequest, context: Context
    ) -> AsyncIterator[pb.PullHeadResponse]:
        """A chunk is read from the file when the one before has gone out: a caller who does not read holds one, not the whole head."""
        view = await self._workers.run(self._registry.get, request.head, "head")
        blob_id, principal = view.record.blob, current_call.get().caller.principal
        with self._pulls.held(principal), await self._workers.open(self._store.open_blob, blob_id) as blob:
            yield pb.PullHeadResponse(head=convert.version_message(view))
            sha256 = hashlib.sha256()
            for offset in range(0, blob.num_bytes, MAX_CHUNK):
                piece = await self._workers.finish(_piece, blob, offset, sha256)
                yield pb.PullHeadResponse(chunk=pb.Chunk(offset=offset, data=piece))
        if sha256.hexdigest() != blob.digest:
            raise DataLoss(f"the stored head is damaged: its SHA-256 is no longer {blob.digest[:12]}...")

    async def CopyHead(self, request: pb.CopyHeadRequest, context: Context) -> pb.CopyHeadResponse:  # noqa: N802
        record = await self._workers.run_control(self._publisher.copy, convert.copy_request(request, await self._bound(request)))
        return pb.CopyHeadResponse(head=convert.version_message(self._registry.view(record)), removed=await self._tidy_up())

    async def GetHead(self, request: pb.GetHeadRequest, context: Context) -> pb.GetHeadResponse:  # noqa: N802
        view = await self._workers.run_control(self._registry.get, request.head, "head")
        return pb.GetHeadResponse(head=convert.version_message(view))

    async def ListHeadTensors(  # noqa: N802
        self, request: pb.ListHeadTensorsRequest, context: Context
    ) -> pb.ListHeadTensorsResponse:
        view = await self._workers.run(self._registry.get, request.head, "head")
        tensors = await self._workers.run(self._tensors.of, view.record.blob)
        return pb.ListHeadTensorsResponse(
            head=convert.version_message(view), tensors=[convert.tensor_message(tensor) for tensor in tensors]
        )

    async def ListHeads(self, request: pb.ListHeadsRequest, context: Context) -> pb.ListHeadsResponse:  # noqa: N802
        return await self._workers.run_control(self._heads_page, request)

    def _heads_page(self, request: pb.ListHeadsRequest) -> pb.ListHeadsResponse:
        size = convert.page_size(request.page_size)
        kind = f"heads:{request.name}"
        after = convert.page_position(request.page_token, kind, str, int)
        views = self._registry.list_versions(request.name)
        if after is not None:
            views = [view for view in views if _key(view) > (after[0], -after[1])]
        page, last = views[:size], views[size - 1].record if len(views) > size else None
        return pb.ListHeadsResponse(
            heads=[convert.version_message(view) for view in page],
            next_page_token=convert.page_token(kind, last.name, last.version) if last else "",
        )

    async def LabelHead(self, request: pb.LabelHeadRequest, context: Context) -> pb.LabelHeadResponse:  # noqa: N802
        digest = await self._bound(request)
        record = await carried_through(
            self._workers.run_control(
                lambda: self._registry.label(
                    request.head,
                    add=convert.check_labels(request.add, "add"),
                    remove=convert.check_labels(request.remove, "remove"),
                    request_id=request.request_id,
                    request_digest=digest,
                )
            )
        )
        return pb.LabelHeadResponse(head=convert.version_message(self._registry.view(record)))

    async def DeleteHead(self, request: pb.DeleteHeadRequest, context: Context) -> pb.DeleteHeadResponse:  # noqa: N802
        await self._workers.run_control(self._registry.delete, request.head, "head")
        return pb.DeleteHeadResponse()

    # ---- the active set

    async def ActivateHeads(self, request: pb.ActivateHeadsRequest, context: Context) -> pb.ActivateHeadsResponse:  # noqa: N802
        digest = await self._bound(request)
        heads = convert.activation_heads(request)
        digests = convert.activation_digests(request)
        expected = Expected(_optional(request, "expected_generation"), convert.expected_versions(request))
        wish = convert.wish(request, Require.ALL)
        done = await self._change(
            context,
            wish,
            lambda: heads,
            lambda: self._registry.activate(
                heads,
                deactivate=request.deactivate,
                digests=digests,
                expected=expected,
                wish=wish,
                request_id=request.request_id,
                request_digest=digest,
                note=request.note,
            ),
        )
        behind = await self._registry.consent.settled(done.record.number, wish)
        return pb.ActivateHeadsResponse(
            generation=convert.generation_message(done.record),
            num_pinned_requests=done.report.num_pinned if done.report else 0,
            num_aborted_requests=done.report.num_aborted if done.report else 0,
            num_following_requests=done.report.num_following if done.report else 0,
            removed=await self._tidy_up() if done.report else (),
            behind=behind,
        )

    async def RollbackHeads(self, request: pb.RollbackHeadsRequest, context: Context) -> pb.RollbackHeadsResponse:  # noqa: N802
        digest = await self._bound(request)
        to_generation = _optional(request, "to_generation")
        wish = convert.wish(request, Require.PRIMARY)
        done = await self._change(
            context,
            wish,
            lambda: self._registry.rollback_heads(to_generation),
            lambda: self._registry.rollback(
                to_generation,
                expected=Expected(_optional(request, "expected_generation"), convert.expected_versions(request)),
                wish=wish,
                request_id=request.request_id,
                request_digest=digest,
            ),
        )
        behind = await self._registry.consent.settled(done.record.number, wish)
        return pb.RollbackHeadsResponse(generation=convert.generation_message(done.record), behind=behind)

    async def ListGenerations(self, request: pb.ListGenerationsRequest, context: Context) -> pb.ListGenerationsResponse:  # noqa: N802
        return await self._workers.run_control(self._generations_page, request)

    def _generations_page(self, request: pb.ListGenerationsRequest) -> pb.ListGenerationsResponse:
        size = convert.page_size(request.page_size)
        after = convert.page_position(request.page_token, "generations", int)
        rows = [record for record in self._store.history() if after is None or record.number < after[0]]
        page = self._store.past(rows[:size])
        return pb.ListGenerationsResponse(
            generations=[convert.past_message(past) for past in page],
            next_page_token=convert.page_token("generations", rows[size - 1].number) if len(rows) > size else "",
        )

    async def WatchHeads(  # type: ignore[override]  # noqa: N802
        self, request: pb.WatchHeadsRequest, context: Context
    ) -> None:
        after = request.after_generation or max(0, self._registry.active.generation - 1)
        with self._watches.held(current_call.get().caller.principal):
            async with contextlib.aclosing(self._registry.feed.numbers(after)) as numbers:
                async for number in numbers:
                    if (message := await self._announcement(number)) is not None:
                        await context.write(message)

    async def _announcement(self, number: int) -> pb.WatchHeadsResponse | None:
        """Made once for all who watch. None for a number that was never used, or whose record is damaged."""
        if number not in self._announcements:
            made = self._announcements[number] = asyncio.ensure_future(self._workers.run_control(self._announced, number))
            made.add_done_callback(lambda done: self._forget_failed(number, done))
            if len(self._announcements) > MAX_ANNOUNCEMENTS:
                del self._announcements[next(iter(self._announcements))]  # who waits for it holds it
        return await asyncio.shield(self._announcements[number])

    def _forget_failed(self, number: int, done: asyncio.Future[pb.WatchHeadsResponse | None]) -> None:
        """A message that could not be made is tried again for the next watch."""
        if done.cancelled() or done.exception() is not None:
            self._announcements.pop(number, None)

    def _announced(self, number: int) -> pb.WatchHeadsResponse | None:
        with contextlib.suppress(NotFound, DataLoss, InvalidArgument):
            return pb.WatchHeadsResponse(generation=convert.generation_message(self._store.generation(number)))
        return None

    async def _change(
        self, context: Context, wish: Wish, heads: Callable[[], Mapping[str, int]], change: Callable[[], Activation]
    ) -> Activation:
        """A change that has begun is carried through, even if the caller goes away. Control does it if it neither loads nor waits."""
        run = self._workers.run
        if self._registry.consent.may_wait(wish):
            run = self._workers.run_waiting
        elif await self._workers.run_control(lambda: self._registry.is_resident(heads())):
            run = self._workers.run_control
        done = await carried_through(run(change))
        if done.report is not None:
            context.add_done_callback(_acknowledged)  # type: ignore[arg-type]  # types-grpcio names a type of its own
        return done

    async def _bound(self, request: Any) -> str:
        """The digest of what is asked for, to be stored with the request's id; "" without one.

        AlreadyExists if the id stands for another request, before anything else of this one is looked at.
        """
        if not request.request_id:
            return ""
        digest = request_digest(request)
        await self._workers.run_control(self._store.check_request, request.request_id, digest)
        return digest

    async def _tidy_up(self) -> list[str]:
        """Old versions go after a new one came: those that went. What fails here is no failure of the push."""
        try:
            return await carried_through(self._workers.run_control(self._registry.collect))
        except PolyheadError as error:
            log.warning("old head versions could not be deleted: %s", error.message)
            return []


class _Chunks:
    """The bytes of one push, in the order that the contract sets; refused if they come too slowly."""

    def __init__(self, upload: Upload[pb.PushHeadRequest]) -> None:
        self._upload = upload

    async def read(self, num_bytes: int) -> AsyncIterator[bytes]:
        """The data, refused at the first byte that is out of order or too much."""
        received = 0
        async for chunk in self._upload.parts("chunk", "chunks"):
            offset, data = chunk.offset, chunk.data
            if offset != received:
                raise InvalidArgument(f"chunks must be consecutive: byte {received} was due, not {offset}", field="chunk.offset")
            if not 1 <= len(data) <= MAX_CHUNK:
                raise InvalidArgument(f"a chunk has 1 to {MAX_CHUNK} bytes: {len(data)}", field="chunk.data")
            received += len(data)
            self._upload.check_rate(len(data), MIN_BYTES_PER_S)
            if received > num_bytes:
                raise InvalidArgument(f"more bytes than the header declares: {num_bytes}", field="chunk.data")
            yield data


def _piece(blob: OpenBlob, offset: int, sha256: hashlib._Hash) -> bytes:
    """The next chunk of a head file, hashed on its way."""
    piece = bytearray(min(MAX_CHUNK, blob.num_bytes - offset))
    blob.pread(memoryview(piece), offset)
    sha256.update(piece)
    pause_point()
    return bytes(piece)


def _optional(message: Any, field: str) -> int | None:
    return int(getattr(message, field)) if message.HasField(field) else None


def _key(view: VersionView) -> tuple[str, int]:
    """By name, newest version first."""
    return view.record.name, -view.record.version


def _acknowledged(context: Any) -> None:
    failpoints.hit("after_ack")
