"""A server of a few fixed answers, in this process: what the client is tested against without a model.

It keeps what it was sent (`requests`), and errors to raise first (`failures`). One grpc.aio event loop in its own thread;
tests of AsyncClient run on that same loop (`run`), because grpc.aio wants one loop in a process.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
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
CONFIGURATIONS = [
    scoring_pb2.Configuration(
        kind=scoring_pb2.CONFIGURATION_KIND_RULE_SET,
        reference=f"example-rules@{version}",
        sha256="aa" * 32,
        content=f"id: example-rules\nversion: {version}\n",
        rules=[types_pb2.Rule(id="no-insults", text="Be kind.")],
    )
    for version in (1, 2)
] + [
    scoring_pb2.Configuration(kind=kind, reference="sparrow@1", sha256="bb" * 32, content="id: sparrow\n")
    for kind in (scoring_pb2.CONFIGURATION_KIND_RECIPE, scoring_pb2.CONFIGURATION_KIND_TRANSCRIPT_FORMAT)
]


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
        self.fits: list[trunk_pb2.OodFit] = []
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
            memory_budget_bytes=1 << 30,
            head_bytes=4096,
            resident_names=[
                trunk_pb2.ResidentName(name="policy", active_version=7, versions=[5, 7], num_bytes=4096, num_leases=3),
                trunk_pb2.ResidentName(name="old", versions=[1], num_bytes=2048),
            ],
            max_idle_per_name=2,
        )

    async def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("Tokenize", request, context)
        if request.prompts:
            sequences = [types_pb2.TokenIds(ids=[len(word) for word in prompt.text.split()]) for prompt in request.prompts]
            return trunk_pb2.TokenizeResponse(sequences=sequences)
        return trunk_pb2.TokenizeResponse(token_ids=[len(word) for word in request.prompt.text.split()])

    async def Detokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("Detokenize", request, context)
        return trunk_pb2.DetokenizeResponse(text=" ".join("x" * i for i in request.token_ids))

    async def Encode(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("Encode", request, context)
        for index, sequence in enumerate(request.sequences):
            for offset in range(1 if request.pooling else len(sequence.ids)):
                row = np.full((1, D_MODEL), sequence.ids[offset], np.float32)
                yield trunk_pb2.EncodeResponse(sequence_index=index, offset=offset, states=make_tensor(row))

    async def PullOutputEmbedding(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        await self._took("PullOutputEmbedding", request, context)
        yield trunk_pb2.PullOutputEmbeddingResponse(offset=0, rows=make_tensor(EMBEDDING[:4]))
        yield trunk_pb2.PullOutputEmbeddingResponse(offset=4, rows=make_tensor(EMBEDDING[4:]))

    async def FitOod(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        messages = [message async for message in request_iterator]
        await self._took("FitOod", messages, context)
        header, num_prompts = messages[0].header, sum(len(message.prompts.prompts) for message in messages)
        made = trunk_pb2.OodFit(name=header.name, version=2, layer=1, pooling=header.pooling, num_prompts=num_prompts)
        made.mean_score, made.std_score = 1.0, 0.5
        self.fits.append(made)
        return trunk_pb2.FitOodResponse(fit=made)

    async def ListOodFits(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListOodFits", request, context)
        return trunk_pb2.ListOodFitsResponse(fits=self.fits)

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
        is_delta = header is not None and bool(header.delta_base)
        if header is None or len(data) < (header.delta_num_bytes if is_delta else header.num_bytes):
            await asyncio.Event().wait()  # the client went away in the middle: wait to be cancelled
        assert largest <= 1 << 20
        declared = (header.delta_num_bytes, header.delta_sha256) if is_delta else (header.num_bytes, header.sha256)
        assert (len(data), hashlib.sha256(data).hexdigest()) == declared
        version = 0 if header.validate_only else 1 + sum(record.name == header.name for record in self.records)
        record = heads_pb2.HeadVersion(
            name=header.name, version=version, digest=header.sha256, num_bytes=len(data), manifest=header.manifest
        )
        if version:
            self.records.append(record)
            self.files[f"{header.name}@{version}"] = data
        removed = [f"{header.name}@0"] if version else []
        return heads_pb2.PushHeadResponse(head=record, num_trunk_tensors_compared=len(header.trunk_sha256), removed=removed)

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
        counts = {"num_pinned_requests": 2, "num_aborted_requests": 1, "num_following_requests": 3}
        return heads_pb2.ActivateHeadsResponse(generation=made, removed=["value@1"], **counts)

    async def RollbackHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("RollbackHeads", request, context)
        return heads_pb2.RollbackHeadsResponse(generation=heads_pb2.Generation(number=5, parent=4))

    async def GetHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("GetHead", request, context)
        if request.head.partition("@")[0] != "policy":
            await context.abort(*rich_error(grpc.StatusCode.NOT_FOUND, f"no head of this name: {request.head!r}"))
        manifest = heads_pb2.HeadManifest(kind=types_pb2.HEAD_KIND_POLICY)
        version = int(request.head.partition("@")[2] or 7)
        return heads_pb2.GetHeadResponse(head=heads_pb2.HeadVersion(name="policy", version=version, manifest=manifest))

    async def ListHeadTensors(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListHeadTensors", request, context)
        if request.head not in self.files:
            await context.abort(*rich_error(grpc.StatusCode.NOT_FOUND, f"no such head version: {request.head!r}"))
        record = next(r for r in self.records if f"{r.name}@{r.version}" == request.head)
        data = self.files[request.head]
        start = 8 + int.from_bytes(data[:8], "little")
        listed = heads_pb2.ListHeadTensorsResponse(head=record)
        for name, entry in json.loads(data[8:start]).items():
            first, last = entry["data_offsets"]
            dtype = {"F32": "float32", "BF16": "bfloat16"}[entry["dtype"]]
            digest = hashlib.sha256(data[start + first : start + last]).digest()
            listed.tensors.add(name=name, dtype=dtype, shape=entry["shape"], sha256=digest)
        return listed

    async def ListHeads(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("ListHeads", request, context)
        version = 2 if not request.page_token else 1
        manifest = heads_pb2.HeadManifest(kind=types_pb2.HEAD_KIND_POLICY)
        head = heads_pb2.HeadVersion(name="policy", version=version, manifest=manifest, active=version == 2, digest="ff" * 32)
        return heads_pb2.ListHeadsResponse(heads=[head], next_page_token="more" if version == 2 else "")

    async def LabelHead(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._took("LabelHead", request, context)
        name, _, version = request.head.partition("@")
        return heads_pb2.LabelHeadResponse(head=heads_pb2.HeadVersion(name=name, version=int(version), labels=request.add))

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
    samples = [
        make_sample(*key, heads=request.score.heads, is_formatted=bool(request.prompts[0].format), recipe=request.score.recipe)
        for key in reversed(keys)
    ]
    if request.HasField("select"):
        return [response(group=_best(p, samples, request.select)) for p in range(len(request.prompts))]
    if request.delivery == generation_pb2.DELIVERY_GROUPS:
        return [*messages, response(group=generation_pb2.SampleGroup(samples=samples))]
    known_prompts: set[int] = set()
    for sample in samples:
        messages.append(response(sample=sample))
        if request.return_states:
            key = {"prompt_index": sample.prompt_index, "arm_index": sample.arm_index, "sample_index": sample.sample_index}
            states = np.arange(5 * D_MODEL, dtype=np.float32).reshape(5, D_MODEL)
            if not request.prompt_states_once or key["prompt_index"] not in known_prompts:
                known_prompts.add(key["prompt_index"])
                messages.append(response(states=generation_pb2.StatesPart(**key, offset=0, states=make_tensor(states[:2]))))
            messages.append(response(states=generation_pb2.StatesPart(**key, offset=2, states=make_tensor(states[2:]))))
    return messages


def _best(prompt: int, samples: list[Any], select: Any) -> generation_pb2.SampleGroup:
    """The last sample is the best, the first has no reward, and one more than `top` comes if the median was asked for."""
    group = [sample for sample in samples if sample.prompt_index == prompt]
    ranking = [
        generation_pb2.RankedSample(arm_index=s.arm_index, sample_index=s.sample_index, reward=None if s.reward.error else s.reward.reward)
        for s in group
    ]
    return generation_pb2.SampleGroup(prompt_index=prompt, samples=group[: select.top + select.median], ranking=ranking)


def make_reward(recipe: str, sample: int) -> types_pb2.Reward:
    """Of the samples of one prompt: higher for later ones, none for the first."""
    constants = {"preference": 2.0, "kl_coefficient": 0.5}
    reward = types_pb2.Reward(recipe=f"{recipe}@1", constants=constants, kl_estimator="k1", rank=9 - sample)
    if sample == 0:
        reward.error = "the sample was aborted"
        return reward
    reward.MergeFrom(
        types_pb2.Reward(
            reward=float(sample),
            reward_with_kl=sample - 0.75,
            parts={"preference": sample / 2, "kl": 1.5},
            kl=[0.5, 1.0, 0.0],
            token_rewards=[-0.25, -0.5, float(sample)],
        )
    )
    return reward


def make_tensor(array: np.ndarray) -> types_pb2.Tensor:
    return types_pb2.Tensor(dtype="float32", shape=list(array.shape), data=array.astype("<f4").tobytes())


def make_sample(
    prompt: int, arm: int, sample: int, heads: Any = (), is_formatted: bool = False, recipe: str = ""
) -> generation_pb2.Sample:
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
        valid=not is_formatted,
        invalid_reasons=["foreign_opening"] if is_formatted else [],
        num_newlines=2,
        format="sparrow@1" if is_formatted else "",
        reward=make_reward(recipe, sample) if recipe else None,
        sampling=types_pb2.Sampling(temperature=1.0, top_p=1.0, seed=7, max_new_tokens=64),
    )


_SCORES: dict[str, Callable[[], dict[str, Any]]] = {
    "reference": lambda: {"kind": 1, "policy": types_pb2.PolicyScore(logprobs=[-1.0, -2.0, -3.0])},
    "wordy": lambda: {
        "kind": 1,
        "policy": types_pb2.PolicyScore(
            logprobs=[-1.0, -2.0, -3.0], entropies=[0.5, 1.0, 1.5], top_token_ids=[1, 2, 3, 4, 5, 6], top_logprobs=[-1, -2, -3, -4, -5, -6]
        ),
    },
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
