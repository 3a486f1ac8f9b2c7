"""What waits to be read: each call's bytes, counted against one budget of the server and against its caller. Knows no messages.

The engine never waits for a reader. Boundary states are made only as they are read (`has_room`); everything else is held. When more
waits than the budget has, the call ends that holds most, of the principal that holds most, unread ones first; and a call
ends of which no message was taken for `stall_s`. No other call is affected.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from polyhead.heads.format.errors import PolyheadError, ResourceExhausted
from polyhead.server.engine.schedule.shares import fair_share

logger = logging.getLogger(__name__)

WINDOW_SHARE = 1 / 32  # of the budget: states of one call that are made ahead of its reader
IDLE_S = 1.0  # a message that waits longer counts as unread: its reader is busy elsewhere
SWEEP_S = 1.0
MESSAGE_BYTES = 1 << 20  # kept by the transport of a call that was ended while a message was being sent


class Account:
    """What one call holds, until it is closed. Counting may come from any thread; a message is written on the event loop."""

    def __init__(self, unread: Unread, principal: str) -> None:
        self.principal = principal
        self.num_bytes = 0
        self.writing_since: float | None = None  # time.monotonic(); None: no message waits for the reader
        self.end: Callable[[PolyheadError], None] | None = None  # set by the call while it can be ended; on the event loop
        self.is_ending = False
        self.num_message_bytes = 0  # of `num_bytes`: what stays with the transport when the call was ended
        self._unread = unread

    def hold(self, num_bytes: int) -> None:
        """Count bytes that wait to be read."""
        self._unread.change(self, num_bytes)

    def release(self, num_bytes: int) -> None:
        """Bytes were read, or dropped."""
        self._unread.change(self, -num_bytes)

    def has_room(self, num_begun: int, num_bytes: int) -> bool:
        """Whether so many bytes of states may be made beside those begun. Always if nothing waits: then the reader waits for them."""
        return self._unread.has_room(self, num_begun, num_bytes)

    def check(self) -> None:
        """End calls, this one or others, if more waits than may. On the event loop."""
        self._unread.check()

    def begin_message(self) -> None:
        """A message is on its way to the reader."""
        self.writing_since = self._unread.clock()

    def end_message(self) -> None:
        """The message was read, as far as can be known: the transport holds one or a few."""
        self.writing_since = None

    def settle(self) -> None:
        """The call was ended, and the engine frees its work. What remains is the message that was not read."""
        if self.writing_since is not None:
            self.num_message_bytes = MESSAGE_BYTES
            self.hold(MESSAGE_BYTES)

    def close(self) -> None:
        """The call is over: nothing of it waits any more. Idempotent."""
        self._unread.close(self)


class Unread:
    """All calls' accounts."""

    def __init__(self, max_bytes: int, stall_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_bytes = max_bytes
        self.clock = clock
        self.num_bytes = 0  # of all calls
        self.num_ended = 0  # calls that were ended here
        self._stall_s = stall_s
        self._accounts: set[Account] = set()
        self._lock = threading.Lock()

    def open(self, principal: str) -> Account:
        """An account for a new call."""
        account = Account(self, principal)
        with self._lock:
            self._accounts.add(account)
        return account

    def change(self, account: Account, num_bytes: int) -> None:
        """For Account: what comes after its end does not count."""
        with self._lock:
            if account in self._accounts:
                num_bytes = max(num_bytes, -account.num_bytes)
                account.num_bytes += num_bytes
                self.num_bytes += num_bytes

    def close(self, account: Account) -> None:
        """For Account."""
        with self._lock:
            if account in self._accounts:
                self._accounts.discard(account)
                self.num_bytes -= account.num_bytes

    def has_room(self, account: Account, num_begun: int, num_bytes: int) -> bool:
        """For Account: a window of its own, and when half of the budget is gone, one piece at a time for who has its share already."""
        with self._lock:
            if account.num_bytes + num_begun == 0:
                return True
            more = num_begun + num_bytes
            if account.num_bytes + more > self.max_bytes * WINDOW_SHARE:
                return False
            half, held = self.max_bytes / 2, self._held()
            others = [each for name, each in held.items() if name != account.principal]
            return self.num_bytes + more <= half or held.get(account.principal, 0) + more <= fair_share(half, others)

    def check(self) -> None:
        """End calls until the budget holds what is left. On the event loop."""
        if self.num_bytes <= self.max_bytes:
            return
        with self._lock:
            going = sum(account.num_bytes - account.num_message_bytes for account in self._accounts if account.is_ending)
            over = self.num_bytes - self.max_bytes - going
            to_end = self._calls_to_end(over) if over > 0 else []
        for account in to_end:
            self._end(
                account,
                f"too much waits to be read: {account.num_bytes} bytes of this call; the server holds {self.max_bytes} (unread_bytes)\n"
                "hint: read faster, ask for less at a time, or end calls that are not read",
            )

    def sweep(self) -> None:
        """End calls that are not read. Runs on the event loop at intervals."""
        late = self.clock() - self._stall_s
        with self._lock:
            stalled = [each for each in self._accounts if each.writing_since is not None and each.writing_since <= late]
        for account in stalled:
            self._end(account, f"no message was taken for {self._stall_s:g} s: the call was ended (unread_stall_s)\nhint: read, or cancel")
        self.check()

    async def watch(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self.sweep()
            except Exception:
                logger.exception("the check for unread answers failed; it runs again in %g s", SWEEP_S)

    def _held(self) -> dict[str, float]:
        held: dict[str, float] = {}
        for account in self._accounts:
            if account.num_bytes:
                held[account.principal] = held.get(account.principal, 0) + account.num_bytes
        return held

    def _calls_to_end(self, over: float) -> list[Account]:
        """Calls that hold what is too much: unread ones first, then by what the principal holds, then by what the call holds."""
        left, now, found = self._held(), self.clock(), []
        candidates = {account for account in self._accounts if account.num_bytes and account.end is not None}
        while over > 0 and candidates:
            worst = max(candidates, key=lambda each: (_is_idle(each, now), left[each.principal], each.num_bytes))
            candidates.discard(worst)
            left[worst.principal] -= worst.num_bytes
            over -= worst.num_bytes
            found.append(worst)
        return found

    def _end(self, account: Account, message: str) -> None:
        end, account.end = account.end, None
        if end is not None:
            account.is_ending = True
            self.num_ended += 1
            end(ResourceExhausted(message))


def _is_idle(account: Account, now: float) -> bool:
    return account.writing_since is not None and now - account.writing_since > IDLE_S
