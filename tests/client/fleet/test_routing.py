"""Which replica gets a call, and when a call goes on at another one."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.client.errors import InvalidArgument, NotFound, Unavailable
from polyhead.client.fleet.attempts import Attempts
from polyhead.client.fleet.routing import Place, Replicas, place_of, weight_of
from polyhead.client.results.records import Replica
from polyhead.client.transport import MAX_RETRIES, Deadline
from polyhead.v1 import fleet_pb2, generation_pb2, heads_pb2, options_pb2, scoring_pb2, trunk_pb2, types_pb2

READS = {"Generate", "Encode"}  # streams, which change nothing


def three() -> Replicas:
    replicas = Replicas(["a:1"])
    replicas.take(
        "a:1",
        [
            Replica("primary", "", 3, "serving", primary=True),
            Replica("b", "b:1", 3, "serving"),
            Replica("c", "c:1", 3, "serving"),
            Replica("d", "d:1", 2, "behind", error="no room"),
            Replica("e", "e:1", 3, "lost"),
        ],
    )
    return replicas


def test_what_computes_goes_anywhere_what_looks_up_prefers_the_primary_and_what_changes_is_for_it_alone() -> None:
    assert place_of(lambda stubs: stubs.generation.Generate) is place_of(lambda stubs: stubs.scoring.Score) is Place.ANYWHERE
    assert place_of(lambda stubs: stubs.heads.ListGenerations) is Place.LOOKUP
    for change in ("ActivateHeads", "PushHead", "DeleteHead"):
        assert place_of(lambda stubs, change=change: getattr(stubs.heads, change)) is Place.PRIMARY
    assert place_of(lambda stubs: stubs.scoring.AddConfiguration) is place_of(lambda stubs: stubs.health) is Place.PRIMARY


@pytest.mark.parametrize("service", [fleet_pb2, generation_pb2, scoring_pb2, trunk_pb2, heads_pb2])
def test_whatever_is_answered_elsewhere_is_retryable(service: Any) -> None:
    """By the contract's own word: a call that changed something would be made twice."""
    for described in service.DESCRIPTOR.services_by_name.values():
        for method in described.methods:
            stub = described.name.removesuffix("Service").lower()
            place = place_of(lambda stubs, stub=stub, method=method: getattr(getattr(stubs, stub), method.name))
            assert place is Place.PRIMARY or method.name in READS or method.GetOptions().Extensions[options_pb2.method].retryable


def test_the_least_loaded_of_those_that_serve() -> None:
    replicas = three()
    assert set(replicas.addresses()) == {"a:1", "b:1", "c:1"}
    with replicas.lent(8, ()) as first, replicas.lent(1, ()) as second, replicas.lent(4, ()) as third:
        assert {first, second, third} == {"a:1", "b:1", "c:1"}
        with replicas.lent(1, ()) as fourth:
            assert fourth == second
    request = generation_pb2.GenerateRequest(prompts=[types_pb2.Prompt()] * 5)
    assert (weight_of(request), weight_of(scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem()] * 3))) == (5, 3)


def test_a_replica_that_does_not_answer_is_passed_over() -> None:
    replicas = three()
    attempts = Attempts(replicas, Deadline(60.0))
    seen = []
    for _ in range(3):
        with replicas.lent(1, attempts.tried) as address:
            seen.append(address)
        wait_s = attempts.failed(address, Unavailable("gone"))
    assert (len(set(seen)), wait_s > 0) == (3, True), "each of them once, then a pause"
    replicas = three()
    replicas.set_down("b:1")
    with replicas.lent(1, ()) as first, replicas.lent(1, ()) as second, replicas.lent(1, ()) as third:
        assert "b:1" not in (first, second, third)


def test_other_errors_are_the_callers() -> None:
    attempts = Attempts(three(), Deadline(60.0))
    with pytest.raises(InvalidArgument):
        attempts.failed("a:1", InvalidArgument("bad"))


def test_a_version_that_a_follower_has_not_got_yet_is_asked_for_elsewhere_once() -> None:
    attempts = Attempts(three(), Deadline(60.0))
    lacking = NotFound("policy@3")
    assert [attempts.failed(address, lacking) for address in ("b:1", "c:1")] == [0.0, 0.0]
    with pytest.raises(NotFound):
        attempts.failed("a:1", lacking)


def test_a_call_ends_with_its_deadline_and_after_some_rounds() -> None:
    with pytest.raises(Unavailable):
        Attempts(Replicas(["a:1"]), Deadline(0.0)).failed("a:1", Unavailable("gone"))
    attempts = Attempts(Replicas(["a:1"]), Deadline(None))
    for _ in range(MAX_RETRIES):
        assert attempts.failed("a:1", Unavailable("not here yet", retry_after_s=0.2)) == 0.2
    with pytest.raises(Unavailable):
        attempts.failed("a:1", Unavailable("not here yet", retry_after_s=0.2))


def test_without_a_list_the_primary_is_all_there_is() -> None:
    replicas = Replicas(["a:1"])
    replicas.take("a:1", [])
    assert replicas.addresses() == ("a:1",)
    assert (replicas.is_due(), replicas.is_due()) == (True, False)


def test_any_of_the_given_addresses_may_be_the_primarys() -> None:
    replicas = Replicas(["a:1", "b:1", "c:1"])
    assert replicas.addresses() == replicas.may_be_primary() == ("a:1", "b:1", "c:1"), "until one of them has said"
    replicas.take("b:1", [Replica("primary", "", 3, "serving", primary=True), Replica("d", "d:1", 3, "serving")])
    assert (replicas.primary, replicas.addresses()) == ("b:1", ("b:1", "d:1"))
    assert replicas.may_be_primary() == ("b:1", "a:1", "c:1"), "those that were given, and no address that a pod may have lost since"
    assert replicas.primary_first() == ("b:1", "d:1")
    with replicas.lent(1, ()) as first, replicas.lent(1, ()) as second:
        assert {first, second} == {"b:1", "d:1"}
    replicas.note_down("b:1")
    assert replicas.primary_first() == ("d:1", "b:1")
