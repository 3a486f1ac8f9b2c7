"""ScoringService: given completions in, what any set of heads says about them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from polyhead.server.engine.work.events import Ended, Finished
from polyhead.server.engine.work.request import Sample
from polyhead.server.rewards.compose import RewardPlan
from polyhead.server.rpc import caps, finishing
from polyhead.server.rpc.auth import Caller
from polyhead.server.rpc.interceptors import current_call
from polyhead.server.rpc.messages import answers, configurations, recipes, request_parts, scoring_requests
from polyhead.server.rpc.named import NamedGeneration
from polyhead.server.rpc.services.call import CallRunner
from polyhead.server.versions.request_digest import request_digest
from polyhead.v1 import scoring_pb2, scoring_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class ScoringServicer(scoring_pb2_grpc.ScoringServiceServicer):
    """One trunk pass for each text, however many heads read it."""

    def __init__(self, runner: CallRunner) -> None:
        self._runner = runner

    async def Score(self, request: scoring_pb2.ScoreRequest, context: Context) -> bytes:  # type: ignore[override]  # noqa: N802
        """Score every item; an item whose numbers are bad says so and harms no other. The answer comes serialised: see `_response`."""
        caller = current_call.get().caller
        caps.check_score(caller, request, self._runner.services.recipes)
        request_id = self._runner.request_id(request.request_id)
        done: list[Sample] = []
        named = NamedGeneration.of(request.generation, request.history_id)
        async with self._runner.admitted(
            scoring_requests.count_scoring, scoring_requests.score_request, request, len(request.items), request_id, named
        ) as (work, stream):
            async for event in stream.events():
                if isinstance(event, Finished):
                    done.append(event.sample)
                elif isinstance(event, Ended) and event.error is not None:
                    raise event.error
            await self._runner.score_prompts(done)
            done.sort(key=lambda sample: sample.prompt_index)
            return await self._runner.services.workers.run(self._response, work, done, caller)

    def _response(self, work: request_parts.Work, done: list[Sample], caller: Caller) -> bytes:
        """A ScoreResponse, written item by item: the bytes of a message are those of its parts, one behind the other.

        In one piece it would stop all other threads for as long as protobuf writes it.
        """
        assert work.request.lease is not None
        served = self._runner.served(work.request.lease)
        written = [scoring_pb2.ScoreResponse(served=served, request_id=work.request.request_id).SerializeToString()]
        for each in self._finish(work.plan, done):
            item = answers.scored_item(each.sample, each.check, recipes.reward_of(work.plan, each.reward, each.rank))
            caps.hide_item_logprobs(caller, [item])
            written.append(scoring_pb2.ScoreResponse(items=[item]).SerializeToString())
        return b"".join(written)

    def _finish(self, plan: RewardPlan | None, samples: Sequence[Sample]) -> list[finishing.Finished]:
        """In the order of `samples`. Items with the same prompt ids are one group; equal ones stand as they were sent."""
        groups: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            groups.setdefault(tuple(sample.prompt), []).append(sample)
        finished = {
            each.sample.prompt_index: each
            for group in groups.values()
            for each in finishing.finish_group(group, plan, self._runner.services.tokenizer, is_whole=True)
        }
        return [finished[sample.prompt_index] for sample in samples]

    async def ListConfigurations(  # noqa: N802
        self, request: scoring_pb2.ListConfigurationsRequest, context: Context
    ) -> scoring_pb2.ListConfigurationsResponse:
        """Files of the start, and what was added."""
        services = self._runner.services
        return await services.workers.run_control(configurations.listing, request, [services.library])

    async def AddConfiguration(  # noqa: N802
        self, request: scoring_pb2.AddConfigurationRequest, context: Context
    ) -> scoring_pb2.AddConfigurationResponse:
        """What has begun is carried through, also if the caller goes away."""
        services, digest = self._runner.services, request_digest(request)
        return await services.workers.finish(configurations.add, request, services.library, digest)

    async def RetireConfiguration(  # noqa: N802
        self, request: scoring_pb2.RetireConfigurationRequest, context: Context
    ) -> scoring_pb2.RetireConfigurationResponse:
        """Likewise."""
        services, digest = self._runner.services, request_digest(request)
        return await services.workers.finish(configurations.retire, request, services.library, digest)

    async def TokenizeRules(  # noqa: N802
        self, request: scoring_pb2.TokenizeRulesRequest, context: Context
    ) -> scoring_pb2.TokenizeRulesResponse:
        """Off the event loop: many rules take a while."""
        return await self._runner.services.workers.run(configurations.rule_questions, request, self._runner.services.rules)
