"""What the user says where no person here writes it: the item's script, or messages that a head draws.

A drawn message is drawn before the replies to it, as a part of their turn: stored as a candidate of its own, from whose row it can be drawn
again, and kept when only the replies have to be drawn anew.
"""

from __future__ import annotations

from typing import Any

from polyhead.client import Arm, Sample
from polyhead.client.annotate.projects.config import NewHeads, ProjectConfig, UserSource
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.replies.candidates import candidate_of_sample
from polyhead.client.annotate.replies.dialogues import Messages
from polyhead.client.annotate.replies.drawing import Drawing
from polyhead.client.annotate.storage.database import Database, Row, new_id, to_json

MAX_TOKENS = 160  # of a message; the replies' own limit may be lower
PROMPT = (
    "You play a person who talks with an assistant. What you read are the assistant's messages, and each of your messages is the person's"
    " next one: a question or a remark in one or two everyday sentences that goes on with the conversation. Write nothing but the message."
)
_GREETING = "Hello! How can I help you?"  # many chat templates want the other side to begin


def go_on(db: Database, assignment: Row, project: OpenProject) -> Row | None:
    """Begin the turn whose message of the user nobody here writes. None where a person is to write or to judge, and where the dialogue has
    all of its turns."""
    content, turns = dialogues.content_of(db, assignment), dialogues.turns_of(db, assignment)
    if not project.is_live or "user" not in content or assignment.state not in ("leased", "expired"):
        return None
    if len(turns) >= dialogues.num_turns(db, assignment, project.config) or (turns and not _is_answered(db, turns[-1])):
        return None
    script = [content["user"], *content.get("user_turns", [])]
    if len(turns) < len(script):
        return dialogues.begin_turn(db, assignment, project, new_id(), script[len(turns)], source=UserSource.ITEM)
    if project.config.dialogue.user is UserSource.MODEL:
        return dialogues.begin_turn(db, assignment, project, new_id(), "", source=UserSource.MODEL)
    return None


def may_write(db: Database, assignment: Row, config: ProjectConfig) -> bool:
    """Whether a person writes the messages that follow those of the item."""
    return config.dialogue.user is not UserSource.MODEL and "user_turns" not in dialogues.content_of(db, assignment)


def drawing_of_user(db: Database, turn: Row, config: ProjectConfig) -> Drawing:
    """The call that draws the user's message of a turn. In a transcript format it is the user's own turn; a chat template only writes the
    assistant's, so there the two change places."""
    messages, form, told = turn.json("messages"), config.prompt.format, config.dialogue.user_prompt
    options: dict[str, Any] = {
        "temperature": config.sampling.temperature, "top_p": config.sampling.top_p,
        "max_new_tokens": min(MAX_TOKENS, config.sampling.max_new_tokens),
    }  # fmt: skip
    if form:
        said = [message for message in messages if message["role"] != "system"]
        options |= {"format": form, "reply_role": "user", **({"role_prompt": told} if told else {})}
    else:
        said = _turned_round(messages, told or PROMPT)
    arms = (Arm(_head(db, turn, config)),)
    return Drawing(said, None, None, arms, options, f"{turn.request_id}-user", is_message=True)


def store_message(db: Database, turn: Row, sample: Sample, config: ProjectConfig) -> Row | None:
    """The turn with its message. What was drawn is a row of its own, in no view: nobody judges it. None: nobody waits for it any more."""
    row, text = candidate_of_sample(sample, turn.id, now=db.now(), leak_words=config.leak_words), sample.text.strip()
    messages: Messages = [*turn.json("messages"), {"role": "user", "content": text}]
    form = {**turn.json("form"), dialogues.USER_CANDIDATE: row["id"]}
    with db.transaction():
        if not dialogues.keeps_waiting(db, turn):
            return None
        db.insert("candidates", row)
        db.change("turns", turn.id, {"user_text": text, "messages_json": to_json(messages), "form_json": to_json(form)})
    return db.one("SELECT * FROM turns WHERE id = ?", turn.id)


def _turned_round(messages: Messages, told: str) -> Messages:
    """The conversation as the other side sees it: what the user said is its own."""
    other = {"user": "assistant", "assistant": "user"}
    seen = [{"role": other[each["role"]], "content": each["content"]} for each in messages if each["role"] in other]
    return [{"role": "user", "content": f"{told}\n\n{_GREETING}"}, *seen]


def _head(db: Database, turn: Row, config: ProjectConfig) -> str:
    """In a dialogue with pinned heads the version that has drawn its first message."""
    name = config.dialogue.user_head
    if config.new_heads is NewHeads.LIVE:
        return name
    first = db.one(
        f"SELECT c.head_version FROM turns t JOIN candidates c ON c.id = json_extract(t.form_json, '$.{dialogues.USER_CANDIDATE}')"
        " WHERE t.dialogue_id = ? AND c.head_name = ? ORDER BY t.number, t.attempt",
        turn.dialogue_id, name,
    )  # fmt: skip
    return name if first is None else f"{name}@{first.head_version}"


def _is_answered(db: Database, turn: Row) -> bool:
    return turn.state == "ready" and db.one("SELECT 1 FROM answers WHERE turn_id = ? AND state = 'current'", turn.id) is not None
