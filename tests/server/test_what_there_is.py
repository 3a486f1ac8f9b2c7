"""Refusals of names and rules list what there is, or the ways to give what is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from polyhead.heads.format.errors import InvalidArgument, NotFound
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.work.request import Priority
from polyhead.server.rpc.messages import rule_questions
from polyhead.v1 import types_pb2
from tests.server.fakes import World

RULE_HEAD = cast(Any, SimpleNamespace(manifest=SimpleNamespace(kind=HeadKind.RULE), reference="rule@1"))


def test_an_unknown_head_lists_the_active_ones(world: World) -> None:
    world.registry.bootstrap(world.policy)
    with pytest.raises(NotFound, match=r"of this name: 'polcy'\nhint: active are policy, preference, reference, rule, value$"):
        world.registry.get("polcy", "head")
    with world.registry.resolving() as resolve, pytest.raises(NotFound, match=r"'polcy'\nhint: active are policy, "):
        resolve("polcy", "arms[0].head")


def test_a_rule_head_without_rules_lists_the_ways_to_give_some() -> None:
    """It said that rules and a head of kind rule go together, and not which of them was missing."""
    with pytest.raises(InvalidArgument, match=r'rule@1\nhint: give some ids, rules=\["no-insults"\]; a whole set, rule_set=') as caught:
        rule_questions.rule_questions(types_pb2.ScoringSpec(), [RULE_HEAD], Priority.BATCH, 1, cast(Any, None), are_idle=False)
    assert caught.value.field == "score.rules"
    given = types_pb2.ScoringSpec(rules=types_pb2.RuleSelection(rule_ids=["no-insults"]))
    with pytest.raises(InvalidArgument, match="no head of kind rule is to score") as caught:
        rule_questions.rule_questions(given, [], Priority.BATCH, 1, cast(Any, None), are_idle=False)
    assert caught.value.field == "score.heads"
