"""Errors on the command line name flags, and generations say where a rollback goes."""

from __future__ import annotations

import inspect

import pytest

from polyhead.client.cli.flags import flags_of, in_flags
from polyhead.client.cli.generate import generate_command, score_command
from polyhead.client.cli.heads.commands import push_command
from polyhead.client.cli.heads.history import history_lines, removed_lines
from polyhead.client.cli.status import status_command
from polyhead.client.results.records import Generation


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        (status_command, "hint: give the call a longer timeout=", "hint: give the call a longer --timeout"),
        (push_command, 'say kind="preference" or kind="value"', "say --kind preference or --kind value"),
        (status_command, "hint: give the client a token=", "hint: give the client a --token or POLYHEAD_TOKEN"),
        (status_command, "root_certificates=, or tls=True for a public one", "--tls-ca, or --tls for a public one"),
        (generate_command, "best needs a recipe= to rank by", "--best needs a --recipe to rank by"),
        (generate_command, "max_new_tokens must lie between 1 and 9: 0", "--max-new-tokens must lie between 1 and 9: 0"),
        (score_command, 'rules=["no-insults"]; rule_set="a@1"', "--rule no-insults; --rule-set a@1"),
        (push_command, "lora=peft_config.to_dict()", "lora=peft_config.to_dict()"),
        (generate_command, "a text with head@1 = policy", "a text with head@1 = policy"),
    ],
)
def test_arguments_become_flags(command: object, message: str, shown: str) -> None:
    """The hints told a person at a shell to write Python."""
    assert in_flags(message, flags_of(inspect.signature(command).parameters.values())) == shown


def generation(number: int, parent: int, policy: int, same_as: int = 0, gone: tuple[str, ...] = ()) -> Generation:
    return Generation(number, parent, {"policy": policy}, 0.0, "", gone=gone, same_as=same_as)


def test_the_history_says_where_the_next_rollback_goes() -> None:
    lines = history_lines([generation(10, 7, 8, same_as=8), generation(9, 8, 9), generation(8, 7, 8), generation(7, 0, 1)])
    assert lines[0].startswith("generation 10 equals 8  ")
    assert lines[1] == "  the next rollback goes to 7"
    assert lines[2].startswith("generation 9 from 8  ")
    assert lines[4].startswith("generation 7 is the first  ")
    assert history_lines([generation(1, 0, 1)])[1] == "  there is nothing to roll back to"
    assert history_lines([]) == []


def test_the_history_marks_what_cannot_be_restored() -> None:
    lines = history_lines([generation(2, 1, 9), generation(1, 0, 1, gone=("policy@1",))])
    assert "which cannot be restored, as policy@1 is gone: choose another one with --to" in lines[1]
    assert lines[2].endswith("cannot be restored, no longer stored: policy@1")


def test_what_a_push_removed_is_said() -> None:
    assert removed_lines(()) == []
    assert "policy@1, policy@2 (`polyhead heads label` keeps a version)" in removed_lines(("policy@1", "policy@2"))[0]
