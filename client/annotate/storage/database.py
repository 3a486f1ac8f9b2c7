"""One SQLite file, its transactions, and the append-only log of what happened.

Every change of a table that counts goes through `insert` and `change`, which write the row and an event with the same content in one
transaction: the tables can be made again from the events. Statements run on the event loop: one writer, no waiting locks, and each
takes about as long as the disk needs to make one commit durable.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import signal
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from polyhead.client.annotate.storage.migrations import migrate, version_of

SCHEMA_VERSION = 5
_RESTORE = "hint: put a copy of the file from a backup in its place, without its -wal and -shm files"
FAILPOINT_VARIABLE = "POLYHEAD_ANNOTATE_FAILPOINT"  # "before-commit:3": the process kills itself there, the third time
PRIVATE = {  # columns that no event holds, by table
    "accounts": frozenset({"name", "contact", "code_sha256"}),
    "assignments": frozenset({"draft_json", "draft_rev"}),
}
_BUSY_MS = 5000
_CHECKPOINTS = 2  # attempts to empty the write-ahead log; each waits for readers for up to _BUSY_MS
_REFERENCES = ("project_id", "item_id", "assignment_id", "turn_id")  # columns of events that a row's own columns fill


class DatabaseError(Exception):
    """The file cannot be used. The message says why, with a hint."""


def new_id() -> str:
    """96 random bits: nobody guesses one, and nothing can be read off it."""
    return secrets.token_hex(12)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def to_json(value: Any) -> str:
    """One text for one value: keys in order, so that equal values have equal hashes."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: str | bytes) -> bytes:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).digest()


@dataclass(frozen=True)
class Row:
    """One row, its columns as attributes."""

    columns: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.columns[name]
        except KeyError:
            raise AttributeError(name) from None

    def json(self, column: str) -> Any:
        """The value of a JSON column; None where it is NULL."""
        text = self.columns[f"{column}_json"]
        return None if text is None else json.loads(text)


