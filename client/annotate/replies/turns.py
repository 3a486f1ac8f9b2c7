"""Draws the replies of turns, one task each, and tells whoever watches. A draw belongs to its turn, not to a page: reloading,
another tab and lost connections neither end it nor begin it again.

Replies are stored before anyone hears that they are ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from polyhead.client import Piece, Sample, errors
from polyhead.client.annotate.projects.config import UserSource
from polyhead.client.annotate.projects.projects import OpenProject, project_of_item
from polyhead.client.annotate.replies import dialogues, user_turns
from polyhead.client.annotate.replies.candidates import candidate_of_sample
from polyhead.client.annotate.replies.drawing import Drawing, Model
from polyhead.client.annotate.replies.revealing import Revealed
from polyhead.client.annotate.storage.database import Database, Row, failpoint

MAX_REDRAWS = 2  # of one reply that failed
WAITS_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts to reach a server that is down or full; the last one repeats
REVEAL_S = 0.05  # between two additions to the cards of a page
PATIENCE_S = 600.0  # then the turn has failed, and the page offers another try

Cards = Sequence[dict[str, str]]
log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a turn is. `state`: user (the user's message is being drawn), generating, queued (the server is full), down (it does not
    answer), ready, failed."""

    total: int
    state: str = "generating"
    user_text: str = ""  # the user's message, once it is drawn; "": nobody draws it
    done: int = 0
    code: str = ""
    retry_after_s: float | None = None
    revealed: Revealed | None = None  # None: nothing of a reply is sent before all are there
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        return self.state in ("ready", "failed")

    def shown(self) -> dict[str, Any]:
        """For a page: counts alone."""
        if self.state == "failed":
            return {"code": self.code, "retry_after_s": self.retry_after_s}
        shown: dict[str, Any] = {"state": self.state, "done": self.done, "total": self.total}
        return {**shown, "retry_after_s": self.retry_after_s} if self.retry_after_s else shown

    def set(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        self.changed.set()
        self.changed = asyncio.Event()


class Turns:
    """All draws under way."""

    def __init__(self, db: Database, model: Model) -> None:
        self._db = db
        self._model = model
        self._progress: dict[str, Progress] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, turn: Row) -> None:
        """Draw its replies, unless they are being drawn."""
        if turn.id in self._tasks or turn.state != "generating":
            return
        self._progress[turn.id] = Progress(dialogues.num_replies(turn))
        task = asyncio.create_task(self._run(turn), name=f"turn {turn.id}")
        self._tasks[turn.id] = task
        task.add_done_callback(lambda _: self._forget(turn.id))

    def resume(self) -> None:
        """After a start of this program: what was being drawn when it stopped is drawn again."""
        for turn in self._db.all("SELECT * FROM turns WHERE state = 'generating'"):
            assignment = self._assignment_of(turn)
            if assignment.state in ("leased", "expired"):
                self.start(dialogues.begin_again(self._db, turn, assignment, project_of_item(self._db, assignment.item_id)))
            else:
                with self._db.transaction():
                    self._db.change("turns", turn.id, {"state": "abandoned", "ended_at": self._db.now()})

    def is_left(self, turn: Row) -> bool:
        """Whether it is to be drawn and nobody draws it: its draw failed, and so did writing that down."""
        return turn.state == "generating" and turn.id not in self._tasks

    def cancel(self, turn_id: str) -> None:
        """Nobody wants it any more."""
        if (task := self._tasks.get(turn_id)) is not None:
            task.cancel()

    async def close(self) -> None:
        """End all draws; their turns stay `generating`, and the next start takes them up."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def follow(self, turn: Row) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """(event, data) until the turn is ready or has failed; of a turn that is over already, its end."""
        progress = self._progress.get(turn.id)
        said, num_sent, user_text = dict[str, Any](), 0, ""
        while progress is not None and not progress.is_over:
            changed = progress.changed
            if progress.user_text != user_text:
                user_text = progress.user_text
                yield "user", {"text": user_text}
            if said != (shown := progress.shown()):
                said = shown
                yield "state", shown
            if progress.revealed is not None and (delta := progress.revealed.since(num_sent)) is not None:
                num_sent = delta["from"] + max(map(len, delta["texts"]))
                yield "delta", delta
                await asyncio.sleep(REVEAL_S)
            await changed.wait()
        turn = self._db.one("SELECT * FROM turns WHERE id = ?", turn.id) or turn
        if turn.user_source == UserSource.MODEL.value and turn.user_text != user_text:
            yield "user", {"text": turn.user_text}
        if turn.state == "ready":
            yield "ready", {}
        else:
            yield "failed", {"code": turn.error_code or "MODEL_FAILED"}

    async def _run(self, turn: Row) -> None:
        progress = self._progress[turn.id]
        try:
            assignment = self._assignment_of(turn)
            project = project_of_item(self._db, assignment.item_id)
            if turn.user_source == UserSource.MODEL.value and not turn.user_text:
                turn = await self._with_message(turn, project, progress)
            drawing = Drawing.of_turn(self._db, turn, project.config)
            if drawing.has_pieces:
                progress.revealed = Revealed(dialogues.shuffled(range(progress.total)))
            samples = await self._drawn(drawing, progress)
            is_rebuilt = not drawing.goes_on(samples[0].served)
            drawn = [(sample, drawing.cards_of(reply)) for reply, sample in enumerate(samples)]
            self._store(turn, assignment, project, drawn, progress.revealed, is_rebuilt=is_rebuilt)
            failpoint("before-ready")
            progress.set(state="ready", done=progress.total)
        except asyncio.CancelledError:
            progress.set(state="failed", code="STOPPED")
            raise
        except errors.PolyheadError as error:
            log.warning("turn %s has no replies: %s", turn.id, error.code)
            self._fail(turn, progress, code_of(error))
        except Exception:
            log.exception("turn %s has no replies", turn.id)
            self._fail(turn, progress, "MODEL_FAILED")

    def _fail(self, turn: Row, progress: Progress, code: str) -> None:
        """Whoever watches is told, also where the database takes nothing: it is full, or another process holds it."""
        try:
            dialogues.fail_turn(self._db, turn.id, code)
        except Exception:
            log.exception("turn %s stays marked as being drawn", turn.id)
        progress.set(state="failed", code=code)

    async def _with_message(self, turn: Row, project: OpenProject, progress: Progress) -> Row:
        """The turn with the user's message, which a head draws before the replies are drawn."""
        progress.set(state="user")
        [sample] = await self._drawn(user_turns.drawing_of_user(self._db, turn, project.config), progress)
        found = user_turns.store_message(self._db, turn, sample, project.config)
        if found is None:
            raise asyncio.CancelledError("nobody waits for this turn")
        progress.set(state="generating", done=0, user_text=found.user_text)
        return found

    async def _drawn(self, drawing: Drawing, progress: Progress) -> list[Sample]:
        """All replies; a server that is down or full is asked again."""
        waited, attempt = 0.0, 0
        while True:
            try:
                return await self._draw_all(drawing, progress)
            except (errors.Unavailable, errors.ResourceExhausted) as error:
                is_down = isinstance(error, errors.Unavailable)
                wait = max(WAITS_S[min(attempt, len(WAITS_S) - 1)], error.retry_after_s or 0.0)
                if waited + wait > PATIENCE_S:
                    raise
                self._model.note(is_up=not is_down)
                progress.set(state="down" if is_down else "queued", done=0, retry_after_s=wait)
                await self._model.pause(wait)
                waited, attempt = waited + wait, attempt + 1
                progress.set(state="user" if drawing.is_message else "generating", retry_after_s=None)

    async def _draw_all(self, drawing: Drawing, progress: Progress) -> list[Sample]:
        """Every reply, in the order of the arms: one that failed is drawn again from the same head and version, with a new seed."""
        drawing = await self._model.fitted(drawing)
        found, failed = await self._draw_anew(drawing, progress)
        if drawing.parent is not None and not all(drawing.goes_on(each.served) for each in (*found.values(), *failed.values())):
            drawing = drawing.rendered()  # another server has come between the question and the call
            found, failed = await self._draw_anew(drawing, progress)
        for _ in range(MAX_REDRAWS):
            if not failed:
                break
            parts, failed = list(drawing.again(failed)), {}
            for part, replies in parts:
                again, still = await self._draw(part, progress, replies)
                found |= again
                failed |= still
        if failed:
            raise errors.Internal(f"{len(failed)} replies could not be drawn: {next(iter(failed.values())).error[:200]}")
        return [found[reply] for reply in sorted(found)]

    async def _draw_anew(self, drawing: Drawing, progress: Progress) -> tuple[dict[int, Sample], dict[int, Sample]]:
        """All of them; what an attempt before has shown is forgotten."""
        if progress.revealed is not None:
            for reply in range(drawing.num_replies):
                progress.revealed.begin_again(reply)
        progress.done = 0
        return await self._draw(drawing, progress, range(drawing.num_replies))

    async def _draw(self, drawing: Drawing, progress: Progress, replies: Sequence[int]) -> tuple[dict[int, Sample], dict[int, Sample]]:
        """(found, failed) by the number of the reply. `replies`: the numbers of what this call draws, in the order of its arms."""
        found: dict[int, Sample] = {}
        failed: dict[int, Sample] = {}
        firsts = [0, *accumulate(arm.n for arm in drawing.arms)]
        async with contextlib.aclosing(self._model.draw(drawing)) as events:
            async for event in events:
                reply = replies[event.prompt_index * drawing.per_prompt + firsts[event.arm_index] + event.sample_index]
                is_taken = isinstance(event, Sample) and drawing.takes(event)
                if isinstance(event, Sample):
                    (found if is_taken else failed)[reply] = event
                if not drawing.is_message:
                    _note(progress, reply, event, is_taken=is_taken)
        self._model.note(is_up=True)
        return found, failed

    def _store(
        self, turn: Row, assignment: Row, project: OpenProject, drawn: Sequence[tuple[Sample, Cards]], revealed: Revealed | None, *,
        is_rebuilt: bool,
    ) -> None:  # fmt: skip
        config, now = project.config, self._db.now()
        if revealed is not None:  # the page has seen them in these slots
            drawn = [each for _, each in sorted(zip(revealed.slots, drawn, strict=True), key=lambda pair: pair[0])]
        rows = [candidate_of_sample(sample, turn.id, now=now, leak_words=config.leak_words, evidence=cards) for sample, cards in drawn]
        is_ordered = revealed is not None
        dialogues.store_ready(self._db, turn, assignment.id, rows, config.reveal.value, is_ordered=is_ordered, is_rebuilt=is_rebuilt)

    def _assignment_of(self, turn: Row) -> Row:
        found = self._db.one("SELECT a.* FROM assignments a JOIN dialogues d ON d.assignment_id = a.id WHERE d.id = ?", turn.dialogue_id)
        assert found is not None, turn.id
        return found

    def _forget(self, turn_id: str) -> None:
        self._tasks.pop(turn_id, None)
        self._progress.pop(turn_id, None)


