"""AsyncClient: polyhead from asyncio code. The same names, arguments and errors as Client (client.py), awaited.

Sorting and hashing weights runs in a thread, so that the event loop stays free.
"""
# ruff: noqa: ASYNC109  # timeout= is the deadline that the server is told, not a local timer

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, closing
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from polyhead.client.aio_connection import AioConnection
from polyhead.client.calibrating import CalibrationPlan
from polyhead.client.errors import DeadlineExceeded, NotFound, Unavailable, Unimplemented
from polyhead.client.fitting import plan_fit
from polyhead.client.results.records import (
    Calibration,
    Configuration,
    Generation,
    HeadVersion,
    OodFit,
    PushReport,
    RuleQuestions,
    Status,
    TrunkInfo,
)
from polyhead.client.results.results import Piece, Sample, ScoredItem
from polyhead.client.streams import AsyncPieceStream, AsyncStream
from polyhead.client.tokenizing import TokenizePlan
from polyhead.client.transport import DEFAULT_TIMEOUT_S, LOOKUP_TIMEOUT_S, Deadline, Endpoint, why_not_ready
from polyhead.client.weights.delta import Base
from polyhead.client.weights.pushing import PushPlan, Upload, plan_push, plan_update, with_removed
from polyhead.client.weights.tensors import RawTensor
from polyhead.client.weights.weights import Weights
from polyhead.client.wire import convert, requests
from polyhead.client.wire.folding import GenerateFold, HeadFile, Rows, best_order, sample_order
from polyhead.client.wire.options import (
    ConfigurationKindName,
    CopyOptions,
    GenerateOptions,
    PoolingName,
    PushOptions,
    Rule,
    ScoreOptions,
    StreamOptions,
)
from polyhead.client.wire.parameters import COPYING, DRAWING, PUSHING, SCORING, described
from polyhead.client.wire.prompts import Prompt, prompt_message, token_ids
from polyhead.client.wire.pushed import Meant, PushedDigests
from polyhead.client.wire.text_check import check_text
from polyhead.v1 import generation_pb2, heads_pb2, trunk_pb2

__all__ = ["AsyncClient"]


