"""A server of a few fixed answers, in this process: what the client is tested against without a model.

It keeps what it was sent (`requests`), and errors to raise first (`failures`). One grpc.aio event loop in its own thread;
tests of AsyncClient run on that same loop (`run`), because grpc.aio wants one loop in a process.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from polyhead.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    heads_pb2,
    heads_pb2_grpc,
    scoring_pb2,
    scoring_pb2_grpc,
    trunk_pb2,
    trunk_pb2_grpc,
    types_pb2,
)

D_MODEL, VOCAB = 4, 6
EMBEDDING = np.arange(VOCAB * D_MODEL, dtype=np.float32).reshape(VOCAB, D_MODEL)
TRUNK_NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")
TRUNK_TENSORS = {TRUNK_NAMES[0]: EMBEDDING, TRUNK_NAMES[1]: np.ones((8, D_MODEL), np.float32)}
HEAD_SHAPES = {"model.layers.1.mlp.up_proj.weight": (8, D_MODEL), "model.norm.weight": (D_MODEL,)}
SERVED = types_pb2.Served(
    trunk_id="ab" * 32, precision="float32", generation=3, head_versions={"policy": 7}, tokenizer_sha256="cd"
)


def rich_error(
    code: grpc.StatusCode, message: str, *, reason: str = "", field: str = "", retry_after_s: float | None = None
) -> Any:
    """(code, message, trailers) as polyhead's server sends them."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason or code.name, domain="polyhead.dev", metadata={"n": "1"})]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_after_s is not None:
        delay = duration_pb2.Duration(nanos=int(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    return code, message, (("grpc-status-details-bin", status.SerializeToString()),)


class FakeServer(
    generation_pb2_grpc.GenerationServiceServicer,
    scoring_pb2_grpc.ScoringServiceServicer,
    trunk_pb2_grpc.TrunkServiceServicer,
    heads_pb2_grpc.HeadServiceServicer,
):
    """All four services and the health check."""

    def __init__(self) -> None:
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self.metadata: dict[str, str] = {}
        self.failures: dict[str, list[Any]] = defaultdict(
            list
        )  # method -> errors to raise, first to last, before anything is sent
        self.cancelled = threading.Event()
        self.files: dict[str, bytes] = {}
        self.records: list[heads_pb2.HeadVersion] = []
        self.generations = [heads_pb2.Generation(number=3, parent=2, heads={"policy": 7}, note="start")]
        self.tied = True
        self.is_serving = True
        self.endless = False  # Generate sends pieces until it is cancelled
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self.port = self.run(self._start())

    def stop(self) -> None:
        self.run(self._server.stop(None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The coroutine's result, run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def _start(self) -> int:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self, self._server)
        scoring_pb2_grpc.add_ScoringServiceServicer_to_server(self, self._server)
        trunk_pb2_grpc.add_TrunkServiceServicer_to_server(self, self._server)
        heads_pb2_grpc.add_HeadServiceServicer_to_server(self, self._server)
        check = grpc.unary_unary_rpc_method_handler(self._check_health)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check}),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def _check_health(self, request: bytes, context: Any) -> bytes:
        return b"\x08\x01" if self.is_serving else b"\x08\x02"

    async def _took(self, method: str, request: Any, context: Any) -> None:
        self.requests[method].append(request)
        self.metadata = dict(context.invocation_metadata())
        if self.failures[method]:
            code, message, trailers = self.failures[method].pop(0)
            await context.abort(code, message, trailers)

    # generation and scoring

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("Generate", request, context)
        accepted = generation_pb2.Accepted(request_id=request.request_id or "made-by-server", served=SERVED)
        yield generation_pb2.GenerateResponse(accepted=accepted)
        try:
            if self.endless:
                async for each in self._pieces_for_ever():
                    yield each
            for message in _generate_answer(request):
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
                prompt_token_ids=[1], token_ids=[2, 3], terminated=True, scores=make_scores(request.score.heads)
            )
            for _ in request.items
        ]
        return scoring_pb2.ScoreResponse(items=items, served=SERVED, request_id="score-1")

    # trunk

    async def GetTrunk(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("GetTrunk", request, context)
        return make_trunk(tied=self.tied)

    async def GetStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("GetStatus", request, context)
        head = trunk_pb2.ResidentHead(references=["policy@7", "reference@1"], digest="ee" * 32, num_bytes=2048, active=True)
        return trunk_pb2.GetStatusResponse(
            generation=3,
            active={"policy": 7, "reference": 1},
            resident_heads=[head],
            trunk_bytes=8192,
            model_bytes=10240,
            num_blocks=10,
        )

    async def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("Tokenize", request, context)
        return trunk_pb2.TokenizeResponse(token_ids=[len(word) for word in request.prompt.text.split()])

    async def Detokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("Detokenize", request, context)
        return trunk_pb2.DetokenizeResponse(text=" ".join("x" * i for i in request.token_ids))

    async def Encode(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("Encode", request, context)
        for index, sequence in enumerate(request.sequences):
            for offset in range(len(sequence.ids)):
                row = np.full((1, D_MODEL), sequence.ids[offset], np.float32)
                yield trunk_pb2.EncodeResponse(sequence_index=index, offset=offset, states=make_tensor(row))

    async def PullOutputEmbedding(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("PullOutputEmbedding", request, context)
        yield trunk_pb2.PullOutputEmbeddingResponse(offset=0, rows=make_tensor(EMBEDDING[:4]))
        yield trunk_pb2.PullOutputEmbeddingResponse(offset=4, rows=make_tensor(EMBEDDING[4:]))

    # heads

    async def PushHead(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        header, data, largest = None, b"", 0
        async for message in request_iterator:
            if message.WhichOneof("part") == "header":
                header = message.header
                await self._took("PushHead", header, context)
            else:
                assert message.chunk.offset == len(data)
                data, largest = data + message.chunk.data, max(largest, len(message.chunk.data))
        if header is None or len(data) < header.num_bytes:
            await asyncio.Event().wait()  # the client went away in the middle: wait to be cancelled
        assert largest <= 1 << 20
        assert (len(data), hashlib.sha256(data).hexdigest()) == (header.num_bytes, header.sha256)
        version = 0 if header.validate_only else 1 + sum(record.name == header.name for record in self.records)
        record = heads_pb2.HeadVersion(
            name=header.name, version=version, digest=header.sha256, num_bytes=len(data), manifest=header.manifest
        )
        if version:
            self.records.append(record)
            self.files[f"{header.name}@{version}"] = data
        return heads_pb2.PushHeadResponse(head=record, num_trunk_tensors_compared=len(header.trunk_sha256))

    async def PullHead(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("PullHead", request, context)
        data = self.files[request.head]
        record = next(r for r in self.records if f"{r.name}@{r.version}" == request.head)
        yield heads_pb2.PullHeadResponse(head=record)
        for start in range(0, len(data), 50):
            yield heads_pb2.PullHeadResponse(chunk=heads_pb2.Chunk(offset=start, data=data[start : start + 50]))

    async def CopyHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("CopyHead", request, context)
        return heads_pb2.CopyHeadResponse(head=heads_pb2.HeadVersion(name=request.target, version=5))

    async def ActivateHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ActivateHeads", request, context)
        made = heads_pb2.Generation(number=4, parent=3, heads=dict(request.heads), note=request.note)
        self.generations.insert(0, made)
        return heads_pb2.ActivateHeadsResponse(generation=made, num_pinned_requests=2, num_aborted_requests=1, num_following_requests=3)

    async def RollbackHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("RollbackHeads", request, context)
        return heads_pb2.RollbackHeadsResponse(generation=heads_pb2.Generation(number=5, parent=4))

    async def GetHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("GetHead", request, context)
        if request.head.partition("@")[0] != "policy":
            await context.abort(*rich_error(grpc.StatusCode.NOT_FOUND, f"no head of this name: {request.head!r}"))
        manifest = heads_pb2.HeadManifest(kind=types_pb2.HEAD_KIND_POLICY)
        return heads_pb2.GetHeadResponse(head=heads_pb2.HeadVersion(name="policy", version=7, manifest=manifest))

    async def ListHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListHeads", request, context)
        version = 2 if not request.page_token else 1
        manifest = heads_pb2.HeadManifest(kind=types_pb2.HEAD_KIND_POLICY)
        head = heads_pb2.HeadVersion(name="policy", version=version, manifest=manifest, active=version == 2, digest="ff" * 32)
        return heads_pb2.ListHeadsResponse(heads=[head], next_page_token="more" if version == 2 else "")

    async def DeleteHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("DeleteHead", request, context)
        return heads_pb2.DeleteHeadResponse()

    async def ListGenerations(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListGenerations", request, context)
        return heads_pb2.ListGenerationsResponse(generations=self.generations)

    async def WatchHeads(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("WatchHeads", request, context)
        try:
            yield heads_pb2.WatchHeadsResponse(generation=self.generations[0])
            await asyncio.sleep(60)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


def _generate_answer(request: Any) -> list[Any]:
    """Every sample that was asked for, the last one first; states after their sample; groups where asked for."""
    response, messages = generation_pb2.GenerateResponse, []
    if request.delivery == generation_pb2.DELIVERY_TOKENS:
        messages += [
            response(piece=generation_pb2.Piece(offset=i, token_ids=[i], logprobs=[-0.5], text=t)) for i, t in enumerate("ab")
        ]
    keys = [(p, a, s) for p in range(len(request.prompts)) for a, arm in enumerate(request.arms) for s in range(arm.n)]
    samples = [make_sample(*key, heads=request.score.heads) for key in reversed(keys)]
    if request.delivery == generation_pb2.DELIVERY_GROUPS:
        return [*messages, response(group=generation_pb2.SampleGroup(samples=samples))]
    for sample in samples:
        messages.append(response(sample=sample))
        if request.return_states:
            key = {"prompt_index": sample.prompt_index, "arm_index": sample.arm_index, "sample_index": sample.sample_index}
            states = np.arange(5 * D_MODEL, dtype=np.float32).reshape(5, D_MODEL)
            messages.append(response(states=generation_pb2.StatesPart(**key, offset=0, states=make_tensor(states[:2]))))
            messages.append(response(states=generation_pb2.StatesPart(**key, offset=2, states=make_tensor(states[2:]))))
    return messages


def make_tensor(array: np.ndarray) -> types_pb2.Tensor:
    return types_pb2.Tensor(dtype="float32", shape=list(array.shape), data=array.astype("<f4").tobytes())


def make_sample(prompt: int, arm: int, sample: int, heads: Any = ()) -> generation_pb2.Sample:
    return generation_pb2.Sample(
        prompt_index=prompt,
        arm_index=arm,
        sample_index=sample,
        prompt_token_ids=[10, 11],
        token_ids=[1, 2, 3],
        text="ab",
        logprobs=[-0.5, -1.0, -1.5],
        sampling_logprobs=[-0.25, -0.5, -0.75],
        finish_reason=types_pb2.FINISH_REASON_STOP_STRING,
        terminated=True,
        stop="\n\nUser:",
        head="policy",
        head_version=7,
        digest="ee" * 32,
        spans=[generation_pb2.Span(start=0, end=3, version=7, generation=3, digest="cd" * 32)],
        sample_seed=(1 << 63) + sample,
        scores=make_scores(heads),
        num_cached_tokens=2,
        valid=True,
        sampling=types_pb2.Sampling(temperature=1.0, top_p=1.0, seed=7, max_new_tokens=64),
    )


_SCORES: dict[str, Callable[[], dict[str, Any]]] = {
    "reference": lambda: {"kind": 1, "policy": types_pb2.PolicyScore(logprobs=[-1.0, -2.0, -3.0])},
    "preference": lambda: {
        "kind": 2,
        "preference": types_pb2.PreferenceScore(raw=1.5, bias=0.5, value=1.0, present=True, position=4),
    },
    "rule": lambda: {
        "kind": 3,
        "rule": types_pb2.RuleScores(
            rules=[types_pb2.RuleScore(rule_id="no-insults", p_violate=0.25, p_follow=0.75, answer_mass=0.5)],
            rule_set="example-rules@1",
        ),
    },
    "value": lambda: {"kind": 4, "value": types_pb2.ValueScore(values=[0.1, 0.2, 0.3], bootstrap_value=0.5)},
    "broken": lambda: {"kind": 4, "error": "not finite"},
}


def make_scores(heads: Any) -> list[types_pb2.HeadScore]:
    return [types_pb2.HeadScore(head=head, version=1, digest="dd" * 32, **_SCORES[head]()) for head in heads]


def make_trunk(*, tied: bool = True, dtype: str = "torch.float32") -> trunk_pb2.GetTrunkResponse:
    return trunk_pb2.GetTrunkResponse(
        trunk_id="ab" * 32,
        precision="float32",
        model="tiny",
        split_layer=1,
        num_layers=2,
        d_model=D_MODEL,
        vocab_size=VOCAB,
        tied=tied,
        tensors=[
            trunk_pb2.SourceTensor(name=name, dtype=dtype, sha256=hashlib.sha256(stored_bytes(value, dtype)).hexdigest())
            for name, value in TRUNK_TENSORS.items()
        ],
        head_tensors=[trunk_pb2.HeadTensor(name=name, shape=shape) for name, shape in HEAD_SHAPES.items()],
    )


def stored_bytes(array: np.ndarray, dtype: str) -> bytes:
    """A checkpoint's bytes of exactly representable numbers."""
    if dtype.endswith("bfloat16"):
        return (array.view(np.uint32) >> 16).astype("<u2").tobytes()
    return array.astype("<f2" if dtype.endswith("float16") else "<f4").tobytes()
