"""A file's items on their way into the database: in portions, so that people's requests are answered in between, and yet all or nothing.

Items of an import that is `running` are handed out to nobody and shown on no page. The last portion makes all of them visible by one
column of one row. What an end in the middle has left is removed: at once, or after a kill by the next start or the next import.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from polyhead.client.annotate.problems import Clash
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.replies.candidates import candidate_of_text
from polyhead.client.annotate.storage.database import Database, new_id, sha256

PORTION_ROWS = 100  # items and replies of one transaction: some 15 ms
PAUSE_S = 0.01  # between two
IS_THERE = "ifnull(i.import_id, '') NOT IN (SELECT id FROM imports WHERE state = 'running')"  # of an item i: its file is stored as a whole
Item = dict[str, Any]  # the columns of an item, its replies beside them, each a `Reply`


@dataclass(frozen=True)
class Reply:
    """A reply that an item brings, and the cards of what it rests on."""

    text: str
    evidence: list[dict[str, str]]  # empty: it names nothing

    def plain(self) -> Any:
        """As the file says it: equal ones have equal hashes."""
        return {"text": self.text, "evidence": self.evidence} if self.evidence else self.text


@dataclass(frozen=True)
class Imported:
    """What came of a file."""

    num_lines: int
    num_items: int
    num_duplicates: int  # counted, not stored again


@dataclass(frozen=True)
class Plan:
    """What is to be stored of a file: `fresh` is what the round has not got yet."""

    row: dict[str, Any]  # of `imports`
    fresh: Sequence[Item]
    result: Imported


@contextlib.contextmanager
def storing(db: Database) -> Iterator[None]:
    """One import a file at a time, over all processes. Clash while there is another one."""
    lock = os.open(f"{db.path}.import.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Clash("another file is being stored: try again in a minute", code="IMPORT_BUSY") from None
        _remove_unfinished(db)
        yield
    finally:
        os.close(lock)


def tidy(db: Database) -> None:
    """At the start of a server: remove what an import has left that was killed."""
    with contextlib.suppress(Clash), storing(db):
        pass


def plan_import(db: Database, project: OpenProject, name: str, data: bytes, items: Sequence[Item]) -> Plan:
    """Each text is stored once a round."""
    known = {row.content_sha256 for row in db.all("SELECT content_sha256 FROM items WHERE round_id = ?", project.round_id)}
    fresh: dict[bytes, Item] = {}
    for item in items:
        if item["content_sha256"] not in known:
            fresh.setdefault(item["content_sha256"], item)
    result = Imported(len(items), len(fresh), len(items) - len(fresh))
    row = {"id": new_id(), "round_id": project.round_id, "file_name": name[:200], "file_sha256": sha256(data)}
    return Plan(row, list(fresh.values()), result)


def store(db: Database, plan: Plan, by: str) -> Generator[None, None, None]:
    """Store it, a portion each time that the next one is asked for; whoever asks for no more has stored nothing."""
    key, result = plan.row["id"], plan.result
    counts = {"num_lines": result.num_lines, "num_items": result.num_items, "num_duplicates": result.num_duplicates}
    try:
        with db.transaction():
            db.insert("imports", {**plan.row, **counts, "created_by": by, "created_at": db.now(), "state": "running"}, by)
        for portion in portions(plan.fresh):
            yield
            with db.transaction():
                for item in portion:
                    _insert(db, plan.row, item, by)
        with db.transaction():
            db.change("imports", key, {"state": "done"}, by)
    except BaseException:
        _remove(db, key)
        raise


def portions(items: Sequence[Item]) -> Iterator[list[Item]]:
    """So many items that they and their replies are PORTION_ROWS rows, and at least one."""
    portion: list[Item] = []
    num_rows = 0
    for item in items:
        size = 1 + len(item["replies"])
        if portion and num_rows + size > PORTION_ROWS:
            yield portion
            portion, num_rows = [], 0
        portion.append(item)
        num_rows += size
    if portion:
        yield portion


def delete_items(db: Database, import_id: str) -> None:
    """The rows of an import that did not come to its end: nobody has seen one of them."""
    db.execute("DELETE FROM candidates WHERE item_id IN (SELECT id FROM items WHERE import_id = ?)", import_id)
    db.execute("DELETE FROM items WHERE import_id = ?", import_id)
    db.execute("DELETE FROM imports WHERE id = ?", import_id)


def _insert(db: Database, batch: dict[str, Any], item: Item, by: str) -> None:
    columns = {name: value for name, value in item.items() if name != "replies"}
    row = {"id": new_id(), "round_id": batch["round_id"], "import_id": batch["id"], "source": "import", "created_at": db.now(), **columns}
    db.insert("items", row, by)
    for reply in item["replies"]:
        made = candidate_of_text(reply.text, origin="import", now=db.now(), item_id=str(row["id"]), evidence=reply.evidence)
        db.insert("candidates", made, by)


def _remove_unfinished(db: Database) -> None:
    for row in db.all("SELECT id FROM imports WHERE state = 'running'"):
        _remove(db, row.id)


def _remove(db: Database, import_id: str) -> None:
    with db.transaction():
        if db.one("SELECT 1 FROM imports WHERE id = ? AND state = 'running'", import_id) is not None:
            delete_items(db, import_id)
            db.event("imports.remove", "system", {"id": import_id}, {})
