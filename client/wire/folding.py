"""Streams of messages folded into results, without a connection: Generate's events, boundary states, the bytes of a head."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.client.errors import DataLoss, Internal
from polyhead.client.results.records import HeadVersion, TrunkInfo
from polyhead.client.results.results import Piece, RankedSample, Sample, Served
from polyhead.client.weights.folders import read_header
from polyhead.client.weights.tensors import RawTensor, to_float32
from polyhead.client.wire import convert
from polyhead.v1 import generation_pb2, heads_pb2, types_pb2

__all__ = ["GenerateFold", "HeadFile", "Rows", "best_order", "sample_order"]

Floats = NDArray[np.float32]
_Key = tuple[int, int, int]  # prompt, arm, sample


def sample_order(sample: Sample) -> _Key:
    """(prompt, arm, sample): the order that `generate` answers in."""
    return sample.prompt_index, sample.arm_index, sample.sample_index


def best_order(sample: Sample) -> int:
    """The prompt alone: with best=, a prompt's samples come the best first."""
    return sample.prompt_index


class Rows:
    """Rows of one matrix that come in order, in parts."""

    def __init__(self, first: Floats | None = None) -> None:
        """`first`: rows that are known already."""
        self._parts: list[Floats] = [] if first is None else [first]
        self.num_rows = 0 if first is None else len(first)

    def add(self, offset: int, part: types_pb2.Tensor) -> None:
        """Raises DataLoss if rows are missing in between."""
        if offset != self.num_rows:
            raise DataLoss(f"rows are missing in the stream: expected row {self.num_rows}, got row {offset}")
        rows = convert.tensor(part)
        self._parts.append(rows)
        self.num_rows += len(rows)

    def joined(self) -> Floats:
        """(rows, columns)."""
        return np.concatenate(self._parts) if self._parts else np.zeros((0, 0), np.float32)


class GenerateFold:
    """Feed it each GenerateResponse; it gives pieces and finished samples. A sample waits for the states asked for."""

    def __init__(self, request: generation_pb2.GenerateRequest) -> None:
        self._group_size = sum(max(arm.n, 1) for arm in request.arms)
        self._num_expected = len(request.prompts) * self._group_size
        self._top = request.select.top  # 0: nothing is left out
        self._with_states = request.return_states
        self._request_id = request.request_id
        self._served = Served()
        self._waiting: dict[_Key, Sample] = {}
        self._states: dict[_Key, Rows] = {}
        self._prompts: dict[int, Floats] = {}  # states of prompts that more samples are to come of: sent once each
        self._num_left: dict[int, int] = {}  # samples to come, by prompt; all of them where it says nothing
        self._num_done = 0

    def feed(self, message: generation_pb2.GenerateResponse) -> Iterator[Piece | Sample]:
        event = message.WhichOneof("event")
        if event == "accepted":
            self._request_id, self._served = message.accepted.request_id, convert.served(message.accepted.served)
        elif event == "piece":
            yield convert.piece(message.piece)
        elif event == "sample":
            yield from self._finished(message.sample)
        elif event == "group":
            yield from self._with_group(message.group)
        elif event == "states":
            yield from self._with_part(message.states)

    def finish(self) -> Iterator[Sample]:
        """What still waits. Raises Internal if the server left a sample out."""
        for key in list(self._waiting):
            yield self._complete(key)
        if self._num_done != self._num_expected:
            raise Internal(f"the server ended the stream early: {self._num_done} of {self._num_expected} samples came")

    def _with_group(self, group: generation_pb2.SampleGroup) -> Iterator[Sample]:
        if self._top:
            self._num_expected -= self._group_size - max(len(group.samples), self._top)
            self._num_left[group.prompt_index] = len(group.samples)
        ranking = convert.ranking(group.ranking)
        for sample in group.samples:
            yield from self._finished(sample, ranking)

    def _finished(self, message: generation_pb2.Sample, ranking: tuple[RankedSample, ...] = ()) -> Iterator[Sample]:
        sample = dataclasses.replace(convert.sample(message, self._request_id, self._served), ranking=ranking)
        if self._with_states:
            self._waiting[sample_order(sample)] = sample
            return
        self._num_done += 1
        yield sample

    def _with_part(self, message: generation_pb2.StatesPart) -> Iterator[Sample]:
        key = (message.prompt_index, message.arm_index, message.sample_index)
        if key not in self._states:
            self._states[key] = Rows(self._prompts.get(message.prompt_index) if message.offset else None)
        rows = self._states[key]
        rows.add(message.offset, message.states)
        sample = self._waiting.get(key)
        if sample is not None and rows.num_rows >= len(sample.prompt_token_ids) + len(sample.token_ids):
            yield self._complete(key)

    def _complete(self, key: _Key) -> Sample:
        self._num_done += 1
        rows, sample = self._states.pop(key, None), self._waiting.pop(key)
        states = rows.joined() if rows else None
        self._keep_prompt(sample, states)
        return dataclasses.replace(sample, states=states)

    def _keep_prompt(self, sample: Sample, states: Floats | None) -> None:
        """For the prompt's other samples, as long as there are any to come."""
        index = sample.prompt_index
        self._num_left[index] = self._num_left.get(index, self._group_size) - 1
        if not self._num_left[index]:
            self._prompts.pop(index, None)
        elif states is not None and index not in self._prompts:
            self._prompts[index] = states[: len(sample.prompt_token_ids)].copy()


