"""A fake engine, and a registry over a tiny llama: everything of a server but the model work."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import torch
from torch import Tensor

from polyhead.heads.format.errors import DataLoss, PolyheadError
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.precision import Precision
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import TrunkModule, build_trunk, initial_head
from polyhead.heads.model.spec import ModelSpec, describe, trunk_id
from polyhead.heads.store.store import HeadStore
from polyhead.server.engine.work.live import ActiveSet, ServedHead
from polyhead.server.engine.work.reports import EngineSnapshot, SwapReport
from polyhead.server.process.workers import Workers
from polyhead.server.rpc.auth import Authenticator
from polyhead.server.rpc.handlers import LateHandlers
from polyhead.server.rpc.health import Health
from polyhead.server.rpc.interceptors import CallInterceptor
from polyhead.server.rpc.listen import SERVER_OPTIONS
from polyhead.server.rpc.services.heads import HeadServicer
from polyhead.server.rpc.unread import Unread
from polyhead.server.versions.head_cache import HeadCache
from polyhead.server.versions.head_loader import HeadLoader, to_file
from polyhead.server.versions.manifests import ManifestPatch, RuleDefaults, ServedTrunk
from polyhead.server.versions.publisher import MAX_PUSHES, Publisher
from polyhead.server.versions.push_requests import PushRequest
from polyhead.server.versions.registry import Registry
from polyhead.server.versions.residency import Residency
from polyhead.v1 import heads_pb2_grpc
from tests.heads.models import save_tiny

IDLE = EngineSnapshot({"steps": 3, "prompt_tokens": 10, "cache_hit_tokens": 4}, 0, 0, 8, 2, 1, 8, 1, 0.001, 0.0, 0, True)
RULE = RuleDefaults("example-rule-prompt@1", {"example-rule-prompt@1": (5, 7)})


@dataclass
class FakeEngine:
    """Does what EnginePort says at once, and writes down what it was asked."""

    active: ActiveSet = field(default_factory=lambda: ActiveSet(0))
    warmed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    leases: dict[str, int] = field(default_factory=dict)
    refuse: Callable[[ServedHead], PolyheadError | None] = lambda head: None
    now: EngineSnapshot = IDLE
    is_idle: bool = True

    def activate(self, active: ActiveSet) -> Future[SwapReport]:
        self.active = active
        done: Future[SwapReport] = Future()
        done.set_result(SwapReport(0.0, 2, 1, 3))
        return done

    def warm_up(self, head: ServedHead) -> None:
        self.warmed.append(head.reference)
        states = torch.randn(1, 4, head.live.module.spec.d_model, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            if not torch.isfinite(head.live.module(states, torch.arange(4)[None])).all():
                raise DataLoss("not finite")
        if error := self.refuse(head):
            raise error

    def snapshot(self) -> EngineSnapshot:
        return dataclasses.replace(self.now, last_step_at=self.now.last_step_at or time.monotonic())

    def leased_digests(self) -> dict[str, int]:
        return self.leases

    def drop_head(self, digest: str) -> None:
        self.dropped.append(digest)


async def until(is_so: Callable[[], object]) -> None:
    """Wait for what has no event of its own. A test that slept for a moment instead would need a quiet machine."""
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@dataclass
class World:
    """A tiny model with its store and registry; `policy` is its own upper layers."""

    spec: ModelSpec
    trunk_id: str
    trunk: TrunkModule
    checkpoint: Checkpoint
    store: HeadStore
    engine: FakeEngine
    cache: HeadCache
    registry: Registry
    publisher: Publisher
    policy: dict[str, Tensor]
    workers: Workers

    @classmethod
    def open(cls, model: Path, store_dir: Path, *, budget: int = 1 << 30, keep_versions: int = 10, max_idle: int = 2) -> World:
        checkpoint, spec, identity, trunk = frozen_part(model)
        store = HeadStore.open(store_dir, identity, max_staged=2 * MAX_PUSHES)
        engine = FakeEngine()
        served = ServedTrunk(spec, identity, Precision.FLOAT32, RULE)
        loader = HeadLoader(spec, trunk.embedding, torch.float32, torch.device("cpu"), lambda module: module)
        cache = HeadCache(store, served, loader, engine, Residency(budget, max_idle, engine.leased_digests, engine.drop_head))
        registry = Registry(store, served, cache, engine, keep_versions=keep_versions)
        hashes = {name: checkpoint.sha256(name) for name in spec.trunk_sources}
        publisher = Publisher(store, served, cache, hashes.get, lambda: registry.active)
        policy = initial_head(checkpoint, spec, OutputKind.TIED)
        return cls(spec, identity, trunk, checkpoint, store, engine, cache, registry, publisher, policy, Workers())

    def changed(self, seed: int) -> dict[str, Tensor]:
        """The policy's tensors, moved a little."""
        generator = torch.Generator().manual_seed(seed)
        return {name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in self.policy.items()}

    def push(self, name: str, tensors: dict[str, Tensor], **fields: object) -> int:
        """Publish; the version."""
        data = to_file(tensors)
        with self.store.begin_push(len(data), hashlib.sha256(data).hexdigest()) as staging:
            staging.write(data)
            manifest = fields.pop("manifest", ManifestPatch(kind=HeadKind.POLICY))
            request = PushRequest(name=name, manifest=manifest, **fields)  # type: ignore[arg-type]
            return self.publisher.publish(staging, request).record.version

    def resolve(self, reference: str, field: str = "f") -> ServedHead:
        """For a request that is over at once."""
        with self.registry.resolving() as resolve:
            return resolve(reference, field)

    @property
    def head_bytes(self) -> int:
        return self.cache.loader.num_bytes(OutputKind.TIED)

    def close(self) -> None:
        self.workers.close()
        self.store.close()


