"""`polyhead annotate check`: what a project names is what the server has, or the key that names something else is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from polyhead.client import AsyncClient, HeadKind, PolyheadError, errors
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.replies.checking import check

PROJECT = """
slug: work
kind: choose
arms: {fixed: [{head: policy, n: 2}]}
hidden: {heads: [preference], rule_set: mine, recipe: ours@1}
prompt: {format: sparrow}
dialogue: {user: model, user_head: user@3}
"""
KINDS = {"policy": HeadKind.POLICY, "user@3": HeadKind.POLICY, "preference": HeadKind.PREFERENCE}
HAS = {"rule_set": ["mine@9", "mine@10", "other@1"], "recipe": ["ours@1", "ours@2"], "transcript_format": ["sparrow@1", "bad@1"]}


class Serving:
    """What is asked of AsyncClient."""

    async def head(self, name: str) -> Any:
        if name not in KINDS:
            raise errors.NotFound(f"no such head: {name}")
        return SimpleNamespace(version=7, kind=KINDS[name])

    async def configurations(self, kind: str) -> list[Any]:
        return [SimpleNamespace(reference=each, rules=["a"], set_aside="no fit" * ("bad" in each)) for each in HAS[kind]]


async def test_everything_that_is_named_is_there() -> None:
    """Of a name the newest version, as the server reads it: the first one was taken, so people saw rules that nobody asked about."""
    lines = await check(read_project(PROJECT), cast(AsyncClient, Serving()))
    assert lines == [
        "head policy: version 7, policy", "head user@3: version 7, policy", "head preference: version 7, preference",
        "rule set mine@10: 1 rules", "recipe ours@1", "transcript format sparrow@1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("right", "wrong", "field", "says"),
    [
        ("head: policy, n", "head: preference, n", "arms", "preference is a preference head, which writes nothing"),
        ("user_head: user@3", "user_head: nobody", "", "no such head: nobody"),
        ("rule_set: mine", "rule_set: yours", "hidden.rule_set", "no rule set yours\nhint: it has mine@9, mine@10, other@1"),
        ("ours@1", "ours@3", "hidden.recipe", "no recipe ours@3"),
        ("format: sparrow", "format: raven", "prompt.format", "no transcript format raven"),
        ("format: sparrow", "format: bad", "prompt.format", "cannot use the transcript format bad@1: no fit"),
    ],
)
async def test_what_is_not_there_is_named_by_its_key(right: str, wrong: str, field: str, says: str) -> None:
    with pytest.raises(PolyheadError) as raised:
        await check(read_project(PROJECT.replace(right, wrong)), cast(AsyncClient, Serving()))
    assert says in raised.value.message
    assert raised.value.field == field
