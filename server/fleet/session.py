"""One follower's stream at the primary: it is given one task after the other, and each is answered before the next. Knows no fleet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from polyhead.heads.format.errors import InvalidArgument, PolyheadError, Unavailable
from polyhead.server.fleet.catalogue import Catalogue, Held, Key, Unreadable, key_of
from polyhead.server.fleet.members import Member, Members
from polyhead.server.process.workers import Workers
from polyhead.v1 import fleet_pb2

PING_S = 1.0
RETRY_S = 2.0  # for each task that failed, until all of them are tried again
MAX_RETRY_S = 60.0
Write = Callable[[fleet_pb2.FollowResponse], Awaitable[None]]

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Order:
    """What a round asks of the follower, before anything else: to prepare versions, or to let them go."""

    task: fleet_pb2.FollowResponse
    heads: Mapping[str, int] = field(default_factory=dict)  # that it must hold first
    is_dropped: bool = False  # its round is over
    result: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())  # "" or what went wrong

    def end(self, error: str) -> None:
        if not self.result.done():
            self.result.set_result(error)


class Session:
    """From the follower's Hello to the end of its stream."""

    def __init__(self, member: Member, held: Held, catalogue: Catalogue, members: Members, workers: Workers) -> None:
        self.member = member
        self._held = held
        self._catalogue = catalogue
        self._members = members
        self._workers = workers
        self._orders: list[Order] = []
        self._news = asyncio.Event()
        self._answer: asyncio.Future[str] | None = None
        self._number = 0
        self._left_out: set[Key] = set()  # tasks that failed, until they are tried again
        self._retry_at = 0.0
        self._errors: dict[Key, str] = {}  # of tasks that failed at the follower
        self._unread: dict[Key, str] = {}  # of those whose content cannot be read here

    @property
    def unread(self) -> str:
        """What cannot be read here, so that the follower does not get it; empty: nothing."""
        return next(iter(self._unread.values()), "")

    def wake(self) -> None:
        """There may be something to do."""
        self._news.set()

    def order(self, order: Order) -> None:
        self._orders.append(order)
        self.wake()

    async def run(self, requests: AsyncIterator[fleet_pb2.FollowRequest], write: Write) -> None:
        """Until the stream ends. Unavailable if another stream has taken its place."""
        tasks = [asyncio.ensure_future(each) for each in (self._listen(requests), self._give_tasks(write), self._ping(write))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for order in self._orders:
                order.end("it went away")

    async def _listen(self, requests: AsyncIterator[fleet_pb2.FollowRequest]) -> None:
        async for request in requests:
            self.member.heard_at = time.monotonic()
            match request.WhichOneof("part"):
                case "beat":
                    if request.beat.generation != self.member.generation:
                        self.member.generation = request.beat.generation
                        self._members.changed()
                case "done":
                    self._take_answer(request.done)
                case "leaving":
                    self._members.leave(self.member)
                    return
                case _:
                    raise InvalidArgument("after Hello a follower sends Beat, Done or Leaving", field="part")

    def _take_answer(self, done: fleet_pb2.Done) -> None:
        if self._answer is None or self._answer.done() or done.number != self._number:
            raise InvalidArgument(f"nobody waits for the end of task {done.number}", field="done.number")
        self._answer.set_result(done.error)

    async def _ping(self, write: Write) -> None:
        while True:
            if not self._members.is_current(self.member):
                raise Unavailable("another stream of this name took its place, or it was silent for too long", retry_after_s=1.0)
            await write(fleet_pb2.FollowResponse(ping=fleet_pb2.Ping()))
            await asyncio.sleep(PING_S)

    async def _give_tasks(self, write: Write) -> None:
        """Orders of rounds before what the catalogue finds. A task that failed is tried again after all others, and after a while."""
        while True:
            self._news.clear()
            if self._orders:
                await self._carry_out(self._orders.pop(0), write)
            elif (task := await self._next({})) is not None:
                self._note(task, await self._carry(task, write))
            elif self._left_out:
                await self._rest()
            else:
                await self._news.wait()

    async def _carry_out(self, order: Order, write: Write) -> None:
        """Send what the order needs, then the order."""
        try:
            while order.heads and not order.is_dropped and (task := await self._next(order.heads)) is not None:
                if error := await self._carry(task, write):
                    order.end(error)
                    return
                self._held.note(task)
            if not order.is_dropped:
                order.end(await self._carry(order.task, write))
        except PolyheadError as error:
            order.end(error.message)
        finally:
            order.end("it went away")

    def _note(self, task: fleet_pb2.FollowResponse, error: str) -> None:
        key = key_of(task)
        if error:
            self._leave_out(key)
            if self._errors.get(key) != error:
                log.warning("the follower %s could not take up %s: %s", self.member.name, task.WhichOneof("task"), error)
            self._errors[key] = error
        else:
            self._held.note(task)
            is_commit = task.HasField("commit_generation")
            self._errors = {each: text for each, text in self._errors.items() if each != key and not (is_commit and each[0] == key[0])}
        self.member.generation = max(self.member.generation, self._held.generation)
        self.member.has_caught_up = self.member.has_caught_up or self._held.has_caught_up
        self._show_errors()

    def _show_errors(self) -> None:
        self.member.error = next(iter(self._errors.values()), "")
        self.member.is_stuck = any(kind in ("store_version", "commit_generation") for kind, _ in self._errors)
        self._members.changed()

    def _leave_out(self, key: Key) -> None:
        self._left_out.add(key)
        self._retry_at = time.monotonic() + min(RETRY_S * len(self._left_out), MAX_RETRY_S)
        self._held.fit_sent = "", 0

    async def _next(self, wanted: Mapping[str, int]) -> fleet_pb2.FollowResponse | None:
        """None if there is nothing to do but what was left out."""
        while True:
            try:
                task = await self._workers.run_control(self._catalogue.next_task, self._held, wanted, self._left_out)
            except Unreadable as error:
                self._note_unread(error.key, error.message)
            except PolyheadError as error:
                if wanted:
                    raise
                self._note_unread(("", b""), error.message)
                return None
            else:
                if task is None and not wanted:
                    self._forget_errors()
                return task

    def _forget_errors(self) -> None:
        """Those of tasks that are needed no more: all that are were tried again."""
        self._errors = {key: error for key, error in self._errors.items() if key in self._left_out}
        self._unread = {key: error for key, error in self._unread.items() if key in self._left_out}
        if self.member.error and not self._errors:
            self._show_errors()

    def _note_unread(self, key: Key, error: str) -> None:
        self._leave_out(key)
        if self._unread.get(key) != error:
            log.warning("the follower %s cannot be brought up to date: %s", self.member.name, error)
        self._unread[key] = error

    async def _carry(self, task: fleet_pb2.FollowResponse, write: Write) -> str:
        """Send one task and wait for its end: "" or what went wrong."""
        self._number += 1
        task.number = self._number
        self._answer = asyncio.get_running_loop().create_future()
        await write(task)
        return await self._answer

    async def _rest(self) -> None:
        """Until there is news, or what was left out is tried again."""
        try:
            await asyncio.wait_for(self._news.wait(), self._retry_at - time.monotonic())
        except TimeoutError:
            self._left_out.clear()
