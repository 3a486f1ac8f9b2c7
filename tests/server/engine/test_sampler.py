"""Draws: the right distribution, the same filters as transformers' `generate`, and no bad row that harms another."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from polyhead.server.engine import sampler
from polyhead.server.engine.sampler import DrawRow, draw, shape_logprobs, uniform
from polyhead.server.engine.sequence import SamplingParams


def random_logits(rows: int, vocab: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(top_k=5),
        SamplingParams(top_k=1),
        SamplingParams(top_k=500),
        SamplingParams(top_p=0.8),
        SamplingParams(top_p=1e-6),
        SamplingParams(min_p=0.2),
        SamplingParams(repetition_penalty=1.7),
        SamplingParams(temperature=1.3, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=0.8),
    ],
)
def test_filters_equal_those_of_transformers(params: SamplingParams) -> None:
    logits = random_logits(6)
    seen = [[1, 2, 2, 7], [3], [0, 49], [5, 6], [8], [9, 10]]
    chain = LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    ours = shape_logprobs(logits, logits.log_softmax(-1), [params] * 6, seen).exp()
    for row in range(6):
        theirs = chain(torch.tensor([seen[row]]), logits[row : row + 1].clone())[0].softmax(-1)
        assert torch.allclose(ours[row], theirs, atol=1e-6)


def test_draws_follow_the_distribution() -> None:
    """Chi-squared over 20 000 draws of one row, fixed seeds: far below the 99.9 % bound for 9 degrees of freedom."""
    logits = random_logits(1, vocab=10, seed=3)
    num = 20_000
    params = SamplingParams(temperature=0.9)
    counts = torch.zeros(10)
    for start in range(0, num, 1000):
        rows = [DrawRow(params, seed=start + index, position=index % 7, seen=[]) for index in range(1000)]
        counts += torch.bincount(torch.tensor(draw(logits.expand(1000, -1), rows).token_ids), minlength=10)
    expected = (logits[0] / 0.9).softmax(-1) * num
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9


def test_uniform_numbers_are_spread_and_repeatable() -> None:
    numbers = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert len(set(numbers)) == 10_000
    assert abs(sum(numbers) / 10_000 - 0.5) < 0.01
    assert uniform(2**64 - 1, 5) == uniform(2**64 - 1, 5)


def test_greedy_takes_the_likeliest_and_says_so() -> None:
    logits = random_logits(3)
    greedy = SamplingParams(temperature=0.0)
    rows = [DrawRow(greedy, 1, 0, []), DrawRow(SamplingParams(), 1, 0, []), DrawRow(greedy, 2, 0, [])]
    drawn = draw(logits, rows)
    assert [drawn.token_ids[0], drawn.token_ids[2]] == logits.argmax(-1)[[0, 2]].tolist()
    assert drawn.sampling_logprobs[0] == 0.0
    assert drawn.logprobs[0] == pytest.approx(logits[0].log_softmax(-1).max().item())


@pytest.mark.parametrize("vocab", [1, 32, 256, 300, 1024])
def test_greedy_takes_the_first_of_the_likeliest(vocab: int) -> None:
    """Wherever in its group it stands."""
    logits = torch.randn(200, vocab, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    rows = [DrawRow(SamplingParams(temperature=0.0), 0, 0, [])] * len(logits)
    firsts = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert draw(logits, rows).token_ids == firsts


def test_a_row_that_is_not_finite_harms_no_other() -> None:
    """torch.multinomial raises for the whole batch on one NaN."""
    logits = random_logits(4)
    rows = [DrawRow(SamplingParams(), seed, 0, []) for seed in range(4)]
    alone = draw(logits, rows)
    poisoned = logits.clone()
    poisoned[2, 7] = math.nan
    among = draw(poisoned, rows)
    assert among.is_finite == [True, True, False, True]
    for row in (0, 1, 3):
        assert among.token_ids[row] == alone.token_ids[row]
        assert among.logprobs[row] == alone.logprobs[row]


def test_truncated_tokens_are_never_drawn() -> None:
    logits = random_logits(1, seed=5)
    allowed = set(logits[0].topk(3).indices.tolist())
    rows = [DrawRow(SamplingParams(top_k=3), seed, 0, []) for seed in range(500)]
    assert set(draw(logits.expand(500, -1), rows).token_ids) == allowed


@pytest.mark.parametrize("params", [SamplingParams(temperature=1e-38), SamplingParams(repetition_penalty=0.01)])
def test_extreme_parameters_still_give_a_distribution(params: SamplingParams) -> None:
    """Dividing by a tiny temperature overflowed to NaN, and the last token of the vocabulary was drawn."""
    logits = random_logits(1)
    drawn = draw(logits, [DrawRow(params, 3, 0, [1, 2])])
    assert math.isfinite(drawn.sampling_logprobs[0])
    if params.temperature < 1.0:
        assert drawn.token_ids == [int(logits.argmax())]


def test_top_p_keeps_enough_of_a_flat_distribution() -> None:
    """Wider than the first thousand tokens that are looked at."""
    logits = torch.zeros(1, 5000)
    kept = shape_logprobs(logits, logits.log_softmax(-1), [SamplingParams(top_p=0.5)], [[]]).exp()[0]
    assert int((kept > 0).sum()) == pytest.approx(2500, abs=2)


@pytest.mark.parametrize("vocab", [5, 256, 1000])
def test_a_token_that_cannot_come_is_never_drawn(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At both ends of the unit interval, too, where rounding could lead past the last token that can."""
    for possible in ([0], [vocab - 1], [vocab // 2], [1, vocab - 2]):
        logits = torch.full((3, vocab), -1e30)
        logits[:, possible] = torch.linspace(0, 3, len(possible))
        for number in (0.0, 1e-300, 0.5, 1.0 - 2.0**-53):
            monkeypatch.setattr(sampler, "uniform", lambda seed, position, number=number: number)
            drawn = draw(logits, [DrawRow(SamplingParams(), seed, 0, []) for seed in range(3)])
            assert set(drawn.token_ids) <= set(possible)
            if number in (0.0, 1.0 - 2.0**-53):
                assert drawn.token_ids == [possible[0 if number == 0.0 else -1]] * 3
