"""Calls to TrunkService and the health check, awaited: the trunk, its tokenizer, boundary states, out-of-distribution fits."""
# ruff: noqa: ASYNC109  # timeout= is the deadline that the server is told, not a local timer

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyhead.client.aio_connection import AioCalls, AioConnection
from polyhead.client.errors import DeadlineExceeded, NotFound, Unavailable
from polyhead.client.fitting import plan_fit
from polyhead.client.results.records import OodFit, Replica, Status, TrunkInfo
from polyhead.client.tokenizing import TokenizePlan
from polyhead.client.transport import DEFAULT_TIMEOUT_S, LOOKUP_TIMEOUT_S, Deadline, Endpoint, why_not_ready
from polyhead.client.wire import convert, trunk_requests
from polyhead.client.wire.folding import Rows
from polyhead.client.wire.options import PoolingName
from polyhead.client.wire.prompts import Prompt, prompt_message, token_ids
from polyhead.client.wire.pushed import PushedDigests
from polyhead.client.wire.text_check import check_text
from polyhead.v1 import fleet_pb2, trunk_pb2

__all__ = ["AsyncTrunkCalls"]


class AsyncTrunkCalls:
    """The base of AsyncClient: its connection, and calls that need no head."""

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        token: str | None = None,
        tls: bool = False,
        root_certificates: bytes | None = None,
        server_name: str | None = None,
        timeout: float | None = DEFAULT_TIMEOUT_S,
    ) -> None:
        endpoint = Endpoint(target, token=token, tls=tls, root_certificates=root_certificates, server_name=server_name)
        self._connection = self._connect(endpoint)
        self._timeout = timeout
        self._pushed = PushedDigests()

    def _connect(self, endpoint: Endpoint) -> AioCalls:
        """What this client makes its calls over. Connects to nothing yet."""
        return AioConnection(endpoint)

    def _over(self, connection: AioCalls) -> Self:
        """This client, but for what its calls are made over."""
        other = copy.copy(self)
        other._connection = connection
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; what still runs is cancelled."""
        await self._connection.close()

    async def wait_ready(self, timeout: float = 60.0, service: str = "") -> None:
        """Return when the server is SERVING (trunk and active set are up). Raises DeadlineExceeded with the last answer."""
        check_text(service=service)
        deadline, last = Deadline(timeout), ""
        while (remaining := deadline.remaining() or 0.0) > 0:
            try:
                if await self._connection.unary(lambda stubs: stubs.health, service, min(remaining, 5.0)):
                    return
                last = "NOT_SERVING"
            except (Unavailable, NotFound, DeadlineExceeded) as error:
                last = why_not_ready(last, error)
            await asyncio.sleep(min(0.1, remaining))
        raise DeadlineExceeded(f"the server is not ready after {timeout:g} s: {last or 'there was no time to ask'}")

    # trunk

    async def trunk(self) -> TrunkInfo:
        """Identity and sizes of the trunk, hashes of its tensors, and the names and shapes of a head's tensors."""
        return convert.trunk_info(await self._lookup(lambda stubs: stubs.trunk.GetTrunk, trunk_pb2.GetTrunkRequest()))

    async def status(self) -> Status:
        """The present state of heads, memory, queue, cache and disk."""
        return convert.status(await self._lookup(lambda stubs: stubs.trunk.GetStatus, trunk_pb2.GetStatusRequest()))

    async def replicas(self) -> list[Replica]:
        """The servers that hold this history, the primary first. Only a primary knows them: a follower says who that is."""
        found: list[Replica] = []
        request = fleet_pb2.ListReplicasRequest()

        def take(message: fleet_pb2.ListReplicasResponse) -> None:
            found[:] = [convert.replica(each) for each in message.replicas]

        await self._connection.read_all(lambda stubs: stubs.fleet.ListReplicas, request, LOOKUP_TIMEOUT_S, take)
        return found

    async def tokenize(
        self,
        prompt: Prompt,
        *,
        special_tokens: bool = True,
        assistant_prefix: str = "",
        format: str = "",
        reply_role: str = "",
        role_prompt: str | None = None,
        allow_control_tokens: bool = False,
    ) -> list[int]:
        """The ids that `generate` would use; `special_tokens=False` for text that is a completion."""
        form: Any = {"assistant_prefix": assistant_prefix, "format": format, "reply_role": reply_role, "role_prompt": role_prompt}
        form["allow_control_tokens"] = allow_control_tokens
        message = prompt_message(prompt, "prompt", **form)
        request = trunk_pb2.TokenizeRequest(prompt=message, without_special_tokens=not special_tokens)
        return list((await self._lookup(lambda stubs: stubs.trunk.Tokenize, request)).token_ids)

    async def tokenize_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        special_tokens: bool = True,
        assistant_prefix: str = "",
        format: str = "",
        reply_role: str = "",
        role_prompt: str | None = None,
        allow_control_tokens: bool = False,
    ) -> list[list[int]]:
        """`tokenize` for any number of prompts, up to 1024 in each call. Errors name the prompt: `prompts[17].text`."""
        form: Any = {"assistant_prefix": assistant_prefix, "format": format, "reply_role": reply_role, "role_prompt": role_prompt}
        plan = TokenizePlan(prompts, special_tokens, {**form, "allow_control_tokens": allow_control_tokens})
        for request in plan.requests():
            with plan.counting():
                plan.take(await self._lookup(lambda stubs: stubs.trunk.Tokenize, request))
        return plan.ids

    async def detokenize(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `ids`."""
        request = trunk_pb2.DetokenizeRequest(token_ids=token_ids(ids, "ids"), skip_special_tokens=skip_special_tokens)
        return str((await self._lookup(lambda stubs: stubs.trunk.Detokenize, request)).text)

    async def encode(
        self, ids: Any, *, layer: int = 0, pooling: PoolingName | None = None, request_id: str = "", timeout: float | None = None
    ) -> Any:
        """States of one list of ids, (T, d_model) float32, or a list of such arrays for a list of lists. `layer` 0 is the boundary;
        the only other layer is the trunk's `tap_layer`. With `pooling` ("mean", "last") one row, (d_model,), in place of T."""
        sequences, is_single = trunk_requests.sequences(ids)
        rows = [Rows() for _ in sequences]
        request = trunk_requests.encode(sequences, request_id, layer, pooling)

        def take(message: trunk_pb2.EncodeResponse) -> None:
            rows[message.sequence_index].add(message.offset, message.states)

        await self._connection.read_all(lambda stubs: stubs.trunk.Encode, request, timeout or self._timeout, take)
        states = [each.joined() if pooling is None else each.joined()[0] for each in rows]
        return states[0] if is_single else states

    async def output_embedding(self, *, timeout: float | None = None) -> NDArray[np.float32]:
        """The frozen output matrix that tied policy heads use, (vocab_size, d_model)."""
        rows, request = Rows(), trunk_pb2.PullOutputEmbeddingRequest()

        def take(message: trunk_pb2.PullOutputEmbeddingResponse) -> None:
            rows.add(message.offset, message.rows)

        await self._connection.read_all(lambda stubs: stubs.trunk.PullOutputEmbedding, request, timeout or self._timeout, take)
        return rows.joined()

    # out-of-distribution scores

    async def fit_ood(
        self,
        name: str,
        prompts: Sequence[Prompt],
        *,
        layer: int = 0,
        pooling: PoolingName = "mean",
        shrinkage: float | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> OodFit:
        """Fit an out-of-distribution score to normal prompts, several times d_model of them; `ood=name` then scores prompts with it.

        `layer` 0 is the trunk's tap layer, or the boundary if it has none. The fit is kept by the server and survives every swap.
        """
        upload = plan_fit(name, prompts, layer, pooling, shrinkage, request_id)
        response = await self._connection.upload(lambda stubs: stubs.trunk.FitOod, upload.messages, timeout or self._timeout)
        return convert.ood_fit(response.fit)

    async def ood_fits(self) -> list[OodFit]:
        """All fits, by name, oldest version first."""
        response = await self._lookup(lambda stubs: stubs.trunk.ListOodFits, trunk_pb2.ListOodFitsRequest())
        return [convert.ood_fit(fit) for fit in response.fits]

    # shared

    async def _lookup(self, pick: Any, request: Any) -> Any:
        return await self._connection.unary(pick, request, min(LOOKUP_TIMEOUT_S, self._timeout or LOOKUP_TIMEOUT_S))
