"""Recorded decode steps against the same steps as they are. The recorder is played by one that computes again, on the CPU."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyhead.heads.format.kinds import HeadKind
from polyhead.heads.format.lora import LoraAdapter
from polyhead.server.engine.blocks.cache import KvCache
from polyhead.server.engine.layers.cuda.graphs import SIZES, step_graphs
from polyhead.server.engine.layers.cuda.recorder import CudaRecorder, Recording
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.request import OnSwap, Request
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.versions.head_loader import HeadLoader, to_file
from tests.heads.adapters import merge_by_hand, random_adapter
from tests.heads.models import save_tiny
from tests.server.engine.harness import Bench, assert_agrees, scores
from tests.server.engine.layers.recorded import PAGED, graphs_of, opened

DRAWN = SamplingParams(max_new_tokens=12)


def rollout(bench: Bench, lengths: tuple[int, ...] = (1, 5, 16, 40, 31)) -> list[Request]:
    """Five streams, so that three rows are padding; they start at once and end at different steps."""
    requests = []
    for number, length in enumerate(lengths):
        params = SamplingParams(max_new_tokens=12 + number)
        requests.append(bench.sampled(bench.prompt(length, length), params=params, score=("reference", "value")))
    bench.run(*requests)
    return requests


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_recorded_steps_say_what_the_steps_say(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, log-probs and scores of an engine without graphs; and the states, which taps and scores read again, are the same."""
    save_tiny(family, tmp_path)
    bench = opened(tmp_path, monkeypatch, tap_layer=1)
    plain = opened(tmp_path, monkeypatch, tap_layer=1, has_graphs=False)
    assert plain.engine.trunk.graphs is plain.engine.heads.graphs is None
    for found, wanted in zip(rollout(bench), rollout(plain), strict=True):
        ours, theirs = found.samples[0], wanted.samples[0]
        assert ours.completion == theirs.completion
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert_agrees(ours, bench.unsplit_logprobs([*ours.prompt, *ours.completion]))
        for name in ("reference", "value"):
            one, other = scores(ours)[name].result, scores(theirs)[name].result
            found_values, wanted_values = (each.logprobs if name == "reference" else each.values for each in (one, other))
            torch.testing.assert_close(torch.as_tensor(found_values), torch.as_tensor(wanted_values), atol=1e-4, rtol=0)
    trunk, heads = graphs_of(bench)
    assert trunk.num_recorded == 4, "5 streams as 8, 4 and 3 as 4, 2, 1"
    assert min(trunk.num_replayed, heads.num_replayed) > 8, "all decode steps but those beside a prefill or another's score"
    bench.assert_blocks_returned()


