"""blind: the shown part says nothing of where a candidate comes from, the key says all of it, and the chosen one goes on."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from polyhead.client import Client, Evidence, FinishReason, Sample, Sampling, Served, blind, errors
from polyhead.client.wire import convert
from tests.client.fake_messages import make_sample
from tests.client.fake_server import FakeServer

CARD = Evidence(query="sky colour", title="Rayleigh scattering", url="https://example.org/sky", snippet="Short waves scatter more.")
SAMPLING = Sampling(0.8125, 0.9375, 41, 0.0625, 1.0625, 777001, 97, ("\n\nUser:",), False, (), False)


def sample(index: int, head: str = "policy", *scored: str) -> Sample:
    """Distinct in everything that could give it away."""
    made = convert.sample(make_sample(0, index, 0, scored), f"request-{index}-z", Served("ab" * 32, "float32", 4100 + index))
    return dataclasses.replace(
        made,
        text=f"reply {chr(ord('a') + index)}",
        head=head,
        head_version=3300 + index,
        digest=f"{index}fedc" * 12,
        sample_seed=880000 + index,
        sampling=SAMPLING,
    )


def four() -> list[Sample]:
    return [sample(0, "policy", "preference"), sample(1, "snapshot", "rule"), sample(2, "reference", "value"), sample(3, "policy@9")]


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for each in value.items() for leaf in leaves(list(each))]
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def test_the_shown_part_holds_id_text_and_evidence_and_nothing_else() -> None:
    blinded = blind(four(), evidence=[None, CARD, None, None])
    for shown in blinded.shown_json():
        assert set(shown) == {"id", "text", "evidence"}
    by_text = {shown["text"]: shown["evidence"] for shown in blinded.shown_json()}
    assert by_text == {"reply a": None, "reply b": dataclasses.asdict(CARD), "reply c": None, "reply d": None}


def test_nothing_of_the_identity_is_shown() -> None:
    """No value of the key, but the ids themselves, stands anywhere in what is shown; nor in the object's repr, which ends up in logs."""
    blinded = blind(four(), evidence=[None, CARD, None, None])
    page = json.dumps(blinded.shown_json())
    secrets = {str(leaf) for key in blinded.key_json().values() for leaf in leaves(list(key.values())) if len(str(leaf)) > 2}
    secrets |= {"policy", "snapshot", "reference", "policy@9", "3302", "4101", "880003", "777001", "request-2-z", "preference"}
    for shown in (page, repr(blinded)):
        without_ids = shown
        for candidate in blinded.shown:
            without_ids = without_ids.replace(candidate.id, "")
        assert not [secret for secret in secrets - {"True", "False", "None"} if secret in without_ids]


def test_ids_say_nothing() -> None:
    """Two views of the same samples share no id, ids of one length differ in no way that depends on the sample."""
    first, second = blind(four()), blind(four())
    ids = [candidate.id for blinded in (first, second) for candidate in blinded.shown]
    assert len(set(ids)) == 8
    assert {len(each) for each in ids} == {24}
    same_draws = [blind(each, rng=random.Random(5)) for each in (four(), four()[::-1])]
    assert [c.id for c in same_draws[0].shown] == [c.id for c in same_draws[1].shown]


def test_every_sample_stands_in_every_place_equally_often() -> None:
    rng, samples = random.Random(1), four()
    places = Counter((slot, shown.text) for _ in range(1500) for slot, shown in enumerate(blind(samples, rng=rng).shown))
    assert len(places) == 16
    assert all(300 < count < 450 for count in places.values())


def test_the_order_is_the_systems_own_unless_told() -> None:
    """Not that of a seeded generator, which a caller's own `random.seed(0)` would repeat."""
    orders = set()
    for _ in range(60):
        random.seed(0)
        orders.add(tuple(candidate.text for candidate in blind(four()).shown))
    assert len(orders) > 5


