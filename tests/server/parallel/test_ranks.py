"""What several ranks hold, and what a pass that fails does to them. Ranks are threads here; e2e/test_tensor_parallel.py has processes."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from polyhead.heads.format.errors import DataLoss, ResourceExhausted
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.work.live import LiveHead, ServedHead
from polyhead.server.engine.work.request import OnSwap
from polyhead.server.engine.work.sampling import SamplingParams
from tests.heads.models import save_tiny
from tests.server.parallel.harness import SharedBench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedBench]:
    folder = tmp_path_factory.mktemp("model")
    save_tiny("llama", folder, max_position_embeddings=256)
    with SharedBench.shared(folder, 2) as bench:
        yield bench


def served(bench: SharedBench, live: LiveHead) -> ServedHead:
    return ServedHead("policy", 9, bench.manifest(HeadKind.POLICY, live), live)


def test_ranks_hold_and_forget_what_rank_0_does(bench: SharedBench) -> None:
    """A head that only a push's trial held is forgotten, too; the others are told before they get another one."""
    other, sums = bench.ranks.others[0], bench.ranks.memory_of_sums
    active = {bench.engine.heads.number_of(head.live) for head in bench.engine.active.heads.values()}
    tried = bench.policy("tried")
    before = sums.num_sums
    bench.engine.warm_up(served(bench, tried))
    assert sums.num_sums - before == 2 * bench.spec.num_head_layers  # two a layer
    assert set(other.heads) >= {*active, bench.engine.heads.number_of(tried)}
    del tried
    gc.collect()
    kept = bench.policy("kept")
    bench.engine.warm_up(served(bench, kept))  # a pass: what was said before it has been done
    assert set(other.heads) == {*active, bench.engine.heads.number_of(kept)}
    assert other.trunk.num_bytes < bench.trunk.embedding.nbytes + 0.6 * 4 * sum(
        torch.Size(shape).numel() for name, shape in bench.spec.shapes.items() if ".layers.0." in name or ".layers.1." in name
    )


def test_a_head_that_fails_its_trial_leaves_the_ranks_in_step(bench: SharedBench) -> None:
    """Its numbers are finite, and what comes out of them is not."""
    big = bench.policy("big", lambda tensors: tensors["lm_head.weight"].fill_(3e38))
    with pytest.raises(DataLoss, match="not finite"):
        bench.engine.warm_up(served(bench, big))
    assert not bench.ranks.problems
    request = bench.sampled(bench.prompt(9))
    bench.run(request)
    assert len(request.samples[0].completion) == 8


def test_a_running_text_follows_a_swap(bench: SharedBench) -> None:
    request = bench.sampled(bench.prompt(20), 1, SamplingParams(max_new_tokens=12), on_swap=OnSwap.FOLLOW)
    bench.start(request, steps=3)
    changed = bench.policy("c", lambda tensors: tensors["model.norm.weight"].mul_(1.5))
    bench.activate(2, policy=changed, value=bench.engine.active.heads["value"].live)
    bench.finish(request)
    assert [span.head.version for span in request.samples[0].spans] == [1, 2]


def test_a_pass_that_fails_ends_the_process(bench: SharedBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine goes on after a step that has failed; with several ranks it cannot: they would add up numbers of different passes."""
    monkeypatch.setattr("polyhead.server.parallel.ranks.NAMED_S", 0.0)

    carry_out = bench.engine.trunk.carry_out

    def fails(work: Any) -> None:
        carry_out(work)
        raise RuntimeError("no memory on this card")

    monkeypatch.setattr(bench.engine.trunk, "carry_out", fails)
    bench.start(bench.sampled(bench.prompt(9, seed=3)), steps=0)
    bench.engine._empty_inbox()
    bench.engine._step_safely()
    assert bench.ranks.problems == ["a pass of all ranks failed on rank 0"]
    bench.ranks.problems.clear()


def test_memory_of_all_ranks_is_reported(bench: SharedBench) -> None:
    assert [(row.rank, row.device) for row in bench.engine.snapshot().ranks] == [(0, "cpu"), (1, "cpu")]
    assert bench.engine.snapshot().ranks[0].num_bytes > 1 << 20


def test_a_rank_says_why_it_cannot_hold_a_head(bench: SharedBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(tensors: object) -> None:
        raise MemoryError

    monkeypatch.setattr(bench.ranks.others[0], "_built", no_room)
    with pytest.raises(ResourceExhausted, match=re.escape("rank 1: no memory for another head")):
        bench.policy("c")
