"""Steps that are launched before the one before them is read: the same tokens, log-probs and trunk work as one step after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyhead.server.engine.ahead import MOST_IN_A_ROW, Ahead
from polyhead.server.engine.layers.cuda import upload
from polyhead.server.engine.layers.cuda.staging import ReadBack
from polyhead.server.engine.layers.cuda.tables import BlockTables, DecodeRow
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.request import OnSwap, Request
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from tests.server.engine.harness import Bench, assert_agrees, scores
from tests.server.engine.layers.recorded import Again, Launches, graphs_of, opened

MIXED = [
    SamplingParams(max_new_tokens=40, temperature=0.0),
    SamplingParams(max_new_tokens=40),
    SamplingParams(max_new_tokens=33, top_p=0.8, temperature=0.7),
    SamplingParams(max_new_tokens=40, min_p=0.1, top_k=20),
]


def ahead_of(bench: Bench) -> Ahead:
    ahead = bench.engine.stepper.ahead
    assert ahead is not None
    return ahead


def rollout(bench: Bench, params: list[SamplingParams] = MIXED, **fields: Any) -> list[Request]:
    """One prompt a request, of several lengths; all start in one step."""
    requests = [bench.sampled(bench.prompt(5 + 6 * seed, seed), params=each, **fields) for seed, each in enumerate(params)]
    bench.run(*requests)
    return requests


def both(folder: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> tuple[Bench, Bench]:
    """An engine that launches ahead, and one that reads each step first."""
    return tuple(opened(folder, monkeypatch, is_ahead=True, **config) for _ in range(2))  # type: ignore[return-value]


def in_turn(bench: Bench) -> Bench:
    bench.engine.stepper.ahead = None
    return bench


def assert_same(found: list[Request], wanted: list[Request]) -> None:
    """To the last bit."""
    for one, other in zip(found, wanted, strict=True):
        ours, theirs = one.samples[0], other.samples[0]
        assert ours.completion == theirs.completion
        assert ours.logprobs == theirs.logprobs
        assert ours.sampling_logprobs == theirs.sampling_logprobs
        assert (ours.finish_reason, ours.num_trunk_tokens) == (theirs.finish_reason, theirs.num_trunk_tokens)


def test_nothing_changes_but_when_it_is_launched(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that cross blocks at different steps, all filters but the penalty, scores behind them."""
    bench, plain = both(llama_folder, monkeypatch)
    fields = {"score": ("reference", "value")}
    found, wanted = rollout(bench, **fields), rollout(in_turn(plain), **fields)
    assert_same(found, wanted)
    ours, theirs = bench.engine.counters.as_dict(), plain.engine.counters.as_dict()
    for name in ("trunk_seconds_us", "head_seconds_us"):
        del ours[name], theirs[name]
    assert ours == theirs, "steps, tokens through trunk and heads, passes"
    ahead = ahead_of(bench)
    assert ahead.num_launched > 25, "all steps of 40 but the first, those that look at the queue, and those beside a limit or a score"
    assert ahead.num_dropped == 0
    for one, other in zip(found, wanted, strict=True):
        assert scores(one.samples[0])["value"].result.bootstrap_value == scores(other.samples[0])["value"].result.bootstrap_value
    for each in (bench, plain):
        each.assert_blocks_returned()


