"""ScoringService: given completions in, what any set of heads says about them out."""

from __future__ import annotations

from typing import Any

import grpc

from polyhead.server import convert, convert_configurations, convert_out
from polyhead.server.engine.sequence import Ended, Finished, Sample
from polyhead.server.replies import check_reply
from polyhead.server.servicers.call import Frontend
from polyhead.v1 import scoring_pb2, scoring_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class ScoringServicer(scoring_pb2_grpc.ScoringServiceServicer):
    """One trunk pass for each text, however many heads read it."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def Score(self, request: scoring_pb2.ScoreRequest, context: Context) -> scoring_pb2.ScoreResponse:  # noqa: N802
        """Score every item; an item whose numbers are bad says so and harms no other."""
        request_id = self._frontend.request_id(request.request_id)
        work = await self._frontend.workers.run(convert.score_request, request, self._frontend.door, request_id)
        done: list[Sample] = []
        async with self._frontend.running(work) as stream:
            async for event in stream.events():
                if isinstance(event, Finished):
                    done.append(event.sample)
                elif isinstance(event, Ended) and event.error is not None:
                    raise event.error
        done.sort(key=lambda sample: sample.prompt_index)
        assert work.lease is not None
        return scoring_pb2.ScoreResponse(
            items=await self._frontend.workers.run(self._items, done),
            served=self._frontend.served(work.lease),
            request_id=work.request_id,
        )

    def _items(self, done: list[Sample]) -> list[scoring_pb2.ScoredItem]:
        """Off the event loop: every completion's text is made from its ids."""
        decode = self._frontend.door.tokenizer.decode
        return [convert_out.scored_item(sample, check_reply(sample, decode)) for sample in done]

    async def ListConfigurations(  # noqa: N802
        self, request: scoring_pb2.ListConfigurationsRequest, context: Context
    ) -> scoring_pb2.ListConfigurationsResponse:
        """Read at start, so there is nothing to wait for."""
        door = self._frontend.door
        return convert_configurations.listing(request, [door.rules, door.formats])

    async def TokenizeRules(  # noqa: N802
        self, request: scoring_pb2.TokenizeRulesRequest, context: Context
    ) -> scoring_pb2.TokenizeRulesResponse:
        """Off the event loop: many rules take a while."""
        return await self._frontend.workers.run(convert_configurations.rule_questions, request, self._frontend.door.rules)
