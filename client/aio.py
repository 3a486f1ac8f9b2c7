"""AsyncClient: polyhead from asyncio code. The same names, arguments and errors as Client (client.py), awaited.

Sorting and hashing weights runs in a thread, so that the event loop stays free.
"""
# ruff: noqa: ASYNC109  # timeout= is the deadline that the server is told, not a local timer

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Unpack

from polyhead.client.aio_head_calls import AsyncHeadCalls
from polyhead.client.calibrating import CalibrationPlan
from polyhead.client.results.records import Calibration, Configuration, RuleQuestions
from polyhead.client.results.results import Piece, Sample, ScoredItem
from polyhead.client.streams import AsyncPieceStream, AsyncStream
from polyhead.client.wire import convert, generation_requests, scoring_requests
from polyhead.client.wire.folding import GenerateFold, best_order, sample_order
from polyhead.client.wire.options import ConfigurationKindName, GenerateOptions, Rule, ScoreOptions, StreamOptions
from polyhead.client.wire.parameters import DRAWING, SCORING, described
from polyhead.client.wire.prompts import Prompt
from polyhead.v1 import generation_pb2

__all__ = ["AsyncClient"]


class AsyncClient(AsyncHeadCalls):
    """A client of one server, for one event loop. It connects at the first call.

    `timeout` (seconds) is the default for calls that compute or move weights; each of these also takes a `timeout=` of its own.
    """

    # generation

    @described(StreamOptions, DRAWING)
    def stream(self, prompt: Prompt, **options: Unpack[StreamOptions]) -> AsyncPieceStream:
        """One sample of one prompt, piece by piece. After the last piece, `.sample` of the returned stream is the whole sample."""
        request = generation_requests.stream(prompt, **options)
        return AsyncPieceStream(self._events(request, options.get("timeout") or self._timeout))

    @described(GenerateOptions, DRAWING)
    async def generate(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Sample]:
        """All samples, in the order (prompt, arm, sample). With best=, the best samples of each prompt, the best one first."""
        order: Any = sample_order if options.get("best") is None else best_order
        return sorted([sample async for sample in self.samples(prompts, **options)], key=order)

    @described(GenerateOptions, DRAWING)
    def samples(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> AsyncStream[Sample]:
        """Samples as they finish. Leaving the loop cancels the rest."""
        request = generation_requests.generate(prompts, **options)
        return AsyncStream(self._samples(request, options.get("timeout") or self._timeout))

    @described(GenerateOptions, DRAWING)
    def events(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> AsyncStream[Piece | Sample]:
        """Pieces of all samples as they are drawn, and each sample when it is finished. Leaving the loop cancels the rest."""
        given: GenerateOptions = {"delivery": "tokens", **options}
        request = generation_requests.generate(prompts, **given)
        return AsyncStream(self._events(request, options.get("timeout") or self._timeout))

    # scoring and its configurations

    @described(ScoreOptions, SCORING)
    async def score(self, items: Sequence[Any], *, heads: Sequence[str] = (), **options: Unpack[ScoreOptions]) -> list[ScoredItem]:
        """Score (prompt, completion) pairs or Samples with `heads` and those that recipe= reads. Returned in the order of `items`.

        With any sampling parameter, policy heads also return `sampling_logprobs`: log-probs of the distribution that it describes.
        """
        request = scoring_requests.score(items, heads=heads, **options)
        response = await self._connection.unary(
            lambda stubs: stubs.scoring.Score, request, options.get("timeout") or self._timeout
        )
        served = convert.served(response.served)
        return [convert.scored_item(item, response.request_id, served) for item in response.items]

    async def configurations(self, kind: ConfigurationKindName | None = None) -> list[Configuration]:
        """The server's rule sets, rule templates, recipes and transcript formats: all, or of one kind."""
        response = await self._lookup(lambda stubs: stubs.scoring.ListConfigurations, scoring_requests.configurations(kind))
        return [convert.configuration(each) for each in response.configurations]

    async def add_configuration(self, content: str | bytes | Path, *, request_id: str = "") -> Configuration:
        """Add a rule set, rule template, recipe or transcript format: YAML text, or the Path of a file. Requests can name it at once.

        The same content again changes nothing. Raises AlreadyExists if its name and version stand, or once stood, for another content.
        """
        request = scoring_requests.add_configuration(content, request_id)
        response = await self._connection.unary(lambda stubs: stubs.scoring.AddConfiguration, request, self._timeout)
        return convert.configuration(response.configuration)

    async def retire_configuration(self, reference: str, *, kind: ConfigurationKindName | None = None, request_id: str = "") -> None:
        """Take a version that was added out of use, for good: "terse@2". `kind` is needed only where several have the reference."""
        request = scoring_requests.retire_configuration(reference, kind, request_id)
        await self._connection.unary(lambda stubs: stubs.scoring.RetireConfiguration, request, self._timeout)

    async def tokenize_rules(
        self, rules: Sequence[str | Rule | Mapping[str, str]] | None = None, *, rule_set: str = "", template: str = ""
    ) -> RuleQuestions:
        """The token ids of the question about each rule, given by id or by text: what the server asks with. Train a rule head on these."""
        request = scoring_requests.tokenize_rules(rules, rule_set, template)
        return convert.rule_questions(await self._lookup(lambda stubs: stubs.scoring.TokenizeRules, request))

    async def calibrate(
        self,
        ref: str,
        items: Sequence[Any],
        *,
        scale: bool = False,
        activate: bool = False,
        expected_generation: int | None = None,
        timeout: float | None = None,
    ) -> Calibration:
        """Make a version of a preference head, without an upload, whose bias is the mean raw score of reference completions.

        With `scale=True` its scale is their standard deviation, so that the scores have unit variance.
        `ref` is "preference" (the active version) or "preference@3"; `items` as in `score`.
        """
        plan = CalibrationPlan(await self.head(ref), items, scale)
        for batch in plan.batches():
            with plan.counting():
                plan.take(await self.score(batch, heads=[plan.head.ref], timeout=timeout))
        version = await self.copy_head(plan.head.ref, plan.head.name, bias=plan.bias, scale=plan.scale, timeout=timeout)
        if not activate:
            return plan.result(version, None)
        note = f"calibrated {plan.head.ref}"
        generation = await self.activate({plan.head.name: version}, expected_generation=expected_generation, note=note, timeout=timeout)
        return plan.result(version, generation)

    # shared steps

    async def _events(
        self, request: generation_pb2.GenerateRequest, timeout: float | None
    ) -> AsyncGenerator[Piece | Sample, None]:
        fold = GenerateFold(request)
        async with aclosing(self._connection.stream(lambda stubs: stubs.generation.Generate, request, timeout)) as messages:
            async for message in messages:
                for event in fold.feed(message):
                    yield event
        for event in fold.finish():
            yield event

    async def _samples(self, request: generation_pb2.GenerateRequest, timeout: float | None) -> AsyncGenerator[Sample, None]:
        async with aclosing(self._events(request, timeout)) as events:
            async for event in events:
                if isinstance(event, Sample):
                    yield event
