"""Draws: the right distribution, the same filters as transformers' `generate`, and no bad row that harms another."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
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

from polyhead.server.engine.compiled.sampler import draw as compiled_draw
from polyhead.server.engine.layers import sampler
from polyhead.server.engine.layers.cuda import sampler as cuda_sampler
from polyhead.server.engine.layers.cuda.staging import ReadBack
from polyhead.server.engine.layers.sampler import Draw, DrawRow, Draws, uniform
from polyhead.server.engine.work.sampling import SamplingParams

WAYS: dict[str, Draw] = {"torch": sampler.draw, "compiled": compiled_draw, "cuda": cuda_sampler.draw}


@pytest.fixture(params=list(WAYS))
def draw(request: pytest.FixtureRequest) -> Draw:
    """Any of the three ways."""
    return WAYS[request.param]


def shaped(draw: Draw, logits: torch.Tensor, params: SamplingParams, seen: Sequence[int] = ()) -> torch.Tensor:
    """(vocab,), the probabilities of one row of logits: every token looked up."""
    rows = [DrawRow(params, seen=seen, token_id=token_id) for token_id in range(len(logits))]
    return torch.from_numpy(draw(logits.expand(len(logits), -1), rows).sampling_logprobs).exp()


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
def test_filters_equal_those_of_transformers(params: SamplingParams, draw: Draw) -> None:
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
    for row in range(6):
        theirs = chain(torch.tensor([seen[row]]), logits[row : row + 1].clone())[0].softmax(-1)
        assert torch.allclose(shaped(draw, logits[row], params, seen[row]), theirs, atol=1e-6)


def test_draws_follow_the_distribution(draw: Draw) -> None:
    """Chi-squared over 20 000 draws of one row, fixed seeds: far below the 99.9 % bound for 9 degrees of freedom."""
    logits = random_logits(1, vocab=10, seed=3)
    num = 20_000
    params = SamplingParams(temperature=0.9)
    counts = torch.zeros(10)
    for start in range(0, num, 1000):
        rows = [DrawRow(params, seed=start + index, position=index % 7, seen=[]) for index in range(1000)]
        counts += torch.bincount(torch.from_numpy(draw(logits.expand(1000, -1), rows).token_ids), minlength=10)
    expected = (logits[0] / 0.9).softmax(-1) * num
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9


def test_uniform_numbers_are_spread_and_repeatable() -> None:
    numbers = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert all(0.0 <= number < 1.0 for number in numbers)
    assert len(set(numbers)) == 10_000
    assert abs(sum(numbers) / 10_000 - 0.5) < 0.01
    assert uniform(2**64 - 1, 5) == uniform(2**64 - 1, 5)


def test_greedy_takes_the_likeliest_and_says_so(draw: Draw) -> None:
    logits = random_logits(3)
    greedy = SamplingParams(temperature=0.0)
    rows = [DrawRow(greedy, 1, 0, []), DrawRow(SamplingParams(), 1, 0, []), DrawRow(greedy, 2, 0, [])]
    drawn = draw(logits, rows)
    assert [drawn.token_ids[0], drawn.token_ids[2]] == logits.argmax(-1)[[0, 2]].tolist()
    assert drawn.sampling_logprobs[0] == 0.0
    assert drawn.logprobs[0] == pytest.approx(logits[0].log_softmax(-1).max().item())


@pytest.mark.parametrize("vocab", [1, 32, 256, 300, 1024])
def test_greedy_takes_the_first_of_the_likeliest(vocab: int, draw: Draw) -> None:
    """Wherever in its group it stands."""
    logits = torch.randn(200, vocab, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    rows = [DrawRow(SamplingParams(temperature=0.0), 0, 0, [])] * len(logits)
    firsts = [int((row == row.max()).nonzero()[0]) for row in logits]
    assert draw(logits, rows).token_ids.tolist() == firsts


def test_a_row_that_is_not_finite_harms_no_other(draw: Draw) -> None:
    """torch.multinomial raises for the whole batch on one NaN."""
    logits = random_logits(4)
    rows = [DrawRow(SamplingParams(), seed, 0, []) for seed in range(4)]
    alone = draw(logits, rows)
    poisoned = logits.clone()
    poisoned[2, 7] = math.nan
    among = draw(poisoned, rows)
    assert among.is_finite == [True, True, False, True]
    assert math.isnan(among.logprobs[2])  # which a score must show
    assert math.isnan(among.sampling_logprobs[2])
    for row in (0, 1, 3):
        assert among.token_ids[row] == alone.token_ids[row]
        assert among.logprobs[row] == alone.logprobs[row]


def test_truncated_tokens_are_never_drawn(draw: Draw) -> None:
    logits = random_logits(1, seed=5)
    allowed = set(logits[0].topk(3).indices.tolist())
    rows = [DrawRow(SamplingParams(top_k=3), seed, 0, []) for seed in range(500)]
    assert set(draw(logits.expand(500, -1), rows).token_ids.tolist()) == allowed


@pytest.mark.parametrize("params", [SamplingParams(temperature=1e-38), SamplingParams(repetition_penalty=0.01)])
def test_extreme_parameters_still_give_a_distribution(params: SamplingParams, draw: Draw) -> None:
    """Dividing by a tiny temperature overflowed to NaN, and the last token of the vocabulary was drawn."""
    logits = random_logits(1)
    drawn = draw(logits, [DrawRow(params, 3, 0, [1, 2])])
    assert math.isfinite(drawn.sampling_logprobs[0])
    if params.temperature < 1.0:
        assert drawn.token_ids.tolist() == [int(logits.argmax())]


def test_top_p_keeps_enough_of_a_flat_distribution(draw: Draw) -> None:
    """Wider than any part of it that is looked at first; of equal tokens the first ones stay."""
    kept = shaped(draw, torch.zeros(3000), SamplingParams(top_p=0.5)) > 0
    assert int(kept.sum()) == pytest.approx(1500, abs=2)
    assert bool(kept[:1498].all())


def test_top_k_keeps_all_that_are_as_likely_as_the_last(draw: Draw) -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 1.0, 2.0, 1.0, -5.0])
    assert (shaped(draw, logits, SamplingParams(top_k=3)) > 0).tolist() == [False, True, True, True, True, True, False]


@pytest.mark.parametrize("vocab", [5, 256, 1000])
def test_a_token_that_cannot_come_is_never_drawn(vocab: int, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """At both ends of the unit interval, too, where rounding could lead past the last token that can."""
    for possible in ([0], [vocab - 1], [vocab // 2], [1, vocab - 2]):
        logits = torch.full((3, vocab), -1e30)
        logits[:, possible] = torch.linspace(0, 3, len(possible))
        for number in (0.0, 1e-300, 0.5, 1.0 - 2.0**-53):
            for module in (sampler, cuda_sampler):
                monkeypatch.setattr(module, "uniform", lambda seed, position, number=number: number)
            drawn = draw(logits, [DrawRow(SamplingParams(), seed, 0, []) for seed in range(3)])
            assert set(drawn.token_ids.tolist()) <= set(possible)
            if number in (0.0, 1.0 - 2.0**-53):
                assert drawn.token_ids.tolist() == [possible[0 if number == 0.0 else -1]] * 3


def random_params(chance: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=chance.choice([0.0, 1.0, 1.0, 0.7, 1.5, 1e-38]),
        top_k=chance.choice([0, 0, 1, 5, 50, 10**6]),
        top_p=chance.choice([1.0, 1.0, 0.9, 0.5, 1e-6]),
        min_p=chance.choice([0.0, 0.0, 0.05, 0.3]),
        repetition_penalty=chance.choice([1.0, 1.0, 1.3]),
    )


@pytest.mark.parametrize("vocab", [1, 5, 31, 32, 50, 256, 257, 1000, 49152])
@pytest.mark.parametrize("other", ["compiled", "cuda"])
def test_all_ways_draw_the_same_and_say_the_same_of_it(vocab: int, other: str) -> None:
    """Any parameters beside any others, drawn and looked up."""
    chance = random.Random(vocab)
    for trial in range(20):
        logits = torch.randn(7, vocab, generator=torch.Generator().manual_seed(trial)) * chance.choice([0.1, 2.0, 8.0])
        rows = [
            DrawRow(
                random_params(chance),
                seed=chance.randrange(1 << 60),
                position=position,
                seen=[chance.randrange(vocab) for _ in range(5)],
                token_id=chance.choice([-1, -1, chance.randrange(vocab)]),
            )
            for position in range(7)
        ]
        found, wanted = WAYS[other](logits, rows), sampler.draw(logits, rows)
        assert found.token_ids.tolist() == wanted.token_ids.tolist()
        for name in ("logprobs", "sampling_logprobs", "largest", "log_sums"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.7, top_p=0.9), SamplingParams(temperature=0.0)])
def test_a_token_beyond_the_logits_is_not_looked_up(params: SamplingParams, draw: Draw) -> None:
    """Compiled code read the next row's first logit there, and past the last row somebody else's memory."""
    logits = random_logits(3, vocab=300)
    wanted = draw(logits, [DrawRow(params, token_id=token_id) for token_id in (5, 6, 7)])
    for beyond in (300, 301, 1 << 31):
        found = draw(logits, [DrawRow(params, token_id=token_id) for token_id in (5, beyond, 7)])
        assert found.is_finite == [True, False, True]
        for name in ("logprobs", "sampling_logprobs"):
            numbers = getattr(found, name)
            assert math.isnan(numbers[1])
            assert numbers[::2].tolist() == getattr(wanted, name)[::2].tolist()


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.7, top_p=0.9), SamplingParams(temperature=0.0)])
def test_a_token_looked_up_has_the_bits_of_the_draw(params: SamplingParams, draw: Draw) -> None:
    """Beside other rows, or alone: what Score says is what sampling said."""
    logits = random_logits(9, vocab=700)
    drawn = draw(logits, [DrawRow(params, seed=seed) for seed in range(9)])
    for row, token_id in enumerate(drawn.token_ids.tolist()):
        alone = draw(logits[row : row + 1], [DrawRow(params, token_id=token_id)])
        assert (alone.logprobs[0], alone.sampling_logprobs[0]) == (drawn.logprobs[row], drawn.sampling_logprobs[row])


def test_the_gpus_way_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without numbers: all but the last copy runs, with every filter, and would raise where it read a number."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    read: list[tuple[int, ...]] = []

    def read_back(numbers: torch.Tensor) -> np.ndarray:
        read.append(tuple(numbers.shape))
        assert (numbers.device.type, numbers.dtype) == ("meta", torch.float32)
        return np.zeros(numbers.shape, dtype=np.float32)

    monkeypatch.setattr(ReadBack, "read", lambda back: read_back(back._numbers))
    chance = random.Random(1)
    rows = [DrawRow(random_params(chance), seed=seed, seen=[1, 2, 3], token_id=chance.choice([-1, 4])) for seed in range(20)]
    for some in (rows, [DrawRow(SamplingParams(temperature=0.0))], [DrawRow(SamplingParams())]):
        draws = cuda_sampler.draw(torch.empty(len(some), 300, device="meta"), some)
        assert isinstance(draws, Draws)
        assert (draws.token_ids.dtype, draws.log_sums.dtype) == (np.int64, np.float32)
    assert read == [(6 * 20,), (6,), (6,)]
