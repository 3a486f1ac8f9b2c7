"""The meanings that RL depends on: values and bootstrap, seeds, leases, failures, boundary states."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from polyhead.heads.format.errors import Aborted, ResourceExhausted
from polyhead.heads.format.kinds import HeadKind, ReadPosition, Unfinished
from polyhead.server.engine.layers.sampler import sample_seed
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.engine.work.reports import QueueLimits
from polyhead.server.engine.work.request import OnSwap, Priority
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from tests.server.engine.harness import Bench, scores

SIX = SamplingParams(max_new_tokens=6)


class ScriptedText:
    """A text stream that finds its stop string at a given token."""

    def __init__(self, stop_at: int) -> None:
        self.text, self.matched_stop, self._left = "", "", stop_at

    def push(self, token_id: int) -> str:
        self._left -= 1
        self.matched_stop = "stop" if self._left == 0 else ""
        return ""

    def finish(self) -> str:
        return ""


@torch.no_grad()
def hand_values(bench: Bench, tokens: list[int]) -> list[float]:
    """V at every position, through plain modules with transformers' own attention."""
    from polyhead.heads.model.family import build_head, build_trunk

    live = bench.engine.active.heads["value"].live
    trunk = build_trunk(bench.checkpoint, bench.spec, torch.float32)
    head = build_head(bench.spec, bench.tensors[live.digest], live.module.output, None, torch.float32)
    positions = torch.arange(len(tokens))[None]
    return head(trunk(torch.tensor([tokens]), positions), positions).tolist()


@pytest.mark.parametrize("ending", ["eos", "stop_id", "stop_string", "length"])
def test_values_and_bootstrap_by_hand(bench: Bench, ending: str) -> None:
    """values[t] is V before token t; the bootstrap is V at the last token, and 0 for a sample that ended by itself."""
    prompt = bench.prompt(20)
    probe = bench.sampled(prompt, params=SIX)
    bench.run(probe)
    third = probe.samples[0].completion[2]
    request = bench.sampled(prompt, params=SIX, score=("value",))
    sample = request.samples[0]
    sample.seed = probe.samples[0].seed
    if ending == "eos":
        bench.engine.scheduler.eos_ids = frozenset({third})
    elif ending == "stop_id":
        sample.params = SamplingParams(max_new_tokens=6, stop_token_ids=frozenset({third}))
    elif ending == "stop_string":
        sample.text = ScriptedText(3)
    bench.run(request)
    num = 6 if ending == "length" else 3
    assert sample.finish_reason is FinishReason(ending)
    assert sample.completion == probe.samples[0].completion[:num], "the ending token is part of the sample"
    by_hand = hand_values(bench, [*prompt, *sample.completion])
    result = scores(sample)["value"].result
    assert result.values == pytest.approx(by_hand[19 : 19 + num], abs=1e-4)
    assert len(result.values) == len(sample.logprobs) == num
    assert result.bootstrap_value == (pytest.approx(by_hand[-1], abs=1e-4) if ending == "length" else 0.0)


def test_abort_returns_what_was_drawn(bench: Bench) -> None:
    request = bench.sampled(bench.prompt(20), params=SIX, score=("value",))
    bench.engine.submit(request)
    bench.engine._empty_inbox()
    for _ in range(3):
        bench.engine.step()
    bench.engine.cancel(request, Aborted("test"))
    bench.engine._empty_inbox()
    sample = request.samples[0]
    assert sample.finish_reason is FinishReason.ABORTED
    assert not sample.is_terminated
    assert len(sample.completion) == len(sample.logprobs) == 3
    bench.assert_blocks_returned()


def test_ignore_eos_goes_on(bench: Bench) -> None:
    probe = bench.sampled(bench.prompt(20), params=SIX)
    bench.run(probe)
    bench.engine.scheduler.eos_ids = frozenset({probe.samples[0].completion[1]})
    request = bench.sampled(bench.prompt(20), params=SamplingParams(max_new_tokens=6, ignore_eos=True))
    bench.run(request)
    assert request.samples[0].completion == probe.samples[0].completion


