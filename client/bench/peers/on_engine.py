"""Our own engine inside the process, without gRPC and an event loop: what the server's own share of the time is measured against."""

from __future__ import annotations

import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

from polyhead.server.config import load_config
from polyhead.server.host.memory import bound_malloc, return_garbage
from polyhead.server.host.pacing import bound_spinning

if TYPE_CHECKING:
    from polyhead.server.engine.work.reader import Event
    from polyhead.server.engine.work.request import Request


class InProcess:
    """The services of a server that listens nowhere, in a process prepared as a server's is."""

    def __init__(self, flags: dict[str, Any]) -> None:
        bound_malloc()
        bound_spinning()
        from polyhead.server.host.threads import use_torch_threads
        from polyhead.server.metrics.metrics import Metrics
        from polyhead.server.process.startup import bring_up_heads, build_services
        from polyhead.server.process.workers import Workers

        self.store = tempfile.TemporaryDirectory(prefix="polyhead-bench-")
        use_torch_threads(1)  # as a worker: OpenMP spins less once it has more threads than cores
        config = load_config({**flags, "store": f"{self.store.name}/store"})
        self.services = build_services(config, Metrics(), Workers(), lambda text: None)
        self.services.engine.start()
        bring_up_heads(self.services, lambda text: None)
        self.services.engine.commit_caches(lambda: True)
        return_garbage()
        self.about = {"engine": "our engine", "version": "", "precision": config.trunk_dtype}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        from polyhead.server.engine.work.events import Ended
        from polyhead.server.engine.work.request import Request, Sample
        from polyhead.server.engine.work.sampling import SamplingParams
        from polyhead.server.engine.work.sequence import TokenSequence

        params = SamplingParams(temperature=0.0, max_new_tokens=question["num_tokens"], ignore_eos=True)
        is_over = threading.Event()
        errors: list[Exception] = []

        def deliver(request: Request, events: list[Event]) -> None:
            ends = [event for event in events if isinstance(event, Ended)]
            if ends:
                errors.extend(end.error for end in ends if end.error is not None)
                is_over.set()

        head = self.services.registry.active.heads["policy"]
        request = Request("bench", deliver, {"policy": head.manifest.kind}, {})
        for index, prompt in enumerate(question["prompts"]):
            sequence = TokenSequence(list(prompt))
            request.samples.append(Sample(request, index, 0, 0, prompt, sequence, params, head_name="policy", seed=index))
        started_at = time.perf_counter()
        self.services.engine.submit(request)
        is_over.wait()
        seconds = time.perf_counter() - started_at
        if errors:
            raise errors[0]
        return {"seconds": seconds, "completions": [sample.completion for sample in request.samples]}


def load(settings: dict[str, Any]) -> InProcess:
    return InProcess(settings["flags"])
