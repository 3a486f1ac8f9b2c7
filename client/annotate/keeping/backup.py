"""Copies of the database while it is served, and the way back. A restored copy has all erasures done again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from polyhead.client.annotate.people.erasure import erase_again, list_path, note_beside
from polyhead.client.annotate.storage.database import Database, DatabaseError, sync

NUM_HOURLY, NUM_DAILY = 24, 14
_NAME = "annotate-%Y%m%d-%H%M%S.db"


@dataclass(frozen=True)
class Backup:
    """One copy, checked."""

    path: Path
    sha256: str
    last_seq: int  # of the log


def backup(db: Database, path: Path) -> Backup:
    """Copy the database as it is now, checked, for its owner alone; beside it PATH.sha256. DatabaseError if the file is there already."""
    if path.exists():
        raise DatabaseError(f"there is a file already: {path}\nhint: a backup gets a name of its own")
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    os.close(os.open(beside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
    try:
        last_seq = _copy(db, beside)
        digest = _sha256(beside)
        sync(beside)
        beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
    sums = path.with_name(f"{path.name}.sha256")
    sums.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    sync(path.parent)
    return Backup(path, digest, last_seq)


def keep_backup(db: Database, folder: Path) -> Backup:
    """A backup named by the time, of which the newest 24 stay, and the last one of each of 14 days."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = backup(db, folder / datetime.now(UTC).strftime(_NAME))
    found = sorted(folder.glob("annotate-*.db"))
    for old in set(found) - set(kept(found)):
        old.unlink()
        old.with_name(f"{old.name}.sha256").unlink(missing_ok=True)
    return made


def kept(found: Sequence[Path]) -> list[Path]:
    """Of backups in the order of their names, those that stay."""
    last_of_day = {path.name[: len("annotate-20260101")]: path for path in found}
    return sorted({*found[-NUM_HOURLY:], *list(last_of_day.values())[-NUM_DAILY:]})


def restore(source: Path, path: Path) -> int:
    """Put a backup in the database's place; the file that was there is kept as PATH.before. Returns how many people were erased again.
    DatabaseError if the backup is damaged, or the database is served or read."""
    _check(source)
    if path.exists():
        _note_erasures(path)
    _set_aside(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.copyfile(source, beside)
    beside.chmod(0o600)
    restored = Database.open(beside)
    try:
        num_erased = erase_again(restored, list_path(path))
        restored.empty_log()
    finally:
        restored.close()
    sync(beside)
    for end in ("-wal", "-shm", ".erasures.jsonl"):
        beside.with_name(f"{beside.name}{end}").unlink(missing_ok=True)
    beside.replace(path)
    sync(path.parent)
    return num_erased


def _note_erasures(path: Path) -> None:
    """The list of erasures gets those that only the file knows of; a damaged one, for which there are backups, is asked for none."""
    served = Database(path, sqlite3.connect(path, timeout=1, isolation_level=None))
    try:
        served.lock()
        with contextlib.suppress(sqlite3.DatabaseError):
            note_beside(path, [(row.account_id, row.mode) for row in served.all("SELECT account_id, mode FROM erasures")])
            served.empty_log()
    finally:
        served.close()


def _set_aside(path: Path) -> None:
    """As PATH.before, and a write-ahead log that a damaged file has kept beside it."""
    for end in ("", "-wal", "-shm"):
        part, kept_as = path.with_name(f"{path.name}{end}"), path.with_name(f"{path.name}.before{end}")
        if part.exists():
            part.replace(kept_as)
        elif end:
            kept_as.unlink(missing_ok=True)


def _copy(db: Database, path: Path) -> int:
    """By SQLite's own way: whoever writes goes on. The copy is one file, without a write-ahead log."""
    copy = sqlite3.connect(path, isolation_level=None)
    try:
        db.copy_to(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
        [health] = copy.execute("PRAGMA quick_check(1)").fetchone()
        [last_seq] = copy.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()
    finally:
        copy.close()
    if health != "ok":
        raise DatabaseError(f"the copy is damaged: {health}")
    return int(last_seq)


def _check(source: Path) -> None:
    if not source.exists():
        raise DatabaseError(f"there is no backup: {source}")
    sums = source.with_name(f"{source.name}.sha256")
    if sums.exists() and sums.read_text(encoding="utf-8").split()[0] != _sha256(source):
        raise DatabaseError(f"the backup is not what {sums.name} says: {source}\nhint: take another backup")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