def test_preference_is_read_where_the_manifest_says(bench: Bench) -> None:
    prompt, completion = bench.prompt(20), bench.prompt(5, 3)
    by_hand = hand_values(bench, [*prompt, *completion])
    live = bench.engine.active.heads["value"].live

    def read(is_terminated: bool, **manifest: object) -> object:
        bench.activate(2, policy=bench.engine.active.heads["policy"].live, value=live, **manifest)
        request = bench.given(prompt, completion, is_terminated, score=("preference",))
        bench.run(request)
        return scores(request.samples[0])["preference"].result

    assert read(True, bias=0.5).raw == pytest.approx(by_hand[-1], abs=1e-4)
    assert read(True, bias=0.5).bias == 0.5
    assert read(True, bias=0.5, scale=4.0).value == pytest.approx((by_hand[-1] - 0.5) / 4, abs=1e-4)
    appended = read(True, read=ReadPosition.APPEND, append_token_id=9)
    assert appended.raw == pytest.approx(hand_values(bench, [*prompt, *completion, 9])[-1], abs=1e-4)
    bench.engine.scheduler.eos_ids = frozenset({completion[3]})
    assert read(True, read=ReadPosition.EOS).raw == pytest.approx(by_hand[20 + 3], abs=1e-4)
    assert not read(False, unfinished=Unfinished.OMIT).is_present


@pytest.mark.parametrize("num_pads", [0, 1, 5, 7, 25])
def test_padding_is_passed_over_as_the_classifier_does(bench: Bench, num_pads: int) -> None:
    """The rule is ForSequenceClassification's own: the rightmost token that is not padding, the first one if all are.

    With a padding token that is the EOS this stands before the EOS, in the prompt if the completion is nothing else. A second request,
    whose head states are cached, reads the same.
    """
    pad = 5
    tokens = [token if token != pad else 6 for token in [*bench.prompt(20), *bench.prompt(5, 3)]]
    tokens[25 - num_pads :] = [pad] * num_pads
    positions = torch.arange(25) * (torch.tensor(tokens) != pad)
    expected = int(positions.argmax())
    bench.activate(2, policy=bench.engine.active.heads["policy"].live, value=bench.engine.active.heads["value"].live, pad_token_id=pad)
    for _ in range(2):
        request = bench.given(tokens[:20], tokens[20:], True, score=("preference",))
        bench.run(request)
        result = scores(request.samples[0])["preference"].result
        assert result.position == expected
        assert result.raw == pytest.approx(hand_values(bench, tokens)[expected], abs=1e-4)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_value_heads_bias_is_subtracted(bench: Bench, scale: float) -> None:
    """TRL's value heads have one; a scale divides what is left. The bootstrap of a sample that ended by itself stays 0."""
    prompt, completion = bench.prompt(20), bench.prompt(5, 3)
    by_hand = (np.array(hand_values(bench, [*prompt, *completion])) + 0.25) / scale
    value = bench.engine.active.heads["value"]
    biased = dataclasses.replace(value, manifest=dataclasses.replace(value.manifest, bias=-0.25, scale=scale))
    bench.engine.active.heads["value"] = biased
    for is_terminated in (False, True):
        request = bench.given(prompt, completion, is_terminated, score=("value",))
        bench.run(request)
        result = scores(request.samples[0])["value"].result
        assert result.values == pytest.approx(by_hand[19:24], abs=1e-4)
        assert result.bootstrap_value == (0.0 if is_terminated else pytest.approx(by_hand[24], abs=1e-4))


def test_a_sample_keeps_its_generation_through_a_swap(bench: Bench) -> None:
    """PIN: a request that began on version 1 ends on version 1, its scoring included; the next one gets version 2, whole."""

    def favour(token: int) -> object:
        return lambda tensors: tensors["model.norm.weight"].mul_(token)

    running = bench.sampled(bench.prompt(20), n=2, params=SIX, score=("value", "reference"))
    bench.engine.submit(running)
    bench.engine._empty_inbox()
    for _ in range(3):
        bench.engine.step()
    bench.activate(2, policy=bench.policy("new", favour(3)), value=bench.scalar("new-value", seed=9))
    after = bench.sampled(bench.prompt(20), params=SIX, score=("value", "reference"))
    bench.run(after)
    while not running.is_ended:
        bench.engine.step()
    for request, version in ((running, 1), (after, 2)):
        for sample in request.samples:
            assert {sample.head.version, *(result.head.version for result in scores(sample).values())} == {version}
            assert request.lease.generation == version
    plain = bench.unsplit_logprobs([*running.samples[0].prompt, *running.samples[0].completion])
    for index, token in enumerate(running.samples[0].completion):
        assert running.samples[0].logprobs[index] == pytest.approx(plain[19 + index, token].item(), abs=1e-4)
    assert bench.engine.leased_digests() == {}


