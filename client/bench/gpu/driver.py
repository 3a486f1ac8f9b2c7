"""Drives our engine inside the process: prompts in, tokens, scores and the times of its steps out. Knows no server and no measure."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyhead.client.bench.gpu.models import ROLES, TEMPLATE
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.work.events import Drawn, Ended
from polyhead.server.engine.work.live import ActiveSet, ServedHead
from polyhead.server.engine.work.questions import RuleQuestion, RuleQuestions
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.reports import SwapReport
from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence

TIMEOUT_S = 600.0


@dataclass(slots=True)
class Rollout:
    """One request's work and when its tokens came."""

    request: Request | None = None
    seconds: float = 0.0
    drawn: list[tuple[float, int]] = field(default_factory=list)  # a step's end, and how many tokens it drew
    errors: list[Exception] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def samples(self) -> list[Sample]:
        assert self.request is not None
        return self.request.samples

    @property
    def completions(self) -> list[list[int]]:
        return [sample.completion for sample in self.samples]

    def gaps(self, num_streams: int) -> list[float]:
        """Seconds between two steps that both drew a token of every stream."""
        pairs = zip(self.drawn, self.drawn[1:], strict=False)
        return [end - start for (start, before), (end, after) in pairs if before == after == num_streams]

    def step_seconds(self, num_streams: int) -> float:
        """Of a decode step, median. NaN if there were none."""
        gaps = self.gaps(num_streams)
        return statistics.median(gaps) if gaps else float("nan")

    def wait(self) -> Rollout:
        if not self.is_over.wait(TIMEOUT_S):
            raise RuntimeError(f"our engine has not answered within {TIMEOUT_S:.0f} s")
        if self.errors:
            raise self.errors[0]
        if failed := next((sample.error for sample in self.samples if sample.error), ""):
            raise RuntimeError(failed)
        return self


class Driver:
    """A running engine with heads. Use as a context manager."""

    def __init__(self, engine: Engine, heads: Mapping[str, ServedHead]) -> None:
        self.engine = engine
        self.heads = dict(heads)
        self.generation = 0

    def __enter__(self) -> Driver:
        self.engine.start()
        self.activate({})
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.stop()

    def activate(self, changed: Mapping[str, ServedHead]) -> SwapReport:
        """These heads take the place of their names' present ones."""
        self.heads.update(changed)
        self.generation += 1
        return self.engine.activate(ActiveSet(self.generation, dict(self.heads))).result(TIMEOUT_S)

    def begin(
        self,
        prompts: Sequence[list[int]],
        num_tokens: int,
        *,
        score: Sequence[str] = (),
        rules: Mapping[str, Sequence[int]] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        **fields: Any,
    ) -> Rollout:
        """Submit one sample of each prompt; every role of `score` scores it."""
        rollout = Rollout()
        started_at = time.perf_counter()

        def deliver(request: Request, events: list[Event]) -> None:
            now = time.perf_counter()
            rollout.drawn.append((now, sum(isinstance(event, Drawn) for event in events)))
            for event in events:
                if isinstance(event, Ended):
                    rollout.seconds = now - started_at
                    rollout.errors += [event.error] if event.error is not None else []
                    rollout.is_over.set()

        questions = tuple(RuleQuestion(name, tuple(suffix)) for name, suffix in (rules or {}).items())
        request = Request(
            "bench",
            deliver,
            {name: ROLES[name] for name in ("policy", *score)},
            {},
            tuple(score),
            RuleQuestions("bench@1", {TEMPLATE: questions}) if rules else None,
            stream_tokens=True,
            **fields,
        )
        params = SamplingParams(temperature=temperature, max_new_tokens=num_tokens, ignore_eos=True)
        for index, prompt in enumerate(prompts):
            text = TokenSequence(list(prompt))
            request.samples.append(Sample(request, index, 0, 0, list(prompt), text, params, head_name="policy", seed=seed + index))
        rollout.request = request
        self.engine.submit(request)
        return rollout

    def generate(self, prompts: Sequence[list[int]], num_tokens: int, **options: Any) -> Rollout:
        """The same, waited for."""
        return self.begin(prompts, num_tokens, **options).wait()
