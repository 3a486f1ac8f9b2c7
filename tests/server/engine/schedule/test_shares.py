"""Shares: alone everything, together the same, and nobody is shut out by those who came first."""

from __future__ import annotations

import pytest

from polyhead.heads.format.errors import ResourceExhausted
from polyhead.server.engine.schedule.shares import Shares, fair_share


def take_all(shares: Shares, principal: str) -> int:
    """How many a principal gets until it is refused."""
    count = 0
    while True:
        try:
            shares.take(principal)
        except ResourceExhausted:
            return count
        count += 1


@pytest.mark.parametrize(
    ("total", "others", "expected"),
    [(12, [], 12), (12, [12], 6), (12, [100, 100], 4), (12, [1, 100], 5.5), (12, [1, 2], 9), (12, [2, 2, 2, 2, 2], 2)],
)
def test_small_holdings_leave_their_rest_to_the_larger_ones(total: float, others: list[float], expected: float) -> None:
    assert fair_share(total, others) == pytest.approx(expected)


def test_a_lone_principal_gets_everything_and_no_more() -> None:
    assert take_all(Shares("watches", 16), "a") == 16


def test_a_late_principal_gets_a_place_although_another_holds_all() -> None:
    shares = Shares("watches", 16)
    take_all(shares, "a")
    assert take_all(shares, "b") == 4  # the reserve
    assert take_all(shares, "a") == 0


def test_places_that_fall_free_go_to_those_below_their_share_until_all_have_the_same() -> None:
    shares = Shares("watches", 16)
    take_all(shares, "a")
    for _ in range(100):  # both always want more, and things end by turns
        for principal in ("a", "b"):
            take_all(shares, principal)
        for principal in ("a", "b"):
            if shares.num_held(principal):
                shares.give_back(principal)
    assert abs(shares.num_held("a") - shares.num_held("b")) <= 2


def test_each_gets_one_while_the_reserve_lasts_however_many_come() -> None:
    shares = Shares("pushes", 4)
    take_all(shares, "a")
    assert [take_all(shares, principal) for principal in ("b", "c")] == [1, 0]
    shares.give_back("a")
    assert take_all(shares, "c") == 1


def test_a_block_gives_back_what_it_held_also_after_an_error() -> None:
    shares = Shares("pushes", 1)
    taken = []

    def fail() -> None:
        with shares.held("a"):
            taken.append(shares.num_held("a"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (taken, shares.num_held("a")) == ([1], 0)


def test_a_refusal_tells_ones_own_part_and_names_nobody() -> None:
    shares = Shares("watches", 1, hint="end one of them")
    shares.take("someone-else")
    shares.take("me", 0.25)
    with pytest.raises(ResourceExhausted) as caught:
        shares.take("me")
    assert caught.value.retry_after_s == 1.0
    assert caught.value.message == "too many watches: 0.25 of yours, 1.25 in all, room for 1\nhint: end one of them"
    assert "someone-else" not in caught.value.message