class Database:
    """The file. `now` is the clock, in milliseconds since 1970."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.now = now_ms
        self._connection = connection
        self._is_open = False  # a transaction
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path) -> Database:
        """A new file, for its owner alone. DatabaseError if there is one already."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            raise DatabaseError(f"there is a database already: {path}\nhint: polyhead annotate serve --db {path}") from None
        except OSError as error:
            raise DatabaseError(f"cannot create {path}: {error.strerror}") from None
        database = cls(path, _connect(path))
        database._connection.executescript(_schema())
        return database

    @classmethod
    def open(cls, path: Path) -> Database:
        """An existing file, checked, and brought to the schema of now. DatabaseError if it is not there, damaged, or of a newer version."""
        if not path.exists():
            raise DatabaseError(f"there is no database: {path}\nhint: polyhead annotate init --db {path}")
        database = cls(path, _connect(path))
        try:
            version = version_of(database)
            [health] = database._connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            raise DatabaseError(f"not a usable database: {path} ({error})\n{_RESTORE}") from None
        if version > SCHEMA_VERSION:
            newer = f"{path} has schema {version}: this version of polyhead reads up to schema {SCHEMA_VERSION}"
            raise DatabaseError(f"{newer}\nhint: a newer polyhead has written it: use that one")
        if version < 1:
            raise DatabaseError(f"not a database of polyhead annotate: {path}\n{_RESTORE}")
        if health != "ok":
            raise DatabaseError(f"{path} is damaged: {health}\n{_RESTORE}")
        if version < SCHEMA_VERSION:
            migrate(database, SCHEMA_VERSION)
        for line in _schema().splitlines():
            if line.startswith("CREATE INDEX IF NOT EXISTS"):
                database.execute(line)
        return database

    def reader(self) -> Database:
        """The same file on a connection that only reads, for a thread: whoever writes does not wait for it. Close it."""
        made = Database(self.path, sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True, isolation_level=None))
        made.now = self.now
        made._connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        return made

    def lock(self) -> None:
        """Keep every other server off this file until it is closed. DatabaseError if one has it."""
        self._lock = os.open(f"{self.path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DatabaseError(f"another process serves this database: {self.path}") from None

    def close(self) -> None:
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and durable when the block is left. One inside another belongs to the outer one."""
        if self._is_open:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        self._is_open = True
        try:
            yield
            failpoint("before-commit")
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        finally:
            self._is_open = False
        failpoint("after-commit")

    def all(self, query: str, *values: Any) -> list[Row]:
        cursor = self._connection.execute(query, values)
        names = [column[0] for column in cursor.description or ()]
        return [Row(dict(zip(names, row, strict=True))) for row in cursor]

    def one(self, query: str, *values: Any) -> Row | None:
        """The first row, if there is one."""
        return next(iter(self.all(query, *values)), None)

    def value(self, query: str, *values: Any) -> Any:
        """The first column of the first row; None without one."""
        row = self._connection.execute(query, values).fetchone()
        return row[0] if row else None

    def execute(self, statement: str, *values: Any) -> int:
        """A statement that leaves no event: sessions, leases' ends, drafts. The number of rows changed."""
        return self._connection.execute(statement, values).rowcount

    def insert(self, table: str, row: Mapping[str, Any], actor: str = "system") -> None:
        """A new row, and the event of it."""
        names = ", ".join(row)
        self.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", *row.values())
        self.event(f"{table}.insert", actor, dict(row), {"id": row["id"], **row} if "id" in row else row, table)

    def change(self, table: str, key: str, changes: Mapping[str, Any], actor: str = "system") -> None:
        """New values of some columns of one row, and the event of them."""
        names = ", ".join(f"{name} = ?" for name in changes)
        changed = self.execute(f"UPDATE {table} SET {names} WHERE id = ?", *changes.values(), key)
        assert changed == 1, f"{table} has no row {key}"
        row = self.one(f"SELECT * FROM {table} WHERE id = ?", key)
        assert row is not None
        self.event(f"{table}.change", actor, {"id": key, **changes}, row.columns, table)

    def put(self, table: str, row: Mapping[str, Any], keys: tuple[str, ...], actor: str = "system") -> None:
        """A row of a table without ids, in place of the one with the same keys; and the event of it."""
        names, changed = ", ".join(row), ", ".join(f"{name} = excluded.{name}" for name in row if name not in keys)
        places = ", ".join("?" * len(row))
        statement = f"INSERT INTO {table} ({names}) VALUES ({places}) ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changed}"
        self.execute(statement, *row.values())
        self.event(f"{table}.put", actor, row, row)

    def copy_to(self, other: sqlite3.Connection) -> None:
        """The whole file as it is now, into another one."""
        self._connection.backup(other)

    def compact(self) -> None:
        """Nothing of what was overwritten remains in the file, nor in its write-ahead log. DatabaseError: some of it may, and why."""
        try:
            self.execute("VACUUM")
        except sqlite3.OperationalError as error:
            raise DatabaseError(f"{self.path} still holds what was overwritten: {error}") from None
        self.empty_log()

    def empty_log(self) -> None:
        """All of the write-ahead log goes into the file, and nothing stays in it. DatabaseError if somebody reads an older state for longer
        than a few seconds."""
        if any(not self.value("PRAGMA wal_checkpoint(TRUNCATE)") for _ in range(_CHECKPOINTS)):  # 1: it was kept from it
            return
        raise DatabaseError(f"{self.path}-wal still holds what was overwritten: somebody else reads the database")

    def event(self, kind: str, actor: str, body: Mapping[str, Any], about: Mapping[str, Any], table: str = "") -> None:
        """A line of the log. `about` names what it belongs to."""
        assert self._is_open, "an event belongs to a transaction"
        private = PRIVATE.get(kind.partition(".")[0], frozenset())
        text = to_json({name: _plain(value) for name, value in body.items() if name not in private})
        own = {f"{table.removesuffix('s')}_id": about.get("id")} if table else {}
        references = [{**about, **own}.get(name) for name in _REFERENCES]
        self.execute(
            "INSERT INTO events (at, kind, actor, project_id, item_id, assignment_id, turn_id, body_json, body_sha256)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self.now(), kind, actor, *references, text, sha256(text),
        )  # fmt: skip


def sync(path: Path) -> None:
    """A file or folder reaches the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def failpoint(name: str) -> None:
    """Where the tests of lost power end the process."""
    wanted = os.environ.get(FAILPOINT_VARIABLE, "")
    if not wanted:
        return
    place, _, left = wanted.partition(":")
    if place != name:
        return
    count = int(left or 1) - 1
    os.environ[FAILPOINT_VARIABLE] = f"{place}:{count}"
    if count <= 0:
        os.kill(os.getpid(), signal.SIGKILL)


def _schema() -> str:
    return files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", f"busy_timeout = {_BUSY_MS}", "secure_delete = ON"):
        try:
            connection.execute(f"PRAGMA {setting}")
        except sqlite3.DatabaseError as error:
            raise DatabaseError(f"not a usable database: {path} ({error})") from None
    return connection


def _plain(value: Any) -> Any:
    """A value as JSON has it: bytes as hex."""
    return {"hex": value.hex()} if isinstance(value, (bytes, memoryview)) else value