class HeadFile:
    """The bytes of a pulled head, spooled to a file and checked against the record before anyone reads them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="polyhead-pull-", ignore_cleanup_errors=True)
        self._path = Path(self._folder.name) / "head.safetensors"
        self._file = self._path.open("wb")
        self._sha256 = hashlib.sha256()
        self._record: HeadVersion | None = None

    def feed(self, message: heads_pb2.PullHeadResponse) -> None:
        """Raises DataLoss if a chunk is missing."""
        if message.WhichOneof("part") == "head":
            self._record = convert.head_version(message.head)
            return
        if message.chunk.offset != self._file.tell():
            raise DataLoss(
                f"bytes are missing in the stream: expected byte {self._file.tell()}, got byte {message.chunk.offset}"
            )
        self._file.write(message.chunk.data)
        self._sha256.update(message.chunk.data)

    def finish(self) -> HeadVersion:
        """The record. Raises DataLoss if the bytes are not what it names."""
        self._file.flush()
        record, size = self._record, self._file.tell()
        if record is None or size != record.num_bytes or self._sha256.hexdigest() != record.file_sha256:
            raise DataLoss(f"the head's bytes are not what its record names: {size} bytes came\nhint: pull again")
        return record

    def tensors(self) -> dict[str, RawTensor | NDArray[Any]]:
        """Name -> array of float32 or float16; bfloat16, which numpy lacks, as a RawTensor."""
        found: dict[str, RawTensor | NDArray[Any]] = {}
        for name, source in read_header(self._path).items():
            data = bytes(source.read())
            if source.dtype == "float32":
                found[name] = to_float32(source.dtype, source.shape, data)
            elif source.dtype == "float16":
                found[name] = np.frombuffer(data, "<f2").astype(np.float16).reshape(source.shape)
            else:
                found[name] = RawTensor(source.dtype, source.shape, data)
        return found

    def save(self, folder: Path, trunk: TrunkInfo) -> None:
        """A head folder as the rest of polyhead reads it: head.safetensors and head.json."""
        record = self.finish()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "head.safetensors").write_bytes(self._path.read_bytes())
        known = {key: value for key, value in dataclasses.asdict(record.manifest).items() if value is not None}
        manifest = {
            **known,
            "split_layer": trunk.split_layer,
            "num_layers": trunk.num_layers,
            "format": 1,
        }
        text = json.dumps(manifest, sort_keys=True, indent=2) + "\n"
        (folder / "head.json").write_text(text, encoding="utf-8")

    def close(self) -> None:
        self._file.close()
        self._folder.cleanup()