def test_texts_that_end_by_their_limit_stop_nobody(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 8 ends at another step: the next step is launched without it. Overlap stopped for two steps at every end."""
    bench, plain = both(llama_folder, monkeypatch)
    params = [SamplingParams(max_new_tokens=6 + 3 * index, ignore_eos=True) for index in range(8)]
    found, wanted = rollout(bench, params), rollout(in_turn(plain), params)
    assert_same(found, wanted)
    assert bench.engine.counters.trunk_tokens == plain.engine.counters.trunk_tokens
    assert ahead_of(bench).num_dropped == 0
    num_steps = max(each.max_new_tokens for each in params)
    assert ahead_of(bench).num_launched >= num_steps - 1 - 2 * (num_steps // MOST_IN_A_ROW + 1), "all but those that look at the queue"
    for each in (bench, plain):
        each.assert_blocks_returned()


def test_who_waits_starts_in_the_place_of_one_that_ends(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody waits for a place, no step is launched that leaves out a text which ends: it would keep the place empty."""
    bench = opened(llama_folder, monkeypatch, is_ahead=True, scheduler=SchedulerLimits(max_running=2))
    requests = [bench.sampled(bench.prompt(8, seed), params=SamplingParams(max_new_tokens=9 + 4 * seed)) for seed in range(3)]
    bench.start(*requests, steps=4)
    assert len(bench.engine.scheduler.waiting) == 1
    while not requests[0].is_ended:
        bench.engine.step()
    bench.engine.step()
    assert not bench.engine.scheduler.waiting
    bench.finish(*requests)
    bench.assert_blocks_returned()


class Until:
    """Text that ends with a stop string after so many tokens."""

    def __init__(self, num_tokens: int) -> None:
        self.text, self.matched_stop, self._num_left = "", "", num_tokens

    def push(self, token_id: int) -> str:
        self._num_left -= 1
        self.matched_stop = "" if self._num_left else "."
        return "x"

    def finish(self) -> str:
        return ""


def test_texts_that_end_by_themselves(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By EOS, a stop id or a stop string, which the host sees a step later: the row too many is dropped, and its blocks go back."""
    every = frozenset(range(0, 128, 9))
    bench, plain = both(llama_folder, monkeypatch, eos_ids=every)
    in_turn(plain)
    done = []
    for each in (bench, plain):
        params = [SamplingParams(max_new_tokens=60)]
        params.append(SamplingParams(max_new_tokens=60, stop_token_ids=frozenset(range(1, 128, 7)), ignore_eos=True))
        params += [SamplingParams(max_new_tokens=60, ignore_eos=True)] * 3
        requests = [each.sampled(each.prompt(9 + seed, seed), params=one, score=("value",)) for seed, one in enumerate(params)]
        requests[2].samples[0].text = Until(17)
        each.run(*requests)
        done.append([request.samples[0] for request in requests])
    for ours, theirs in zip(*done, strict=True):
        assert ours.completion == theirs.completion
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert (ours.finish_reason, ours.num_trunk_tokens) == (theirs.finish_reason, theirs.num_trunk_tokens)
    reasons = [sample.finish_reason for sample in done[0]]
    assert reasons[:3] == [FinishReason.EOS, FinishReason.STOP_ID, FinishReason.STOP_STRING]
    assert bench.engine.counters.trunk_tokens == plain.engine.counters.trunk_tokens
    assert ahead_of(bench).num_dropped >= 2, "unless the next step was not known when they ended"
    for each in (bench, plain):
        each.assert_blocks_returned()


@pytest.mark.parametrize("on_swap", OnSwap)
def test_a_swap_waits_for_the_step_under_way(on_swap: OnSwap, llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token is drawn, named and scored by one version, whichever tokens were under way when it was activated."""
    bench = opened(llama_folder, monkeypatch, is_ahead=True)
    request = bench.sampled(bench.prompt(20), params=SamplingParams(max_new_tokens=30), on_swap=on_swap)
    bench.start(request, steps=9)
    assert bench.engine.stepper.under_way is not None

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] *= 2.0

    bench.activate(2, policy=bench.policy("new", change), value=bench.scalar("b"))
    assert bench.engine.stepper.under_way is None
    bench.finish(request)
    sample = request.samples[0]
    if on_swap is OnSwap.ABORT:
        assert (sample.finish_reason, len(sample.completion)) == (FinishReason.ABORTED, 10)
    else:
        versions = [span.head.version for span in sample.spans]
        assert versions == ([1] if on_swap is OnSwap.PIN else [1, 2])
        start = 0 if on_swap is OnSwap.PIN else sample.spans[1].start
        name = "policy@1" if on_swap is OnSwap.PIN else "reference"
        if on_swap is OnSwap.PIN:
            assert_agrees(sample, bench.unsplit_logprobs([*sample.prompt, *sample.completion]))
        else:
            again = bench.given(sample.prompt, sample.completion, score=(name,))
            bench.run(again)
            scored = scores(again.samples[0])[name].result.logprobs
            assert sample.logprobs[start:] == pytest.approx(list(scored[start:]), abs=1e-4)
    bench.assert_blocks_returned()


def test_requests_that_come_and_go(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is cancelled and one begins while a step is under way; one draws with a penalty, which needs what the host has not read."""
    bench = opened(llama_folder, monkeypatch, is_ahead=True)
    params = SamplingParams(max_new_tokens=30)
    first, second = (bench.sampled(bench.prompt(8, seed), params=params) for seed in (1, 2))
    bench.start(first, second, steps=6)
    assert bench.engine.stepper.under_way is not None
    bench.engine.cancel(first, bench_error())
    third = bench.sampled(bench.prompt(8, 3), params=params)
    bench.start(third, steps=5)
    assert first.is_ended
    assert bench.engine.stepper.under_way is not None
    bench.finish(second, third)
    before = ahead_of(bench).num_launched
    penalised = bench.sampled(bench.prompt(8, 4), params=SamplingParams(max_new_tokens=8, repetition_penalty=1.3))
    bench.run(penalised)
    assert ahead_of(bench).num_launched == before
    for request in (second, third, penalised):
        assert_agrees(request.samples[0], bench.unsplit_logprobs([*request.samples[0].prompt, *request.samples[0].completion]))
    bench.assert_blocks_returned()


def bench_error() -> Any:
    from polyhead.heads.format.errors import Aborted

    return Aborted("the caller has gone")


def test_a_deadline_that_passes_under_way(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = opened(llama_folder, monkeypatch, is_ahead=True)
    late, other = (bench.sampled(bench.prompt(8, seed), params=SamplingParams(max_new_tokens=30)) for seed in (1, 2))
    bench.start(late, other, steps=6)
    late.deadline_at = 0.0
    bench.finish(other)
    assert late.samples[0].finish_reason is FinishReason.ABORTED
    assert ahead_of(bench).num_dropped == 1
    assert_agrees(other.samples[0], bench.unsplit_logprobs([*other.samples[0].prompt, *other.samples[0].completion]))
    bench.assert_blocks_returned()


def test_a_failed_step_leaves_nothing_under_way(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = opened(llama_folder, monkeypatch, is_ahead=True)
    request = bench.sampled(bench.prompt(8), params=SamplingParams(max_new_tokens=30))
    bench.start(request, steps=6)

    def broken(back: ReadBack) -> np.ndarray:
        raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(ReadBack, "read", broken)
        bench.engine._step_safely()
    assert request.is_ended
    assert bench.engine.stepper.under_way is None
    bench.assert_blocks_returned()
    again = bench.sampled(bench.prompt(8), params=SamplingParams(max_new_tokens=30))
    bench.run(again)
    assert_agrees(again.samples[0], bench.unsplit_logprobs([*again.samples[0].prompt, *again.samples[0].completion]))


# ---- what a step costs


GREEDY, PLAIN, TOP_P = (SamplingParams(max_new_tokens=60, **each) for each in ({"temperature": 0.0}, {}, {"top_p": 0.9}))


@pytest.mark.parametrize(
    ("params", "most_launches"), [(GREEDY, 34), (PLAIN, 47), (TOP_P, 90)], ids=["greedy", "plain", "top_p"]
)
def test_what_a_decode_step_costs(
    params: SamplingParams, most_launches: int, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside two replays: the same few launches whatever the number of texts, three copies there, one back, no other wait; and no table,
    unless a text gets a block."""
    counted = Launches()

    class Counted(Again):
        def replay(self) -> None:
            counted.is_replaying = True
            super().replay()
            counted.is_replaying = False

    reads: list[int] = []
    read = ReadBack.read
    monkeypatch.setattr(ReadBack, "read", lambda back: (reads.append(1), read(back))[1])
    sent: list[int] = []
    numbers = upload.upload_numbers
    monkeypatch.setattr(
        "polyhead.server.engine.layers.cuda.sampler.upload_numbers", lambda *given: (sent.append(1), numbers(*given))[1]
    )
    bench = opened(llama_folder, monkeypatch, Counted, is_ahead=True)
    costs = []
    for count in (2, 7):
        requests = [bench.sampled(bench.prompt(16, seed + 10 * count), params=params) for seed in range(count)]
        bench.start(*requests, steps=4)  # 16 of prompt: the second block has room for 15 more
        costs.append([])
        for _ in range(24):
            if bench.engine.stepper.under_way is None:
                bench.engine.step()
                continue
            before = [(graphs.staging.num_copies, graphs.staging.num_bytes, graphs.num_replayed) for graphs in graphs_of(bench)]
            counted.counts.clear()
            reads.clear()
            sent.clear()
            with counted:
                bench.engine.step()
            after = [(graphs.staging.num_copies, graphs.staging.num_bytes, graphs.num_replayed) for graphs in graphs_of(bench)]
            changes = [tuple(np.subtract(one, other)) for one, other in zip(after, before, strict=True)]
            if bench.engine.stepper.under_way is None:  # the step behind it was not launched: it looked at the queue
                continue
            assert [(copies, replays) for copies, _, replays in changes] == [(1, 1), (1, 1)]
            assert (len(reads), len(sent), counted.num_waits) == (1, 1, 0), counted.counts
            costs[-1].append((sum(counted.counts.values()), changes[0][1], changes[1][1]))
        bench.finish(*requests)
    for count, steps in zip((2, 8), costs, strict=True):
        few = min(steps)
        assert few[0] <= most_launches, "of the sampler, the copies, and what puts tokens where the trunk reads them"
        assert few[1:] == (40 * count, 32 * count), "trunk: five numbers a row and where its token is; head: five numbers"
        assert sum(each[1:] != few[1:] for each in steps) == 1, "the step in which all texts get a block"
    assert min(costs[0])[0] == min(costs[1])[0], "launches do not grow with the number of texts"


class Block:
    def __init__(self, slot: int) -> None:
        self.slot = slot


def table_of(tables: BlockTables, texts: list[DecodeRow]) -> tuple[list[list[int]], int]:
    """What the device has for these texts once a step of them is sent, and how many numbers that took."""
    delta = tables.update(texts)
    tables.table.view(-1)[torch.tensor(delta.at, dtype=torch.long)] = torch.tensor(delta.slots, dtype=torch.int32)
    return [tables.table[row, : text.position // 4 + 1].tolist() for row, text in zip(delta.rows, texts, strict=True)], len(delta.at)


def test_tables_hold_what_texts_have() -> None:
    """Growing, with a slot ahead of its block, placed anew, and more texts over time than there are rows."""
    tables = BlockTables(4, 8, 4, torch.device("cpu"))
    one, two = [Block(3)], [Block(5), Block(6)]
    assert table_of(tables, [DecodeRow(0, 2, one), DecodeRow(0, 5, two)]) == ([[3], [5, 6]], 3)
    assert table_of(tables, [DecodeRow(0, 6, two), DecodeRow(0, 3, one)]) == ([[5, 6], [3]], 0)
    assert table_of(tables, [DecodeRow(0, 4, one, next_slot=9), DecodeRow(0, 7, two)]) == ([[3, 9], [5, 6]], 1)
    one.append(Block(9))
    assert table_of(tables, [DecodeRow(0, 5, one)]) == ([[3, 9]], 0), "it was sent ahead"
    one.append(Block(2))
    assert table_of(tables, [DecodeRow(0, 8, one)]) == ([[3, 9, 2]], 1)
    one[:] = [Block(7), Block(8), Block(1)]
    assert table_of(tables, [DecodeRow(0, 9, one)]) == ([[7, 8, 1]], 3), "its text was given back, and placed anew"
    others = [[Block(10 + index)] for index in range(5)]
    for each in others:
        assert table_of(tables, [DecodeRow(0, 0, each), DecodeRow(0, 9, one)])[0] == [[each[0].slot], [7, 8, 1]]
    assert table_of(tables, [DecodeRow(0, 7, two)]) == ([[5, 6]], 2), "unused for the longest time, it was forgotten"
