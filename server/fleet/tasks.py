"""How a follower carries out its primary's tasks: pull, verify, store; load and try out; commit and flip. Knows no stream of tasks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, NotFound
from polyhead.heads.format.manifest import parse_reference
from polyhead.heads.store import records
from polyhead.heads.store.staging import Staging
from polyhead.heads.store.store import VersionRecord
from polyhead.server.ood import store as ood_records
from polyhead.server.process.services import Services
from polyhead.server.rewards import configuration_store as configuration_records
from polyhead.v1 import fleet_pb2, heads_pb2

Pull = Callable[[str], AsyncIterator[heads_pb2.PullHeadResponse]]


class Tasks:
    """One at a time. `pull` asks the primary for the bytes of "policy@7"."""

    def __init__(self, services: Services, pull: Pull) -> None:
        self._services = services
        self._workers = services.workers
        self._pull = pull
        self._prepared = contextlib.ExitStack()  # versions that may be activated next
        self._expiry: asyncio.TimerHandle | None = None
        self._fit = bytearray()  # what has come of a fit

    async def carry_out(self, task: fleet_pb2.FollowResponse) -> None:
        """PolyheadError if it cannot be done; what has begun to be written is carried through."""
        match task.WhichOneof("task"):
            case "store_version":
                await self._store_version(records.decode_version(task.store_version.record))
            case "forget_versions":
                await self._workers.finish(self._forget, list(task.forget_versions.heads))
            case "commit_generation":
                record = records.decode_generation(task.commit_generation.record)
                await self._workers.finish(self._services.registry.adopt, record)
                self.let_go()
            case "keep_generation":
                record = records.decode_generation(task.keep_generation.record)
                await self._workers.finish(self._services.store.adopt_generation, record)
            case "prepare":
                self.let_go()
                self._prepared.enter_context(await self._workers.open(_Prepared, self._services, dict(task.prepare.heads)))
                self._expiry = asyncio.get_running_loop().call_later(task.prepare.seconds, self.let_go)
            case "abort":
                self.let_go()
            case "store_fit":
                await self._store_fit(task.store_fit)
            case "forget_fit":
                await self._workers.finish(self._services.ood.store.forget, task.forget_fit.name, task.forget_fit.version)
            case "store_configuration":
                stored = configuration_records.decode(task.store_configuration.record)
                await self._workers.finish(self._services.library.adopt, stored, task.store_configuration.content)
            case "caught_up":
                pass
            case unknown:
                raise FailedPrecondition(f"the primary is newer than this server: it does not know the task {unknown}")

    def let_go(self) -> None:
        """What was prepared need not stay in memory."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._prepared.close()

    async def _store_version(self, record: VersionRecord) -> None:
        store = self._services.store
        if not await self._workers.run(store.is_blob_held, record.blob, record.num_bytes):
            await self._workers.finish(lambda: self._services.registry.check_disk(record.num_bytes, "record", may_collect=False))
            staging = await self._workers.open(store.begin_push, record.num_bytes, record.blob)
            try:
                await self._receive(record, staging)
                await self._workers.finish(staging.finish)
            finally:
                await self._workers.finish(staging.abort)  # nothing after it has finished
        await self._workers.finish(self._adopt, record)

    async def _receive(self, record: VersionRecord, staging: Staging) -> None:
        received = 0
        async for message in self._pull(f"{record.name}@{record.version}"):
            if message.WhichOneof("part") == "chunk":
                if message.chunk.offset != received:
                    raise DataLoss(f"bytes are missing in the stream: expected byte {received}, got byte {message.chunk.offset}")
                received += len(message.chunk.data)
                await self._workers.finish(self._services.publisher.take, staging, bytearray(message.chunk.data))

    def _adopt(self, record: VersionRecord) -> None:
        try:
            gone = self._services.store.adopt_version(record)
        except BaseException:
            self._services.store.discard_blob(record.blob)
            raise
        for each in gone:
            self._services.registry.residency.forget(each.name, each.version)

    def _forget(self, references: list[str]) -> None:
        """LoRA heads before what they are built on. What is active here goes with a later start, if it does. Numbers stay spent."""
        store, registry = self._services.store, self._services.registry
        found: list[VersionRecord] = []
        for reference in references:
            name, version = parse_reference(reference, "heads")
            try:
                found.append(store.get(name, version))
            except NotFound:  # it came and went while this server was not told
                store.adopt_spent(name, version)
        for record in sorted(found, key=lambda each: each.manifest.lora is None):
            with contextlib.suppress(FailedPrecondition):
                store.delete_version(record.name, record.version, force=True)
                registry.residency.forget(record.name, record.version)

    async def _store_fit(self, part: fleet_pb2.StoreFit) -> None:
        if part.offset == 0:
            self._fit = bytearray()
        if part.offset != len(self._fit):
            raise DataLoss(f"bytes of a fit are missing: expected byte {len(self._fit)}, got byte {part.offset}")
        self._fit += part.data
        if len(self._fit) == ood_records.decode(part.record).num_bytes:
            await self._workers.finish(self._services.ood.store.adopt, part.record, bytes(self._fit))
            self._fit = bytearray()


class _Prepared(contextlib.ExitStack):
    """Versions in memory, until it is closed. Made on a worker thread: it loads them."""

    def __init__(self, services: Services, heads: dict[str, int]) -> None:
        super().__init__()
        self.enter_context(services.registry.prepared(heads))
