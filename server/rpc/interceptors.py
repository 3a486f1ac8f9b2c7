"""The one wrapper around every handler: auth, drain, request id, deadline, error mapping, metrics, task tracking.

It knows methods by their name alone, nothing of messages. A caller never sees UNKNOWN, nor the text of an unforeseen error.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import math
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from polyhead.heads.format.errors import InvalidArgument, PolyheadError, Unavailable
from polyhead.server import logs
from polyhead.server.rpc.auth import Authenticator, Caller, Role
from polyhead.server.rpc.errors import DeadlineExceeded, not_primary, status_code, to_polyhead_error, trailing_metadata
from polyhead.server.rpc.methods import LONG_LIVED, METHODS
from polyhead.server.rpc.unread import Account, Unread

DRAIN_RETRY_S = 2.0
OWN_SHARE = 0.9  # a deadline below this share of the server's longest is the caller's own; a client's retries take some of its hour
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._:-]{1,128}$")
_ids = random.Random()  # for logs, no secret: the system's random source costs a system call each
_MALFORMED = object()  # what the deserializer returns for bytes that are no message

_ALWAYS_OPEN = ("/grpc.health.v1.",)  # answered while draining


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler knows about its call."""

    method: str
    request_id: str
    caller: Caller
    deadline_at: float  # time.monotonic(); inf for a long-lived stream
    unread: Account  # bytes of its answers that wait to be read
    sees_all: bool = True  # numbers of the whole server; not a team's token, beside other teams: they would tell when a prompt was cached
    due_at: float = math.inf  # the same as deadline_at if it is the caller's own, a default as long as the server's is none; else inf


