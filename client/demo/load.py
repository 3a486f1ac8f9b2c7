"""The demo's load: streams in the background, so that a swap can be seen from within them, however fast the machine draws."""

from __future__ import annotations

import threading
import time

from polyhead.client import Client, Sample


class Load:
    """So many streams at once in the background, each a request of its own; one that ends is followed by another."""

    def __init__(self, client: Client, num_streams: int) -> None:
        self.num_streams = num_streams
        self.num_begun = 0
        self._client = client
        self._samples: list[Sample] = []
        self._have_drawn: set[int] = set()
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._started_at = time.monotonic()
        self._threads = [threading.Thread(target=self._run, args=(index,)) for index in range(num_streams)]
        for thread in self._threads:
            thread.start()

    def wait_until_running(self) -> None:
        """Until every stream has its first token."""
        end_at = time.monotonic() + 120.0
        while len(self._have_drawn) < self.num_streams and time.monotonic() < end_at:
            time.sleep(0.05)

    def finish(self) -> list[Sample]:
        """Begin no more, and wait for those that run. Returns all that came to their end."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        return self._samples

    @property
    def tokens_per_second(self) -> float:
        return sum(len(sample.token_ids) for sample in self._samples) / (time.monotonic() - self._started_at)

    def _run(self, index: int) -> None:
        while True:
            self._stream(index)
            if self._is_over.is_set():
                return

    def _stream(self, index: int) -> None:
        with self._lock:
            self.num_begun += 1
        num_tokens = 90 + 4 * index  # so that they do not all end at once
        stream = self._client.stream(f"Chapter {index + 1}. The story begins", max_new_tokens=num_tokens, ignore_eos=True, seed=index)
        for _ in stream:
            self._have_drawn.add(index)
        if stream.sample is not None:
            with self._lock:
                self._samples.append(stream.sample)
