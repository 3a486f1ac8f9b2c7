"""A follower's stream to its primary: opened again and again, tasks carried out in order, and what health says of it.

While the primary cannot be reached, what was served goes on being served. A server that has never caught up since its start, or whose
past is not the primary's, does not serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from polyhead.heads.format.errors import DataLoss, NotFound, PolyheadError, Unavailable
from polyhead.heads.store.records import DamagedRecord
from polyhead.server.config import ServeConfig
from polyhead.server.fleet.catalogue import Catalogue, configuration_sha256
from polyhead.server.fleet.tasks import Tasks
from polyhead.server.process.card import Addresses
from polyhead.server.process.services import Services
from polyhead.server.rpc.errors import to_polyhead_error
from polyhead.v1 import fleet_pb2, fleet_pb2_grpc, heads_pb2, heads_pb2_grpc

BEAT_S = 1.0
SILENCE_S = 15.0  # of the primary, which says something each second: the stream is opened anew
RETRY_S = 1.0
LEAVE_S = 1.0
_NEEDING_VERSIONS = ("prepare", "commit_generation")
_OPTIONS = (
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

log = logging.getLogger(__name__)


class Following:
    """`show` is called with each change of the services' FollowState."""

    def __init__(self, services: Services, addresses: Addresses, show: Callable[[], None]) -> None:
        assert services.following is not None
        self._services = services
        self._state = services.following
        self._show = show
        self._address = services.config.advertise or f"{addresses.host}:{addresses.port}"
        self._call: Any = None
        self._write_lock = asyncio.Lock()
        self._is_leaving = False

    async def run(self) -> None:
        """Until cancelled."""
        while not self._is_leaving:
            # a new connection each time: one that a partition has cut would wait for TCP's own timers, minutes after the partition's end
            async with _channel(self._services.config) as channel:
                try:
                    await self._follow(channel)
                except (PolyheadError, grpc.RpcError, TimeoutError, OSError) as error:
                    self._stopped(error)
            await asyncio.sleep(RETRY_S)

    async def leave(self) -> None:
        """Say that this server goes, so that nobody waits for it."""
        self._is_leaving = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._say(leaving=fleet_pb2.Leaving()), LEAVE_S)

    async def _follow(self, channel: grpc.aio.Channel) -> None:
        """One stream, to its end."""
        metadata = _metadata(self._services.config)
        heads: Any = heads_pb2_grpc.HeadServiceStub(channel)
        tasks = Tasks(self._services, lambda head: _pulled(heads.PullHead(heads_pb2.PullHeadRequest(head=head), metadata=metadata)))
        hello = await self._services.workers.run_control(self._hello)
        stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)
        self._call = stub.Follow(metadata=metadata)
        waiting: asyncio.Queue[fleet_pb2.FollowResponse] = asyncio.Queue()
        work = [asyncio.ensure_future(each) for each in (self._read(waiting), self._work(tasks, waiting), self._beat())]
        try:
            await self._say(hello=hello)
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            self._call.cancel()
            for each in work:
                each.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            tasks.let_go()

    async def _read(self, waiting: asyncio.Queue[fleet_pb2.FollowResponse]) -> None:
        """Whatever else is done, the primary's pings are taken."""
        is_new = True
        while (message := await asyncio.wait_for(self._call.read(), SILENCE_S)) is not grpc.aio.EOF:
            if is_new:
                is_new = False
                self._note(problem="")
                log.info("following %s", self._state.primary)
            if message.WhichOneof("task") != "ping":
                waiting.put_nowait(message)
        raise Unavailable("the stream has ended")

    async def _work(self, tasks: Tasks, waiting: asyncio.Queue[fleet_pb2.FollowResponse]) -> None:
        while True:
            task = await waiting.get()
            error, is_lacking = "", False
            try:
                await tasks.carry_out(task)
            except grpc.RpcError as failure:
                error = f"the pull failed: {_of_rpc(failure)}"
            except (DamagedRecord, ValueError, KeyError, TypeError):
                error = "the record cannot be read: is the primary newer?"
            except Exception as failure:
                error = to_polyhead_error(failure).message
                is_lacking = isinstance(failure, (NotFound, DataLoss)) and task.WhichOneof("task") in _NEEDING_VERSIONS
            self._note_task(task, error)
            await self._say(done=fleet_pb2.Done(number=task.number, error=error[:512]))
            if is_lacking:  # the primary counts on versions that are not here, or damaged: the next Hello says what is
                await self._call.done_writing()

    def _note_task(self, task: fleet_pb2.FollowResponse, error: str) -> None:
        """From CaughtUp on it serves; a generation that it cannot take up takes it out until it can."""
        kind = task.WhichOneof("task")
        if error:
            log.error("a task of the primary failed: %s: %s", kind, error.replace("\n", "; "))
        if kind == "caught_up" and not error:
            self._note(has_caught_up=True)
        elif kind == "commit_generation" and error:
            self._note(has_caught_up=False, problem=f"the primary's generation cannot be taken up: {error}")
        elif kind == "commit_generation" and self._state.problem:
            self._note(has_caught_up=True, problem="")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self._say(beat=fleet_pb2.Beat(generation=self._services.registry.active.generation))

    async def _say(self, **part: Any) -> None:
        """A stream that has ended says why where it is read."""
        async with self._write_lock:
            if self._call is not None:
                with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                    await self._call.write(fleet_pb2.FollowRequest(**part))

    def _hello(self) -> fleet_pb2.Hello:
        services = self._services
        hello = Catalogue(services.store, services.ood.store, services.library.store).hello()
        hello.name = _name(services)
        hello.address = self._address
        hello.trunk_id, hello.precision = services.trunk_id, services.precision
        hello.tokenizer_sha256, hello.configuration_sha256 = services.tokenizer.sha256, configuration_sha256(services.library)
        hello.serving = self._state.has_caught_up
        return hello

    def _stopped(self, error: Exception) -> None:
        """A primary that is away changes nothing; one that refuses this server's past ends its serving."""
        is_refused = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.FAILED_PRECONDITION
        problem = _of_rpc(error) if isinstance(error, grpc.RpcError) else getattr(error, "message", "") or "no answer"
        said = problem if is_refused else f"{self._state.primary} cannot be followed now: {problem}"
        if said != self._state.problem and not self._is_leaving:
            log.warning("%s", said.replace("\n", "; "))
        self._note(has_caught_up=self._state.has_caught_up and not is_refused, problem=said)

    def _note(self, *, has_caught_up: bool | None = None, problem: str | None = None) -> None:
        self._state.has_caught_up = self._state.has_caught_up if has_caught_up is None else has_caught_up
        self._state.problem = self._state.problem if problem is None else problem
        self._show()


async def _pulled(call: Any) -> AsyncIterator[heads_pb2.PullHeadResponse]:
    try:
        async for message in call:
            yield message
    finally:
        call.cancel()  # a call that is only dropped would run on (grpc #43462)


def _of_rpc(error: Any) -> str:
    return f"{error.code().name}: {error.details()}".replace("\\nhint:", "\nhint:")


def _name(services: Services) -> str:
    """The same after a restart: what was advertised, or the machine's name and which store on it."""
    store = hashlib.sha256(str(services.store.path).encode()).hexdigest()[:6]
    return services.config.advertise or f"{socket.gethostname()}-{store}"


def _metadata(config: ServeConfig) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {config.follow_token}"),) if config.follow_token else ()


def _channel(config: ServeConfig) -> grpc.aio.Channel:
    if config.follows_plainly:
        return grpc.aio.insecure_channel(config.follow, options=_OPTIONS)
    roots = config.follow_ca.read_bytes() if config.follow_ca is not None else None
    return grpc.aio.secure_channel(config.follow, grpc.ssl_channel_credentials(roots), options=_OPTIONS)
