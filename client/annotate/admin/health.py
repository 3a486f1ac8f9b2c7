"""Whether the frontend is well: the model server, the disk, backups, work that fails, is late, or waits in browsers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead.client import Status, TrunkInfo
from polyhead.client.annotate.admin.rounds import closed_by_trunk, heads_in_words
from polyhead.client.annotate.admin.tables import Cell, Table, Word
from polyhead.client.annotate.keeping.versions import Fate, versions
from polyhead.client.annotate.replies import scoring
from polyhead.client.annotate.storage.database import Database, Row

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
OLD_BACKUP_MS = 3 * HOUR_MS  # one is made every hour
LEAST_FREE = 1 << 30  # bytes
LATE_BY_MS = 60_000  # from pressing Submit to the server: longer means that the answer has waited in a browser


@dataclass(frozen=True)
class Concern:
    """A sentence of the catalogs, admin.warn.KEY, with its values."""

    key: str
    values: dict[str, object]


@dataclass(frozen=True)
class Facts:
    """What the pages' process knows beside the database."""

    is_up: bool
    served: Status | None
    trunk: TrunkInfo | None
    backup_dir: Path | None
    has_trainer: bool = False  # a trainer's token, by which versions are labelled
    refusal: str = ""  # why the server does not label
    unscored: tuple[str, ...] = ()  # of each written reply that the server does not score, why


@dataclass(frozen=True)
class Backups:
    """Times in milliseconds since 1970."""

    num: int
    newest_at: int | None
    num_bytes: int


def health(db: Database, facts: Facts) -> tuple[list[Concern], list[Table]]:
    """(what somebody should do something about, figures)"""
    backups = _backups(facts.backup_dir)
    waited = _waited(db)
    tables = [_server(facts), _storage(db, backups), _work(db, waited), _failures(db)]
    return _warnings(db, facts, backups), tables


def _warnings(db: Database, facts: Facts, backups: Backups | None) -> list[Concern]:
    found = [] if facts.is_up else [Concern("down", {})]
    if facts.served is not None:
        found += [Concern("store", {"what": each}) for each in (facts.served.damage, *facts.served.problems) if each]
    if backups is None:
        found.append(Concern("no_backups", {}))
    elif backups.newest_at is None or db.now() - backups.newest_at > OLD_BACKUP_MS:
        hours = "–" if backups.newest_at is None else (db.now() - backups.newest_at) // HOUR_MS
        found.append(Concern("old_backup", {"hours": hours}))
    if slugs := closed_by_trunk(db):
        found.append(Concern("trunk", {"projects": ", ".join(slugs)}))
    free = shutil.disk_usage(db.path.parent).free
    if free < LEAST_FREE:
        found.append(Concern("disk", {"free": size(free)}))
    num_open = sum(each.fate is Fate.NOT_KEPT for each in versions(db))
    if facts.refusal:
        found.append(Concern("not_labelled", {"what": facts.refusal}))
    elif num_open and not facts.has_trainer:
        found.append(Concern("not_kept", {"count": num_open}))
    if num := db.value("SELECT count(*) FROM turns WHERE state = 'failed' AND ended_at > ?", db.now() - HOUR_MS):
        found.append(Concern("failed", {"count": num}))
    if facts.unscored:
        found.append(Concern("refused", {"count": len(facts.unscored), "what": facts.unscored[-1]}))
    return found


def _server(facts: Facts) -> Table:
    rows: list[list[Cell]] = [[Word("admin.row.server"), Word("admin.yes" if facts.is_up else "admin.no")]]
    if facts.served is not None:
        served = facts.served
        rows += [
            [Word("admin.column.generation"), served.generation],
            [Word("admin.column.heads"), heads_in_words(served.active)],
            [Word("admin.row.running"), served.num_running],
            [Word("admin.row.waiting"), served.num_waiting],
            [Word("admin.row.store"), size(served.store_bytes)],
            [Word("admin.row.server_free"), size(served.disk_free_bytes)],
        ]
    if facts.trunk is not None:
        rows += [[Word("admin.row.trunk"), facts.trunk.trunk_id[:16]], [Word("admin.row.precision"), facts.trunk.precision]]
    return Table("server", ("measure", "value"), rows)