def test_a_name_that_changed_its_kind_refuses_the_request_alone(bench: Bench) -> None:
    """Checked at the door as a policy, leased as a scalar head: the engine must not take scalars for logits."""
    neighbour = bench.sampled(bench.prompt(20), params=SIX)
    waiting = bench.sampled(bench.prompt(21), params=SIX, score=("reference",))
    waiting.head_kinds = {**waiting.head_kinds, "reference": HeadKind.VALUE}
    bench.run(neighbour, waiting)
    assert waiting.samples[0].finish_reason is FinishReason.ABORTED
    assert "reference" in waiting.samples[0].error
    assert neighbour.samples[0].finish_reason is FinishReason.LENGTH
    bench.assert_blocks_returned()


def test_on_swap_abort_ends_at_once(bench: Bench) -> None:
    request = bench.sampled(bench.prompt(20), params=SIX, on_swap=OnSwap.ABORT)
    bench.engine.submit(request)
    bench.engine._empty_inbox()
    bench.engine.step()
    bench.activate(2, policy=bench.policy("new"), value=bench.scalar("b"))
    assert request.is_ended
    assert request.samples[0].finish_reason is FinishReason.ABORTED
    bench.assert_blocks_returned()


def test_one_bad_head_fails_its_own_samples_alone(bench: Bench) -> None:
    """torch.multinomial would raise for the whole batch, and argmax would silently pick the NaN."""
    bad = bench.policy("bad", lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
    good = bench.sampled(bench.prompt(20), n=3, params=SIX)
    expected = bench.sampled(bench.prompt(20), n=3, params=SIX)
    bench.run(expected)
    served = bench.engine.active.heads["policy"]
    pinned = {"policy@9": type(served)("policy", 9, served.manifest, bad)}
    poisoned = bench.sampled(bench.prompt(20, 1), n=2, params=SIX, pinned=pinned)
    poisoned.head_kinds = {"policy@9": HeadKind.POLICY}
    for sample in poisoned.samples:
        sample.head_name = "policy@9"
    bench.run(good, poisoned)
    assert [sample.finish_reason for sample in poisoned.samples] == [FinishReason.FAILED] * 2
    assert [sample.completion for sample in good.samples] == [sample.completion for sample in expected.samples]
    again = bench.sampled(bench.prompt(20), n=3, params=SIX)
    bench.run(again)  # in slots that the bad head's keys have been in
    assert [sample.completion for sample in again.samples] == [sample.completion for sample in expected.samples]


def test_boundary_states_are_the_trunks_output(bench: Bench) -> None:
    request = bench.sampled(bench.prompt(20), params=SIX, return_states=True)
    bench.run(request)
    sample = request.samples[0]
    tokens = [*sample.prompt, *sample.completion]
    with torch.no_grad():
        hidden = bench.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[bench.spec.split_layer][0]
    assert sample.states is not None
    assert torch.allclose(sample.states, hidden, atol=1e-4)


def test_a_full_queue_answers_at_once(bench: Bench) -> None:
    """Batch work has three of four places; an interactive caller still gets in, and a long batch request does not keep it out."""
    bench.engine.requests.limits = QueueLimits(max_requests=4, max_tokens=1000, interactive_share=0.25)
    bench.engine.submit(bench.sampled(bench.prompt(5), n=4, params=SamplingParams(max_new_tokens=200)))
    with pytest.raises(ResourceExhausted) as caught:
        bench.engine.submit(bench.sampled(bench.prompt(5)))
    assert caught.value.retry_after_s
    bench.engine.submit(bench.sampled(bench.prompt(5), priority=Priority.INTERACTIVE))


def test_a_request_larger_than_the_whole_queue_is_refused_for_good(bench: Bench) -> None:
    """An empty queue took in one request of any size, and nobody else got in until it was done."""
    bench.engine.requests.limits = QueueLimits(max_tokens=1000, interactive_share=0.25)
    prompt, hundred = bench.prompt(25), SamplingParams(max_new_tokens=100)
    for priority in Priority:
        huge = bench.sampled(prompt, n=8, params=hundred, priority=priority)
        bench.add_samples(huge, prompt[:1], params=SIX)
        assert huge.num_tokens == 1007
        before = bench.engine.counters.rejected_requests
        with pytest.raises(ResourceExhausted, match=r"\b1007 tokens.*\b1000 \(max_queue_tokens\)") as caught:
            bench.engine.submit(huge)
        assert caught.value.retry_after_s is None, "it would not fit later either"
        assert caught.value.metadata == {"max_queue_tokens": "1000"}
        assert bench.engine.counters.rejected_requests == before + 1
    assert bench.engine.is_idle
    assert bench.engine.counters.requests == 0
    exact = bench.sampled(prompt, n=8, params=hundred)
    assert exact.num_tokens == 1000
    bench.run(exact)
    assert [len(sample.completion) for sample in exact.samples] == [100] * 8


def test_the_queue_counts_requests(bench: Bench) -> None:
    bench.engine.requests.limits = QueueLimits(max_requests=4, interactive_share=0.25)
    for _ in range(3):
        bench.engine.submit(bench.sampled(bench.prompt(5)))
    with pytest.raises(ResourceExhausted):
        bench.engine.submit(bench.sampled(bench.prompt(5)))
    bench.engine.submit(bench.sampled(bench.prompt(5), priority=Priority.INTERACTIVE))
    with pytest.raises(ResourceExhausted):
        bench.engine.submit(bench.sampled(bench.prompt(5), priority=Priority.INTERACTIVE))


def test_rule_questions_count_as_work(bench: Bench) -> None:
    request = bench.given(bench.prompt(5), bench.prompt(5), score=("rule",), rules={"a": (10,) * 30, "b": (11,) * 20})
    assert request.num_tokens == 10 + 50


def test_a_rule_answer_that_underflows_is_still_a_probability(bench: Bench) -> None:
    """exp of two log-probs below -745 is 0 / 0, and the error reached other callers' streams."""
    request = bench.given(bench.prompt(5), bench.prompt(5), score=("rule",), rules={"a": (10, 11)})
    bench.run(request)
    [reading] = request.samples[0].done
    reading.values = [np.array([-1000.0, -1001.0], dtype=np.float32)]
    [answer] = scores(request.samples[0])["rule"].result
    assert answer.p_violate == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert answer.answer_mass == 0.0


def test_an_expired_request_costs_no_forward_pass(bench: Bench) -> None:
    request = bench.sampled(bench.prompt(20), params=SIX, deadline_at=0.0)
    bench.run(request)
    assert bench.engine.counters.trunk_tokens == 0
    assert request.samples[0].finish_reason is FinishReason.ABORTED


def test_seeds_depend_on_place_and_not_on_content() -> None:
    assert sample_seed(7, 0, 0, 0) != sample_seed(7, 1, 0, 0) != sample_seed(7, 0, 1, 0) != sample_seed(7, 0, 0, 1)
    assert sample_seed(7, 3, 1, 2) == sample_seed(7, 3, 1, 2)


def test_a_version_that_a_request_names_is_held_from_its_submission_on(bench: Bench) -> None:
    """Not from its lease on: in the queue it was let go, and its weights were in memory beside those that had taken their place."""
    other = bench.policy("other")
    request = bench.sampled(bench.prompt(8), pinned={"policy@9": ServedHead("policy", 9, bench.manifest(HeadKind.POLICY, other), other)})
    request.head_kinds = {"policy@9": HeadKind.POLICY}
    request.samples[0].head_name = "policy@9"
    bench.engine.submit(request)
    assert request.lease is None
    assert bench.engine.leased_digests() == {"other": 1}
    bench.engine._empty_inbox()
    bench.finish(request)
    assert bench.engine.leased_digests() == {}
    bench.assert_blocks_returned()
