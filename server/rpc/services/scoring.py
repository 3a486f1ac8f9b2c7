"""ScoringService: given completions in, what any set of heads says about them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from polyhead.server.engine.work.events import Ended, Finished
from polyhead.server.engine.work.request import Sample
from polyhead.server.rewards import compose
from polyhead.server.rewards.compose import RewardPlan
from polyhead.server.rpc.messages import answers, configurations, recipes, requests
from polyhead.server.rpc.services.call import Frontend
from polyhead.server.rpc.tag import tag_of
from polyhead.server.text.replies import ReplyCheck, check_reply
from polyhead.v1 import scoring_pb2, scoring_pb2_grpc, types_pb2

Context = grpc.aio.ServicerContext[Any, Any]


class ScoringServicer(scoring_pb2_grpc.ScoringServiceServicer):
    """One trunk pass for each text, however many heads read it."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def Score(self, request: scoring_pb2.ScoreRequest, context: Context) -> scoring_pb2.ScoreResponse:  # noqa: N802
        """Score every item; an item whose numbers are bad says so and harms no other."""
        request_id = self._frontend.request_id(request.request_id)
        done: list[Sample] = []
        async with self._frontend.admitted(requests.score_request, request, request_id) as (work, stream):
            async for event in stream.events():
                if isinstance(event, Finished):
                    done.append(event.sample)
                elif isinstance(event, Ended) and event.error is not None:
                    raise event.error
            await self._frontend.score_prompts(done)
            done.sort(key=lambda sample: sample.prompt_index)
            return await self._frontend.workers.run(self._response, work, done)

    def _response(self, work: requests.Work, done: list[Sample]) -> scoring_pb2.ScoreResponse:
        tag, decode_after = tag_of(work.request), self._frontend.door.tokenizer.decode_after
        checks = [check_reply(sample, tag.form(sample), decode_after(sample.prompt)) for sample in done]
        rewards = _rewards(work.plan, done, checks) if work.plan else [None] * len(done)
        assert work.request.lease is not None
        return scoring_pb2.ScoreResponse(
            items=[answers.scored_item(*each) for each in zip(done, checks, rewards, strict=True)],
            served=self._frontend.served(work.request.lease),
            request_id=work.request.request_id,
        )

    async def ListConfigurations(  # noqa: N802
        self, request: scoring_pb2.ListConfigurationsRequest, context: Context
    ) -> scoring_pb2.ListConfigurationsResponse:
        """They were read at start."""
        door = self._frontend.door
        return await self._frontend.workers.run_control(
            configurations.listing, request, [door.rules, door.recipes, door.formats]
        )

    async def TokenizeRules(  # noqa: N802
        self, request: scoring_pb2.TokenizeRulesRequest, context: Context
    ) -> scoring_pb2.TokenizeRulesResponse:
        """Off the event loop: many rules take a while."""
        return await self._frontend.workers.run(configurations.rule_questions, request, self._frontend.door.rules)


def _rewards(plan: RewardPlan, samples: Sequence[Sample], checks: Sequence[ReplyCheck]) -> list[types_pb2.Reward | None]:
    """Items with the same prompt ids are one group; equal ones stand as they were sent."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(tuple(sample.prompt), []).append(index)
    found: list[types_pb2.Reward | None] = [None] * len(samples)
    for indices in groups.values():
        rewards = compose.compose(plan, [samples[index] for index in indices], [checks[index] for index in indices])
        for index, message in zip(indices, recipes.reward_messages(plan, rewards, True), strict=True):
            found[index] = message
    return found
