"""TrunkService: what the frozen part is, its tokenizer, and boundary states for trainers that do not hold it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import torch
from torch import Tensor

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import OutputKind
from polyhead.server.engine.work.events import Ended, Finished
from polyhead.server.engine.work.pooling import PromptPooling
from polyhead.server.engine.work.request import Priority, Request, Sample
from polyhead.server.engine.work.sequence import TokenSequence
from polyhead.server.rpc.interceptors import current_call
from polyhead.server.rpc.messages import answers, enums, generation_requests, prompts, request_parts
from polyhead.server.rpc.messages import ood as ood_messages
from polyhead.server.rpc.messages.reply_sizes import MAX_REPLY_BYTES
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.rpc.services.call import CallRunner
from polyhead.server.rpc.services.ood import OodFitting
from polyhead.v1 import trunk_pb2, trunk_pb2_grpc, types_pb2

Context = grpc.aio.ServicerContext[Any, Any]

MAX_SEQUENCES = 1024
MAX_TOKENIZE_BYTES = (1 << 20) + (8 << 10)  # of several prompts and what frames them; their ids then fit one message
TOKEN_IDS_BYTES = 8  # of a list of ids on the wire, beside the ids
CACHE_COUNTERS = (  # by which a hit in the cache shows
    "prompt_tokens",
    "cache_hit_tokens",
    "trunk_tokens",
    "head_tokens",
    "rebuilt_tokens",
    "steps",
    "head_forwards",
    "trunk_seconds_us",
    "head_seconds_us",
)


class TrunkServicer(trunk_pb2_grpc.TrunkServiceServicer):
    """Identity, tokens, boundary states, status."""

    def __init__(self, runner: CallRunner) -> None:
        self._runner = runner
        self._services = runner.services
        self._fitting = OodFitting(runner)
        self._trunk: trunk_pb2.GetTrunkResponse | None = None

    async def GetTrunk(  # noqa: N802
        self, request: trunk_pb2.GetTrunkRequest, context: Context
    ) -> trunk_pb2.GetTrunkResponse:
        """Built once: hashing the source takes a moment."""
        if self._trunk is None:
            self._trunk = await self._services.workers.run(self._describe)
        return self._trunk

    async def Tokenize(  # noqa: N802
        self, request: trunk_pb2.TokenizeRequest, context: Context
    ) -> trunk_pb2.TokenizeResponse:
        """Off the event loop: a long text takes a while. Counts and bytes are looked at before anything is tokenised."""
        if request.prompts:
            _check_batch(request)
        for prompt in request.prompts or [request.prompt]:
            is_plain = prompt.WhichOneof("source") == "text" and not prompt.assistant_prefix and not prompt.format
            if request.without_special_tokens and not is_plain:
                raise InvalidArgument("only plain text can go without special tokens", field="without_special_tokens")
        return await self._services.workers.run_sized(request.ByteSize(), self._tokenized, request)

    def _tokenized(self, request: trunk_pb2.TokenizeRequest) -> trunk_pb2.TokenizeResponse:
        is_bare = request.without_special_tokens
        with self._runner.context() as checked:
            if not request.prompts:
                return trunk_pb2.TokenizeResponse(token_ids=_ids(request.prompt, is_bare, checked, "prompt"))
            response, num_bytes = trunk_pb2.TokenizeResponse(), 0
            for index, prompt in enumerate(request.prompts):
                field = f"prompts[{index}]"
                ids = types_pb2.TokenIds(ids=_ids(prompt, is_bare, checked, field))
                num_bytes += ids.ByteSize() + TOKEN_IDS_BYTES
                if num_bytes > MAX_REPLY_BYTES:  # a chat template that writes much, again and again
                    raise InvalidArgument("the ids would not fit one message: send fewer prompts at a time", field=field)
                response.sequences.append(ids)
            return response

    async def Detokenize(  # noqa: N802
        self, request: trunk_pb2.DetokenizeRequest, context: Context
    ) -> trunk_pb2.DetokenizeResponse:
        return await self._services.workers.run_sized(request.ByteSize(), self._detokenized, request)

    def _detokenized(self, request: trunk_pb2.DetokenizeRequest) -> trunk_pb2.DetokenizeResponse:
        ids = prompts.checked_ids(request.token_ids, self._services.spec.vocab_size, "token_ids") if request.token_ids else []
        return trunk_pb2.DetokenizeResponse(text=self._services.tokenizer.decode(ids, request.skip_special_tokens))

    async def Encode(  # noqa: N802
        self, request: trunk_pb2.EncodeRequest, context: Context
    ) -> AsyncIterator[trunk_pb2.EncodeResponse]:
        """Stream each sequence's states, or its one row, when they are computed; no head runs."""
        work = await self._services.workers.run_sized(request.ByteSize(), self._encode_work, request)
        async with self._runner.running(work) as stream:
            async for event in stream.events():
                if isinstance(event, Finished) and (encoded := _encoded(event.sample)) is not None:
                    for offset, rows in answers.row_parts(encoded):
                        yield trunk_pb2.EncodeResponse(
                            sequence_index=event.sample.prompt_index, offset=offset, states=answers.tensor(rows)
                        )
                    stream.sent(event.sample)
                elif isinstance(event, Ended) and event.error is not None:
                    raise event.error

    async def PullOutputEmbedding(  # noqa: N802
        self, request: trunk_pb2.PullOutputEmbeddingRequest, context: Context
    ) -> AsyncIterator[trunk_pb2.PullOutputEmbeddingResponse]:
        if not self._services.spec.tied:
            raise FailedPrecondition("the model's output is not its embedding: it is part of each policy head (PullHead)")
        for offset, rows in answers.row_parts(self._services.trunk.embedding):
            yield trunk_pb2.PullOutputEmbeddingResponse(offset=offset, rows=answers.tensor(rows))

    async def GetStatus(  # noqa: N802
        self, request: trunk_pb2.GetStatusRequest, context: Context
    ) -> trunk_pb2.GetStatusResponse:
        """Numbers of one moment, read without stopping the engine."""
        status = await self._services.workers.run_control(self._status)
        if not current_call.get().sees_all:
            _hide_cache(status)
        return status

    async def FitOod(  # noqa: N802
        self, request_iterator: AsyncIterator[trunk_pb2.FitOodRequest], context: Context
    ) -> trunk_pb2.FitOodResponse:
        """Header, then prompts. Nothing is kept unless all of it came."""
        return trunk_pb2.FitOodResponse(fit=ood_messages.fit_message(await self._fitting.fit(request_iterator)))

    async def ListOodFits(  # noqa: N802
        self, request: trunk_pb2.ListOodFitsRequest, context: Context
    ) -> trunk_pb2.ListOodFitsResponse:
        return await self._services.workers.run_control(self._fits)

    def _fits(self) -> trunk_pb2.ListOodFitsResponse:
        return trunk_pb2.ListOodFitsResponse(fits=[ood_messages.fit_message(fit) for fit in self._services.ood.store.listing()])

    def _encode_work(self, message: trunk_pb2.EncodeRequest) -> Request:
        if not 1 <= len(message.sequences) <= MAX_SEQUENCES:
            raise InvalidArgument(f"between 1 and {MAX_SEQUENCES} sequences: {len(message.sequences)}", field="sequences")
        num_tokens = sum(len(sequence.ids) for sequence in message.sequences)
        if message.pooling == trunk_pb2.POOLING_UNSPECIFIED and num_tokens > generation_requests.MAX_STATES_TOKENS:
            raise InvalidArgument(f"{num_tokens} tokens in one request, at most {generation_requests.MAX_STATES_TOKENS}", field="sequences")
        self._runner.check_room(Priority.BATCH, num_tokens, None)
        layers = self._services.ood.layers
        layer = layers.resolve(message.layer, default=layers.split_layer, field="layer")
        pooling = enums.POOLINGS.member(message.pooling, "pooling")
        request = Request(
            self._runner.request_id(message.request_id),
            lambda *_: None,
            head_kinds={},
            pinned={},
            return_states=pooling is None,
            states_layer=layer,
            pooling=None if pooling is None else PromptPooling(layer, pooling),
        )
        for index, sequence in enumerate(message.sequences):
            field = f"sequences[{index}].ids"
            ids = prompts.checked_ids(sequence.ids, self._services.spec.vocab_size, field)
            if len(ids) > self._services.max_context:
                raise InvalidArgument(f"{len(ids)} tokens; the context holds {self._services.max_context}", field=field)
            sample = request_parts.given_sample(request, index, ids, [])
            sample.sequence = TokenSequence(ids)
            request.samples.append(sample)
        with self._runner.context() as checked:
            request_parts.check_held_states(request, checked, "sequences")
        return request

    def _describe(self) -> trunk_pb2.GetTrunkResponse:
        services, spec, checkpoint = self._services, self._services.spec, self._services.checkpoint
        schema = spec.head_schema(OutputKind.SCORE)
        return trunk_pb2.GetTrunkResponse(
            trunk_id=services.trunk_id,
            precision=services.precision,
            model=services.model_name,
            split_layer=spec.split_layer,
            num_layers=spec.num_layers,
            d_model=spec.d_model,
            vocab_size=spec.vocab_size,
            context_length=services.max_context,
            eos_token_ids=sorted(services.eos_ids),
            tokenizer_sha256=services.tokenizer.sha256,
            tensors=[
                trunk_pb2.SourceTensor(name=name, sha256=checkpoint.sha256(name), dtype=str(checkpoint.info(name).dtype))
                for name in spec.trunk_sources
            ],
            head_tensors=[trunk_pb2.HeadTensor(name=name, shape=schema[name]) for name in spec.head_names],
            tied=spec.tied,
            config_json=json.dumps(spec.config.to_dict(), default=str, sort_keys=True),
            tap_layer=services.ood.layers.tap_layer,
            head_precision=services.config.head_dtype,
            output_precision=services.output_precision,
            attention=services.attention,
            device=services.config.device,
            head_device=services.config.heads_on,
            tensor_parallel=services.config.tensor_parallel,
        )

    def _status(self) -> trunk_pb2.GetStatusResponse:
        services, engine, registry = self._services, self._services.engine, self._services.registry
        snapshot, active = engine.snapshot(), engine.active
        residency, leases = registry.residency, engine.leased_names()
        return trunk_pb2.GetStatusResponse(
            generation=active.generation,
            active={name: head.version for name, head in active.heads.items()},
            resident_heads=[
                trunk_pb2.ResidentHead(
                    references=row.references, digest=row.digest, num_bytes=row.num_bytes, num_leases=row.num_leases, active=row.active
                )
                for row in registry.resident()
            ],
            trunk_bytes=services.trunk_bytes,
            model_bytes=services.model_bytes,
            num_running=snapshot.num_running,
            num_waiting=snapshot.num_waiting,
            num_blocks=snapshot.num_blocks,
            num_used_blocks=snapshot.num_used_blocks,
            num_cached_blocks=snapshot.num_cached_blocks,
            num_head_blocks=snapshot.num_head_blocks,
            num_filled_head_blocks=snapshot.num_filled_head_blocks,
            ranks=[trunk_pb2.RankMemory(rank=row.rank, device=row.device, num_bytes=row.num_bytes) for row in snapshot.ranks],
            store_bytes=services.store.disk_bytes() + services.ood.store.num_bytes,
            disk_free_bytes=services.store.disk_space()[0],
            counters=dict(snapshot.counters),
            last_swap_pause_seconds=snapshot.last_swap_pause_s,
            damage=registry.damage,
            problems=registry.problems,
            uptime_seconds=time.monotonic() - services.started_at,
            memory_budget_bytes=residency.budget,
            head_bytes=residency.num_bytes,
            resident_names=[
                trunk_pb2.ResidentName(
                    name=row.name,
                    active_version=active.heads[row.name].version if row.name in active.heads else 0,
                    versions=row.versions,
                    num_bytes=row.num_bytes,
                    num_leases=leases.get(row.name, 0),
                )
                for row in residency.names()
            ],
            max_idle_per_name=residency.max_idle_per_name,
            changes=[
                trunk_pb2.ChangeUnderWay(what=change.what, step=change.step, seconds=change.seconds)
                for change in registry.changes.running()
            ],
            history_id=active.history_id,
            primary=services.following.primary if services.following else "",
            follow_problem=services.following.problem if services.following else "",
        )


