"""Streams that run in the background and write down when each token came. Knows nothing of what happens to the server meanwhile."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from dataclasses import dataclass, field

from polyhead.client import Client, FinishReason, PolyheadError
from polyhead.client.bench.work import Work
from polyhead.client.wire.options import OnSwapName

START_TIMEOUT_S = 300.0
GAP_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Phase:
    """Gaps between two pieces of one stream, in seconds, for as long as it lasts."""

    gaps: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.gaps)

    @property
    def longest(self) -> float:
        return max(self.gaps)


class Load:
    """Greedy streams until it is closed; a stream that ends begins anew. Use as a context manager."""

    def __init__(self, client: Client, work: Work, num_streams: int, prompt_tokens: int, max_new_tokens: int, on_swap: OnSwapName) -> None:
        self.failures: list[str] = []
        self._client = client
        self._on_swap = on_swap
        self._max_new_tokens = max_new_tokens
        self._phase = Phase()
        self._lock = threading.Lock()
        self._num_running = 0
        self._is_over = threading.Event()
        prompts = work.prompts(num_streams, prompt_tokens)
        self._threads = [threading.Thread(target=self._run, args=(prompt,), daemon=True) for prompt in prompts]

    def __enter__(self) -> Load:
        gc.collect()
        gc.freeze()  # this process' own pauses are not the server's
        for thread in self._threads:
            thread.start()
        end_at = time.monotonic() + START_TIMEOUT_S
        while self._num_running < len(self._threads) and not self.failures and time.monotonic() < end_at:
            time.sleep(0.02)
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(60.0)

    def enter(self, phase: Phase) -> Phase:
        """Gaps that end from now on belong to this phase. Returns it."""
        with self._lock:
            self._phase = phase
        return phase

    def wait_for_gap(self, phase: Phase) -> None:
        """Until it has one. PolyheadError if none comes."""
        end_at = time.monotonic() + GAP_TIMEOUT_S
        while not phase.gaps:
            if time.monotonic() > end_at or self.failures:
                raise PolyheadError("; ".join(["no stream got a token", *self.failures[:3]]))
            time.sleep(0.005)

    def _run(self, prompt: list[int]) -> None:
        is_first = True
        while not self._is_over.is_set():
            try:
                self._stream(prompt, is_first)
            except PolyheadError as error:
                if not self._is_over.is_set():
                    self.failures.append(str(error).splitlines()[0])
                return
            is_first = False

    def _stream(self, prompt: list[int], is_first: bool) -> None:
        options = {"temperature": 0.0, "max_new_tokens": self._max_new_tokens, "ignore_eos": True}
        with self._client.stream(prompt, on_swap=self._on_swap, **options) as stream:  # type: ignore[arg-type]
            last_at = 0.0
            for _ in stream:
                now = time.perf_counter()
                if last_at:
                    with self._lock:
                        self._phase.gaps.append(now - last_at)
                elif is_first:
                    with self._lock:
                        self._num_running += 1
                last_at = now
                if self._is_over.is_set():
                    return
        if stream.sample is not None and stream.sample.finish_reason is not FinishReason.LENGTH:
            self.failures.append(f"a stream ended with {stream.sample.finish_reason}: {stream.sample.error}")
