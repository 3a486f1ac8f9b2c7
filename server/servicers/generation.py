"""GenerationService: checks a request, hands it to the engine, streams what comes back."""

from __future__ import annotations

import collections
import itertools
from collections.abc import AsyncIterator, Iterator

import grpc

from polyhead.heads.errors import Aborted
from polyhead.server import convert, convert_out
from polyhead.server.engine.sequence import Accepted, Drawn, Ended, Event, Finished, Request, Sample
from polyhead.server.servicers.call import Frontend
from polyhead.v1 import generation_pb2, generation_pb2_grpc

Context = grpc.aio.ServicerContext[generation_pb2.GenerateRequest, generation_pb2.GenerateResponse]


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Prompts in, samples out."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    async def Generate(  # noqa: N802  the contract's name
        self, request: generation_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Stream the events of one request; leaving for whatever reason ends its work."""
        request_id = self._frontend.request_id(request.request_id)
        work = await self._frontend.workers.run(convert.generate_request, request, self._frontend.door, request_id)
        writer = _Writer(self._frontend, work, request.delivery == generation_pb2.DELIVERY_GROUPS)
        async with self._frontend.running(work) as stream:
            async for events in stream.batches():
                await self._frontend.score_prompts(event.sample for event in events if isinstance(event, Finished))
                for message in writer.messages(events):
                    yield message


class _Writer:
    """Turns a request's events into messages, in the order that its delivery asks for."""

    def __init__(self, frontend: Frontend, request: Request, by_group: bool) -> None:
        self._frontend = frontend
        self._request = request
        self._groups: dict[int, list[Sample]] = collections.defaultdict(list)
        self._group_size = collections.Counter(sample.prompt_index for sample in request.samples)
        self._by_group = by_group

    def messages(self, events: list[Event]) -> Iterator[generation_pb2.GenerateResponse]:
        """Messages for a list of events; a sample's tokens that wait together become one piece."""
        for _, run in itertools.groupby(events, key=lambda event: isinstance(event, Drawn)):
            waiting: dict[Sample, list[Drawn]] = {}
            for event in run:
                if isinstance(event, Drawn):
                    waiting.setdefault(event.sample, []).append(event)
                else:
                    yield from self._message(event)
            for drawn in waiting.values():
                yield generation_pb2.GenerateResponse(piece=convert_out.piece(drawn))

    def _message(self, event: Event) -> Iterator[generation_pb2.GenerateResponse]:
        match event:
            case Accepted(lease):
                accepted = generation_pb2.Accepted(request_id=self._request.request_id, served=self._frontend.served(lease))
                yield generation_pb2.GenerateResponse(accepted=accepted)
            case Finished(sample, tail):
                if tail and self._request.stream_tokens:
                    yield generation_pb2.GenerateResponse(piece=convert_out.tail_piece(sample, tail))
                yield from self._finished(sample)
            case Ended(error) if error is not None and not isinstance(error, Aborted):
                raise error

    def _finished(self, sample: Sample) -> Iterator[generation_pb2.GenerateResponse]:
        if not self._by_group:
            yield generation_pb2.GenerateResponse(sample=convert_out.sample_message(sample))
            yield from self._states(sample)
            return
        group = self._groups[sample.prompt_index]
        group.append(sample)
        if len(group) == self._group_size[sample.prompt_index]:
            group.sort(key=lambda sample: (sample.arm_index, sample.sample_index))
            messages = [convert_out.sample_message(sample) for sample in group]
            yield generation_pb2.GenerateResponse(
                group=generation_pb2.SampleGroup(prompt_index=sample.prompt_index, samples=messages)
            )
            for member in group:
                yield from self._states(member)

    def _states(self, sample: Sample) -> Iterator[generation_pb2.GenerateResponse]:
        for part in convert_out.states_parts(sample):
            yield generation_pb2.GenerateResponse(states=part)
        sample.states = None  # sent
