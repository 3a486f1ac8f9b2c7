"""FitOod, for TrunkServicer: runs prompts through the engine, collects moments of their pooled states, and stores the fit."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np

from polyhead.heads.format.errors import DataLoss, InvalidArgument, ResourceExhausted
from polyhead.server.engine.work.events import Ended, Finished
from polyhead.server.engine.work.pooling import PromptPooling
from polyhead.server.engine.work.request import Priority, Request
from polyhead.server.ood.scores import Floats, Moments, fit
from polyhead.server.ood.store import OodFit, check_same_request, is_answered
from polyhead.server.rpc import demand
from polyhead.server.rpc.messages import ood, request_parts
from polyhead.server.rpc.messages.prompts import prompt_ids
from polyhead.server.rpc.services.call import CallRunner
from polyhead.server.rpc.uploads import Upload
from polyhead.server.text.text_bounds import num_sure_bytes
from polyhead.server.versions.request_digest import request_digest
from polyhead.v1 import trunk_pb2, types_pb2

MAX_MESSAGE_PROMPTS = 256
MAX_FITS_AT_ONCE = 2  # each holds matrices of 8 * d_model^2 bytes
ENGINE_PROMPTS = 64  # of one engine request: a fit never fills the queue
MIN_BYTES_PER_S = 64  # over each minute of waiting for prompts: a slow fit takes one of few places
RETRY_S = 5.0


class OodFitting:
    """Runs fits; each message's prompts are done before the next one is read, so a fast caller fills no memory."""

    def __init__(self, runner: CallRunner) -> None:
        self._runner = runner
        self._services = runner.services
        self._num_running = 0

    async def fit(self, messages: AsyncIterator[trunk_pb2.FitOodRequest]) -> OodFit:
        """The new fit, durable; or the first answer to its request id."""
        upload = Upload(messages, "fit", self._services.config.push_idle_s)
        header = await upload.header()
        digest = request_digest(header) if header.request_id else ""
        first = await self._services.workers.run(self._services.ood.store.find_request, header.request_id, digest)
        if first is not None and is_answered(first, digest):
            return first
        wanted = ood.fit_record(header, self._services.ood.layers, self._services.spec.d_model, digest)
        if first is not None:
            return check_same_request(first, wanted)
        if self._num_running >= MAX_FITS_AT_ONCE:
            raise ResourceExhausted(f"{self._num_running} fits are under way: try again later", retry_after_s=RETRY_S)
        self._num_running += 1
        try:
            moments = await self._gather(upload, wanted)
            return await self._services.workers.run(self._finish, wanted, moments)
        finally:
            self._num_running -= 1

    # ---- the stream

    async def _prompts(
        self, upload: Upload[trunk_pb2.FitOodRequest], declared: int
    ) -> AsyncIterator[tuple[int, Sequence[types_pb2.Prompt]]]:
        """(how many came before, a message's prompts). Fewer than declared: the caller went away, its stream ends like any other."""
        count = 0
        async for part in upload.parts("prompts", "prompts"):
            prompts = part.prompts
            if not 1 <= len(prompts) <= MAX_MESSAGE_PROMPTS:
                raise InvalidArgument(f"a message has 1 to {MAX_MESSAGE_PROMPTS} prompts: {len(prompts)}", field="prompts")
            upload.check_rate(part.ByteSize(), MIN_BYTES_PER_S)
            if count + len(prompts) > declared:
                raise InvalidArgument(f"more prompts came than were declared: {declared}", field="header.num_prompts")
            yield count, prompts
            count += len(prompts)
        if count < declared:
            raise InvalidArgument(f"{declared} prompts were declared, the stream ended after {count}", field="header.num_prompts")

    # ---- the work

    async def _gather(self, upload: Upload[trunk_pb2.FitOodRequest], wanted: OodFit) -> Moments:
        moments = Moments(self._services.spec.d_model)
        async for before, prompts in self._prompts(upload, wanted.num_prompts):
            await self._wait_for_room(prompts, before)
            token_ids = await self._services.workers.run(self._token_ids, prompts, before)
            for start in range(0, len(token_ids), ENGINE_PROMPTS):
                rows = await self._rows(token_ids[start : start + ENGINE_PROMPTS], wanted.pooling, before + start)
                await self._services.workers.run(moments.add, rows)
        return moments

    async def _wait_for_room(self, prompts: Sequence[types_pb2.Prompt], before: int) -> None:
        """By counts alone: what is too long is refused, and what the queue has no room for waits, before any text is tokenised."""
        num_tokens = await self._services.workers.run(self._least_tokens, prompts, before)
        while True:
            try:
                return self._runner.check_room(Priority.BATCH, num_tokens, None)
            except ResourceExhausted as error:
                if error.retry_after_s is None:  # the whole queue could not hold it
                    raise
                await asyncio.sleep(error.retry_after_s)

    def _least_tokens(self, prompts: Sequence[types_pb2.Prompt], before: int) -> int:
        """Of the largest engine request that these prompts become."""
        least = [demand.prompt_tokens(prompt) for prompt in prompts]
        with self._runner.context() as context:
            for index, (prompt, length) in enumerate(zip(prompts, least, strict=True), start=before):
                context.check_text(num_sure_bytes(prompt), f"prompts[{index}]")
                demand.check_least_length(length, context.max_context, f"prompts[{index}]")
        return max(sum(least[start : start + ENGINE_PROMPTS]) for start in range(0, len(least), ENGINE_PROMPTS))

    def _token_ids(self, prompts: Sequence[types_pb2.Prompt], before: int) -> list[tuple[list[int], str]]:
        """(ids, salt) of each prompt; an error counts prompts from the start of the stream."""
        found = []
        with self._runner.context() as context:
            for index, prompt in enumerate(prompts, start=before):
                ids = prompt_ids(prompt, context, f"prompts[{index}]")
                if len(ids) > context.max_context:
                    raise InvalidArgument(f"{len(ids)} tokens; the context holds {context.max_context}", field=f"prompts[{index}]")
                found.append((ids, prompt.cache_salt))
        return found

    async def _rows(self, token_ids: list[tuple[list[int], str]], pooling: PromptPooling, before: int) -> Floats:
        """(prompts, d_model). A full queue makes a fit wait, not fail: what it did so far would be lost."""
        while True:
            try:
                rows = await self._encode(token_ids, pooling)
                break
            except ResourceExhausted as error:
                if error.retry_after_s is None:  # the whole queue could not hold it
                    raise
                await asyncio.sleep(error.retry_after_s)
        for index, row in enumerate(rows, start=before):
            if not np.isfinite(row).all():
                raise DataLoss(f"the trunk's output is not finite for prompts[{index}]")
        return rows

    async def _encode(self, token_ids: list[tuple[list[int], str]], pooling: PromptPooling) -> Floats:
        request = Request(self._runner.request_id(""), lambda *_: None, head_kinds={}, pinned={}, pooling=pooling)
        request.samples = [request_parts.given_sample(request, index, ids, [], salt) for index, (ids, salt) in enumerate(token_ids)]
        rows = np.full((len(token_ids), self._services.spec.d_model), np.nan)  # a prompt without a result is noticed
        async with self._runner.running(request) as stream:
            async for event in stream.events():
                if isinstance(event, Finished) and event.sample.pooled is not None:
                    rows[event.sample.prompt_index] = event.sample.pooled
                elif isinstance(event, Ended) and event.error is not None:
                    raise event.error
        return rows

    def _finish(self, wanted: OodFit, moments: Moments) -> OodFit:
        model, spread = fit(moments, wanted.shrinkage, "prompts")
        made = dataclasses.replace(wanted, mean_score=spread.mean, std_score=spread.std, created_at=time.time())
        return self._services.ood.store.add(made, model)
