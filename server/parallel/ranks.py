"""Rank 0's view of the other ranks: what they are told, what they hold, whether they live. The first that is lost ends the server.

A thread of its own starts them and listens to them: they are killed by the kernel when it ends, which is when this process ends.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from polyhead.heads.format.errors import FailedPrecondition, PolyheadError, ResourceExhausted, Unavailable
from polyhead.heads.format.pauses import pause_point
from polyhead.server.engine.work.reports import RankMemory
from polyhead.server.parallel import children
from polyhead.server.parallel.children import Child
from polyhead.server.parallel.memory import held_bytes
from polyhead.server.parallel.passes import Order
from polyhead.server.parallel.shares import Share
from polyhead.server.parallel.wire import Announced, Gone, line, packed, send_tensor

EXIT_RANK_LOST = 72  # a rank was killed, stopped or failed, or a pass over the ranks did
END_S = 5.0  # for ranks to end, before they are killed
NAMED_S = 3.0  # after a pass has failed, to see which rank is lost
HOLD_S = 600.0  # for a rank to make a head of the tensors it has got
SIGNS = 5  # of life, within the time after which a rank counts as lost
LONGEST_SILENCE_S = 1.0  # between two of them

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank has its share of the trunk and its caches."""

    free_bytes: int  # of its device