def _ids(prompt: types_pb2.Prompt, is_bare: bool, checked: RequestContext, field: str) -> list[int]:
    return checked.tokenizer.encode(prompt.text, False) if is_bare else prompts.written_ids(prompt, checked, field)


def _check_batch(request: trunk_pb2.TokenizeRequest) -> None:
    if request.HasField("prompt"):
        raise InvalidArgument("give one prompt, or several, not both", field="prompts")
    if len(request.prompts) > MAX_SEQUENCES:
        raise InvalidArgument(f"between 1 and {MAX_SEQUENCES} prompts: {len(request.prompts)}", field="prompts")
    if (num_bytes := request.ByteSize()) > MAX_TOKENIZE_BYTES:
        raise InvalidArgument(f"{num_bytes} bytes of prompts in one call, at most {MAX_TOKENIZE_BYTES}", field="prompts")


def _hide_cache(status: trunk_pb2.GetStatusResponse) -> None:
    """Leave out what tells whether another team's prompt was found in the cache."""
    for name in CACHE_COUNTERS:
        status.counters.pop(name, None)
    status.num_used_blocks = status.num_cached_blocks = status.num_filled_head_blocks = 0


def _encoded(sample: Sample) -> Tensor | None:
    """(tokens, d_model) as the trunk has them, or (1, d_model) float32 where they were pooled; None if the sample was ended."""
    return sample.states if sample.pooled is None else torch.from_numpy(sample.pooled).float()[None]
