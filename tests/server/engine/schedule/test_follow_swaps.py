"""FOLLOW, with more swaps, ends and faults while a version reads the text again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from polyhead.heads.format.errors import Aborted
from polyhead.server.engine.layers.fast import FastHead
from polyhead.server.engine.work.request import OnSwap
from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.harness import Bench
from tests.server.engine.schedule.following import (
    THIRTY,
    assert_each_span_is_its_own_versions,
    follower,
    leases,
    policy,
    reading_again,
    spans_of,
    swap,
)


def test_another_swap_heads_for_the_newest(slow: Bench, llama_folder: Path) -> None:
    sample = reading_again(slow)
    swap(slow, 3, "3")
    slow.engine.tree.check()
    assert {digest for block in sample.sequence.blocks for digest, of in block.head_blocks.items() if of.num_users} == {"a"}
    slow.finish(sample.request)
    assert [digest for _, _, digest in spans_of(sample)] == ["a", "3"]
    assert_each_span_is_its_own_versions(sample, llama_folder)
    slow.assert_blocks_returned()


def test_a_swap_back_ends_the_reading(slow: Bench) -> None:
    sample = reading_again(slow)
    before = slow.engine.counters.rebuilt_tokens
    swap(slow, 3, "a", version=1)
    slow.finish(sample.request)
    assert spans_of(sample) == [(0, 1, "a")]
    assert slow.engine.counters.rebuilt_tokens == before
    slow.assert_blocks_returned()


@pytest.mark.parametrize("version", [2, 3])
def test_a_swap_to_the_same_weights_goes_on_reading(slow: Bench, version: int) -> None:
    """The same version, or another one with its digest: what has been read is kept, and the newest number is told."""
    sample = reading_again(slow)
    swap(slow, 3, "2", version=version)
    slow.finish(sample.request)
    assert [(generation, digest) for _, generation, digest in spans_of(sample)] == [(1, "a"), (3, "2")]
    assert sample.last_head.version == version
    assert slow.engine.counters.rebuilt_tokens == 100 + sample.spans[1].start - 1
    slow.assert_blocks_returned()


def test_a_prefill_that_is_under_way_follows_when_it_has_drawn(slow: Bench, llama_folder: Path) -> None:
    request = follower(slow, 100, params=SamplingParams(max_new_tokens=40))
    slow.start(request, steps=6)
    [sample] = request.samples
    assert not sample.completion
    swap(slow, 2, "2")
    slow.finish(request)
    assert sample.spans[-1].head.live.digest == "2"
    assert slow.engine.counters.trunk_tokens == 100 + 39
    assert_each_span_is_its_own_versions(sample, llama_folder)


def test_a_version_that_has_read_the_prompt_before_takes_over_at_once(slow: Bench, llama_folder: Path) -> None:
    """Its keys were cached by others: it draws before the old version has come to the prompt's end, and reads nothing again."""
    prompt = slow.prompt(97)  # six full blocks, and the token whose row draws
    swap(slow, 2, "2")
    slow.run(slow.sampled(prompt, params=SamplingParams(max_new_tokens=1)))
    swap(slow, 3, "a")
    request = slow.sampled(prompt, params=THIRTY, on_swap=OnSwap.FOLLOW)
    slow.start(request, steps=3)
    swap(slow, 4, "2")
    slow.start(steps=1)
    [sample] = request.samples
    assert len(sample.completion) == 1
    slow.finish(request)
    assert spans_of(sample) == [(0, 4, "2")]
    assert slow.engine.counters.rebuilt_tokens == 0
    assert_each_span_is_its_own_versions(sample, llama_folder)


@pytest.mark.parametrize("ending", ["length", "cancel", "text", "step", "logits"])
def test_an_end_in_the_middle_gives_everything_back(slow: Bench, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    sample = reading_again(slow)
    neighbour = slow.sampled(slow.prompt(9, 9), params=THIRTY)
    slow.start(neighbour)
    old, new = sample.reading.head.live, policy(slow)

    def explode(*_: object) -> None:
        raise RuntimeError

    if ending == "length":
        sample.params = dataclasses.replace(sample.params, max_new_tokens=len(sample.completion) + 1)
        slow.start(steps=1)  # the old version's run ends the sample; the new one's stands behind it in the same step
    elif ending == "cancel":
        slow.engine.cancel(sample.request, Aborted("gone"))
        slow.engine._empty_inbox()
    elif ending == "text":
        sample.error = "the text broke"
        slow.start(steps=1)
    elif ending == "logits":
        assert isinstance(old.module, FastHead)
        old.module.norm.weight.fill_(float("nan"))
        slow.start(steps=1)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(slow.engine.heads, "forward", explode)
            slow.engine._step_safely()
    assert sample.request.is_ended
    assert sample.successor is None
    assert leases(slow, old, new) == [0, 0 if neighbour.is_ended else 1]
    assert all(span.head.version == 1 for span in sample.spans)
    slow.finish(neighbour)
    slow.assert_blocks_returned()
