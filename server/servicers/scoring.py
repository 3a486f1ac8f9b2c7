"""ScoringService: given completions in, what any set of heads says about them out."""

from __future__ import annotations

import grpc

from polyhead.server import convert, convert_out
from polyhead.server.engine.sequence import Ended, Finished, Sample
from polyhead.server.servicers.call import Frontend
from polyhead.v1 import scoring_pb2, scoring_pb2_grpc

Context = grpc.aio.ServicerContext[scoring_pb2.ScoreRequest, scoring_pb2.ScoreResponse]


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
        await self._frontend.score_prompts(done)
        done.sort(key=lambda sample: sample.prompt_index)
        assert work.lease is not None
        return scoring_pb2.ScoreResponse(
            items=[convert_out.scored_item(sample) for sample in done],
            served=self._frontend.served(work.lease),
            request_id=work.request_id,
        )
