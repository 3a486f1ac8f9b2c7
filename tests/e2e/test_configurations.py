"""Recipes, rules, templates and formats that come through the client, on a real server: used at once, and after a restart."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from polyhead.client import Client
from polyhead.client.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable
from tests.e2e.support import serving

RECIPE = "id: terse\nversion: 1\nform: sum\nparts:\n  tokens: {read: tokens, coefficient: -0.5}\n"
RULES = "id: ours\nversion: 1\nrules:\n  - {id: be-brief, text: Be brief.}\n"
TEMPLATE = 'id: short\nversion: 1\ntemplate: "{dialogue}\\nBroken? {rule}"\nanswers: {violated: "Y", followed: "N"}\n'
FORMAT = 'id: plain\nversion: 1\ndefault_reply_role: b\nroles:\n  a: {opening: "\\nA:"}\n  b: {opening: "\\nB:", followed_by: [a]}\n'


def assert_all_in_use(client: Client) -> None:
    """A request of each kind."""
    [sample] = client.generate(["Hi"], max_new_tokens=4, ignore_eos=True, recipe="terse")
    assert sample.reward is not None
    assert (sample.reward.recipe, sample.reward.reward) == ("terse@1", -2.0)
    asked = client.tokenize_rules(["be-brief"], rule_set="ours", template="short")
    assert (asked.rule_set, asked.template) == ("ours@1", "short@1")
    [scored] = client.score([("Hi", "there")], heads=["asks-short"], rule_set="ours")
    assert list(scored.scores["asks-short"].p_violate) == ["be-brief"]
    assert client.detokenize(client.tokenize([{"role": "a", "content": "Hi"}], format="plain")).endswith("\nA:Hi\nB:")
    assert {each.reference for each in client.configurations() if each.added} == {"ours@1", "plain@1", "short@1", "terse@1"}


def test_what_is_added_serves_at_once_and_after_a_restart(tiny_model: Path, tmp_path: Path) -> None:
    """A rule head is pushed with the added template, whose answers it takes; the next server knows all of it."""
    with serving(tiny_model, tmp_path / "store") as server, Client(server.address, timeout=60) as client:
        with pytest.raises(NotFound, match="no such recipe"):
            client.generate(["Hi"], recipe="terse")
        for content in (RECIPE, RULES, TEMPLATE, FORMAT):
            added = client.add_configuration(content)
            assert (added.added, added.content) == (True, content)
            assert client.add_configuration(content) == added
        weights = dict(client.pull_head("rule").items())
        client.update({"asks-short": weights}, options={"asks-short": {"kind": "rule", "template": "short@1"}})
        assert_all_in_use(client)
        with pytest.raises(AlreadyExists, match="terse@1 stands for another content"):
            client.add_configuration(f"{RECIPE}# changed\n")
        with pytest.raises(FailedPrecondition, match="short@1 is what asks-short@1 asks with"):
            client.retire_configuration("short@1")
    with serving(tiny_model, tmp_path / "store") as server, Client(server.address, timeout=60) as client:
        assert_all_in_use(client)
        client.retire_configuration("terse@1")
        with pytest.raises(NotFound, match="no such recipe"):
            client.generate(["Hi"], recipe="terse")
        with pytest.raises(AlreadyExists, match="terse@1 was retired"):
            client.add_configuration(RECIPE)


def test_a_kill_keeps_what_was_acknowledged_and_no_half(tiny_model: Path, tmp_path: Path) -> None:
    """The record's rename is what makes a version: the fourth one, after a content, its record, and the second content."""
    store, killed = tmp_path / "store", "before_configuration_rename:kill@4"
    with serving(tiny_model, store, fp=killed) as server, Client(server.address, timeout=60) as client:
        client.add_configuration(RECIPE, request_id="first")
        with pytest.raises(Unavailable):
            client.add_configuration(RULES, request_id="lost")
        assert server.process.wait(30) == -signal.SIGKILL
    with serving(tiny_model, store) as server, Client(server.address, timeout=60) as client:
        assert [each.reference for each in client.configurations() if each.added] == ["terse@1"]
        assert client.add_configuration(RULES, request_id="lost").reference == "ours@1"
        weights = {name: np.array(tensor) for name, tensor in client.pull_head("policy").items()}
        with pytest.raises(AlreadyExists, match="the request id was used for another request: it added ours@1"):
            client.push_head("policy", weights, request_id="lost")
        pushed = client.push_head("policy", weights, request_id="push")
        with pytest.raises(AlreadyExists, match=f"it made policy@{pushed}"):
            client.retire_configuration("ours@1", request_id="push")