current_call: contextvars.ContextVar[Call] = contextvars.ContextVar("polyhead_call")


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Wraps each RpcMethodHandler. `observe(method, code, seconds)` is called once per finished call."""

    def __init__(
        self,
        authenticator: Authenticator,
        max_call_s: float,
        observe: Callable[[str, str, float], None],
        unread: Unread,
        primary: str = "",
    ) -> None:
        self._authenticator = authenticator
        self._unread = unread
        self._max_call_s = max_call_s
        self._observe = observe
        self._primary = primary  # whom this server follows; empty: it may be changed here
        self._tasks: dict[asyncio.Task[Any], Call] = {}
        self._is_draining = False

    @property
    def num_in_flight(self) -> int:
        """Running calls that a drain waits for."""
        return sum(1 for call in self._tasks.values() if call.method not in LONG_LIVED)

    def drain(self) -> None:
        """From now on new calls are refused; health stays open."""
        self._is_draining = True

    async def wait_idle(self, timeout_s: float) -> bool:
        """Whether the running calls ended within the time."""
        end_at = time.monotonic() + timeout_s
        while self.num_in_flight and time.monotonic() < end_at:  # noqa: ASYNC110  once in a life: simpler than an event per call
            await asyncio.sleep(0.02)
        return not self.num_in_flight

    async def cancel_all(self, timeout_s: float) -> None:
        """Cancel what still runs and wait for its `finally` blocks: server.stop() returns before them (grpc #37239)."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None  # unknown method: gRPC answers UNIMPLEMENTED
        metadata = tuple(details.invocation_metadata or ())
        try:
            if self._is_draining and not details.method.startswith(_ALWAYS_OPEN):
                raise Unavailable("the server is shutting down", retry_after_s=DRAIN_RETRY_S)
            caller = self._authenticator.check(details.method, metadata)
            if self._primary and METHODS[details.method].is_change:
                raise not_primary(self._primary)
            sees_all = caller.role is Role.ADMIN or not self._authenticator.has_several_teams
        except PolyheadError as error:
            return _refusal(handler, error)  # the body is never parsed
        return self._wrap(handler, details.method, _request_id(metadata), caller, sees_all)

    def _wrap(self, handler: Any, method: str, request_id: str, caller: Caller, sees_all: bool) -> Any:
        run = _as_coroutine(handler)

        async def guarded(request: Any, context: Any) -> Any:
            account = self._unread.open(caller.principal)
            deadline_at, due_at = self._deadlines(method, context.time_remaining())
            call = Call(method, request_id, caller, deadline_at, account, sees_all, due_at)

            async def work() -> Any:
                checked = _well_formed_stream(request) if handler.request_streaming else _well_formed(request)
                return await _run_until(call.deadline_at, account, run(checked, context))

            return await self._tracked(call, context, work)

        return _handler_like(handler, guarded, _safe_deserializer(handler.request_deserializer), None)

    def _deadlines(self, method: str, remaining: float | None) -> tuple[float, float]:
        """(the earlier of the caller's deadline and ours, the caller's own). gRPC counts in wall-clock time: converted once, here."""
        if method in LONG_LIVED:
            return math.inf, math.inf
        now, longest = time.monotonic(), self._max_call_s
        remaining = longest if remaining is None else min(longest, remaining)
        return now + remaining, now + remaining if remaining < OWN_SHARE * longest else math.inf

    async def _tracked(self, call: Call, context: Any, work: Callable[[], Awaitable[Any]]) -> Any:
        """Everything that surrounds a call. CancelledError passes: swallowing it leaks native memory (grpc #43360)."""
        task = asyncio.current_task()
        assert task is not None, "handlers run in a task"
        self._tasks[task] = call
        task.add_done_callback(lambda _: call.unread.close())  # ends after its answer, or its status, has gone out
        current_call.set(call)
        logs.request_id.set(call.request_id)
        started_at, code = time.monotonic(), "OK"
        id_trailer = (("x-request-id", call.request_id),)
        context.set_trailing_metadata(id_trailer)
        try:
            try:
                return await work()
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except grpc.aio.AbortError:
                code = _code_name(context)
                raise
            except Exception as caught:
                error = to_polyhead_error(caught)
                code = error.code
                _drop_tracebacks(caught)
            if call.unread.is_ending:  # its status is queued behind a message that its caller does not read: a drain goes on without it
                del self._tasks[task]
                call.unread.settle()
            await context.abort(status_code(error), error.message[:1024], (*trailing_metadata(error), *id_trailer))
        finally:
            self._tasks.pop(task, None)
            self._observe(call.method, code, time.monotonic() - started_at)


def _as_coroutine(handler: Any) -> Callable[[Any, Any], Awaitable[Any]]:
    """The handler as one coroutine. A unary answer is serialised inside it, so that a failure there is mapped, too."""
    behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    if inspect.isasyncgenfunction(behaviour):

        async def write_all(request: Any, context: Any) -> None:
            async with contextlib.aclosing(behaviour(request, context)) as answers:
                account = current_call.get().unread
                async for answer in answers:
                    account.begin_message()
                    await context.write(answer)
                    account.end_message()

        return write_all
    assert inspect.iscoroutinefunction(behaviour), f"handlers must be async: {behaviour}"
    if handler.response_streaming:
        written: Callable[[Any, Any], Awaitable[Any]] = behaviour
        return written

    async def answer_once(request: Any, context: Any) -> bytes:
        made = await behaviour(request, context)
        answer: bytes = made if isinstance(made, bytes) else handler.response_serializer(made)  # bytes: too large to be written here
        current_call.get().unread.hold(len(answer))  # until the call is over
        return answer

    return answer_once


async def _run_until(deadline_at: float, account: Account, work: Awaitable[Any]) -> Any:
    """Run to the end, to the deadline, or until the account ends the call."""
    limit = asyncio.timeout(None if deadline_at == float("inf") else max(0.0, deadline_at - time.monotonic()))
    errors: list[PolyheadError] = [DeadlineExceeded("the call's deadline has passed")]

    def end(error: PolyheadError) -> None:
        if limit.expired():
            return  # the deadline has passed, and the call is ending by it
        errors.append(error)
        limit.reschedule(0.0)  # that is, now

    try:
        async with limit:
            account.end = end
            return await work
    except TimeoutError:
        if limit.expired():
            raise errors[-1] from None
        raise
    finally:
        account.end = None


def _drop_tracebacks(error: BaseException) -> None:
    """gRPC keeps the last call's abort, and so what led to it: a traceback would keep all that the call worked on, weights among it."""
    found: BaseException | None = error
    while found is not None:
        found.__traceback__ = None
        found = found.__context__


def _safe_deserializer(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if deserializer is None:
        return None

    def parse(data: bytes) -> Any:
        try:
            return deserializer(data)
        except Exception:
            return _MALFORMED

    return parse


def _well_formed(request: Any) -> Any:
    if request is _MALFORMED:
        raise InvalidArgument("malformed message: the bytes are not the method's request type")
    return request


async def _well_formed_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _well_formed(request)


def _handler_like(handler: Any, behaviour: Any, deserializer: Any, unary_serializer: Any) -> Any:
    serializer = handler.response_serializer if handler.response_streaming else unary_serializer
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(behaviour, request_deserializer=deserializer, response_serializer=serializer)


def _refusal(handler: Any, error: PolyheadError) -> Any:
    async def refuse(request: Any, context: Any) -> None:
        await context.abort(status_code(error), error.message, trailing_metadata(error))

    return _handler_like(handler, refuse, None, None)


def _request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The caller's `x-request-id` if it is a plain one, else a new one: it goes into logs."""
    given = next((value for key, value in metadata if key == "x-request-id"), "")
    return given if isinstance(given, str) and _REQUEST_ID.match(given) else f"{_ids.getrandbits(128):032x}"


def _code_name(context: Any) -> str:
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return str(code.name)
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "INTERNAL")
