"""The reference pages are what the code says. Those of settings and metrics are compared in tests/deploy/test_runbook.py."""

from __future__ import annotations

import re

import pytest

from polyhead.server.config import ServeConfig
from polyhead.server.rpc.listen import SERVER_OPTIONS
from tests.docs import limits_page
from tests.docs.reference import PAGES, path_of


@pytest.mark.parametrize("name", sorted(PAGES))
def test_page_is_the_codes(name: str) -> None:
    assert path_of(name).read_text(encoding="utf-8") == PAGES[name](), f"python -m tests.docs.reference {name}, then commit"


def test_limits_name_constants() -> None:
    """Every row is read, and says the values of the constants that it names."""
    rows = limits_page.ROW.findall(limits_page.PAGE.read_text(encoding="utf-8"))
    assert len(rows) >= 14
    for what, stated, names in rows:
        assert [int(number) for number in stated.split(",")] == limits_page.values(names), what


def test_both_ways_have_the_stated_message_limit() -> None:
    options = dict(SERVER_OPTIONS)
    assert (options["grpc.max_receive_message_length"], options["grpc.max_send_message_length"]) == (4194304, 268435456)


def test_limits_that_are_settings_are_their_defaults() -> None:
    [text] = re.findall(r"^Context: the model's own.*?(?=\n\n)", limits_page.PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    fields = ServeConfig.model_fields
    stated = [int(number) for number in re.findall(r"\b\d+\b", text)]
    names = [name.lower() for name in re.findall(r"POLYHEAD_([A-Z_]+)", text)]
    assert names == ["max_queue_requests", "max_queue_tokens", "default_deadline_s"]
    assert stated == [fields[name].default for name in names]
