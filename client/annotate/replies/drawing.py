"""Replies from polyhead: one call a turn, over the public client. Whether the server answers is known here, and told to the pages."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import yaml

from polyhead.client import Arm, AsyncClient, Configuration, Continuation, Piece, Sample, ScoredItem, Served, Status, TrunkInfo, errors
from polyhead.client.annotate.projects.config import NewHeads, ProjectConfig, Reveal
from polyhead.client.annotate.replies.candidates import USABLE, unpack_ids
from polyhead.client.annotate.replies.dialogues import SEARCHES
from polyhead.client.annotate.storage.database import Database, Row, new_id

TURN_TIMEOUT_S = 180.0
ConfigurationKind = Literal["rule_set", "recipe", "transcript_format"]
POLL_S = 10.0
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One call: a prompt, and who replies."""

    messages: list[dict[str, str]]
    parent: Continuation | None  # the turn before with its exact ids, so that its cache is hit; None: the messages are rendered
    made_by: tuple[str, str] | None  # (trunk id, SHA-256 of the tokenizer) of the reply before; None: there is none, or no model wrote it
    arms: tuple[Arm, ...]
    options: dict[str, Any]
    request_id: str
    is_pinned: bool = False  # to the heads that the conversation began with
    has_pieces: bool = False  # replies are wanted while they are written, too
    is_message: bool = False  # what is drawn is the user's message, not replies
    evidence: tuple[dict[str, str], ...] = ()  # cards of the item, for prompts with a search
    with_search: tuple[bool, ...] = (False,)  # a prompt each

    @property
    def per_prompt(self) -> int:
        return sum(arm.n for arm in self.arms)

    @property
    def num_replies(self) -> int:
        return self.per_prompt * len(self.with_search)

    def cards_of(self, reply: int) -> tuple[dict[str, str], ...]:
        """What the reply of this number has read."""
        return self.evidence if self.with_search[reply // self.per_prompt] else ()

    def takes(self, sample: Sample) -> bool:
        """Whether it can be shown. A message of the user must say something, and open no other turn: it is sent back as one."""
        is_whole = not self.is_message or bool(sample.text.strip() and "foreign_opening" not in sample.invalid_reasons)
        return sample.finish_reason in USABLE and is_whole

    @classmethod
    def of_turn(cls, db: Database, turn: Row, config: ProjectConfig) -> Drawing:
        messages = turn.json("messages")
        parent = db.one("SELECT * FROM candidates WHERE id = ?", turn.parent_candidate_id) if turn.parent_candidate_id else None
        continuation = None
        if parent is not None and parent.prompt_token_ids:
            continuation = Continuation(unpack_ids(parent.prompt_token_ids), unpack_ids(parent.token_ids), (messages[-1],))
        arms = tuple(Arm(arm["head"], arm["n"]) for arm in turn.json("arms"))
        made_by = (parent.trunk_id, parent.tokenizer_sha256 or "") if parent is not None and parent.trunk_id else None
        is_pinned, has_pieces = config.new_heads is NewHeads.PINNED, config.reveal is not Reveal.TOGETHER
        drawing = cls(messages, continuation, made_by, arms, _options(config), turn.request_id, is_pinned, has_pieces)
        if turn.json("form").get(SEARCHES):
            drawing = dataclasses.replace(drawing, evidence=_evidence(db, turn), with_search=(False, True))
        return drawing

    def goes_on(self, served: Served | TrunkInfo) -> bool:
        """Whether this server has the trunk and the tokenizer that the conversation was held with so far."""
        return self.made_by is None or self.made_by == (served.trunk_id, served.tokenizer_sha256)

    def rendered(self) -> Drawing:
        """From the messages alone: stored ids mean nothing to another trunk or tokenizer."""
        return dataclasses.replace(self, parent=None)

    def again(self, failed: Mapping[int, Sample]) -> Iterator[tuple[Drawing, list[int]]]:
        """For replies that failed, by their numbers: the same heads and versions, a call for each prompt."""
        for prompt, has_search in enumerate(self.with_search):
            numbers = [number for number in failed if number // self.per_prompt == prompt]
            if numbers:
                arms = tuple(Arm(_version(failed[number])) for number in numbers)
                changes: dict[str, Any] = {"arms": arms, "request_id": f"annotate-{new_id()}", "with_search": (has_search,)}
                yield dataclasses.replace(self, **changes), numbers


@dataclasses.dataclass(frozen=True)
class Form:
    """What the frontend needs of a transcript format."""

    reply_role: str
    openings: tuple[str, ...]

    @classmethod
    def of_file(cls, content: str) -> Form:
        given = yaml.safe_load(content)
        return cls(given["default_reply_role"], tuple(role["opening"] for role in given.get("roles", {}).values()))


class Model:
    """The server as the frontend sees it: up or down, what it serves, and how to draw from it."""

    def __init__(self, client: AsyncClient, *, timeout_s: float = TURN_TIMEOUT_S) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._came_up = asyncio.Event()
        self._trunk: TrunkInfo | None = None
        self._forms: dict[str, Form] = {}
        self.is_up = True  # until a call says otherwise

    async def draw(self, drawing: Drawing) -> AsyncGenerator[Piece | Sample, None]:
        """The replies as they are finished, and their pieces if they are wanted. Leaving the loop cancels the rest."""
        prompt, written = await self.written(drawing.messages, drawing.options.get("format", ""))
        if drawing.parent is not None:
            prompt, written = drawing.parent, {}
        prompts = [[*prompt, *_search(drawing.evidence)] if has_search else prompt for has_search in drawing.with_search]
        options: Any = {
            "arms": drawing.arms, "on_swap": "pin", "priority": "interactive", "request_id": drawing.request_id,
            "timeout": self._timeout_s, **written, **drawing.options,
        }  # fmt: skip
        stream: Any = (
            self._client.events(prompts, **options) if drawing.has_pieces else self._client.samples(prompts, delivery="samples", **options)
        )
        try:
            async for event in stream:
                yield event
        finally:
            await stream.close()

    async def score(self, messages: list[dict[str, str]], text: str, config: ProjectConfig, request_id: str) -> ScoredItem:
        """What the project's hidden heads say of a reply that somebody wrote, closed as one that ended by itself."""
        prompt, written = await self.written(messages, config.prompt.format)
        completion: Any = text
        if not config.prompt.format:  # as a trainer closes it
            completion = [*await self._client.tokenize(text, special_tokens=False), *(await self.trunk()).eos_token_ids[:1]]
        [scored] = await self._client.score(
            [(prompt, completion)], heads=config.hidden.heads, terminated=True, priority="interactive", request_id=request_id,
            timeout=self._timeout_s, **written, **_given(config),
        )  # fmt: skip
        return scored

    async def written(self, messages: list[dict[str, str]], form: str) -> tuple[Any, dict[str, Any]]:
        """(messages, options) in the roles of a transcript format: the assistant's are those of the role that replies, and what the system
        says stands before the first turn. Without a format they stay as they are."""
        if not form:
            return messages, {}
        role = (await self._form(form)).reply_role
        told = "\n\n".join(each["content"] for each in messages if each["role"] == "system")
        turns = [
            {"role": role if each["role"] == "assistant" else each["role"], "content": each["content"]}
            for each in messages
            if each["role"] != "system"
        ]
        return turns, {"role_prompt": told} if told else {}

    async def opens_a_turn(self, form: str, text: str) -> bool:
        """Whether a message holds what opens another speaker's turn in a transcript format: the server refuses it. False while the server
        is down: then it says so itself when the turn is drawn."""
        if not form:
            return False
        try:
            return any(opening in f"\n\n{text}" for opening in (await self._form(form)).openings)
        except errors.PolyheadError:
            return False

    async def _form(self, form: str) -> Form:
        """What the format's file says; asked for once."""
        if form not in self._forms:
            self._forms[form] = Form.of_file((await self.configuration("transcript_format", form, "prompt.format")).content)
        return self._forms[form]

    async def rules(self, rule_set: str) -> tuple[str, list[Any]]:
        """(reference with its version, rules) of a rule set. NotFound if the server has none of this name."""
        found = await self.configuration("rule_set", rule_set, "rules.rule_set")
        return found.reference, list(found.rules)

    async def configuration(self, kind: ConfigurationKind, name: str, key: str) -> Configuration:
        """By its reference, or the newest of a name, as the server itself reads names. NotFound or FailedPrecondition names the project's
        key."""
        known = await self._client.configurations(kind)
        named = [each for each in known if name in (each.reference, each.reference.partition("@")[0])]
        what = kind.replace("_", " ")
        if not named:
            has = ", ".join(each.reference for each in known) or "none"
            raise errors.NotFound(f"the server has no {what} {name}\nhint: it has {has}", field=key)
        newest = max(named, key=lambda each: int(each.reference.partition("@")[2]))
        if newest.set_aside:
            raise errors.FailedPrecondition(f"the server cannot use the {what} {newest.reference}: {newest.set_aside}", field=key)
        return newest

    def note(self, *, is_up: bool) -> None:
        """What a call has shown."""
        self.is_up = is_up
        if is_up:
            self._came_up.set()
        else:
            self._came_up.clear()
            self._trunk = None  # another server may come back
            self._forms = {}

    async def pause(self, seconds: float) -> None:
        """So long, or until the server answers again."""
        with contextlib.suppress(TimeoutError):
            if self.is_up:
                await asyncio.sleep(seconds)
            else:
                await asyncio.wait_for(self._came_up.wait(), seconds)

    async def ask(self) -> Status:
        """What is served now. The trunk is asked for each time, too: another server may have taken this one's place unseen."""
        status, before = await self._client.status(), self._trunk
        self._trunk = await self._client.trunk()
        if before is not None and before.trunk_id != self._trunk.trunk_id:
            self._forms = {}  # another server may have other formats
        self.note(is_up=True)
        return status

    async def keep_watching(self, on_status: Callable[[Status], Awaitable[None]]) -> None:
        """Ask for the status, for ever: often while it is down, now and then while it is up. What goes wrong on our side is logged, and
        tried again."""
        waits, attempt = (1.0, 2.0, 5.0, 10.0), 0
        while True:
            try:
                await on_status(await self.ask())
                attempt = 0
                await asyncio.sleep(POLL_S)
            except errors.PolyheadError as error:
                if self.is_up:
                    log.warning("the model server does not answer: %s", error.code)
                self.note(is_up=False)
                await asyncio.sleep(waits[min(attempt, len(waits) - 1)])
                attempt += 1
            except Exception:
                log.exception("what the model server says could not be stored")
                await asyncio.sleep(POLL_S)

    async def trunk(self) -> TrunkInfo:
        """Of the server that answered last."""
        if self._trunk is None:
            self._trunk = await self._client.trunk()
        return self._trunk

    async def fitted(self, drawing: Drawing) -> Drawing:
        """As the server that answers now can draw it. NotFound: its heads are pinned, and belong to a trunk that is no longer served."""
        if drawing.made_by is None or drawing.goes_on(await self.trunk()):
            return drawing
        if drawing.is_pinned:
            raise errors.NotFound("the conversation's heads belong to a trunk that is no longer served")
        return drawing.rendered()


def _evidence(db: Database, turn: Row) -> tuple[dict[str, str], ...]:
    """Cards of the turn's item."""
    query = (
        "SELECT i.content_json FROM items i JOIN assignments a ON a.item_id = i.id JOIN dialogues d ON d.assignment_id = a.id"
        " WHERE d.id = ?"
    )
    found = db.one(query, turn.dialogue_id)
    assert found is not None, turn.dialogue_id
    return tuple(found.json("content").get("evidence", []))


def _search(evidence: Sequence[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Turns of a search, as Sparrow's transcripts have them: what was sought, and what was found."""
    for card in evidence:
        if "query" in card:
            yield {"role": "search_query", "content": card["query"]}
        yield {"role": "search_results", "content": "\n".join(card[name] for name in ("title", "url", "snippet") if name in card)}


def _version(sample: Sample) -> str:
    return f"{sample.head.partition('@')[0]}@{sample.head_version}" if sample.head_version else sample.head


def _options(config: ProjectConfig) -> dict[str, Any]:
    sampling, heads = config.sampling, list(config.hidden.heads)
    options: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_new_tokens": sampling.max_new_tokens}
    return {**options, **({"score": heads} if heads else {}), **_given(config)}


def _given(config: ProjectConfig) -> dict[str, Any]:
    """Of the hidden scores' details what the project names, and its transcript format."""
    hidden = config.hidden
    given = {"rule_set": hidden.rule_set, "recipe": hidden.recipe, "ood": hidden.ood, "format": config.prompt.format}
    return {name: value for name, value in given.items() if value}