def _note(progress: Progress, reply: int, event: Piece | Sample, *, is_taken: bool) -> None:
    """How far the turn is now."""
    if isinstance(event, Piece):
        if progress.revealed is not None:
            progress.revealed.add(reply, event.text)
            progress.set()
        return
    if progress.revealed is not None:
        progress.revealed.finish(reply, event.text) if is_taken else progress.revealed.begin_again(reply)
    progress.set(done=progress.done + is_taken)


def code_of(error: errors.PolyheadError) -> str:
    """What the page has a sentence for."""
    known: dict[type[errors.PolyheadError], str] = {
        errors.Unavailable: "MODEL_DOWN",
        errors.ResourceExhausted: "MODEL_BUSY",
        errors.DeadlineExceeded: "MODEL_SLOW",
        errors.NotFound: "HEAD_GONE",
        errors.InvalidArgument: _refused(error.field),
    }
    return next((code for kind, code in known.items() if isinstance(error, kind)), "MODEL_FAILED")


def _refused(field: str) -> str:
    """What a refused prompt means: a text in it, a reply that nothing can follow, or its length."""
    if not field.startswith("prompts"):
        return "MODEL_FAILED"
    return "TEXT_REFUSED" if "messages" in field else "REPLY_REFUSED" if "token_ids" in field else "CONTEXT_FULL"