def test_the_key_is_whole_and_is_json() -> None:
    samples = four()
    blinded = blind(samples, evidence=[None, CARD, None, None])
    key = json.loads(json.dumps(blinded.key_json(), allow_nan=False))
    assert list(key) == [candidate.id for candidate in blinded.shown]
    for slot, candidate in enumerate(blinded.shown):
        made, entry = blinded.sample(candidate.id), key[candidate.id]
        assert made.text == candidate.text
        assert (entry["head"], entry["version"], entry["generation"]) == (made.head, made.head_version, made.generation)
        assert (entry["slot"], entry["sample_seed"], entry["with_evidence"]) == (slot, made.sample_seed, candidate.text == "reply b")
        assert entry["sampling"]["temperature"] == 0.8125
        assert entry["sampling"]["stop"] == ["\n\nUser:"]
        assert (entry["prompt_token_ids"], entry["token_ids"]) == (made.prompt_token_ids, made.token_ids)
        assert entry["scores"].keys() == made.scores.keys()
    scores = {name: score for entry in key.values() for name, score in entry["scores"].items()}
    assert scores["preference"]["value"] == 1.0
    assert scores["rule"]["p_violate"] == {"no-insults": 0.25}
    assert scores["value"]["values"] == pytest.approx([0.1, 0.2, 0.3])


def test_numbers_that_are_not_finite_become_none() -> None:
    made = sample(0, "policy", "value")
    broken = dataclasses.replace(made.scores["value"], values=np.float32([np.nan, 1]))  # type: ignore[call-arg]
    [entry] = blind([dataclasses.replace(made, scores={"value": broken}, reward=float("inf"))]).key_json().values()
    assert entry["scores"]["value"]["values"] == [None, 1.0]
    assert entry["reward"] is None


def test_the_chosen_one_goes_on(server: FakeServer) -> None:
    """One call, whose answer is a prompt like any other."""
    blinded = blind(four())
    chosen = blinded.shown[2]
    turns = [{"role": "user", "content": "And then?"}]
    with Client(server.target) as client:
        client.generate([blinded.continue_from(chosen.id, turns)])
    sent = server.requests["Generate"][-1].prompts[0].continue_from
    assert list(sent.token_ids) == blinded.sample(chosen.id).token_ids
    assert [message.content for message in sent.messages] == ["And then?"]
    with pytest.raises(errors.NotFound, match="no candidate has this id"):
        blinded.continue_from("0" * 24, turns)


def test_what_cannot_be_shown_side_by_side() -> None:
    other = dataclasses.replace(sample(1), prompt_token_ids=[7, 7])
    refused: list[tuple[list[Sample], Any, str, str]] = [
        ([], None, "samples", "samples are empty"),
        ([sample(0)], [None, None], "evidence", "one entry a sample: 2 for 1"),
        ([sample(0), other], None, "samples[1]", "another prompt than samples[0]"),
        ([sample(0), dataclasses.replace(sample(1), finish_reason=FinishReason.FAILED, error="NaN")], None, "samples[1]", "failed: NaN"),
    ]
    for samples, evidence, field, text in refused:
        with pytest.raises(errors.InvalidArgument) as caught:
            blind(samples, evidence=evidence)
        assert caught.value.field == field
        assert text in caught.value.message
    assert len(blind([sample(0), other], evidence=[None, CARD]).shown) == 2  # search results stand in its own context


def test_a_choice_becomes_a_trainers_row() -> None:
    """TRL's columns: texts for a prompt of text, messages for one of messages."""
    question = [{"role": "user", "content": "Why?"}]
    for prompt, wrap in (("Why?", str), (question, lambda text: [{"role": "assistant", "content": text}])):
        blinded = blind(four()[:2], prompt=prompt)
        chosen, rejected = blinded.shown
        row = {"prompt": prompt, "chosen": wrap(chosen.text), "rejected": wrap(rejected.text)}
        assert blinded.to_preference(chosen.id) == row
        assert blinded.to_preference(chosen.id, rejected.id) == row
        json.dumps(row)


def test_a_row_that_cannot_be_made_says_what_is_missing() -> None:
    blinded = blind(four(), prompt="Why?")
    first = blinded.shown[0].id
    with pytest.raises(errors.InvalidArgument, match="name the rejected one of 4"):
        blinded.to_preference(first)
    with pytest.raises(errors.InvalidArgument, match="chosen and rejected"):
        blinded.to_preference(first, first)
    with pytest.raises(errors.NotFound):
        blinded.to_preference(first, "nobody")
    with pytest.raises(errors.InvalidArgument, match="prompt="):
        blind(four()[:2]).to_preference(first)
