"""Work that an interrupt ends tidily. It runs on a thread, and no exception is thrown into the middle of it.

KeyboardInterrupt may be raised between any two steps of whatever runs on the main thread. A run hung after SIGTERM once, most likely
because that left a lock of gRPC's client held, for which closing the channel waits for ever (not shown). Here the main thread only
waits; an interrupt ends all processes that the work has started, so that its next call fails and it leaves its blocks by itself.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_S = 0.2
LEAVE_TIMEOUT_S = 60.0


class Interrupted(Exception):
    """The work was asked to end. No failure of what it measured."""


class Interrupt:
    """Asked by the work, between its steps, whether it is to go on. Takes no lock: a signal handler sets it."""

    def __init__(self) -> None:
        self.is_asked = False

    def check(self) -> None:
        """Raises Interrupted if the work is to end."""
        if self.is_asked:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Raises Interrupted soon after the work is to end."""
        end_at = time.monotonic() + seconds
        while (remaining := end_at - time.monotonic()) > 0:
            self.check()
            time.sleep(min(POLL_S, remaining))
        self.check()


def run_interruptibly(work: Callable[[Interrupt], None]) -> None:
    """Run `work` to its end on a thread; what it raises is raised here. To be called by the main thread of a process.

    Interrupted on SIGINT or SIGTERM, once every process that `work` has started is ended and `work` has returned, or after a minute if it
    does not. A second signal ends this process at once.
    """
    interrupt = Interrupt()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work(interrupt)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with _asked_by_signals(interrupt):
        thread.start()
        while thread.is_alive() and not interrupt.is_asked:
            thread.join(POLL_S)
        if interrupt.is_asked:
            _end(thread)
    interrupt.check()  # whatever else the work has raised is of that
    for error in failures:
        raise error


@contextlib.contextmanager
def _asked_by_signals(interrupt: Interrupt) -> Iterator[None]:
    """Within the block, SIGINT and SIGTERM ask; a second one does what the system does by default."""

    def ask(*_: object) -> None:
        interrupt.is_asked = True
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(thread: threading.Thread) -> None:
    """End this process's children until the thread is over, and then what it has left: it may be starting another meanwhile."""
    end_at = time.monotonic() + LEAVE_TIMEOUT_S
    is_over = False
    while not is_over and time.monotonic() < end_at:
        thread.join(POLL_S)
        is_over = not thread.is_alive()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
