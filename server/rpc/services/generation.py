"""GenerationService: checks a request, hands it to the engine, streams what comes back."""

from __future__ import annotations

import collections
import itertools
from collections.abc import AsyncIterator, Callable, Iterator

import grpc

from polyhead.heads.format.errors import Aborted
from polyhead.server.engine.work.events import Accepted, Drawn, Ended, Finished
from polyhead.server.engine.work.reader import Event
from polyhead.server.engine.work.request import Sample
from polyhead.server.rewards import compose
from polyhead.server.rpc import caps, finishing
from polyhead.server.rpc.interceptors import current_call
from polyhead.server.rpc.messages import answers, generation_requests, recipes, request_parts
from polyhead.server.rpc.named import NamedGeneration
from polyhead.server.rpc.services.call import CallRunner
from polyhead.v1 import generation_pb2, generation_pb2_grpc

Context = grpc.aio.ServicerContext[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Prompts in, samples out."""

    def __init__(self, runner: CallRunner) -> None:
        self._runner = runner

    async def Generate(  # noqa: N802  the contract's name
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Stream the events of one request; leaving for whatever reason ends its work."""
        caller = current_call.get().caller
        caps.check_generate(caller, request, self._runner.services.recipes)
        request_id = self._runner.request_id(request.request_id)
        named = NamedGeneration.of(request.generation, request.history_id)
        async with self._runner.admitted(
            generation_requests.count_generation, generation_requests.generate_request, request, len(request.prompts), request_id, named
        ) as (work, stream):
            writer = _Writer(self._runner, work, stream.sent)
            async for events in stream.batches():
                await self._runner.score_prompts(event.sample for event in events if isinstance(event, Finished))
                async for message in self._runner.made(writer.messages(events), writer.num_tokens(events)):
                    yield caps.without_logprobs(caller, message)


class _Writer:
    """Turns a request's events into messages, in the order that its delivery asks for."""

    def __init__(self, runner: CallRunner, work: request_parts.Work, sent: Callable[[Sample], None] = lambda sample: None) -> None:
        self._runner = runner
        self._work = work
        self._sent = sent
        self._request = work.request
        self._groups: dict[int, list[Sample]] = collections.defaultdict(list)
        self._known_prompts: set[int] = set()  # whose states the caller has
        self._group_size = collections.Counter(sample.prompt_index for sample in work.request.samples)

    def num_tokens(self, events: list[Event]) -> int:
        """Of the messages that these events may become; a group's samples leave together."""
        finished = [event.sample for event in events if isinstance(event, Finished)]
        groups = {sample.prompt_index for sample in finished} if self._request.holds_groups else set()
        held = (sample for index in groups for sample in self._groups.get(index, ()))
        return len(events) + sum(sample.num_tokens for sample in (*finished, *held))

    def messages(self, events: list[Event]) -> Iterator[generation_pb2.GenerateResponse]:
        """Messages for a list of events; a sample's tokens that wait together become one piece."""
        for _, run in itertools.groupby(events, key=lambda event: isinstance(event, Drawn)):
            waiting: dict[Sample, list[Drawn]] = {}
            for event in run:
                if isinstance(event, Drawn):
                    waiting.setdefault(event.sample, []).append(event)
                else:
                    yield from self._messages_of(event)
            for drawn in waiting.values():
                yield generation_pb2.GenerateResponse(piece=answers.piece(drawn))

    def _messages_of(self, event: Event) -> Iterator[generation_pb2.GenerateResponse]:
        match event:
            case Accepted(lease):
                accepted = generation_pb2.Accepted(request_id=self._request.request_id, served=self._runner.served(lease))
                yield generation_pb2.GenerateResponse(accepted=accepted)
            case Finished(sample, tail):
                if tail and self._request.stream_tokens:
                    yield generation_pb2.GenerateResponse(piece=answers.tail_piece(sample, tail))
                yield from self._finished(sample)
            case Ended(error) if error is not None and not isinstance(error, Aborted):
                raise error

    def _finished(self, sample: Sample) -> Iterator[generation_pb2.GenerateResponse]:
        """A sample leaves at once, unless its delivery or its reward waits for the others of its prompt."""
        if not self._request.holds_groups:
            yield from self._samples([sample])
            return
        group = self._groups[sample.prompt_index]
        group.append(sample)
        if len(group) == self._group_size[sample.prompt_index]:
            del self._groups[sample.prompt_index]
            group.sort(key=lambda sample: (sample.arm_index, sample.sample_index))
            yield from self._group(group) if self._work.by_group else self._samples(group)

    def _samples(self, samples: list[Sample]) -> Iterator[generation_pb2.GenerateResponse]:
        for each in self._finish(samples):
            yield generation_pb2.GenerateResponse(sample=self._message_of(each))
            yield from self._states(each.sample)
            self._sent(each.sample)

    def _group(self, group: list[Sample]) -> Iterator[generation_pb2.GenerateResponse]:
        finished = self._finish(group)
        rewards = [each.reward for each in finished if each.reward is not None]  # none without a recipe
        selection = self._work.selection
        chosen = compose.choose(selection, rewards) if selection else list(range(len(group)))
        yield generation_pb2.GenerateResponse(
            group=generation_pb2.SampleGroup(
                prompt_index=group[0].prompt_index,
                samples=[self._message_of(finished[index]) for index in chosen],
                ranking=recipes.ranked_samples(group, rewards),
            )
        )
        for index in chosen:
            yield from self._states(group[index])
        for sample in group:
            self._sent(sample)

    def _finish(self, samples: list[Sample]) -> list[finishing.Finished]:
        """Samples of one prompt."""
        is_whole = len(samples) == self._group_size[samples[0].prompt_index]
        return finishing.finish_group(samples, self._work.plan, self._runner.services.tokenizer, is_whole=is_whole)

    def _message_of(self, each: finishing.Finished) -> generation_pb2.Sample:
        return answers.sample_message(each.sample, each.check, recipes.reward_of(self._work.plan, each.reward, each.rank))

    def _states(self, sample: Sample) -> Iterator[generation_pb2.GenerateResponse]:
        """The prompt's go along with the first of its samples that has states, if the caller asked to get them once."""
        is_known = sample.prompt_index in self._known_prompts
        for part in answers.states_parts(sample, len(sample.prompt) if is_known else 0):
            yield generation_pb2.GenerateResponse(states=part)
        if self._work.prompt_states_once and sample.states is not None:
            self._known_prompts.add(sample.prompt_index)