def test_slot_0_stays_zero_and_padding_disturbs_nobody(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding rows write: what the first row writes, and there. Every cached number is that of an engine without graphs."""
    bench, plain = opened(llama_folder, monkeypatch), opened(llama_folder, monkeypatch, has_graphs=False)
    for each in (bench, plain):
        rollout(each, lengths=(7, 9, 20))
    for found, wanted in ((bench.engine.trunk.cache.kv, plain.engine.trunk.cache.kv), (bench.engine.heads.cache, plain.engine.heads.cache)):
        for ours, theirs in zip(found.layers, wanted.layers, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
            assert not ours[0].any()
    torch.testing.assert_close(bench.engine.trunk.cache.states, plain.engine.trunk.cache.states, atol=1e-4, rtol=1e-4)


def test_what_cannot_be_recorded_runs_as_it_is(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefills and scores of given texts: no recording, and right."""
    bench = opened(llama_folder, monkeypatch)
    request = bench.given(bench.prompt(20), bench.prompt(9, 1), score=("reference",))
    bench.run(request)
    found = torch.as_tensor(scores(request.samples[0])["reference"].result.logprobs)
    tokens = [*request.samples[0].prompt, *request.samples[0].completion]
    wanted = bench.unsplit_logprobs(tokens)[19:-1].gather(1, torch.tensor(tokens[20:])[:, None])[:, 0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert [graphs.num_recorded for graphs in graphs_of(bench)] == [0, 0]


def test_more_rows_than_any_size(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.server.engine.layers.cuda.graphs.SIZES", (1, 2))
    bench = opened(llama_folder, monkeypatch)
    requests = [bench.sampled(bench.prompt(6, seed), params=DRAWN) for seed in range(4)]
    bench.run(*requests)
    for request in requests:
        assert_agrees(request.samples[0], bench.unsplit_logprobs([*request.samples[0].prompt, *request.samples[0].completion]))
    assert graphs_of(bench)[0].num_replayed == 0


def test_a_swap_records_the_new_head_and_forgets_the_old(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording holds its head's weights: it is used for no other, and goes when they are let go."""
    bench = opened(llama_folder, monkeypatch)
    request = bench.sampled(bench.prompt(20), params=SamplingParams(max_new_tokens=24), on_swap=OnSwap.FOLLOW)
    bench.start(request, steps=8)

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] *= 2.0

    bench.activate(2, policy=bench.policy("new", change), value=bench.scalar("b"))
    bench.finish(request)
    sample = request.samples[0]
    _, heads = graphs_of(bench)
    assert len(sample.spans) == 2
    assert set(heads._recordings) == {"a", "new"}
    again = bench.given(sample.prompt, sample.completion, score=("reference",))
    bench.run(again)
    scored = scores(again.samples[0])["reference"].result.logprobs
    start = sample.spans[1].start
    assert sample.logprobs[start:] == pytest.approx(list(scored[start:]), abs=1e-4)
    bench.engine.drop_head("a")
    bench.engine._empty_inbox()
    assert set(heads._recordings) == {"new"}


def test_adapters_run_as_they_are(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trunk's steps are recorded, those of a head that an adapter changes are not."""
    bench = opened(llama_folder, monkeypatch)
    base = bench.engine.active.heads["policy"].live
    loader = HeadLoader(bench.spec, bench.trunk.embedding, torch.float32, torch.device("cpu"), bench.engine.heads.prepare)
    tensors = random_adapter(bench.spec, seed=1, targets=("q_proj", "down_proj"))
    adapter = loader.build_adapted("adapted", loader.open(bytearray(to_file(tensors))), LoraAdapter(rank=3, alpha=1.5), base)
    merged = bench.policy("merged", lambda own: own.update(merge_by_hand(own, tensors, 0.5)))
    drawn = []
    for live in (adapter, merged):
        request = bench.sampled(bench.prompt(10), params=DRAWN)
        request.pinned["policy"] = ServedHead("policy", 9, bench.manifest(HeadKind.POLICY, live), live)
        bench.run(request)
        drawn.append(request.samples[0])
        if live is adapter:
            trunk, heads = graphs_of(bench)
            assert trunk.num_replayed > 8
            assert heads.num_replayed == 0
    assert drawn[0].completion == drawn[1].completion
    assert drawn[0].logprobs == pytest.approx(drawn[1].logprobs, abs=1e-4)


def test_steps_are_recorded_before_they_are_needed(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the trunk at the start, of a policy head while it warms up, beside traffic: none in a step. Slot 0 stays zero."""
    bench = opened(llama_folder, monkeypatch)
    plain = opened(llama_folder, monkeypatch, has_graphs=False)
    trunk, heads = graphs_of(bench)
    wanted = [request.samples[0].completion for request in rollout(plain, (5, 9))]
    bench.engine.start()
    try:
        assert trunk.num_recorded == len(SIZES) - 1, "up to 128, the most rows of a step"
        for name, kind in (("policy", HeadKind.POLICY), ("value", HeadKind.VALUE)):
            live = bench.engine.active.heads[name].live
            bench.engine.warm_up(ServedHead(name, 1, bench.manifest(kind, live), live))
            bench.engine.warm_up(ServedHead(name, 1, bench.manifest(kind, live), live))  # twice is once
        assert heads.num_recorded == len(SIZES) - 1, "the policy's"
    finally:
        bench.engine.stop()
    again = opened(llama_folder, monkeypatch)
    for size in SIZES:
        again.engine.trunk.record(size)
        again.engine.heads.record(again.engine.active.heads["policy"].live, size)
    assert [request.samples[0].completion for request in rollout(again, (5, 9))] == wanted
    trunk, heads = graphs_of(again)
    assert trunk.num_recorded == len(heads._recordings[again.engine.active.heads["policy"].live.digest]) == len(SIZES), "no more"
    assert not any(layer[0].any() for cache in (again.engine.trunk.cache.kv, again.engine.heads.cache) for layer in cache.layers)


class FakeCuda:
    """torch.cuda as a recorder sees it: which stream the thread is on, and what happened."""

    def __init__(self, *, fails_at_end: bool = False) -> None:
        self.log: list[str] = []
        self.stream_now = "default"
        self.is_recording = False
        self._fails_at_end = fails_at_end

    def graph_pool_handle(self) -> int:
        return 7

    def Stream(self, device: torch.device) -> FakeStream:  # noqa: N802
        self.log.append("new stream")
        return FakeStream("own", self)

    def current_stream(self) -> FakeStream:
        return FakeStream(self.stream_now, self)

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream.name
        try:
            yield
        finally:
            self.stream_now = before

    def device(self, device: torch.device) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self) -> None:
        self.log.append("synchronized")

    def CUDAGraph(self) -> FakeCuda:  # noqa: N802
        return self

    def capture_begin(self, pool: int, capture_error_mode: str) -> None:
        assert (pool, capture_error_mode, self.stream_now) == (7, "thread_local", "own")
        self.is_recording = True

    def capture_end(self) -> None:
        self.is_recording = False
        if self._fails_at_end:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self) -> None:
        self.log.append("replayed")


@dataclass(frozen=True)
class FakeStream:
    name: str
    cuda: FakeCuda

    def wait_stream(self, other: FakeStream) -> None:
        self.cuda.log.append(f"{self.name} after {other.name}")


def test_recordings_share_a_stream_and_leave_the_thread_on_its_own() -> None:
    cuda = FakeCuda()
    recorder = CudaRecorder(torch.device("cpu"), cuda)
    seen: list[tuple[str, bool]] = []

    def compute() -> Tensor:
        seen.append((cuda.stream_now, cuda.is_recording))
        return torch.zeros(1)

    for _ in range(2):
        recorder(compute).replay()
    once = ["own after default", "default after own", "replayed"]
    assert cuda.log == ["new stream", *once, *once]
    assert seen == [("own", False), ("own", True)] * 2
    assert (cuda.stream_now, cuda.is_recording) == ("default", False)


@pytest.mark.parametrize("fails_at", [1, 2, 3], ids=["trial", "recording", "end"])
def test_a_failed_recording_leaves_nothing_behind(fails_at: int) -> None:
    """The thread stayed on the capture's stream, where later steps ran beside the default one without order."""
    cuda = FakeCuda(fails_at_end=fails_at >= 2)
    calls: list[int] = []
    ended: list[tuple[int, int]] = []

    def compute() -> Tensor:
        assert gc.isenabled() != cuda.is_recording, "a collection could wait for the device within a recording"
        calls.append(1)
        if len(calls) == fails_at:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="not permitted" if fails_at < 3 else "previous error"):
        CudaRecorder(torch.device("cuda:1"), cuda, lambda *pool: ended.append(pool))(compute)
    assert (cuda.stream_now, cuda.is_recording, cuda.log[-1]) == ("default", False, "synchronized")
    assert ended == ([(1, 7)] if fails_at > 1 else []), "torch's allocator counted the recording as open for ever"
    assert gc.isenabled()


def test_a_recorder_that_fails_is_given_up(llama_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One line for the trunk and one for the heads, then everything runs as it is."""

    def failing(compute: Callable[[], Tensor]) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    bench = opened(llama_folder, monkeypatch, record=failing)
    with caplog.at_level(logging.WARNING):
        [request] = rollout(bench, (5,))
    assert_agrees(request.samples[0], bench.unsplit_logprobs([*request.samples[0].prompt, *request.samples[0].completion]))
    said = "CUDA graphs are not used: operation not permitted when stream is capturing"
    assert [record.message for record in caplog.records] == [said, said]


def test_only_a_gpu_with_paged_attention_has_graphs(llama_folder: Path) -> None:
    cache: KvCache = Bench.open(llama_folder, 2).engine.trunk.cache.kv
    assert step_graphs(cache, PAGED, 64) is None
    assert SIZES[-1] == 256
