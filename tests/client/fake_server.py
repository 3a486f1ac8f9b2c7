"""A server of a few fixed answers, in this process: what the client is tested against without a model.

It keeps what it was sent (`requests`), and errors to raise first (`failures`). One grpc.aio event loop in its own thread;
tests of AsyncClient run on that same loop (`run`), because grpc.aio supports one loop in a process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import grpc
import grpc.aio

from polyhead.v1 import (
    generation_pb2_grpc,
    heads_pb2_grpc,
    scoring_pb2_grpc,
    trunk_pb2_grpc,
)
from tests.client.fake_generation import FakeGeneration
from tests.client.fake_heads import FakeHeads
from tests.client.fake_trunk import FakeTrunk


class FakeServer(FakeGeneration, FakeTrunk, FakeHeads):
    """All four services and the health check."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.port = self.run(self._start())

    def stop(self) -> None:
        self.run(self._server.stop(None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result, run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def _start(self) -> int:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, self._server)
        scoring_pb2_grpc.add_ScoringServiceServicer_to_server(self, self._server)
        trunk_pb2_grpc.add_TrunkServiceServicer_to_server(self, self._server)
        heads_pb2_grpc.add_HeadServiceServicer_to_server(self, self._server)
        check = grpc.unary_unary_rpc_method_handler(self._check_health)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def _check_health(self, request: bytes, context: Any) -> bytes:
        return b"\x08\x01" if self.is_serving else b"\x08\x02"
