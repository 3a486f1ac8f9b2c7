"""Scores of replies that people wrote, by the project's hidden heads: after the answer is stored, and beside it.

An answer never waits for its score. What has none yet is in the database, so a server that is down, or a stop of this program, loses none:
each start and each new answer looks for what is left. A score is an event of the log, `candidates.scored`; candidates never change.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import Any

from polyhead.client import errors, to_plain
from polyhead.client.annotate.projects.config import ProjectConfig
from polyhead.client.annotate.projects.projects import project_of_item
from polyhead.client.annotate.replies.dialogues import Messages
from polyhead.client.annotate.replies.drawing import Model
from polyhead.client.annotate.storage.database import Database, Row, to_json

SCORED = "candidates.scored"
WAITS_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts to reach a server that is down or full; the last one repeats
MAX_SLOW = 3  # attempts that run into their deadline: one reply must not hold up all others
TRANSIENT = (errors.Unavailable, errors.ResourceExhausted, errors.DeadlineExceeded)
_WRITTEN = f"""FROM candidates c JOIN items i ON i.id = c.item_id JOIN rounds r ON r.id = i.round_id
    JOIN project_versions v ON v.project_id = r.project_id AND v.version = r.project_version
    WHERE c.origin IN ('human', 'edit') AND c.text != ''
    AND (json_array_length(v.config_json, '$.hidden.heads') > 0 OR json_extract(v.config_json, '$.hidden.recipe') != '')
    AND {{}}EXISTS
    (SELECT 1 FROM events e WHERE e.item_id = c.item_id AND e.kind = '{SCORED}' AND json_extract(e.body_json, '$.id') = c.id)"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counted:
    """Written replies of projects with hidden heads."""

    num_scored: int
    num_open: int


def count(db: Database) -> Counted:
    scored, left = (int(db.value(f"SELECT count(*) {_WRITTEN.format(which)}")) for which in ("", "NOT "))
    return Counted(scored, left)


def scores_of(db: Database, candidate: Row, until_seq: int) -> dict[str, Any]:
    """{"scores": by head, "reward"} of a reply, drawn or written, as the log has them up to there: numbers that stand for the whole reply.
    What heads said of each token stays in the log. Empty: it was not scored."""
    said = candidate
    if candidate.origin in ("human", "edit"):
        scored = db.value(
            f"SELECT body_json FROM events WHERE item_id = ? AND kind = '{SCORED}' AND json_extract(body_json, '$.id') = ? AND seq <= ?",
            candidate.item_id, candidate.id, until_seq,
        )  # fmt: skip
        said = Row(json.loads(scored)) if scored else candidate
    scores, reward = said.json("scores") or {}, said.json("reward") or {}
    found = {"scores": {head: _whole(score) for head, score in scores.items()}, "reward": reward.get("reward")}
    return {name: value for name, value in found.items() if value not in ({}, None)}


class Scorer:
    """Scores what is left, for ever. `refused`: replies that the server will not score as they are, and why; asked for again at the next
    start."""

    def __init__(self, db: Database, model: Model) -> None:
        self._db = db
        self._model = model
        self._wanted = asyncio.Event()
        self.refused: dict[str, str] = {}

    def wake(self) -> None:
        """There may be something to score."""
        self._wanted.set()

    async def run(self) -> None:
        while True:
            self._wanted.clear()
            for row in self._left():
                await self._score_at_last(row)
            await self._wanted.wait()

    async def _score_at_last(self, row: Row) -> None:
        """Scored, or refused; a server that is down or full is asked again, as long as that takes."""
        attempt = num_slow = 0
        while True:
            try:
                return await self._score(row)
            except TRANSIENT as error:
                num_slow += isinstance(error, errors.DeadlineExceeded)
                if num_slow >= MAX_SLOW:
                    return self._refuse(row, error)
                if isinstance(error, errors.Unavailable):
                    self._model.note(is_up=False)
                await self._model.pause(max(WAITS_S[min(attempt, len(WAITS_S) - 1)], error.retry_after_s or 0.0))
                attempt += 1
            except Exception as error:
                return self._refuse(row, error)

    def _refuse(self, row: Row, error: Exception) -> None:
        """It stays without a score until the next start; what follows it is scored."""
        is_ours = not isinstance(error, errors.PolyheadError)
        log.warning("reply %s has no score: %s", row.id, error, exc_info=is_ours)
        self.refused[row.id] = str(error)

    def _left(self) -> list[Row]:
        """In the order in which they were written."""
        rows = self._db.all(f"SELECT c.id, c.item_id, c.text {_WRITTEN.format('NOT ')} ORDER BY c.created_at, c.id")
        return [row for row in rows if row.id not in self.refused]

    async def _score(self, row: Row) -> None:
        item = self._db.one("SELECT content_json FROM items WHERE id = ?", row.item_id)
        assert item is not None, row.item_id
        config = project_of_item(self._db, row.item_id).config
        messages = [*_system(config), *item.json("content").get("messages", [])]
        scored = await self._model.score(messages, row.text, config, f"annotate-{row.id}")
        if scored.error:
            raise errors.Internal(scored.error)
        body = {
            "id": row.id, "scores_json": _json(scored.scores), "reward_json": _json(scored.reward), "ood_json": _json(scored.ood),
            "generation": scored.generation, "trunk_id": scored.served.trunk_id, "precision": scored.served.precision,
        }  # fmt: skip
        with self._db.transaction():
            if self._db.value("SELECT text FROM candidates WHERE id = ?", row.id):  # erased meanwhile: nothing of it is kept
                self._db.event(SCORED, "system", body, {"item_id": row.item_id})
        self._model.note(is_up=True)


def _system(config: ProjectConfig) -> Messages:
    return [{"role": "system", "content": config.prompt.system}] if config.prompt.system else []


def _whole(score: dict[str, Any]) -> dict[str, Any]:
    """Without what is a list, a number a token, and what is empty."""
    return {name: value for name, value in score.items() if not isinstance(value, list) and value not in ("", None)}


def _json(value: Any) -> str | None:
    return None if value is None else to_json(to_plain(value))