@cache
def frozen_part(model: Path) -> tuple[Checkpoint, ModelSpec, str, TrunkModule]:
    """(model, its description, the trunk's id, the trunk): one for all worlds, as nothing that they do writes to it."""
    checkpoint = Checkpoint.open(model)
    spec = describe(checkpoint, 2)
    return checkpoint, spec, trunk_id(checkpoint, spec), build_trunk(checkpoint, spec, torch.float32)


def save_world_model(folder: Path) -> Path:
    """A tied llama of four layers."""
    save_tiny("llama", folder, tie_word_embeddings=True)
    return folder


@asynccontextmanager
async def heads_server(
    world: World,
    *,
    authenticator: Authenticator | None = None,
    push_idle_s: float = 5.0,
    on_received: Callable[[str, int], None] = lambda form, num_bytes: None,
) -> AsyncIterator[tuple[heads_pb2_grpc.HeadServiceStub, CallInterceptor]]:
    """HeadService over a real connection."""
    services: Any = SimpleNamespace(
        registry=world.registry,
        publisher=world.publisher,
        store=world.store,
        workers=world.workers,
        config=SimpleNamespace(push_idle_s=push_idle_s),
        metrics=SimpleNamespace(observe_received=on_received),
    )
    servicer = HeadServicer(services)
    async with grpc_server(lambda late: heads_pb2_grpc.add_HeadServiceServicer_to_server(servicer, late), authenticator) as (
        channel,
        interceptor,
        _,
    ):
        yield heads_pb2_grpc.HeadServiceStub(channel), interceptor


@asynccontextmanager
async def grpc_server(
    add: Callable[[LateHandlers], None],
    authenticator: Authenticator | None = None,
    *,
    max_call_s: float = 30.0,
    is_open: bool = True,
    unread: Unread | None = None,
) -> AsyncIterator[tuple[grpc.aio.Channel, CallInterceptor, Health]]:
    """A real server on a free port with our interceptor and health."""
    async with (
        grpc_address(add, authenticator, max_call_s=max_call_s, is_open=is_open, unread=unread) as (address, interceptor, health),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield channel, interceptor, health


@asynccontextmanager
async def grpc_address(
    add: Callable[[LateHandlers], None],
    authenticator: Authenticator | None = None,
    *,
    max_call_s: float = 30.0,
    is_open: bool = True,
    unread: Unread | None = None,
) -> AsyncIterator[tuple[str, CallInterceptor, Health]]:
    """The same server, for a test that makes its own channels."""
    from grpc_health.v1 import health_pb2_grpc

    unread = unread or Unread(1 << 30, 900.0)
    interceptor = CallInterceptor(authenticator or Authenticator(), max_call_s, lambda method, code, seconds: None, unread)
    server = grpc.aio.server(interceptors=[interceptor], options=SERVER_OPTIONS)
    health, late = Health(), LateHandlers()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    add(late)
    server.add_generic_rpc_handlers((late,))
    if is_open:
        late.open()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", interceptor, health
    finally:
        await server.stop(0)
        await interceptor.cancel_all(2.0)
