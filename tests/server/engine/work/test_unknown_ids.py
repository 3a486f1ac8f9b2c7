"""A token that the model does not have, should the door ever let one through: it ends its own sample, and the others never know."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polyhead.server.engine.work.request import Request
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from tests.server.engine.harness import Bench, scores

SCORED = ("policy", "value", "preference")


def in_prompt(bench: Bench, beyond: int) -> Request:
    return bench.sampled([6, beyond, 7], params=SamplingParams(max_new_tokens=4))


def in_completion(bench: Bench, beyond: int) -> Request:
    return bench.given([6, 7], [8, beyond], score=SCORED)


def in_rule(bench: Bench, beyond: int) -> Request:
    return bench.given([6, 7], [8], score=("rule",), rules={"r": (9, beyond)})


@pytest.mark.parametrize("make", [in_prompt, in_completion, in_rule])
def test_it_ends_its_own_sample(bench: Bench, make: Callable[[Bench, int], Request]) -> None:
    """An IndexError ended everybody in that step; a completion's last token was looked up beyond the logits."""
    beyond = bench.spec.vocab_size
    params = SamplingParams(max_new_tokens=6, temperature=0.0)
    alone = bench.sampled(bench.prompt(20), params=params, score=SCORED)
    bench.run(alone)
    bad, good = make(bench, beyond), bench.sampled(bench.prompt(20), params=params, score=SCORED)
    bench.add_samples(bad, [6, 7], params=params)
    bench.run(good, bad, bench.sampled(bench.prompt(9), params=params))
    [broken, neighbour], [wanted], [sample] = bad.samples, alone.samples, good.samples
    assert sample.completion == wanted.completion
    assert sample.logprobs == pytest.approx(wanted.logprobs, abs=1e-4)
    assert broken.finish_reason is FinishReason.FAILED
    assert broken.error == f"token id outside the vocabulary of {beyond}: {beyond}"
    assert {result.error for result in scores(broken).values()} <= {broken.error}
    if make is not in_rule:  # a rule is asked of every sample of its request
        assert len(neighbour.completion) == params.max_new_tokens
    bench.assert_blocks_returned()
