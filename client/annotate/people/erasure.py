"""What remains of somebody who stops, and what goes when a person's data is erased.

`stop`: the account ends; past work stays, or is voided. `erase`, mode `identity`: name, code, sessions and pseudonym go, the work
stays under a number. Mode `all`: what the person wrote and answered goes, too, from the tables and from the log: texts become empty,
bodies {"erased": true}, prompts that hold the person's words disappear from the candidates. That something was judged, when, and under
which number remains, so that counts still add up.

Erasures are also kept in a file beside the database, which has each before it is done: a backup that is restored has them done again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from polyhead.client.annotate.problems import Clash, Invalid, NotThere
from polyhead.client.annotate.storage.database import Database, DatabaseError, Row, sha256, sync, to_json

MODES = ("identity", "all")
Erasure = tuple[str, str]  # (account's id, mode)
ERASED = to_json({"erased": True})
_OWN_ASSIGNMENTS = "SELECT id FROM assignments WHERE account_id = ?"
_OWN_DIALOGUES = f"SELECT id FROM dialogues WHERE assignment_id IN ({_OWN_ASSIGNMENTS})"
_OWN_TURNS = f"SELECT id FROM turns WHERE dialogue_id IN ({_OWN_DIALOGUES})"
_OWN_ITEMS = "SELECT id FROM items WHERE author_id = ?"
_OPEN = "('leased', 'released', 'expired')"  # states of assignments that may still get answers


def stop(db: Database, account_id: str, *, keeps_work: bool) -> None:
    """Somebody takes part no more. Nobody can sign in as this person again."""
    with db.transaction():
        _end(db, account_id, "withdrawn")
        if not keeps_work:
            query = f"SELECT id FROM answers WHERE assignment_id IN ({_OWN_ASSIGNMENTS}) AND state = 'current'"
            for answer in db.all(query, account_id):
                db.change("answers", answer.id, {"state": "voided", "state_reason": "stopped"}, account_id)
            _void(db, "account_id = ? AND state = 'submitted'", account_id, {"reason": "stopped"}, account_id)


def find(db: Database, person: str) -> Row:
    """By pseudonym or id."""
    found = db.one("SELECT id, pseudonym, state FROM accounts WHERE id = ? OR pseudonym = ?", person, person)
    if found is None:
        raise NotThere(f"no such person: {person[:40]!r}", field="person")
    return found


def erase(db: Database, account_id: str, mode: str, by: str) -> None:
    """Erase one person's data, also from free pages of the file and from its write-ahead log. Doing it again changes nothing.
    Clash: it is erased, and those still hold some of it."""
    if mode not in MODES:
        raise Invalid(f"must be one of {', '.join(MODES)}", field="mode")
    find(db, account_id)
    with db.transaction():
        note_beside(db.path, [(account_id, mode)])
        done = db.one("SELECT 1 FROM erasures WHERE account_id = ? AND mode = ? AND state = 'done'", account_id, mode)
        if done is None:
            db.execute("INSERT INTO erasures VALUES (?, ?, 'running', ?, ?)", account_id, mode, db.now(), by)
        else:
            db.execute("UPDATE erasures SET state = 'running' WHERE account_id = ? AND mode = ?", account_id, mode)
        _end(db, account_id, "erased")
        _erase_identity(db, account_id)
        if mode == "all":
            _erase_work(db, account_id)
        db.execute("UPDATE erasures SET state = 'done' WHERE account_id = ? AND mode = ?", account_id, mode)
        if done is None:
            db.event("erasures.done", by, {"account_id": account_id, "mode": mode}, {})
    try:
        db.compact()
    except DatabaseError as error:
        again = f"polyhead annotate erase {account_id} --mode {mode} --db {db.path}"
        raise Clash(f"{account_id} is erased, but {error}\nhint: do it again: {again}", code="STILL_READ") from None


def erase_again(db: Database, known: Path) -> int:
    """Do all erasures of a list file in this database, as after a restore. Returns how many people were found."""
    count = 0
    for account_id, mode in _listed(known):
        if db.one("SELECT 1 FROM accounts WHERE id = ?", account_id) is not None:
            erase(db, account_id, mode, "restore")
            count += 1
    return count


def list_path(db_path: Path) -> Path:
    """The list of erasures of a database: it outlives the file."""
    return db_path.with_name(f"{db_path.name}.erasures.jsonl")


def note_beside(db_path: Path, erasures: Iterable[Erasure]) -> None:
    """The list of a database gets those that it lacks. They are on the disk when this returns."""
    path = list_path(db_path)
    known, text = _listed(path), path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [to_json({"account_id": account_id, "mode": mode}) for account_id, mode in erasures if (account_id, mode) not in known]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * (text != "" and not text.endswith("\n")) + "".join(f"{line}\n" for line in lines))
    sync(path)
    sync(path.parent)


def _end(db: Database, account_id: str, state: str) -> None:
    """No sign-in, no open work, no consent."""
    now = db.now()
    db.change("accounts", account_id, {"state": state, "ended_at": now, "code_sha256": None}, account_id)
    db.execute("DELETE FROM sessions WHERE account_id = ?", account_id)
    for row in db.all("SELECT * FROM consents WHERE account_id = ? AND withdrawn_at IS NULL", account_id):
        db.put("consents", {**row.columns, "withdrawn_at": now}, ("account_id", "document", "version"), account_id)
    _void(db, f"account_id = ? AND state IN {_OPEN}", account_id, {"ended_at": now, "reason": state}, account_id)


def _void(db: Database, condition: str, key: str, changes: Mapping[str, Any], account_id: str) -> None:
    """Assignments that come to nothing: their items want another person."""
    for row in db.all(f"SELECT id FROM assignments WHERE {condition}", key):
        db.change("assignments", row.id, {"state": "voided", **changes}, account_id)


def _erase_identity(db: Database, account_id: str) -> None:
    number = f"erased-{account_id[:12]}"
    changes = {"pseudonym": number, "name": None, "contact": None, "timezone": "UTC", "languages_json": "[]", "settings_json": "{}"}
    names = ", ".join(f"{name} = ?" for name in changes)
    db.execute(f"UPDATE accounts SET {names} WHERE id = ?", *changes.values(), account_id)
    known = {name: value for name, value in changes.items() if name not in ("name", "contact")}
    _edit_events(db, "accounts", "json_extract(body_json, '$.id') = ?", account_id, lambda body: _replaced(body, known))
    _blank(db, "team_messages", "account_id = ?", account_id, {"text": ""})  # they may call the person by name


def _erase_work(db: Database, account_id: str) -> None:
    answer = {"body_json": ERASED, "body_sha256": sha256(ERASED), "client_json": "{}"}
    of_assignment = f"assignment_id IN ({_OWN_ASSIGNMENTS})"
    _blank(db, "answers", of_assignment, account_id, answer)
    db.execute(f"UPDATE assignments SET draft_json = NULL WHERE id IN ({_OWN_ASSIGNMENTS})", account_id)
    _void(db, "account_id = ? AND state = 'submitted'", account_id, {"reason": "erased"}, account_id)
    _blank(db, "turns", f"dialogue_id IN ({_OWN_DIALOGUES})", account_id, {"user_text": "", "messages_json": "[]"})
    _blank(db, "candidates", f"turn_id IN ({_OWN_TURNS})", account_id, {"prompt_token_ids": None})
    written = {"text": "", "text_sha256": sha256(""), "scores_json": None, "reward_json": None, "ood_json": None}
    _blank(db, "candidates", "account_id = ?", account_id, written)
    _blank(db, "reports", "account_id = ?", account_id, {"text": ""})
    _erase_items(db, account_id)
    _blank(db, "adjudications", "account_id = ?", account_id, {"body_json": ERASED, "first_body_json": ERASED})
    _edit_events(db, "assignments", "actor = ?", account_id, lambda body: _replaced(body, {"text": ""}))  # why something was skipped


def _erase_items(db: Database, account_id: str) -> None:
    """Conversations that this person wrote, replays of them too: nobody else is to judge them. Hashes stay different."""
    for item in db.all(f"{_OWN_ITEMS} AND content_json != ?", account_id, ERASED):
        _blank(db, "items", "id = ?", item.id, {"content_json": ERASED, "content_sha256": sha256(item.id)})
        db.change("items", item.id, {"state": "retired"}, account_id)
        _void(db, f"item_id = ? AND state IN {_OPEN}", item.id, {"ended_at": db.now(), "reason": "erased"}, account_id)


def _blank(db: Database, table: str, condition: str, key: str, changes: Mapping[str, Any]) -> None:
    """New values of columns in rows and in the events that hold the rows."""
    ids = to_json([row.id for row in db.all(f"SELECT id FROM {table} WHERE {condition}", key)])
    names = ", ".join(f"{name} = ?" for name in changes)
    db.execute(f"UPDATE {table} SET {names} WHERE id IN (SELECT value FROM json_each(?))", *changes.values(), ids)
    in_ids = "json_extract(body_json, '$.id') IN (SELECT value FROM json_each(?))"
    _edit_events(db, table, in_ids, ids, lambda body: _replaced(body, changes))


def _edit_events(db: Database, table: str, condition: str, key: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    for event in db.all(f"SELECT seq, body_json FROM events WHERE kind LIKE '{table}.%' AND {condition}", key):
        text = to_json(edit(json.loads(event.body_json)))
        if text != event.body_json:
            db.execute("UPDATE events SET body_json = ?, body_sha256 = ? WHERE seq = ?", text, sha256(text), event.seq)


def _replaced(body: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Only what the event holds: a change of another column stays one."""
    plain = {name: {"hex": value.hex()} if isinstance(value, bytes) else value for name, value in changes.items()}
    return {name: plain.get(name, value) if name in plain else value for name, value in body.items()}


def _listed(path: Path) -> list[Erasure]:
    """A line that lost power has cut short is none: what it was to say had not been begun."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            each = json.loads(line)
            found.append((each["account_id"], each["mode"]))
    return found
