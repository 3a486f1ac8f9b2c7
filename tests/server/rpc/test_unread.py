"""What waits to be read: whose call ends when it is too much, and how a call ends that nobody reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import grpc
import grpc.aio
import pytest

from polyhead.heads.format.errors import PolyheadError
from polyhead.server.rpc.interceptors import current_call
from polyhead.server.rpc.stream import _dispatch
from polyhead.server.rpc.unread import IDLE_S, Account, Unread
from polyhead.v1 import heads_pb2 as pb
from polyhead.v1 import heads_pb2_grpc
from tests.server.fakes import grpc_address, grpc_server, until

KIB = 1 << 10
MIB = 1 << 20


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Calls:
    """Accounts with a budget of 1 MiB, and the errors that ended them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.unread = Unread(MIB, 60.0, self.clock)
        self.ended: dict[str, PolyheadError] = {}

    def open(self, name: str, principal: str, num_bytes: int) -> Account:
        account = self.unread.open(principal)

        def end(error: PolyheadError) -> None:
            self.ended[name] = error
            account.close()

        account.end = end
        account.hold(num_bytes)
        return account


def test_beyond_the_budget_the_call_that_holds_most_ends() -> None:
    calls = Calls()
    for name, num_bytes in (("small", 300 * KIB), ("large", 500 * KIB), ("middle", 400 * KIB)):
        calls.open(name, "a", num_bytes)
    calls.unread.check()
    assert list(calls.ended) == ["large"]
    error = calls.ended["large"]
    assert (error.code, error.retry_after_s) == ("RESOURCE_EXHAUSTED", None)
    assert error.message.startswith(f"too much waits to be read: {500 * KIB} bytes of this call; the server holds {MIB} (unread_bytes)")
    assert calls.unread.num_bytes == 700 * KIB


def test_a_principal_with_many_calls_loses_one_before_a_principal_with_one() -> None:
    calls = Calls()
    calls.open("alone", "b", 300 * KIB)
    for index in range(4):
        calls.open(f"of many {index}", "a", 200 * KIB + index)
    calls.unread.check()
    assert list(calls.ended) == ["of many 3"]


def test_a_call_that_is_not_read_ends_before_one_that_is() -> None:
    calls = Calls()
    unread = calls.open("unread", "a", 300 * KIB)
    unread.begin_message()
    calls.clock.now += 2 * IDLE_S
    calls.open("read", "b", 800 * KIB).begin_message()
    calls.unread.check()
    assert list(calls.ended) == ["unread"]


def test_a_call_that_is_ending_takes_no_other_with_it() -> None:
    """Its bytes go when the engine has heard of it. Until then they counted against the others, of which one ended after the other."""
    calls = Calls()
    ending = calls.unread.open("a")
    errors: list[PolyheadError] = []
    ending.end = errors.append
    ending.hold(900 * KIB)
    calls.open("innocent", "b", 400 * KIB)
    calls.unread.check()
    ending.settle()
    for _ in range(3):
        calls.unread.check()
    assert (len(errors), calls.ended) == (1, {})


def test_one_requests_fault_costs_no_other_its_events() -> None:
    """An exception in one delivery ended the loop over the step's requests: the others' readers never heard of their end."""
    heard: list[str] = []

    def broken(request: Any, events: Any) -> None:
        raise RuntimeError("cannot change state of expiring Timeout")

    first, second = Mock(deliver=broken), Mock(deliver=lambda request, events: heard.append("second"))
    _dispatch({first: [], second: []})
    assert heard == ["second"]


def test_alone_a_principal_may_hold_all_of_it() -> None:
    calls = Calls()
    calls.open("one", "a", MIB)
    calls.unread.check()
    assert not calls.ended


def test_a_call_ends_of_which_no_message_was_taken_for_the_stall_limit() -> None:
    calls = Calls()
    stalled, slow, waits = (calls.open(name, "a", 1) for name in ("stalled", "slow", "waits for the engine"))
    for account in (stalled, slow):
        account.begin_message()
    calls.clock.now = 59.0
    slow.end_message()
    slow.begin_message()
    calls.unread.sweep()
    assert not calls.ended
    calls.clock.now = 61.0
    calls.unread.sweep()
    assert list(calls.ended) == ["stalled"]
    assert calls.ended["stalled"].message.startswith("no message was taken for 60 s: the call was ended (unread_stall_s)")
    waits.close()


