"""What a policy head says of the distribution at each token beside the log-prob: entropies and the likeliest tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyhead.server.engine.schedule import scored_rows
from polyhead.server.engine.schedule.scorer import PolicyResult
from polyhead.server.engine.work.sampling import SamplingParams
from tests.server.engine.harness import Bench, scores

PENALISED = SamplingParams(temperature=0.7, top_p=0.9, repetition_penalty=1.3)


def reference(bench: Bench, num_tokens: int, num_top: int = 5) -> PolicyResult:
    request = bench.given(
        bench.prompt(10), bench.prompt(num_tokens, 1), score=("reference",), score_sampling=PENALISED, with_entropy=True, num_top=num_top
    )
    bench.run(request)
    result = scores(request.samples[0])["reference"].result
    assert isinstance(result, PolicyResult)
    return result


def test_they_are_those_of_the_unsplit_model(bench: Bench) -> None:
    result = reference(bench, 40)
    rows = bench.unsplit_logprobs([*bench.prompt(10), *bench.prompt(40, 1)])[9:49].double()
    assert result.entropies == pytest.approx(-(rows.exp() * rows).sum(-1).numpy(), abs=1e-4)
    top = rows.topk(5)
    assert result.top_logprobs == pytest.approx(top.values.numpy(), abs=1e-4)
    assert rows.gather(1, torch.from_numpy(result.top_token_ids)).numpy() == pytest.approx(top.values.numpy(), abs=1e-4)
    assert (np.diff(result.top_logprobs) <= 0).all()
    assert result.top_token_ids.shape == (40, 5)


def test_a_drawn_sample_has_them_too_and_without_asking_they_are_empty(bench: Bench) -> None:
    asked = bench.sampled(bench.prompt(10), score=("reference",), with_entropy=True, num_top=2)
    plain = bench.sampled(bench.prompt(10), score=("reference",))
    bench.run(asked, plain)
    result, without = (scores(each.samples[0])["reference"].result for each in (asked, plain))
    assert isinstance(result, PolicyResult)
    assert isinstance(without, PolicyResult)
    assert (result.entropies.shape, result.top_token_ids.shape) == ((8,), (8, 2))
    assert (without.entropies.shape, without.top_token_ids.shape, without.top_logprobs.shape) == ((0,), (0, 0), (0, 0))
    assert result.logprobs == pytest.approx(asked.samples[0].logprobs, abs=1e-4)


def test_slices_change_no_number_and_bound_what_is_held_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long completion's (tokens, vocab) log-probs stood in memory a second and a third time."""
    held: list[int] = []
    plain = scored_rows._rows_of
    monkeypatch.setattr(scored_rows, "_rows_of", lambda *given: (held.append(len(found := plain(*given))), found)[1])
    found = []
    for num_rows in (64, 7, 10_000):
        monkeypatch.setattr(scored_rows, "SLICE_ROWS", num_rows)
        held.clear()
        found.append(reference(bench, 150))
        assert max(held) <= num_rows
        assert sum(held) == 150
    for name in ("logprobs", "sampling_logprobs", "entropies", "top_token_ids", "top_logprobs"):
        first, *others = (getattr(each, name) for each in found)
        assert len(first) == 150
        assert all(other.tobytes() == first.tobytes() for other in others), name


def test_a_token_that_cannot_come_adds_no_entropy() -> None:
    raw = torch.tensor([[0.0, -float("inf")], [-np.log(2), -np.log(2)]])
    assert scored_rows._entropy(raw).tolist() == pytest.approx([0.0, np.log(2)])
