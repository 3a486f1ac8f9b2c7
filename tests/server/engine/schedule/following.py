"""Requests that follow swaps, and what shows which version drew what."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyhead.server.engine.work.live import LiveHead
from polyhead.server.engine.work.request import OnSwap, Request, Sample
from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.harness import Bench, scores

THIRTY = SamplingParams(max_new_tokens=30)


def other(seed: int) -> Callable[[dict[str, Tensor]], None]:
    """Another policy: every weight of its layers moved, so that another version's keys and values would be wrong."""

    def change(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in sorted(tensors.items()):
            if ".layers." in name and tensor.ndim == 2:
                tensor += 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)

    return change


def swap(bench: Bench, generation: int, digest: str, version: int = 0) -> None:
    """Activate the policy of this digest: "a" is the checkpoint's own, "2" another one, "3" another one again."""
    policy = bench.policy(digest, (lambda tensors: None) if digest == "a" else other(int(digest)))
    bench.activate(generation, policy=policy, value=bench.engine.active.heads["value"].live, policy_version=version)


def follower(bench: Bench, num_tokens: int = 20, n: int = 1, params: SamplingParams = THIRTY, seed: int = 0, **fields: object) -> Request:
    return bench.sampled(bench.prompt(num_tokens, seed), n=n, params=params, on_swap=OnSwap.FOLLOW, **fields)


def spans_of(sample: Sample) -> list[tuple[int, int, str]]:
    """(first token, generation, digest) of each span."""
    return [(span.start, span.generation, span.head.live.digest) for span in sample.spans]


def assert_each_span_is_its_own_versions(sample: Sample, folder: Path) -> None:
    """Its log-probs equal what a cold engine, which has never seen another version, says about the same tokens."""
    ends = [span.start for span in sample.spans[1:]] + [len(sample.completion)]
    for span, end in zip(sample.spans, ends, strict=True):
        cold = Bench.open(folder, split_layer=2)
        swap(cold, 9, span.head.live.digest)
        scored = cold.given(sample.prompt, sample.completion, score=("policy",))
        cold.run(scored)
        expected = scores(scored.samples[0])["policy"].result.logprobs
        assert sample.logprobs[span.start : end] == pytest.approx(expected[span.start : end].tolist(), abs=1e-4)


def leases(bench: Bench, *heads: LiveHead) -> list[int]:
    """Open requests on each head."""
    return [bench.engine.leased_digests().get(head.digest, 0) for head in heads]


def policy(bench: Bench) -> LiveHead:
    return bench.engine.active.heads["policy"].live


def reading_again(bench: Bench, **fields: object) -> Sample:
    """A sample of a 100-token prompt in the middle of reading it again with version 2."""
    request = follower(bench, 100, params=SamplingParams(max_new_tokens=40), **fields)
    bench.start(request, steps=16)
    swap(bench, 2, "2")
    bench.start(steps=4)
    [sample] = request.samples
    assert len(sample.completion) > 4
    assert 0 < sample.successor.cursor < 100
    return sample
