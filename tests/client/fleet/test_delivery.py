"""What is asked for again: no sample that was delivered, and every other one under its own number, seed and generation."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from polyhead.client.fleet.delivery import Delivery
from polyhead.v1 import generation_pb2, types_pb2

Response = generation_pb2.GenerateResponse


def request(*, num_prompts: int = 2, counts: Iterable[int] = (2,), **fields: object) -> generation_pb2.GenerateRequest:
    prompts = [types_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=[index])) for index in range(num_prompts)]
    arms = [generation_pb2.Arm(n=count) for count in counts]
    return generation_pb2.GenerateRequest(prompts=prompts, arms=arms, **fields)  # type: ignore[arg-type]


def accepted(generation: int = 7) -> Response:
    return Response(accepted=generation_pb2.Accepted(served=types_pb2.Served(generation=generation, history_id="abc")))


def sample(prompt: int, arm: int, index: int, **fields: object) -> Response:
    return Response(sample=generation_pb2.Sample(prompt_index=prompt, arm_index=arm, sample_index=index, **fields))  # type: ignore[arg-type]


def taken(delivery: Delivery, *messages: Response) -> list[Response]:
    return [each for message in messages for each in delivery.take(message)]


def asked(parts: list[generation_pb2.GenerateRequest]) -> set[tuple[int, int, int]]:
    """(prompt, arm, sample) that requests ask for, by the rules of the contract."""
    return {
        (prompt, arm.index if arm.HasField("index") else place, index)
        for part in parts
        for prompt in part.prompt_indices or range(len(part.prompts))
        for place, arm in enumerate(part.arms)
        for index in arm.sample_indices or range(max(arm.n, 1))
    }


def test_at_first_the_whole_call_is_asked_for_with_a_seed_of_the_clients() -> None:
    given = request(counts=(2, 3))
    delivery = Delivery(given)
    [first] = delivery.requests()
    assert all(arm.sampling.HasField("seed") for arm in first.arms)
    assert not any(arm.sampling.HasField("seed") for arm in given.arms), "the caller's message stays as it is"
    assert (first.generation, len(first.prompt_indices)) == (0, 0)
    assert delivery.requests() == [first], "nothing has come: the same again"


def test_only_what_did_not_come_is_asked_for_again_and_of_the_same_generation() -> None:
    delivery = Delivery(request(num_prompts=3, counts=(2, 3)))
    [first] = delivery.requests()
    came = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 2), (1, 0, 1), (2, 1, 0)]
    assert len(taken(delivery, accepted(), *(sample(*key) for key in came))) == 1 + len(came)
    parts = delivery.requests()
    assert asked(parts) == asked([first]) - set(came)
    for part in parts:
        assert (part.generation, part.history_id) == (7, "abc")
        assert [prompt.token_ids.ids[0] for prompt in part.prompts] == list(part.prompt_indices)
        assert {arm.sampling.seed for arm in part.arms} <= {arm.sampling.seed for arm in first.arms}
    assert taken(delivery, accepted(), sample(0, 0, 0)) == [], "neither a second acceptance nor a second copy"
    taken(delivery, *(sample(*key) for key in asked(parts)))
    assert delivery.is_done


def test_given_seeds_go_with_their_samples() -> None:
    given = request(num_prompts=1, counts=(3,))
    given.arms[0].sampling.sample_seeds[:] = [11, 12, 13]
    delivery = Delivery(given)
    delivery.requests()
    taken(delivery, accepted(), sample(0, 0, 1))
    [part] = delivery.requests()
    assert (list(part.arms[0].sample_indices), list(part.arms[0].sampling.sample_seeds), part.arms[0].n) == ([0, 2], [11, 13], 2)


def test_a_prompt_whose_samples_are_weighed_together_is_asked_for_as_a_whole() -> None:
    delivery = Delivery(request(score=types_pb2.ScoringSpec(recipe="sparrow")))
    delivery.requests()
    taken(delivery, accepted(), sample(0, 0, 0), sample(0, 0, 1), sample(1, 0, 0))
    [part] = delivery.requests()
    assert asked([part]) == {(1, 0, 0), (1, 0, 1)}
    assert [each.sample.sample_index for each in taken(delivery, sample(1, 0, 0), sample(1, 0, 1))] == [1]


def test_a_sample_that_a_drain_cut_off_is_drawn_anew() -> None:
    delivery = Delivery(request(num_prompts=1, counts=(1,)))
    delivery.requests()
    cut = sample(0, 0, 0, finish_reason=types_pb2.FINISH_REASON_ABORTED)
    assert taken(delivery, accepted(), cut) == [accepted()]
    assert not delivery.is_done
    wanted = Delivery(request(num_prompts=1, counts=(1,), on_swap=types_pb2.ON_SWAP_ABORT))
    assert taken(wanted, cut) == [cut], "asked for by the caller"


@pytest.mark.parametrize("has_piece", [False, True])
def test_a_reply_that_was_shown_in_part_does_not_change_its_author(has_piece: bool) -> None:
    delivery = Delivery(request(num_prompts=1, counts=(1,)))
    delivery.requests()
    taken(delivery, accepted(), *([Response(piece=generation_pb2.Piece(token_ids=[1]))] if has_piece else []))
    assert delivery.can_go_on is not has_piece


def test_a_sample_waits_for_its_states() -> None:
    """Half of them, and the replica is gone: nothing of the sample was passed on, and it is asked for again."""
    delivery = Delivery(request(num_prompts=1, counts=(1,), return_states=True))
    delivery.requests()
    whole = sample(0, 0, 0, prompt_token_ids=[1], token_ids=[2])
    halves = [
        Response(states=generation_pb2.StatesPart(offset=offset, states=types_pb2.Tensor(dtype="float32", shape=[1, 1], data=bytes(4))))
        for offset in (0, 1)
    ]
    assert taken(delivery, whole, halves[0]) == []
    delivery.requests()
    assert taken(delivery, whole, *halves) == [whole, *halves]
    assert delivery.is_done
