"""Which device, stream and clock the parts of a GPU server use. torch.cuda is played; what it does with them runs on GPUs alone."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from polyhead.server.engine.layers.cuda.staging import NUM_BUFFERS, ReadBack, Staging
from polyhead.server.engine.layers.cuda.threads import SideStream, device_error, use_device
from polyhead.server.engine.layers.cuda.timing import DeviceTimes
from polyhead.server.engine.work.reports import Counters

SECOND = torch.device("cuda:1")


@dataclass
class FakeCuda:
    """What a thread asked of torch.cuda, in order."""

    log: list[str] = field(default_factory=list)
    done: set[int] = field(default_factory=set)  # events whose work has ended
    num_events: int = 0

    def set_device(self, number: int) -> None:
        """torch refuses a device without a number, as of `--device cuda`."""
        self.log.append(f"thread on cuda:{number}")

    def synchronize(self, device: torch.device) -> None:
        self.log.append(f"waited for {device}")

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        return FakeStream("side", self)

    def default_stream(self, device: torch.device) -> FakeStream:
        return FakeStream("engine", self)

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.log.append(f"on {device}")
        yield
        self.log.append("back")

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        self.log.append(f"to {stream.name}")
        yield
        self.log.append(f"off {stream.name}")

    def Event(self, enable_timing: bool = False) -> FakeEvent:  # noqa: N802
        self.num_events += 1
        return FakeEvent(self.num_events, self)


@dataclass(frozen=True)
class FakeStream:
    name: str
    cuda: FakeCuda

    def synchronize(self) -> None:
        self.cuda.log.append(f"waited for {self.name}")


@dataclass(frozen=True)
class FakeEvent:
    number: int
    cuda: FakeCuda

    def record(self) -> None:
        self.cuda.log.append(f"event {self.number}")

    def query(self) -> bool:
        return self.number in self.cuda.done

    def synchronize(self) -> None:
        self.cuda.log.append(f"waited for event {self.number}")

    def elapsed_time(self, end: FakeEvent) -> float:
        return 2.5 * (end.number - self.number)  # milliseconds


def test_a_thread_is_told_its_device() -> None:
    cuda = FakeCuda()
    use_device(SECOND, cuda)
    use_device(torch.device("cpu"), cuda)
    use_device(torch.device("cuda"), cuda)
    assert cuda.log == ["thread on cuda:1", "thread on cuda:0"]


def test_a_device_is_asked_whether_it_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    assert device_error(SECOND, cuda) == ""
    assert cuda.log == ["waited for cuda:1"]

    def failed(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(cuda, "synchronize", failed)
    assert device_error(SECOND, cuda) == "CUDA error: an illegal memory access was encountered"
    assert device_error(torch.device("cpu"), cuda) == ""


def test_a_workers_launches_have_a_stream_of_their_own() -> None:
    """They have ended when the block ends, whatever was raised in it, so that the engine's stream may read what they made."""
    cuda = FakeCuda()
    uploads = SideStream(SECOND, cuda)
    with contextlib.suppress(KeyError), uploads.beside():
        cuda.log.append("copied")
        raise KeyError
    assert cuda.log == ["on cuda:1", "to side", "copied", "waited for side"]
    cuda.log.clear()
    with uploads.beside():
        cuda.log.append("copied")
    assert cuda.log == ["on cuda:1", "to side", "copied", "waited for side", "off side", "back"]


class Weights:
    """Of a head: it says when its memory goes."""

    def __init__(self, log: list[str]) -> None:
        self.memory = Memory(log)


class Memory:
    def __init__(self, log: list[str]) -> None:
        self._log = log

    def __del__(self) -> None:
        self._log.append("given back")


def test_weights_outlive_the_steps_that_read_them() -> None:
    """The next upload, on another stream, gets the same memory at once."""
    cuda = FakeCuda()
    weights = Weights(cuda.log)
    SideStream(SECOND, cuda).outlive(weights)
    del weights
    gc.collect()
    assert cuda.log == ["waited for engine", "given back"]


def test_on_the_cpu_there_is_nothing_to_wait_for() -> None:
    cuda = FakeCuda()
    uploads = SideStream(torch.device("cpu"), cuda)
    with uploads.beside():
        uploads.outlive(Weights([]))
    assert cuda.log == []


def test_device_time_is_read_when_it_is_past() -> None:
    """No step waits for its own events: they are counted once their work has ended, in the order of the steps."""
    cuda, counters = FakeCuda(), Counters()
    times = DeviceTimes(counters, cuda)
    for part in ("trunk", "head", "trunk"):
        with times.measuring(part):
            pass
    times.collect()
    assert (counters.trunk_seconds_us, counters.head_seconds_us) == (0, 0)
    cuda.done |= {2, 6}
    times.collect()
    assert (counters.trunk_seconds_us, counters.head_seconds_us) == (2500, 0), "the third waits for the second"
    cuda.done |= {4}
    times.collect()
    assert (counters.trunk_seconds_us, counters.head_seconds_us) == (5000, 2500)
    assert not any("waited" in line for line in cuda.log)


def test_pinned_memory_is_written_when_its_copy_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffers take turns: the host waits for the copy that used the same one, and for no later one."""
    monkeypatch.setattr(torch, "zeros", unpinned(torch.zeros))
    monkeypatch.setattr(torch, "empty", unpinned(torch.empty))
    cuda = FakeCuda()
    staging = Staging(64, torch.device("cuda"), cuda)
    numbers = torch.arange(3).numpy()
    for _ in range(NUM_BUFFERS + 1):
        staging.send([numbers, numbers[:1]])
    turns = [line for number in (*range(1, NUM_BUFFERS + 1), 1) for line in (f"waited for event {number}", f"event {number}")]
    assert cuda.log == turns
    assert staging.target[:32].view(torch.int64).tolist() == [0, 1, 2, 0]
    assert (staging.num_copies, staging.num_bytes) == (NUM_BUFFERS + 1, 32 * (NUM_BUFFERS + 1))


def unpinned(make: Any) -> Any:
    """Memory of the CPU, whatever is asked for."""
    return lambda *size, device=None, pin_memory=False, **options: make(*size, **options)


def test_a_read_back_waits_for_its_own_copy() -> None:
    assert ReadBack(torch.tensor([1.5, 2.0])).read().tolist() == [1.5, 2.0]
