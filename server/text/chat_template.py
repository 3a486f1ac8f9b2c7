"""A checkpoint's chat template: which form of content it reads, what it drops, and what its errors mean. Knows texts, no ids.

Templates are programs of strangers. What one does with a message is tried at start, with a stand-in that has to come out again.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyhead.heads.format.errors import FailedPrecondition

_STAND_INS = ("polyhead-stand-in-one", "polyhead-stand-in-two", "polyhead-stand-in-three")
_SHOWN = 200  # characters of a template's own words

logger = logging.getLogger(__name__)

Message = Mapping[str, str]  # {"role": "user", "content": "Hi"}


class Form(enum.Enum):
    """How a template reads a message's content."""

    TEXT = "text"
    PARTS = "parts"  # [{"type": "text", "text": "Hi"}], as models with images have it


class Outcome(enum.Enum):
    KEPT = enum.auto()
    LOST = enum.auto()
    RAISED = enum.auto()  # the template may need other turns around these: each request is tried


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """What was found out about a template."""

    tokenizer: Any
    forms: Mapping[str, Form] = field(default_factory=dict)  # by role; TEXT if a role is not named
    dropped: Mapping[str, str] = field(default_factory=dict)  # why a role's messages cannot be sent
    refused: str = ""  # why nothing can be rendered at all

    def render(self, messages: Sequence[Message], field: str, opens_reply: bool = True) -> str:
        """The text of a conversation. FailedPrecondition says why the template cannot."""
        from jinja2.exceptions import TemplateError

        self._check(messages, field)
        try:
            return _rendered(self.tokenizer, messages, self.forms, opens_reply)
        except Exception as error:  # a template is a program: whatever can be raised is
            does = "refuses" if type(error) is TemplateError else "fails on"  # `raise_exception` raises the class itself
            said = (str(error) or type(error).__name__)[:_SHOWN]
            raise FailedPrecondition(f"the model's chat template {does} these messages: {said}", field=field) from None

    def _check(self, messages: Sequence[Message], field: str) -> None:
        if self.refused:
            raise FailedPrecondition(self.refused, field=field)
        for message in messages:
            if why := self.dropped.get(message["role"]):
                raise FailedPrecondition(why, field=field)


def examine(tokenizer: Any) -> ChatTemplate:
    """Render stand-ins, in both forms, and look for them. A template's exceptions decide nothing here."""
    named = tokenizer.chat_template
    if not named:
        return ChatTemplate(tokenizer, refused="the model has no chat template: send text or token ids")
    if isinstance(named, dict) and "default" not in named:
        return ChatTemplate(
            tokenizer,
            refused=f"none of the model's chat templates is called default: {', '.join(sorted(named))}\n"
            "hint: call one of them default in the model's folder, or send text or token ids",
        )
    forms: dict[str, Form] = {}
    dropped: dict[str, str] = {}
    for role, turns in (("user", ["user"]), ("system", ["system", "user"]), ("assistant", ["user", "assistant", "user"])):
        found = {form: _try(tokenizer, turns, {**forms, role: form}) for form in Form}
        kept = [form for form in Form if found[form] is Outcome.KEPT]
        forms[role] = kept[0] if kept else Form.TEXT
        if not kept and Outcome.LOST in found.values():
            dropped[role] = f"the model's chat template drops {_WHAT[role]}: what was said would not reach the model"
    if "user" in dropped:
        return ChatTemplate(tokenizer, refused=f"{dropped['user']}\nhint: send text or token ids, or name a transcript format")
    return ChatTemplate(tokenizer, forms, dropped)


def report(template: ChatTemplate) -> None:
    """What an operator has to know, into the log."""
    if template.tokenizer.chat_template and template.refused:
        logger.warning("chat is refused: %s", template.refused.partition("\n")[0])
    for why in template.dropped.values():
        logger.warning("%s; such requests are refused", why)
    if parts := [role for role, form in template.forms.items() if form is Form.PARTS]:
        logger.info("the chat template reads contents as lists of parts: %s", ", ".join(parts))


_WHAT = {
    "user": "the text of user messages",
    "system": "system messages",
    "assistant": "turns of a conversation that has several",
}


def _try(tokenizer: Any, turns: Sequence[str], forms: Mapping[str, Form]) -> Outcome:
    messages = [{"role": role, "content": stand_in} for role, stand_in in zip(turns, _STAND_INS, strict=False)]
    try:
        text = _rendered(tokenizer, messages, forms, opens_reply=True).casefold()  # a template may change the case
    except Exception:
        return Outcome.RAISED
    return Outcome.KEPT if all(message["content"] in text for message in messages) else Outcome.LOST


def _rendered(tokenizer: Any, messages: Sequence[Message], forms: Mapping[str, Form], opens_reply: bool) -> str:
    shaped = [{**message, "content": _content(message, forms)} for message in messages]
    return str(tokenizer.apply_chat_template(shaped, tokenize=False, add_generation_prompt=opens_reply))


def _content(message: Message, forms: Mapping[str, Form]) -> Any:
    if forms.get(message["role"], Form.TEXT) is Form.TEXT:
        return message["content"]
    return [{"type": "text", "text": message["content"]}]
