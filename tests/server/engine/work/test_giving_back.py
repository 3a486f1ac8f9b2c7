"""A fault while a request's blocks, weights or place are given back: the giving back completes, or the process ends. No call stays open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead.heads.format.errors import Aborted
from polyhead.server.engine import engine as engine_module
from polyhead.server.engine import outbox as outbox_module
from polyhead.server.engine.work.request import Request
from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.harness import Bench, Ended


class ProcessEnded(BaseException):
    """In place of os._exit."""


@pytest.fixture
def bench(llama_folder: Path) -> Bench:
    opened = Bench.open(llama_folder, 2)

    def end(problem: str) -> None:
        raise ProcessEnded(problem)

    opened.engine.requests.end_process = end
    return opened


def faulty(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("injected")


PLACES: dict[str, Callable[[Bench], tuple[Any, str]]] = {
    "the trunk's blocks": lambda bench: (bench.engine.tree, "release"),
    "the head's blocks": lambda bench: (bench.engine.tree.heads, "release"),
    "the follower's place": lambda bench: (bench.engine.scheduler.follower, "leave"),
    "the sample's place": lambda bench: (bench.engine.scheduler, "remove"),
    "the weights": lambda bench: (Request, "hold"),
    "a reading": lambda bench: (bench.engine.scheduler, "finish_reading"),
}


@pytest.mark.parametrize(
    ("place", "is_cancelled"), [*((place, False) for place in PLACES), *((place, True) for place in PLACES if place != "a reading")]
)
def test_no_fault_leaves_a_call_open(bench: Bench, monkeypatch: pytest.MonkeyPatch, place: str, is_cancelled: bool) -> None:
    """The step's error was logged, the request was no longer among those that run, and its caller waited for its deadline."""
    engine = bench.engine
    request = bench.sampled(bench.prompt(5), params=SamplingParams(max_new_tokens=3), score=("value",))
    bench.start(request, steps=1)
    monkeypatch.setattr(*PLACES[place](bench), faulty)
    if is_cancelled:
        engine.cancel(request, Aborted("gone"))
    with pytest.raises(ProcessEnded, match="cannot give back"):
        step_often(bench)


def step_often(bench: Bench) -> None:
    for _ in range(20):
        bench.engine._empty_inbox()
        bench.engine._step_safely()


def test_a_gpu_that_has_failed_ends_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an access to a wrong address every call of the process's CUDA fails: each step failed, and the server was healthy for ever."""
    found = iter(["", "", "an illegal memory access was encountered"])
    monkeypatch.setattr(engine_module, "device_error", lambda device: next(found))
    monkeypatch.setattr(bench.engine.stepper, "forward", faulty)
    bench.start(bench.sampled(bench.prompt(5), params=SamplingParams(max_new_tokens=3)), steps=0)
    bench.engine._empty_inbox()
    bench.engine._step_safely()  # this fault was the step's own
    bench.start(bench.sampled(bench.prompt(5), params=SamplingParams(max_new_tokens=3)), steps=0)
    bench.engine._empty_inbox()
    with pytest.raises(ProcessEnded, match="cpu does nothing more for this process: an illegal memory access"):
        bench.engine._step_safely()


def test_a_text_that_cannot_be_ended_ends_its_sample_all_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    request = bench.sampled(bench.prompt(5), params=SamplingParams(max_new_tokens=3))
    monkeypatch.setattr(outbox_module, "tail", faulty)
    bench.run(request)
    [ended] = [event for event in bench.events if isinstance(event, Ended)]
    assert ended.error is None
    bench.assert_blocks_returned()


def test_a_waiting_request_that_fails_every_step_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody ran, so nobody was ended, and the next step failed as this one."""
    request = bench.sampled(bench.prompt(5))
    monkeypatch.setattr(bench.engine.tree, "match", faulty)
    bench.engine.submit(request)
    bench.engine._empty_inbox()
    assert bench.engine._step_safely()
    assert request.is_ended
    bench.assert_blocks_returned()
