"""Chat templates are programs: what they drop is found at start, and what they raise is said."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.server.text.chat_template import Form, examine, report
from polyhead.server.text.tokenizer import Tokenizer
from tests.server.text.tiny_tokenizers import chat_tokenizers

TEXT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
USERS_PARTS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'][0]['text'] }}"
    "{% else %}<{{ m['role'] }}>{{ m['content'] }}{% endif %}{% endfor %}"
)
BLIND = "{% for m in messages %}<{{ m['role'] }}>{% endfor %}"
NO_SYSTEM = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
LAST_ALONE = "{{ messages[-1]['content'] }}"
STRICT = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEXT


def tokenizer(template: Any) -> Tokenizer:
    return Tokenizer(chat_tokenizers.byte_level(template), "")


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"said {index}"} for index, role in enumerate(roles)]


def rendered(template: str, *roles: str) -> str:
    found = tokenizer(template)
    return found.decode(found.encode_chat(turns(*roles), "messages"), skip_special_tokens=False)


@pytest.mark.parametrize("template", [TEXT, PARTS, USERS_PARTS], ids=["text", "parts", "parts of users"])
def test_every_message_reaches_the_model(template: str) -> None:
    """A template that looks for parts in a string finds none: it rendered an empty turn, and nobody was told."""
    assert rendered(template, "system", "user", "assistant", "user") == "<system>said 0<user>said 1<assistant>said 2<user>said 3"


def test_the_form_is_found_for_each_role() -> None:
    assert set(examine(chat_tokenizers.byte_level(TEXT)).forms.values()) == {Form.TEXT}
    assert set(examine(chat_tokenizers.byte_level(PARTS)).forms.values()) == {Form.PARTS}
    forms = examine(chat_tokenizers.byte_level(USERS_PARTS)).forms
    assert forms == {"user": Form.PARTS, "system": Form.TEXT, "assistant": Form.TEXT}


def test_turns_that_follow_come_in_the_same_form() -> None:
    found = tokenizer(PARTS)
    ids = found.encode_next_turns(turns("user"), 5, frozenset(), "messages")
    assert found.decode(ids) == "<user>said 0"


def test_a_template_that_loses_the_message_is_refused_for_chat(caplog: pytest.LogCaptureFixture) -> None:
    found = tokenizer(BLIND)
    for encode in (lambda: found.encode_chat(turns("user"), "f"), lambda: found.encode_next_turns(turns("user"), 5, frozenset(), "f")):
        with pytest.raises(FailedPrecondition, match="drops the text of user messages") as caught:
            encode()
        assert caught.value.field == "f"
    found.report_chat(frozenset())
    assert "chat is refused: the model's chat template drops the text of user messages" in caplog.text
    assert found.encode("said 0")  # everything but chat is served


def test_a_role_that_the_template_drops_is_refused_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    assert rendered(NO_SYSTEM, "user", "assistant", "user") == "said 0said 1said 2"
    with pytest.raises(FailedPrecondition, match="drops system messages"):
        rendered(NO_SYSTEM, "system", "user")
    tokenizer(NO_SYSTEM).report_chat(frozenset())
    assert "drops system messages" in caplog.text


def test_a_template_of_the_last_message_takes_one_message() -> None:
    assert rendered(LAST_ALONE, "user") == "said 0"
    with pytest.raises(FailedPrecondition, match="drops turns of a conversation"):
        rendered(LAST_ALONE, "user", "assistant", "user")


def test_what_a_template_has_against_messages_is_said() -> None:
    assert rendered(STRICT, "user") == "<user>said 0"
    with pytest.raises(FailedPrecondition, match="refuses these messages: System role not supported") as caught:
        rendered(STRICT, "system", "user")
    assert caught.value.field == "messages"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[0]['content'] + 1 }}", "can only concatenate str"),
        ("{{ messages[0]['content'].no_such_thing() }}", "no attribute 'no_such_thing'"),
        ("{{ 1 // 0 }}", "by zero"),
        ("{{ range(999999999) | list }}", "Range too big"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages | no_such_filter }}", "No filter named 'no_such_filter'"),
    ],
)
def test_what_a_template_does_wrong_is_said(template: str, said: str) -> None:
    """Only Jinja's own exceptions were caught; a TypeError came out as INTERNAL without a word."""
    with pytest.raises(FailedPrecondition, match="fails on these messages: .*" + said) as caught:
        rendered(template, "user")
    assert caught.value.field == "messages"


def test_named_templates_without_a_default_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    raw = chat_tokenizers.byte_level()
    raw.chat_template = {"tool_use": TEXT, "rag": TEXT}
    with pytest.raises(FailedPrecondition, match="none of the model's chat templates is called default: rag, tool_use"):
        Tokenizer(raw, "").encode_chat(turns("user"), "messages")
    report(examine(raw))
    assert "rag, tool_use" in caplog.text
    raw.chat_template = {"tool_use": BLIND, "default": TEXT}
    assert Tokenizer(raw, "").encode_chat(turns("user"), "messages")


def test_a_model_without_a_template_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    raw = chat_tokenizers.byte_level(None)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "polyhead"):
        Tokenizer(raw, "").report_chat(frozenset())
    assert not caplog.text
    with pytest.raises(FailedPrecondition, match="no chat template: send text or token ids"):
        Tokenizer(raw, "").encode_chat(turns("user"), "messages")
