"""Generation and scoring of the fake server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from polyhead.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
    types_pb2,
)
from tests.client.fake_messages import CONFIGURATIONS, SERVED, generate_answer, make_reward, make_sample, make_scores
from tests.client.fake_state import FakeState


class FakeGeneration(FakeState, generation_pb2_grpc.GenerationServiceServicer, scoring_pb2_grpc.ScoringServiceServicer):
    """Answers that depend on what was asked for, and on no model."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("Generate", request, context)
        accepted = generation_pb2.Accepted(request_id=request.request_id or "made-by-server", served=SERVED)
        yield generation_pb2.GenerateResponse(accepted=accepted)
        try:
            if self.endless:
                async for each in self._pieces_for_ever():
                    yield each
            for message in generate_answer(request):
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def _pieces_for_ever(self) -> AsyncIterator[Any]:
        offset = 0
        while True:
            piece = generation_pb2.Piece(offset=offset, token_ids=[1], logprobs=[-1.0], sampling_logprobs=[-1.0], text="x")
            yield generation_pb2.GenerateResponse(piece=piece)
            yield generation_pb2.GenerateResponse(sample=make_sample(0, 0, offset))
            offset += 1
            await asyncio.sleep(0.005)

    async def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("Score", request, context)
        items = [
            scoring_pb2.ScoredItem(
                prompt_token_ids=[1],
                token_ids=[2, 3],
                terminated=True,
                scores=make_scores(request.score.heads),
                valid=False,
                invalid_reasons=["wrong_end", "empty"],
                num_newlines=4,
                format=item.prompt.format and "sparrow@1",
                reward=make_reward(request.score.recipe, 1) if request.score.recipe else None,
                ood=types_pb2.OodScore(fit="helpful@2", layer=1, score=2.5) if request.score.ood else None,
            )
            for item in request.items
        ]
        return scoring_pb2.ScoreResponse(items=items, served=SERVED, request_id="score-1")

    async def ListConfigurations(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListConfigurations", request, context)
        listed = [c for c in CONFIGURATIONS if request.kind in (0, c.kind)]
        return scoring_pb2.ListConfigurationsResponse(configurations=listed)

    async def AddConfiguration(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("AddConfiguration", request, context)
        added = scoring_pb2.Configuration(kind=3, reference="terse@1", sha256="0" * 64, content=request.content, added=True)  # type: ignore[arg-type]
        return scoring_pb2.AddConfigurationResponse(configuration=added)

    async def RetireConfiguration(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("RetireConfiguration", request, context)
        return scoring_pb2.RetireConfigurationResponse(kind=3, reference=request.reference)  # type: ignore[arg-type]

    async def TokenizeRules(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("TokenizeRules", request, context)
        question = scoring_pb2.RuleQuestion(rule_id="no-insults", token_ids=[7, 8])
        return scoring_pb2.TokenizeRulesResponse(
            questions=[question], violated_token_id=1, followed_token_id=2, rule_set="example-rules@1", template="t@1"
        )