def test_states_are_made_a_window_ahead_of_the_reader() -> None:
    calls = Calls()
    account = calls.open("one", "a", 0)
    assert account.has_room(0, 10 * MIB), "nothing waits: the reader waits for this"
    assert account.has_room(8 * KIB, 8 * KIB)
    assert not account.has_room(10 * MIB, 8 * KIB)
    account.hold(30 * KIB)
    assert not account.has_room(0, 8 * KIB)
    account.release(30 * KIB)
    assert account.has_room(0, 8 * KIB)


def test_when_half_of_the_budget_is_gone_those_who_hold_little_go_on() -> None:
    calls = Calls()
    calls.open("hog", "a", 600 * KIB)
    others = {name: calls.open(f"of {name}", name, KIB) for name in ("a", "b")}
    assert not others["a"].has_room(0, KIB)
    assert others["b"].has_room(0, KIB)


def test_what_comes_after_the_end_counts_no_more() -> None:
    calls = Calls()
    account = calls.open("one", "a", KIB)
    account.close()
    account.hold(KIB)
    account.close()
    assert calls.unread.num_bytes == 0


class Endless(heads_pb2_grpc.HeadServiceServicer):
    """Sends messages of 1 MiB to whoever takes them."""

    def __init__(self) -> None:
        self.accounts: list[Account] = []
        self.num_sent = 0

    async def PullHead(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]  # noqa: N802
        account = current_call.get().unread
        self.accounts.append(account)
        account.hold(MIB)
        while True:
            yield pb.PullHeadResponse(chunk=pb.Chunk(data=bytes(MIB)))
            self.num_sent += 1

    async def GetHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetHeadResponse()


async def stalled_call(endless: Endless, channel: Any) -> Any:
    """A call whose reader took one message and no more: the transport is full, and the server's message waits."""
    call = heads_pb2_grpc.HeadServiceStub(channel).PullHead(pb.PullHeadRequest())
    await call.read()
    sent, num_looks = -1, 0
    while num_looks < 10:  # ten in a row: on a busy machine one pause is no full transport
        is_stalled = endless.num_sent == sent and endless.accounts[0].writing_since is not None
        num_looks = num_looks + 1 if is_stalled else 0
        sent = endless.num_sent
        await asyncio.sleep(0.1)
    return call


async def test_an_unread_call_ends_and_says_so_to_the_reader_who_comes_back() -> None:
    """It held what it had for up to an hour."""
    clock, endless = Clock(), Endless()
    unread = Unread(1 << 30, 60.0, clock)
    add = heads_pb2_grpc.add_HeadServiceServicer_to_server
    async with grpc_server(lambda late: add(endless, late), unread=unread) as (channel, interceptor, _):
        call = await stalled_call(endless, channel)
        unread.sweep()
        assert unread.num_ended == 0
        clock.now = 61.0
        unread.sweep()
        await until(lambda: interceptor.num_in_flight == 0)  # a drain does not wait for it
        assert unread.num_bytes == 2 * MIB, "its own, and the message that the transport still has"
        await heads_pb2_grpc.HeadServiceStub(channel).GetHead(pb.GetHeadRequest())  # everybody else is served
        assert await failure(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: unread.num_bytes == 0)


async def test_beyond_the_budget_the_unread_call_ends_and_the_read_one_goes_on() -> None:
    clock, endless = Clock(), Endless()
    unread = Unread(3 * MIB, 60.0, clock)
    add = heads_pb2_grpc.add_HeadServiceServicer_to_server
    async with (
        grpc_address(lambda late: add(endless, late), unread=unread) as (address, *_),
        grpc.aio.insecure_channel(address) as channel,
        # a connection of its own: traffic on a shared one grows the stalled call's window, and a message more is taken
        grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as other_channel,
    ):
        stalled = await stalled_call(endless, channel)
        clock.now = 2 * IDLE_S
        other = heads_pb2_grpc.HeadServiceStub(other_channel).PullHead(pb.PullHeadRequest())
        await other.read()
        endless.accounts[-1].hold(2 * MIB)
        unread.check()
        assert await failure(stalled) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len((await other.read()).chunk.data) == MIB
        other.cancel()
        await until(lambda: unread.num_bytes == 0)


async def failure(call: Any) -> grpc.StatusCode:
    """What a call ends with, read to its end."""

    async def read_all() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(read_all(), 20)
    return caught.value.code()
