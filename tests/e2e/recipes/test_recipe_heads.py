"""The heads that a recipe reads: pinned, of the wrong kind, missing, and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from polyhead.client import Client
from polyhead.client.errors import FailedPrecondition, InvalidArgument, NotFound
from tests.e2e.recipes.rewards import DRAW, reward_of
from tests.e2e.support import MODEL_WORK


def test_a_pinned_version_stands_in_for_the_recipes_head(client: Client) -> None:
    [sample] = client.generate(["x"], score=["preference@1"], recipe="preference", **DRAW)
    assert list(sample.scores) == ["preference@1"]
    assert reward_of(sample).reward == sample.scores["preference@1"].value == 0.0  # untrained: zeros
    [sample] = client.generate(["x"], score=["preference@1", "preference"], recipe="preference", **DRAW)
    assert reward_of(sample).reward == sample.scores["preference"].value != 0.0


def test_a_head_that_does_not_fit_is_refused(client: Client) -> None:
    odd = client.copy_head("policy@1", "preference", kind="policy")
    with pytest.raises(InvalidArgument, match="reads preference@3 as a preference head; it is a policy head") as caught:
        client.generate(["x"], score=["value", f"preference@{odd}"], recipe="preference")
    assert caught.value.field == "score.heads[1]"
    with pytest.raises(InvalidArgument, match="several versions are named: preference@1, preference@2") as caught:
        client.generate(["x"], score=["preference@1", "preference@2"], recipe="preference")
    assert caught.value.field == "score.heads"
    with pytest.raises(NotFound):
        client.generate(["x"], score=["preference@99"], recipe="preference")


def test_a_recipe_whose_head_is_gone_or_of_another_kind_says_so(client: Client) -> None:
    active = client.status().active
    client.activate({"harmless": client.copy_head("policy@1", "harmless", kind="policy")})
    with pytest.raises(FailedPrecondition, match="mixed@1 reads harmless as a preference head; it is a policy head") as caught:
        client.generate(["x"], recipe="mixed")
    assert caught.value.field == "score.recipe"
    client.activate({"harmless": active["harmless"]})


def test_a_recipe_whose_head_was_never_there_is_refused_before_work(client: Client) -> None:
    """In every shape of call; a stored version serves it when it is named, and an active one until it is rolled back."""
    calls: list[Callable[[], Any]] = [
        lambda: client.generate(["x"], recipe="ghostly"),
        lambda: client.generate(["x"], n=4, best=1, recipe="ghostly"),
        lambda: list(client.stream("x", recipe="ghostly")),
        lambda: client.score([("x", "y")], recipe="ghostly"),
    ]

    def assert_refused() -> None:
        before = [client.status().counters[counter] for counter in MODEL_WORK]
        for run in calls:
            wanted = r"ghostly@1 reads a head that is not there: .*'ghost'\nhint: active are .*\nhint: activate"
            with pytest.raises(FailedPrecondition, match=wanted) as caught:
                run()
            assert caught.value.field == "score.recipe"
        assert [client.status().counters[counter] for counter in MODEL_WORK] == before

    assert_refused()
    version = client.copy_head("preference", "ghost")
    assert_refused()
    reward = reward_of(client.generate(["x"], score=[f"ghost@{version}"], recipe="ghostly", **DRAW)[0]).reward
    client.activate({"ghost": version})
    assert reward_of(client.generate(["x"], recipe="ghostly", **DRAW)[0]).reward == reward
    client.rollback()
    assert_refused()


def test_the_heads_that_a_recipe_adds_count(client: Client) -> None:
    names = [f"copy-{index}" for index in range(15)]
    for name in names:
        client.copy_head("value@1", name)
    pinned = [f"{name}@1" for name in names]
    assert len(client.generate(["x"], score=pinned, recipe="preference", max_new_tokens=1)[0].scores) == 16
    with pytest.raises(InvalidArgument, match="too many heads: 17, with those that the recipe reads") as caught:
        client.generate(["x"], score=pinned, recipe="kl")
    assert caught.value.field == "score.heads"