class AsyncClient:
    """A client of one server, for one event loop. It connects at the first call.

    `timeout` (seconds) is the default for calls that compute or move weights; each of these also takes a `timeout=` of its own.
    """

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
        self._connection = AioConnection(endpoint)
        self._timeout = timeout
        self._pushed = PushedDigests()

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

    # generation and scoring

    @described(StreamOptions, DRAWING)
    def stream(self, prompt: Prompt, **options: Unpack[StreamOptions]) -> AsyncPieceStream:
        """One sample of one prompt, piece by piece. After the last piece, `.sample` of the returned stream is the whole sample."""
        request = requests.stream(prompt, **options)
        return AsyncPieceStream(self._events(request, options.get("timeout") or self._timeout))

    @described(GenerateOptions, DRAWING)
    async def generate(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> list[Sample]:
        """All samples, in the order (prompt, arm, sample). With best=, the best samples of each prompt, the best one first."""
        order: Any = sample_order if options.get("best") is None else best_order
        return sorted([sample async for sample in self.samples(prompts, **options)], key=order)

    @described(GenerateOptions, DRAWING)
    def samples(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> AsyncStream[Sample]:
        """Samples as they finish. Leaving the loop cancels the rest."""
        request = requests.generate(prompts, **options)
        return AsyncStream(self._samples(request, options.get("timeout") or self._timeout))

    @described(GenerateOptions, DRAWING)
    def events(self, prompts: Sequence[Prompt], **options: Unpack[GenerateOptions]) -> AsyncStream[Piece | Sample]:
        """Pieces of all samples as they are drawn, and each sample when it is finished. Leaving the loop cancels the rest."""
        given: GenerateOptions = {"delivery": "tokens", **options}
        request = requests.generate(prompts, **given)
        return AsyncStream(self._events(request, options.get("timeout") or self._timeout))

    @described(ScoreOptions, SCORING)
    async def score(self, items: Sequence[Any], *, heads: Sequence[str] = (), **options: Unpack[ScoreOptions]) -> list[ScoredItem]:
        """Score (prompt, completion) pairs or Samples with `heads` and those that recipe= reads. Returned in the order of `items`.

        With any sampling parameter, policy heads also return `sampling_logprobs`: log-probs of the distribution that it describes.
        """
        request = requests.score(items, heads=heads, **options)
        response = await self._connection.unary(
            lambda stubs: stubs.scoring.Score, request, options.get("timeout") or self._timeout
        )
        served = convert.served(response.served)
        return [convert.scored_item(item, response.request_id, served) for item in response.items]

    async def configurations(self, kind: ConfigurationKindName | None = None) -> list[Configuration]:
        """The server's rule sets, rule templates, recipes and transcript formats: all, or of one kind."""
        response = await self._lookup(lambda stubs: stubs.scoring.ListConfigurations, requests.configurations(kind))
        return [convert.configuration(each) for each in response.configurations]

    async def add_configuration(self, content: str | bytes | Path, *, request_id: str = "") -> Configuration:
        """Add a rule set, rule template, recipe or transcript format: YAML text, or the Path of a file. Requests can name it at once.

        The same content again changes nothing. Raises AlreadyExists if its name and version stand, or once stood, for another content.
        """
        request = requests.add_configuration(content, request_id)
        response = await self._connection.unary(lambda stubs: stubs.scoring.AddConfiguration, request, self._timeout)
        return convert.configuration(response.configuration)

    async def retire_configuration(self, reference: str, *, kind: ConfigurationKindName | None = None, request_id: str = "") -> None:
        """Take a version that was added out of use, for good: "terse@2". `kind` is needed only where several have the reference."""
        request = requests.retire_configuration(reference, kind, request_id)
        await self._connection.unary(lambda stubs: stubs.scoring.RetireConfiguration, request, self._timeout)

    async def tokenize_rules(
        self, rules: Sequence[str | Rule | Mapping[str, str]] | None = None, *, rule_set: str = "", template: str = ""
    ) -> RuleQuestions:
        """The token ids of the question about each rule, given by id or by text: what the server asks with. Train a rule head on these."""
        request = requests.tokenize_rules(rules, rule_set, template)
        return convert.rule_questions(await self._lookup(lambda stubs: stubs.scoring.TokenizeRules, request))

    # trunk

    async def trunk(self) -> TrunkInfo:
        """Identity and sizes of the trunk, hashes of its tensors, and the names and shapes of a head's tensors."""
        return convert.trunk_info(await self._lookup(lambda stubs: stubs.trunk.GetTrunk, trunk_pb2.GetTrunkRequest()))

    async def status(self) -> Status:
        """The present state of heads, memory, queue, cache and disk."""
        return convert.status(await self._lookup(lambda stubs: stubs.trunk.GetStatus, trunk_pb2.GetStatusRequest()))

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
        sequences, is_single = requests.sequences(ids)
        rows = [Rows() for _ in sequences]
        request = requests.encode(sequences, request_id, layer, pooling)

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

    # heads

    @described(PushOptions, PUSHING)
    async def push_head(self, name: str, weights: Weights, **options: Unpack[PushOptions]) -> int:
        """Upload a new version and return its number (0 with validate_only). It is not active yet."""
        return (await self.push(name, weights, **options)).version

    @described(PushOptions, PUSHING)
    async def push(self, name: str, weights: Weights, **options: Unpack[PushOptions]) -> PushReport:
        """As push_head, but returns a report that says for every tensor whether it was used, converted, ignored or missing."""
        upload = await self._prepare(plan_push(name, weights, options), await self.trunk())
        return await self._send(upload, options.get("timeout") or self._timeout)

    async def pull_head(
        self, ref: str, folder: str | PathLike[str] | None = None, *, timeout: float | None = None
    ) -> dict[str, RawTensor | NDArray[Any]]:
        """Tensors of a version, checked against its digest; with `folder`, written as a head folder, too."""
        with closing(HeadFile()) as file:
            request = requests.message(heads_pb2.PullHeadRequest, head=ref)
            await self._connection.read_all(lambda stubs: stubs.heads.PullHead, request, timeout or self._timeout, file.feed)
            file.finish()
            if folder is not None:
                file.save(Path(folder), await self.trunk())
            return file.tensors()

    @described(CopyOptions, COPYING)
    async def copy_head(self, source: str, target: str, **changes: Unpack[CopyOptions]) -> int:
        """Make a version of `target` from the weights of `source`, without an upload, perhaps with another kind, bias or scale."""
        request = requests.copy_head(source, target, **changes)
        response = await self._connection.unary(
            lambda stubs: stubs.heads.CopyHead, request, changes.get("timeout") or self._timeout
        )
        self._pushed.note(convert.head_version(response.head))
        return int(response.head.version)

    async def calibrate(
        self,
        ref: str,
        items: Sequence[Any],
        *,
        scale: bool = False,
        activate: bool = False,
        expected_generation: int | None = None,
        timeout: float | None = None,
    ) -> Calibration:
        """Make a version of a preference head, without an upload, whose bias is the mean raw score of reference completions.

        With `scale=True` its scale is their standard deviation, so that the scores have unit variance.
        `ref` is "preference" (the active version) or "preference@3"; `items` as in `score`.
        """
        plan = CalibrationPlan(await self.head(ref), items, scale)
        for batch in plan.batches():
            with plan.counting():
                plan.take(await self.score(batch, heads=[plan.head.ref], timeout=timeout))
        version = await self.copy_head(plan.head.ref, plan.head.name, bias=plan.bias, scale=plan.scale, timeout=timeout)
        if not activate:
            return plan.result(version, None)
        note = f"calibrated {plan.head.ref}"
        generation = await self.activate({plan.head.name: version}, expected_generation=expected_generation, note=note, timeout=timeout)
        return plan.result(version, generation)

    async def activate(
        self,
        heads: Mapping[str, Meant] | None = None,
        *,
        deactivate: Sequence[str] = (),
        expected_generation: int | None = None,
        expected_versions: Mapping[str, int] | None = None,
        request_id: str = "",
        note: str = "",
        timeout: float | None = None,
    ) -> Generation:
        """Make versions active as one change; names in `deactivate` leave the active set ("policy" has to stay).

        Raises Conflict if the active generation is not `expected_generation`, or if the active version of a name in `expected_versions` is
        another one (0: none may be active). Other names may have changed, so several runs can share a server, each with its own heads.

        A version is a number, or the PushReport or HeadVersion of one. Raises FailedPrecondition if a version holds other weights than
        this client pushed under its number, or than the report says: another server answers at this address.
        """
        versions, digests = self._pushed.of({} if heads is None else heads)
        request = requests.activate(versions, digests, deactivate, expected_generation, expected_versions, request_id, note)
        response = await self._connection.unary(lambda stubs: stubs.heads.ActivateHeads, request, timeout or self._timeout)
        return convert.activated(response)

    async def update(
        self,
        weights: Mapping[str, Weights],
        *,
        options: Mapping[str, PushOptions] | None = None,
        expected_generation: int | None = None,
        expected_versions: Mapping[str, int] | None = None,
        request_id: str = "",
        note: str = "",
        timeout: float | None = None,
    ) -> Generation:
        """Push a new version of each name, then activate all of them as one change. Nothing is sent before all were checked.

        `options`: by name, what `push_head` takes, such as {"policy": {"metrics": {"loss": 0.3}}}. `expected_*` as in `activate`.
        """
        request_id = request_id or requests.new_request_id()
        trunk = await self.trunk()
        plans = plan_update(weights, options or {}, request_id, note)
        uploads = [await self._prepare(plan, trunk) for plan in plans]
        reports = [await self._send(upload, timeout or self._timeout) for upload in uploads]
        versions = {report.head.name: report for report in reports}
        done = await self.activate(
            versions,
            expected_generation=expected_generation,
            expected_versions=expected_versions,
            request_id=request_id,
            note=note,
            timeout=timeout,
        )
        return with_removed(done, reports)

    async def rollback(
        self,
        to: int | None = None,
        *,
        expected_generation: int | None = None,
        expected_versions: Mapping[str, int] | None = None,
        request_id: str = "",
        timeout: float | None = None,
    ) -> Generation:
        """A new generation equal to `to` (default: the active one's parent). Raises Conflict as `activate` does."""
        request = requests.rollback(to, expected_generation, expected_versions, request_id)
        response = await self._connection.unary(lambda stubs: stubs.heads.RollbackHeads, request, timeout or self._timeout)
        return convert.generation(response.generation)

    async def heads(self, name: str | None = None) -> list[HeadVersion]:
        """All versions, by name, newest first."""
        found: list[HeadVersion] = []
        request = requests.message(heads_pb2.ListHeadsRequest, name=name or "")
        while True:
            page = await self._lookup(lambda stubs: stubs.heads.ListHeads, request)
            found += [convert.head_version(head) for head in page.heads]
            if not page.next_page_token:
                return found
            request = requests.message(heads_pb2.ListHeadsRequest, name=name or "", page_token=page.next_page_token)

    async def head(self, ref: str) -> HeadVersion:
        """One version's record: "policy" (the active one) or "policy@7"."""
        response = await self._lookup(lambda stubs: stubs.heads.GetHead, requests.message(heads_pb2.GetHeadRequest, head=ref))
        return convert.head_version(response.head)

    async def label(self, ref: str, *labels: str, request_id: str = "", timeout: float | None = None) -> HeadVersion:
        """Add labels to a version ("policy@7") and return its record. The server keeps labelled versions beyond --keep-versions."""
        return await self._label(requests.label_head(ref, labels, (), request_id), timeout)

    async def unlabel(self, ref: str, *labels: str, request_id: str = "", timeout: float | None = None) -> HeadVersion:
        """Remove labels from a version and return its record. A label that the version does not have is no error."""
        return await self._label(requests.label_head(ref, (), labels, request_id), timeout)

    async def delete_head(self, ref: str) -> None:
        """Delete a version ("policy@7") that is neither active nor labelled."""
        await self._lookup(lambda stubs: stubs.heads.DeleteHead, requests.message(heads_pb2.DeleteHeadRequest, head=ref))

    async def generations(self, limit: int | None = None) -> list[Generation]:
        """The history of the active set, newest first; at most `limit`."""
        found: list[Generation] = []
        request = heads_pb2.ListGenerationsRequest(page_size=limit or 0)
        while True:
            page = await self._lookup(lambda stubs: stubs.heads.ListGenerations, request)
            found += [convert.generation(each) for each in page.generations]
            if not page.next_page_token or (limit is not None and len(found) >= limit):
                return found[:limit]
            request = heads_pb2.ListGenerationsRequest(page_size=limit or 0, page_token=page.next_page_token)

    def watch(self, after: int = 0) -> AsyncStream[Generation]:
        """The active generation, then each new one, without end. `after`: the last number already seen; later ones follow."""
        request = heads_pb2.WatchHeadsRequest(after_generation=after)
        return AsyncStream(self._generations(request))

    # shared steps

    async def _lookup(self, pick: Any, request: Any) -> Any:
        return await self._connection.unary(pick, request, min(LOOKUP_TIMEOUT_S, self._timeout or LOOKUP_TIMEOUT_S))

    async def _label(self, request: heads_pb2.LabelHeadRequest, timeout: float | None) -> HeadVersion:
        response = await self._connection.unary(lambda stubs: stubs.heads.LabelHead, request, timeout or self._timeout)
        return convert.head_version(response.head)

    async def _events(
        self, request: generation_pb2.GenerateRequest, timeout: float | None
    ) -> AsyncGenerator[Piece | Sample, None]:
        fold = GenerateFold(request)
        async with aclosing(self._connection.stream(lambda stubs: stubs.generation.Generate, request, timeout)) as messages:
            async for message in messages:
                for event in fold.feed(message):
                    yield event
        for event in fold.finish():
            yield event

    async def _samples(self, request: generation_pb2.GenerateRequest, timeout: float | None) -> AsyncGenerator[Sample, None]:
        async with aclosing(self._events(request, timeout)) as events:
            async for event in events:
                if isinstance(event, Sample):
                    yield event

    async def _generations(self, request: heads_pb2.WatchHeadsRequest) -> AsyncGenerator[Generation, None]:
        async with aclosing(self._connection.stream(lambda stubs: stubs.heads.WatchHeads, request, None)) as messages:
            async for message in messages:
                yield convert.generation(message.generation)

    async def _prepare(self, plan: PushPlan, trunk: TrunkInfo) -> Upload:
        base = await self._base(plan.base_reference) if plan.base_reference else None
        kind = plan.kind or (base.head.kind if base else None)
        if kind is None and plan.kind_reference:
            try:
                kind = (await self.head(plan.kind_reference)).kind
            except NotFound:
                kind = plan.guess_kind()
        return await asyncio.to_thread(plan.prepare, trunk, kind, base)

    async def _base(self, ref: str) -> Base | None:
        """What to compare a push with; None if the server does not know it, and will say so, or is too old to compare."""
        request = requests.message(heads_pb2.ListHeadTensorsRequest, head=ref)
        try:
            response = await self._connection.unary(lambda stubs: stubs.heads.ListHeadTensors, request, self._timeout)
        except (NotFound, Unimplemented):
            return None
        return convert.base(response)

    async def _send(self, upload: Upload, timeout: float | None) -> PushReport:
        report = upload.report(await self._connection.upload(lambda stubs: stubs.heads.PushHead, upload.messages, timeout))
        self._pushed.note(report.head)
        return report
