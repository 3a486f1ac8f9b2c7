"""A model shared by ranks answers as one process does: ids equal, log-probs but for rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyhead.server.engine.schedule.scorer import PolicyResult, PreferenceResult, ValueResult
from polyhead.server.engine.work.request import OnSwap, Request
from polyhead.server.engine.work.sampling import SamplingParams
from tests.heads.models import save_tiny
from tests.server.engine.harness import Bench, scores
from tests.server.parallel.harness import SharedBench

TOLERANCE = 2e-5  # of log-probs: single precision, and these models have large numbers inside


def answered(bench: Bench) -> list[tuple[list[int], list[float], list[float]]]:
    """Prefills, decoding, drawn and given texts, a shared prefix, partly filled blocks, scoring heads and a rule."""
    params = SamplingParams(max_new_tokens=12)
    asked: Any = {"score": ("value", "reference", "rule"), "rules": {"r": (7, 8, 9)}}
    requests = [bench.sampled(bench.prompt(20 + 9 * seed, seed), 2, params, **asked) for seed in range(2)]
    requests.append(bench.given(bench.prompt(20), bench.prompt(6, 5), score=("preference", "value")))
    bench.run(*requests)
    again = bench.sampled(bench.prompt(20), 1, params, on_swap=OnSwap.FOLLOW)
    assert bench.counted(again) < 20
    return [each for request in (*requests, again) for each in numbers_of(request)]


def numbers_of(request: Request) -> list[tuple[list[int], list[float], list[float]]]:
    found = []
    for sample in request.samples:
        values = [number for _, result in sorted(scores(sample).items()) for number in floats(result.result)]
        found.append((sample.completion, list(sample.logprobs), values))
    return found


def floats(result: Any) -> list[float]:
    match result:
        case PolicyResult():
            return [*result.logprobs]
        case ValueResult():
            return [*result.values, result.bootstrap_value]
        case PreferenceResult():
            return [result.raw]
    return [number for rule in result for number in (rule.p_violate, rule.answer_mass)]


@pytest.mark.parametrize(
    ("family", "size"),
    [
        ("qwen3", 2),  # tied, with norms of queries and keys, and windows; the end-to-end test has llama, with biases
        *(pytest.param(family, 2, marks=pytest.mark.long) for family in ("llama", "mistral", "qwen2")),
        pytest.param("qwen2", 4, marks=pytest.mark.long),
    ],
)
def test_ranks_answer_as_one(family: str, size: int, tmp_path: Path) -> None:
    save_tiny(family, tmp_path, tie_word_embeddings=family == "qwen3", max_position_embeddings=256, num_key_value_heads=size)
    wanted = answered(Bench.open(tmp_path, 2))
    with SharedBench.shared(tmp_path, 2, size) as bench:
        assert_close(answered(bench), wanted)
        bench.assert_blocks_returned()


def assert_close(found: Any, wanted: Any) -> None:
    assert [each[0] for each in found] == [each[0] for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one[1] == pytest.approx(other[1], abs=TOLERANCE)
        assert one[2] == pytest.approx(other[2], abs=5 * TOLERANCE)  # values are no probabilities: they go up to some tens
