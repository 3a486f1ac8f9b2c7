"""The tables made again from the log of events, and how they differ from the ones that are there.

Not in the log, and so not compared: sessions, invites, drafts, working minutes, ends of leases, and what accounts keep to themselves.
People of a rebuilt database need new sign-in codes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyhead.client.annotate.items.storing import delete_items
from polyhead.client.annotate.storage.database import PRIVATE, Database, Row, to_json

TABLES = (
    "accounts", "consents", "projects", "project_versions", "rounds", "imports", "items", "qualifications", "assignments", "dialogues",
    "turns", "candidates", "views", "view_slots", "answers", "gold_results", "reports", "team_messages", "adjudications", "exports",
)  # fmt: skip
UNLOGGED = {**PRIVATE, "assignments": PRIVATE["assignments"] | {"active_ms", "lease_until"}}


def rebuild(db: Database, path: Path) -> Database:
    """A new database from the log of this one. DatabaseError if the file is there already."""
    made = Database.create(path)
    with made.transaction():
        for event in _events(db):
            _apply(made, event)
            names = list(event.columns)
            made.execute(f"INSERT INTO events ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", *event.columns.values())
        for row in db.all("SELECT * FROM erasures"):
            made.execute("INSERT INTO erasures VALUES (?, ?, ?, ?, ?)", *row.columns.values())
    return made


def differences(one: Database, other: Database) -> list[str]:
    """What tables hold in one database and not in the other, "TABLE: so many rows"; nothing where they say the same."""
    found = []
    for table in TABLES:
        rows, others = ({_row(row, table) for row in db.all(f"SELECT * FROM {table}")} for db in (one, other))
        if rows != others:
            found.append(f"{table}: {len(rows - others)} rows differ from the log, {len(others - rows)} rows of the log are missing")
    return found


def _events(db: Database) -> Iterator[Row]:
    """All of them, in parts."""
    last = 0
    while part := db.all("SELECT * FROM events WHERE seq > ? ORDER BY seq LIMIT 1000", last):
        yield from part
        last = part[-1].seq


def _apply(db: Database, event: Row) -> None:
    """An event that names no table is a note: it changes none."""
    table, _, act = event.kind.partition(".")
    if event.kind == "imports.remove":
        delete_items(db, json.loads(event.body_json)["id"])
    if table not in TABLES or act not in ("insert", "change", "put"):
        return
    body = {name: bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for name, value in json.loads(event.body_json).items()}
    if act == "change":
        key = body.pop("id")
        names = ", ".join(f"{name} = ?" for name in body)
        if body:
            db.execute(f"UPDATE {table} SET {names} WHERE id = ?", *body.values(), key)
        return
    verb = "INSERT OR REPLACE" if act == "put" else "INSERT"
    db.execute(f"{verb} INTO {table} ({', '.join(body)}) VALUES ({', '.join('?' * len(body))})", *body.values())


def _row(row: Row, table: str) -> str:
    plain: dict[str, Any] = {name: value.hex() if isinstance(value, bytes) else value for name, value in row.columns.items()}
    return to_json({name: value for name, value in plain.items() if name not in UNLOGGED.get(table, ())})
