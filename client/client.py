"""Client: polyhead from ordinary, synchronous code: generation and scoring here, heads in head_calls.py, the rest in trunk_calls.py.

wire/*_requests.py build messages, connection.py sends them, wire/folding.py and wire/convert.py read the answers.

Every method raises errors of errors.py, and TypeError for an argument of a wrong type. AsyncClient (aio.py) has the same names.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Unpack

from polyhead.client.calibrating import CalibrationPlan
from polyhead.client.head_calls import HeadCalls
from polyhead.client.results.records import Calibration, Configuration, RuleQuestions
from polyhead.client.results.results import Piece, Sample, ScoredItem
from polyhead.client.streams import PieceStream, Stream
from polyhead.client.wire import convert, generation_requests, scoring_requests
from polyhead.client.wire.folding import GenerateFold, best_order, sample_order
from polyhead.client.wire.options import ConfigurationKindName, GenerateOptions, Rule, ScoreOptions, StreamOptions
from polyhead.client.wire.parameters import DRAWING, SCORING, described
from polyhead.client.wire.prompts import Prompt
from polyhead.v1 import generation_pb2

__all__ = ["Client"]


class Client(HeadCalls):
    """A client of one server. It connects at the first call. Threads may share it; a forked child process opens a connection of its own.

    `timeout` (seconds) is the default for calls that compute or move weights; each of these also takes a `timeout=` of its own.
    """

    # generation

    @described(StreamOptions, DRAWING)
    def stream(self, prompt: Prompt, **options: Unpack[StreamOptions]) -> PieceStream:
        """One sample of one prompt, piece by piece. After the last piece, `.sample` of the returned stream is the whole sample."""
        request = generation_requests.stream(prompt, **options)
        return PieceStream(self._events(request, options.get("timeout") or self._timeout))

    @described(GenerateOptions, DRAWING)
    def generate(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Sample]:
        """All samples, in the order (prompt, arm, sample). With best=, the best samples of each prompt, the best one first."""
        order: Any = sample_order if options.get("best") is None else best_order
        return sorted(self.samples(prompts, **options), key=order)

    @described(GenerateOptions, DRAWING)
    def samples(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> Stream[Sample]:
        """Samples as they finish. Leaving the loop cancels the rest."""
        request = generation_requests.generate(prompts, **options)
        return Stream(self._samples(request, options.get("timeout") or self._timeout))

    @described(GenerateOptions, DRAWING)
    def events(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> Stream[Piece | Sample]:
        """Pieces of all samples as they are drawn, and each sample when it is finished. Leaving the loop cancels the rest."""
        given: GenerateOptions = {"delivery": "tokens", **options}
        request = generation_requests.generate(prompts, **given)
        return Stream(self._events(request, options.get("timeout") or self._timeout))

    # scoring and its configurations

    @described(ScoreOptions, SCORING)
    def score(self, items: Sequence[Any], *, heads: Sequence[str] = (), **options: Unpack[ScoreOptions]) -> list[ScoredItem]:
        """Score (prompt, completion) pairs or Samples with `heads` and those that recipe= reads. Returned in the order of `items`.

        With any sampling parameter, policy heads also return `sampling_logprobs`: log-probs of the distribution that it describes.
        """
        request = scoring_requests.score(items, heads=heads, **options)
        response = self._connection.unary(lambda stubs: stubs.scoring.Score, request, options.get("timeout") or self._timeout)
        served = convert.served(response.served)
        return [convert.scored_item(item, response.request_id, served) for item in response.items]

    def configurations(self, kind: ConfigurationKindName | None = None) -> list[Configuration]:
        """The server's rule sets, rule templates, recipes and transcript formats: all, or of one kind."""
        response = self._lookup(lambda stubs: stubs.scoring.ListConfigurations, scoring_requests.configurations(kind))
        return [convert.configuration(each) for each in response.configurations]

    def add_configuration(self, content: str | bytes | Path, *, request_id: str = "") -> Configuration:
        """Add a rule set, rule template, recipe or transcript format: YAML text, or the Path of a file. Requests can name it at once.

        The same content again changes nothing. Raises AlreadyExists if its name and version stand, or once stood, for another content.
        """
        request = scoring_requests.add_configuration(content, request_id)
        response = self._connection.unary(lambda stubs: stubs.scoring.AddConfiguration, request, self._timeout)
        return convert.configuration(response.configuration)

    def retire_configuration(self, reference: str, *, kind: ConfigurationKindName | None = None, request_id: str = "") -> None:
        """Take a version that was added out of use, for good: "terse@2". `kind` is needed only where several have the reference."""
        request = scoring_requests.retire_configuration(reference, kind, request_id)
        self._connection.unary(lambda stubs: stubs.scoring.RetireConfiguration, request, self._timeout)

    def tokenize_rules(
        self, rules: Sequence[str | Rule | Mapping[str, str]] | None = None, *, rule_set: str = "", template: str = ""
    ) -> RuleQuestions:
        """The token ids of the question about each rule, given by id or by text: what the server asks with. Train a rule head on these."""
        request = scoring_requests.tokenize_rules(rules, rule_set, template)
        return convert.rule_questions(self._lookup(lambda stubs: stubs.scoring.TokenizeRules, request))

    def calibrate(
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
        plan = CalibrationPlan(self.head(ref), items, scale)
        for batch in plan.batches():
            with plan.counting():
                plan.take(self.score(batch, heads=[plan.head.ref], timeout=timeout))
        version = self.copy_head(plan.head.ref, plan.head.name, bias=plan.bias, scale=plan.scale, timeout=timeout)
        if not activate:
            return plan.result(version, None)
        note = f"calibrated {plan.head.ref}"
        generation = self.activate({plan.head.name: version}, expected_generation=expected_generation, note=note, timeout=timeout)
        return plan.result(version, generation)

    # shared steps

    def _events(self, request: generation_pb2.GenerateRequest, timeout: float | None) -> Generator[Piece | Sample, None, None]:
        fold = GenerateFold(request)
        with closing(self._connection.stream(lambda stubs: stubs.generation.Generate, request, timeout)) as messages:
            for message in messages:
                yield from fold.feed(message)
        yield from fold.finish()

    def _samples(self, request: generation_pb2.GenerateRequest, timeout: float | None) -> Generator[Sample, None, None]:
        with closing(self._events(request, timeout)) as events:
            for event in events:
                if isinstance(event, Sample):
                    yield event
