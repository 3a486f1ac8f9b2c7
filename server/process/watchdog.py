"""Ends a process whose engine hangs, and notifies systemd while the process works. Knows nothing of requests.

It runs on a thread of its own, since an event loop can hang, too. If this thread cannot run either, systemd gets no notification and its
watchdog ends the process.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

from polyhead.server.engine.requests import end_process
from polyhead.server.engine.work.reports import EngineSnapshot

PERIOD_S = 1.0
STOPPED_S = 10.0  # between two checks: the process did not run, because of SIGSTOP or a paused container
LOOP_SILENCE_S = 30.0  # without a beat, after which the event loop counts as hanging

log = logging.getLogger(__name__)


def notify_systemd(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Send "READY=1" and the like to the service manager, as sd_notify(3) does; nothing happens without one."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), target)
    except OSError as error:
        log.warning("systemd could not be notified of %s: %s", state, error.strerror)


class Watchdog:
    """Checks once a second. `beat` is called by the event loop."""

    def __init__(
        self,
        snapshot: Callable[[], EngineSnapshot],
        hang_limit_s: float,
        *,
        end: Callable[[str], None] = end_process,
        notify: Callable[[str], None] = notify_systemd,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._hang_limit_s = hang_limit_s  # of one step; 0: none
        self._end = end
        self._notify = notify
        self._now = now
        self._beat_at = self._checked_at = now()
        self._ignores_steps_until = 0.0  # time.monotonic(): before it, no step counts as hanging
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="polyhead-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def beat(self) -> None:
        """The event loop is running."""
        self._beat_at = self._now()

    def check(self) -> None:
        """End the process, or notify systemd that it works."""
        now, engine = self._now(), self._snapshot()
        if now - self._checked_at > STOPPED_S:  # the whole process was stopped: its step has not taken that long
            self._ignores_steps_until = now + self._hang_limit_s
        self._checked_at = now
        step_s = now - engine.last_step_at if now >= self._ignores_steps_until else 0.0
        if not engine.is_running:
            self._end("the engine's thread has ended")
        elif self._hang_limit_s and engine.num_open and step_s > self._hang_limit_s:
            self._end(f"the engine hangs: {engine.num_open} requests are open, and a step has taken {step_s:.0f} s")
        elif now - self._beat_at < LOOP_SILENCE_S:
            self._notify("WATCHDOG=1")

    def _run(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            self.check()