class Ranks:
    """Processes 1 to `size` - 1."""

    def __init__(self, size: int, settings: dict[str, Any], timeout_s: float, end: Callable[[str], None] | None = None) -> None:
        """`settings`: what rank.py is told; the place where ranks meet is added. `end`: of this process."""
        self.size = size
        self.timeout_s = timeout_s
        self.folder = children.private_folder()
        self._settings = {**settings, "meeting": str(self.meeting), "sign_s": self.sign_s}
        self._end = end or self._end_server
        self._processes: children.Processes = {}
        self._children: list[Child] = []
        self._ready: dict[int, Future[Ready]] = {rank: Future() for rank in range(1, size)}
        self._heard_at: dict[int, float] = {}
        self._held_bytes: dict[int, int] = {}
        self._forgotten: collections.deque[int] = collections.deque()
        self._answers: dict[int, queue.SimpleQueue[str]] = {}  # to `hold`, by head number: a problem each, or nothing
        self._saying, self._holding = threading.Lock(), threading.Lock()
        self._is_serving = False
        self._wakes, self._woken = socket.socketpair()  # of the thread that listens, when it has to end
        self._is_closing = threading.Event()
        self._is_lost = threading.Event()
        self._thread = threading.Thread(target=self._run, name="polyhead-ranks", daemon=True)

    @property
    def meeting(self) -> Path:
        return self.folder / children.MEETING

    @property
    def sign_s(self) -> float:
        """Between two signs of life."""
        return min(LONGEST_SILENCE_S, self.timeout_s / SIGNS)

    def start(self) -> None:
        """Begin to start them; they load their shares meanwhile."""
        self._thread.start()

    def wait(self) -> list[Ready]:
        """Until all have their shares. PolyheadError with the reason if one has not."""
        found = [self._ready[rank].result() for rank in sorted(self._ready)]
        self._is_serving = True  # from now on the loss of one is the end
        return found

    def met(self) -> None:
        """All ranks are connected: the folder where they met is not needed any more."""
        children.remove(self.folder)

    # ---- passes

    def say(self, numbers: list[int]) -> None:
        """As lead.Others."""
        message = packed(numbers)
        with self._saying:
            for child in self._children:
                child.passes.sendall(message)

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """As lead.Others: after an error the ranks stand at different sums, and no later pass could be right."""
        try:
            yield
        except PolyheadError:
            raise
        except BaseException as error:
            if self._is_closing.is_set():  # a step that took longer than the end of the engine waits for: the others have gone already
                raise
            log.critical("a pass of all ranks failed", exc_info=error)
            self._is_lost.wait(NAMED_S)  # the thread that listens ends the process if a rank is lost
            silent = [rank for rank, heard_at in self._heard_at.items() if time.monotonic() - heard_at > self.timeout_s / 2]
            self._end(f"rank {silent[0]} does not answer" if silent else "a pass of all ranks failed on rank 0")
            raise

    # ---- heads

    def hold(self, number: int, names: list[str], part: Callable[[Share, str], Tensor]) -> None:
        """As loader.Holders. One at a time, beside passes; from a worker thread."""
        with self._holding:
            self.say_forgotten()
            answers = self._answers[number] = queue.SimpleQueue()
            try:
                for child in self._children:
                    _hand_over(child, number, {name: part(Share(child.rank, self.size), name) for name in names})
                problems = [answers.get(timeout=HOLD_S) for _ in self._children]
            except queue.Empty:
                raise Unavailable(f"a rank has not taken a head within {HOLD_S:.0f} s") from None
            finally:
                del self._answers[number]
        if problem := next(filter(None, problems), ""):
            raise ResourceExhausted(problem) if "memory" in problem else PolyheadError(problem)

    def forget(self, number: int) -> None:
        """As lead.Others. The others are told before the next head is handed over."""
        self._forgotten.append(number)

    def say_forgotten(self) -> None:
        """Tell the others which heads are gone."""
        numbers = [self._forgotten.popleft() for _ in range(len(self._forgotten))]
        if numbers and self._children:
            self.say([Order.FORGET, len(numbers), *numbers])

    def memory(self) -> tuple[RankMemory, ...]:
        """Of all ranks, this one first."""
        device = str(self._settings["device"])
        names = [f"{device}:{rank}" if device == "cuda" else device for rank in range(self.size)]
        held = [held_bytes(names[0]), *(self._held_bytes.get(rank, 0) for rank in range(1, self.size))]
        return tuple(RankMemory(rank, *each) for rank, each in enumerate(zip(names, held, strict=True)))

    # ---- the end

    def close(self) -> None:
        """Let them end, and wait until they have. Idempotent."""
        self._is_serving = False
        self._is_closing.set()
        with contextlib.suppress(OSError):  # it has ended already
            self._wakes.send(b".")
        if self._thread.is_alive():
            self._thread.join(END_S + children.KILLED_S)
        children.remove(self.folder)
        self._wakes.close()

    # ---- the thread that starts them and listens

    def _run(self) -> None:
        try:
            with children.listen(self.folder) as listener:
                self._processes.update({rank: children.start(self.folder, rank) for rank in self._ready})
                for rank, process in self._processes.items():
                    log.info("rank %d is process %d", rank, process.pid)
                self._children = children.meet(listener, self._processes, self._settings, self._is_closing.is_set)
            self._listen()
        except BaseException as error:
            log.debug("a rank is lost", exc_info=True)
            self._lose(str(error))
        self._say_the_end()
        children.end(self._processes, END_S if self._is_closing.is_set() else 0.0)
        for child in self._children:
            child.close()
        self._woken.close()

    def _say_the_end(self) -> None:
        """Unless a thread waits for a rank that takes no message: it is killed then."""
        message = packed([Order.END])
        if self._saying.acquire(timeout=END_S):
            with contextlib.suppress(OSError):
                for child in self._children:
                    child.passes.sendall(message)
            self._saying.release()

    def _listen(self) -> None:
        """Until the end, or until one is lost."""
        buffers: dict[int, bytearray] = {child.rank: bytearray() for child in self._children}
        checked_at = time.monotonic()
        self._heard_at = dict.fromkeys(buffers, checked_at)
        with selectors.DefaultSelector() as selector:
            for child in self._children:
                selector.register(child.control, selectors.EVENT_READ, child)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select(self.sign_s):
                    if self._is_closing.is_set():
                        return
                    self._take(key.data, buffers[key.data.rank])
                now = time.monotonic()
                if now - checked_at > self.sign_s + self.timeout_s / 2:  # this process was stopped, and perhaps all of them
                    self._heard_at = dict.fromkeys(buffers, now)
                checked_at = now
                for child in self._children:
                    self._check(child, now)

    def _take(self, child: Child, buffer: bytearray) -> None:
        """What a rank has said."""
        data = child.control.recv(1 << 16)
        if not data:
            with contextlib.suppress(Exception):
                child.process.wait(NAMED_S)
            raise Gone(self._named(child, children.how_it_ended(child.process.poll() or 0)))
        self._heard_at[child.rank] = time.monotonic()
        buffer += data
        *lines, rest = bytes(buffer).split(b"\n")
        buffer[:] = rest
        for each in lines:
            self._heed(child.rank, json.loads(each))

    def _heed(self, rank: int, message: dict[str, Any]) -> None:
        match message:
            case {"sign": held}:
                self._held_bytes[rank] = int(held)
            case {"ready": free_bytes}:
                self._ready[rank].set_result(Ready(int(free_bytes)))
            case {"cannot": problem, "is_memory": is_memory}:
                kind = ResourceExhausted if is_memory else FailedPrecondition
                self._ready[rank].set_exception(kind(f"rank {rank}: {problem}"))
            case {"holds": number, "problem": problem} if number in self._answers:
                self._answers[number].put(f"rank {rank}: {problem}" if problem else "")

    def _check(self, child: Child, now: float) -> None:
        if (status := child.process.poll()) is not None:
            raise Gone(self._named(child, children.how_it_ended(status)))
        if now - self._heard_at[child.rank] > self.timeout_s:
            raise Gone(self._named(child, f"has given no sign of life for {self.timeout_s:g} s: it hangs, or was stopped"))

    def _named(self, child: Child, how: str) -> str:
        return f"rank {child.rank} (process {child.process.pid}) {how}"

    def _lose(self, problem: str) -> None:
        """A rank is lost: the server ends, or does not start."""
        if self._is_closing.is_set():
            return
        if self._is_serving:
            self._is_lost.set()
            self._end(problem)
        kind = ResourceExhausted if "SIGKILL" in problem else FailedPrecondition  # which is the kernel, short of memory
        for ready in self._ready.values():
            if not ready.done():
                ready.set_exception(kind(f"{problem}\nhint: the log above may say why"))

    def _end_server(self, problem: str) -> None:
        log.critical("%s; the server ends with status %d", problem, EXIT_RANK_LOST)
        logging.shutdown()
        children.kill(self._processes)
        children.remove(self.folder)
        os._exit(EXIT_RANK_LOST)


def _hand_over(child: Child, number: int, tensors: dict[str, Tensor]) -> None:
    announced = [Announced.of(name, tensor).plain for name, tensor in tensors.items()]
    child.control.sendall(line({"hold": number, "tensors": announced}))
    for tensor in tensors.values():
        send_tensor(child.control, tensor)
        pause_point()
