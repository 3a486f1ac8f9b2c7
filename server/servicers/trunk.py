"""TrunkService: what the frozen part is, its tokenizer, and boundary states for trainers that do not hold it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from polyhead.heads.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.manifest import OutputKind
from polyhead.server import convert, convert_out, convert_prompts
from polyhead.server.engine.sequence import Ended, Finished, Request, Sequence
from polyhead.server.servicers.call import Frontend
from polyhead.v1 import trunk_pb2, trunk_pb2_grpc

if TYPE_CHECKING:
    from torch import Tensor

    from polyhead.heads.checkpoint import Checkpoint
    from polyhead.heads.spec import ModelSpec
    from polyhead.heads.store import HeadStore
    from polyhead.server.registry import Registry

Context = grpc.aio.ServicerContext[Any, Any]

MAX_SEQUENCES = 1024


@dataclass(frozen=True, slots=True)
class TrunkFacts:
    """What GetTrunk and GetStatus tell, gathered once."""

    model_name: str
    checkpoint: Checkpoint
    spec: ModelSpec
    embedding: Tensor  # (vocab, d_model)
    trunk_bytes: int
    model_bytes: int  # of one unsplit model, as served
    started_at: float  # time.monotonic()


class TrunkServicer(trunk_pb2_grpc.TrunkServiceServicer):
    """Identity, tokens, boundary states, status."""

    def __init__(self, frontend: Frontend, facts: TrunkFacts, registry: Registry, store: HeadStore) -> None:
        self._frontend = frontend
        self._facts = facts
        self._registry = registry
        self._store = store
        self._trunk: trunk_pb2.GetTrunkResponse | None = None

    async def GetTrunk(  # noqa: N802
        self, request: trunk_pb2.GetTrunkRequest, context: Context
    ) -> trunk_pb2.GetTrunkResponse:
        """Built once: hashing the source takes a moment."""
        if self._trunk is None:
            self._trunk = await self._frontend.workers.run(self._describe)
        return self._trunk

    async def Tokenize(  # noqa: N802
        self, request: trunk_pb2.TokenizeRequest, context: Context
    ) -> trunk_pb2.TokenizeResponse:
        """Off the event loop: a long text takes a while."""
        if request.without_special_tokens:
            if request.prompt.WhichOneof("source") != "text" or request.prompt.assistant_prefix:
                raise InvalidArgument("only plain text can go without special tokens", field="without_special_tokens")
            ids = await self._frontend.workers.run(self._frontend.door.tokenizer.encode, request.prompt.text, False)
        else:
            ids = await self._frontend.workers.run(convert_prompts.prompt_ids, request.prompt, self._frontend.door, "prompt")
        return trunk_pb2.TokenizeResponse(token_ids=ids)

    async def Detokenize(  # noqa: N802
        self, request: trunk_pb2.DetokenizeRequest, context: Context
    ) -> trunk_pb2.DetokenizeResponse:
        ids = convert_prompts.checked_ids(request.token_ids, self._facts.spec.vocab_size, "token_ids") if request.token_ids else []
        text = await self._frontend.workers.run(self._frontend.door.tokenizer.decode, ids, request.skip_special_tokens)
        return trunk_pb2.DetokenizeResponse(text=text)

    async def Encode(  # noqa: N802
        self, request: trunk_pb2.EncodeRequest, context: Context
    ) -> AsyncIterator[trunk_pb2.EncodeResponse]:
        """Stream each sequence's states when they are computed; no head runs."""
        work = self._encode_work(request)
        async with self._frontend.running(work) as stream:
            async for event in stream.events():
                if isinstance(event, Finished) and event.sample.states is not None:
                    for offset, rows in convert_out.row_parts(event.sample.states):
                        yield trunk_pb2.EncodeResponse(
                            sequence_index=event.sample.prompt_index, offset=offset, states=convert_out.tensor(rows)
                        )
                    event.sample.states = None
                elif isinstance(event, Ended) and event.error is not None:
                    raise event.error

    async def PullOutputEmbedding(  # noqa: N802
        self, request: trunk_pb2.PullOutputEmbeddingRequest, context: Context
    ) -> AsyncIterator[trunk_pb2.PullOutputEmbeddingResponse]:
        if not self._facts.spec.tied:
            raise FailedPrecondition("the model's output is not its embedding: it is part of each policy head (PullHead)")
        for offset, rows in convert_out.row_parts(self._facts.embedding):
            yield trunk_pb2.PullOutputEmbeddingResponse(offset=offset, rows=convert_out.tensor(rows))

    async def GetStatus(  # noqa: N802
        self, request: trunk_pb2.GetStatusRequest, context: Context
    ) -> trunk_pb2.GetStatusResponse:
        """Numbers of one moment, read without stopping the engine."""
        return await self._frontend.workers.run(self._status)

    def _encode_work(self, message: trunk_pb2.EncodeRequest) -> Request:
        if not 1 <= len(message.sequences) <= MAX_SEQUENCES:
            raise InvalidArgument(f"between 1 and {MAX_SEQUENCES} sequences: {len(message.sequences)}", field="sequences")
        request = Request(
            self._frontend.request_id(message.request_id), lambda *_: None, head_kinds={}, pinned={}, return_states=True
        )
        for index, sequence in enumerate(message.sequences):
            field = f"sequences[{index}].ids"
            ids = convert_prompts.checked_ids(sequence.ids, self._facts.spec.vocab_size, field)
            if len(ids) > self._frontend.door.max_context:
                raise InvalidArgument(f"{len(ids)} tokens; the context holds {self._frontend.door.max_context}", field=field)
            sample = convert.given_sample(request, index, ids, [])
            sample.sequence = Sequence(ids)
            request.samples.append(sample)
        if request.num_tokens > convert.MAX_STATES_TOKENS:
            raise InvalidArgument(f"{request.num_tokens} tokens in one request, at most {convert.MAX_STATES_TOKENS}", field="sequences")
        return request

    def _describe(self) -> trunk_pb2.GetTrunkResponse:
        facts, door = self._facts, self._frontend.door
        spec, checkpoint = facts.spec, facts.checkpoint
        schema = spec.head_schema(OutputKind.SCORE)
        return trunk_pb2.GetTrunkResponse(
            trunk_id=self._frontend.trunk_id,
            precision=self._frontend.precision,
            model=facts.model_name,
            split_layer=spec.split_layer,
            num_layers=spec.num_layers,
            d_model=spec.d_model,
            vocab_size=spec.vocab_size,
            context_length=door.max_context,
            eos_token_ids=sorted(door.eos_ids),
            tokenizer_sha256=door.tokenizer.sha256,
            tensors=[
                trunk_pb2.SourceTensor(name=name, sha256=checkpoint.sha256(name), dtype=str(checkpoint.info(name).dtype))
                for name in spec.trunk_sources
            ],
            head_tensors=[trunk_pb2.HeadTensor(name=name, shape=schema[name]) for name in spec.head_names],
            tied=spec.tied,
            config_json=json.dumps(spec.config.to_dict(), default=str, sort_keys=True),
        )

    def _status(self) -> trunk_pb2.GetStatusResponse:
        engine = self._frontend.engine
        snapshot, active = engine.snapshot(), engine.active
        return trunk_pb2.GetStatusResponse(
            generation=active.generation,
            active={name: head.version for name, head in active.heads.items()},
            resident_heads=[
                trunk_pb2.ResidentHead(
                    references=row.references, digest=row.digest, num_bytes=row.num_bytes, num_leases=row.num_leases, active=row.active
                )
                for row in self._registry.resident()
            ],
            trunk_bytes=self._facts.trunk_bytes,
            model_bytes=self._facts.model_bytes,
            num_running=snapshot.num_running,
            num_waiting=snapshot.num_waiting,
            num_blocks=snapshot.num_blocks,
            num_used_blocks=snapshot.num_used_blocks,
            num_cached_blocks=snapshot.num_cached_blocks,
            num_head_blocks=snapshot.num_head_blocks,
            num_filled_head_blocks=snapshot.num_filled_head_blocks,
            store_bytes=self._store.disk_bytes(),
            disk_free_bytes=shutil.disk_usage(self._store.path).free,
            counters=dict(snapshot.counters),
            last_swap_pause_seconds=snapshot.last_swap_pause_s,
            damage=self._registry.damage,
            uptime_seconds=time.monotonic() - self._facts.started_at,
        )
