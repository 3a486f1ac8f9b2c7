"""A model server in place of polyhead's: replies are scripted, and every secret of a sample is a value that nothing else has."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

import numpy as np

from polyhead.client import (
    Arm,
    AsyncClient,
    Continuation,
    FinishReason,
    HeadKind,
    Piece,
    PreferenceScore,
    Sample,
    Sampling,
    ScoredItem,
    Served,
    Span,
    Status,
    TrunkInfo,
    errors,
)
from polyhead.client.streams import AsyncStream
from polyhead.client.wire import convert
from tests.client.fake_messages import make_sample, make_trunk

NONE = np.zeros(1, np.float32)
TOKENIZER = "70cafe" * 10
SECRETS = (
    *("canary-trunk", "canary-precision", "canary-digest", "canary-error", "canary-head", "771100", "424242", "99000", "313131"),
    TOKENIZER,
)


class FakeModel:
    """What the frontend calls of AsyncClient. `texts` are handed out in turn; while `gate` is closed nothing is finished."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self.texts = list(texts)
        self.calls: list[dict[str, Any]] = []
        self.failures: list[Exception | None] = []  # raised by the next calls of samples; None: that call succeeds
        self.broken: dict[int, int] = defaultdict(int)  # index of a reply in its call -> how often it fails
        self.gate = asyncio.Event()
        self.gate.set()
        self.pieces = asyncio.Event()
        self.pause_after = -1  # pieces; below 0: it does not wait
        self.scored: list[dict[str, Any]] = []  # calls of score
        self.score_failures: list[Exception] = []  # raised by the next calls of score
        self.score_gate = asyncio.Event()
        self.score_gate.set()
        self.num_cancelled = 0
        self.version = 313131
        self.trunk_id, self.tokenizer = "canary-trunk", TOKENIZER
        self.next_trunk = ""  # another server comes between the question for its trunk and the call
        self._count = 0

    @property
    def client(self) -> AsyncClient:
        return cast(AsyncClient, self)

    def samples(self, prompts: Sequence[Any], **options: Any) -> AsyncStream[Sample]:
        self.calls.append({"prompt": prompts[0], "prompts": prompts, **options})
        return AsyncStream(self._samples(prompts, options))

    def events(self, prompts: Sequence[Any], **options: Any) -> AsyncStream[Piece | Sample]:
        self.calls.append({"prompt": prompts[0], "prompts": prompts, **options})
        return AsyncStream(self._events(prompts, options))

    async def _events(self, prompts: Sequence[Any], options: dict[str, Any]) -> AsyncGenerator[Piece | Sample, None]:
        """Pieces of all replies in turn, each reply at a pace of its own; after `pause_after` pieces it waits for `pieces`."""
        samples = [sample async for sample in self._samples(prompts, options)]
        longest, count = max(len(sample.text) for sample in samples), 0
        for step in range(longest):
            for pace, sample in enumerate(samples, 1):
                start, end = step * pace, (step + 1) * pace
                if piece := sample.text[start:end]:
                    if count == self.pause_after:
                        await self.pieces.wait()
                    count += 1
                    yield Piece(sample.prompt_index, sample.arm_index, sample.sample_index, start, [8], NONE, NONE, piece)
                    if end >= len(sample.text):
                        yield sample

    async def _samples(self, prompts: Sequence[Any], options: dict[str, Any]) -> AsyncGenerator[Sample, None]:
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        number = 0
        try:
            places = [(place, index) for place in range(len(prompts)) for index in range(len(options["arms"]))]
            for prompt_index, arm_index in places:
                arm = options["arms"][arm_index]
                for sample_index in range(arm.n):
                    await self.gate.wait()
                    made = self._sample(prompts[prompt_index], arm, arm_index, sample_index, number, options["request_id"])
                    yield dataclasses.replace(made, prompt_index=prompt_index)
                    number += 1
        except (asyncio.CancelledError, GeneratorExit):
            self.num_cancelled += 1
            raise

    def _sample(self, prompt: Any, arm: Arm, arm_index: int, sample_index: int, number: int, request_id: str) -> Sample:
        self._count += 1
        served = Served(self.next_trunk or self.trunk_id, "canary-precision", 424242, {}, self.tokenizer)
        made = convert.sample(make_sample(0, arm_index, sample_index), request_id, served)
        is_broken = self.broken[number] > 0
        self.broken[number] -= is_broken
        is_continued = isinstance(prompt, Continuation)
        found = [] if is_continued else [6 for each in prompt or () if "search" in each["role"]]
        before = [*prompt.prompt_token_ids, *prompt.token_ids] if is_continued else [5, *found]
        return dataclasses.replace(
            made,
            prompt_token_ids=[*before, 7],
            token_ids=[8, self._count],
            text=self.texts.pop(0) if self.texts else f"reply {self._count}",
            finish_reason=FinishReason.FAILED if is_broken else FinishReason.EOS,
            error="canary-error" if is_broken else "",
            head=arm.head,
            head_version=self.version,
            digest=f"canary-digest-{arm.head}",
            sample_seed=990000 + self._count,
            sampling=Sampling(0.5, 1.0, 0, 0.0, 1.0, 771100, 97, (), False, (), False),
            spans=(Span(0, 2, self.version, 424242, f"canary-digest-{arm.head}"),),
        )

    async def tokenize(self, prompt: str, **options: Any) -> list[int]:
        return [ord(letter) for letter in prompt]

    async def score(self, items: Sequence[Any], **options: Any) -> list[ScoredItem]:
        self.scored.append({"items": items, **options})
        await self.score_gate.wait()
        if self.score_failures:
            raise self.score_failures.pop(0)
        served = Served("canary-trunk", "canary-precision", 424242, {}, TOKENIZER)
        head: Any = ("preference", HeadKind.PREFERENCE, self.version, "canary-digest-preference", "")
        said = PreferenceScore(*head, 0.625, 77.125, 76.5, True, 3)
        return [ScoredItem([5], [8], True, {"preference": said}, "", 0, "canary-request", served) for _ in items]

    async def status(self) -> Status:
        if self.failures and isinstance(self.failures[0], errors.Unavailable):
            raise self.failures[0]
        numbers = {field.name: 0 for field in dataclasses.fields(Status) if field.default is dataclasses.MISSING}
        known: Any = {
            **numbers,
            "generation": 424242,
            "active": {"policy": self.version},
            "resident_heads": (),
            "damage": "",
            "counters": {},
        }
        return Status(**known)

    async def trunk(self) -> TrunkInfo:
        made = convert.trunk_info(trunk_response())
        served = {"trunk_id": self.trunk_id, "precision": "canary-precision", "tokenizer_sha256": self.tokenizer}
        return dataclasses.replace(made, eos_token_ids=[2, 3], **served)

    async def configurations(self, kind: Any = None) -> list[Any]:
        return []


def trunk_response() -> Any:
    return make_trunk(tied=True)