def _storage(db: Database, backups: Backups | None) -> Table:
    disk = shutil.disk_usage(db.path.parent)
    rows: list[list[Cell]] = [
        [
            Word("admin.row.database"),
            size(sum(path.stat().st_size for path in db.path.parent.glob(f"{db.path.name}*") if _is_part(db, path))),
        ],
        [Word("admin.row.events"), db.value("SELECT coalesce(max(seq), 0) FROM events")],
        [Word("admin.row.disk_free"), f"{size(disk.free)} / {size(disk.total)}"],
    ]
    if backups is not None:
        age = "–" if backups.newest_at is None else _minutes(db.now() - backups.newest_at)
        rows += [
            [Word("admin.row.backups"), backups.num],
            [Word("admin.row.backup_age"), age],
            [Word("admin.row.backup_size"), size(backups.num_bytes)],
        ]
    return Table("storage", ("measure", "value"), rows)


def _work(db: Database, waited: Row) -> Table:
    since, written = db.now() - DAY_MS, scoring.count(db)
    rows: list[list[Cell]] = [
        [Word("admin.row.under_way"), db.value("SELECT count(*) FROM turns WHERE state = 'generating'")],
        [Word("admin.row.leases"), db.value("SELECT count(*) FROM assignments WHERE state = 'leased'")],
        [Word("admin.row.answers_day"), db.value("SELECT count(*) FROM answers WHERE received_at > ?", since)],
        [Word("admin.row.late_day"), db.value("SELECT count(*) FROM answers WHERE late = 1 AND received_at > ?", since)],
        [Word("admin.row.waited"), waited.num],
        [Word("admin.row.waited_longest"), _minutes(waited.longest) if waited.num else "–"],
        [Word("admin.row.open_reports"), db.value("SELECT count(*) FROM reports WHERE state = 'open'")],
        [Word("admin.row.written_scored"), written.num_scored],
        [Word("admin.row.written_open"), written.num_open],
    ]
    return Table("work", ("measure", "value"), rows)


def _failures(db: Database) -> Table:
    """Of the last day, by reason."""
    rows = db.all(
        "SELECT error_code, count(*) AS num FROM turns WHERE error_code != '' AND started_at > ? GROUP BY 1 ORDER BY 2 DESC",
        db.now() - DAY_MS,
    )
    return Table("failures", ("reason", "count"), [[Word(f"error.{row.error_code}"), row.num] for row in rows])


def _waited(db: Database) -> Row:
    """Answers of the last day that reached the server more than a minute after somebody pressed Submit, by the browser's own clock."""
    row = db.one(
        "SELECT count(*) AS num, coalesce(max(received_at - client_submitted_at), 0) AS longest FROM answers"
        " WHERE received_at > ? AND received_at - client_submitted_at > ?",
        db.now() - DAY_MS, LATE_BY_MS,
    )  # fmt: skip
    assert row is not None
    return row


def _backups(folder: Path | None) -> Backups | None:
    if folder is None:
        return None
    found: Sequence[Path] = sorted(folder.glob("annotate-*.db")) if folder.is_dir() else []
    stats = [path.stat() for path in found]
    return Backups(len(found), max((round(each.st_mtime * 1000) for each in stats), default=None), sum(each.st_size for each in stats))


def _is_part(db: Database, path: Path) -> bool:
    """The file itself and its write-ahead log."""
    return path.name in (db.path.name, f"{db.path.name}-wal")


def size(num_bytes: int) -> str:
    """In the largest unit that gives a number of 1 or more."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _minutes(ms: int) -> str:
    minutes = max(0, ms) // 60_000
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
