"""The trunk service of the fake server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from polyhead.v1 import (
    trunk_pb2,
    trunk_pb2_grpc,
    types_pb2,
)
from tests.client.fake_messages import D_MODEL, EMBEDDING, make_tensor, make_trunk
from tests.client.fake_state import FakeState


class FakeTrunk(FakeState, trunk_pb2_grpc.TrunkServiceServicer):
    """A token has as many letters as its id says."""

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
