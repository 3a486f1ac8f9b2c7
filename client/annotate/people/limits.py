"""Care for people who judge: daily caps, breaks, a stop after disturbing items, projects that somebody leaves.

Nothing here interrupts an open item: limits are looked at when the next one is asked for. Time is active time, as the page measures it:
visible, with input in the last minute. It is counted over all projects; the limits are those of the project that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from polyhead.client.annotate.people import pausing, warning
from polyhead.client.annotate.problems import Clash
from polyhead.client.annotate.projects.config import ProjectConfig
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.storage.database import Database, Row

BREAK_MS = 5 * 60_000  # so long without an item is a break
DISTURBING_A_DAY = 3  # items skipped as disturbing, then sensitive projects wait until tomorrow
_MINUTE_MS = 60_000
_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Worked:
    """Of one person's day, over all projects, in milliseconds."""

    today_ms: int
    since_break_ms: int
    last_end: int  # when work was last seen
    has_skipped: bool  # a break, since the last one that was taken


@dataclass(frozen=True)
class Wait:
    """Why there is no next item now. `why` is a key of the page's sentences: done.WHY."""

    why: str
    until: int | None = None
    can_skip: bool = False


def wait_of(db: Database, person_id: str, project: OpenProject) -> Wait | None:
    """What keeps this person from the next item; None: nothing does."""
    if has_left(db, person_id, project.row.id):
        return Wait("opted_out")
    if pausing.is_paused(db, person_id, project.row.id):
        return Wait("gold")
    if warning.due(db, person_id, project) is not None:
        return Wait("warned")
    start = day_start(db, person_id)
    if project.config.sensitive and _num_disturbing(db, person_id, start) >= DISTURBING_A_DAY:
        return Wait("disturbing", start + _DAY_MS)
    worked = worked_today(db, person_id)
    if worked.today_ms >= cap_ms(project.config):
        return Wait("cap", start + _DAY_MS)
    if worked.since_break_ms >= break_after_ms(project.config):
        return Wait("break", worked.last_end + BREAK_MS, not project.config.sensitive and not worked.has_skipped)
    return None


def skip_break(db: Database, person_id: str, project: OpenProject) -> None:
    """Go on without the break, once. Clash where that is not offered."""
    with db.transaction():
        wait = wait_of(db, person_id, project)
        if wait is None or not wait.can_skip:
            raise Clash("no break can be skipped now", code="BREAK_DUE")
        db.event("breaks.skip", person_id, {}, {"project_id": project.row.id})


def cap_ms(config: ProjectConfig) -> int:
    """Of a day. Sensitive projects: two hours at most."""
    return _MINUTE_MS * (min(config.queue.daily_cap_min, 120) if config.sensitive else config.queue.daily_cap_min)


def break_after_ms(config: ProjectConfig) -> int:
    """Work without a break. Sensitive projects: 25 minutes at most."""
    return _MINUTE_MS * (min(config.queue.break_after_min, 25) if config.sensitive else config.queue.break_after_min)


def worked_today(db: Database, person_id: str) -> Worked:
    """From the assignments of this person's own day. A gap of BREAK_MS between two, or since the last one, is a break."""
    now, start = db.now(), day_start(db, person_id)
    rows = db.all(
        "SELECT leased_at, CASE state WHEN 'leased' THEN ? ELSE ifnull(ended_at, ?) END AS ended_at, active_ms FROM assignments"
        " WHERE account_id = ? AND (leased_at >= ? OR ended_at >= ? OR state = 'leased') ORDER BY leased_at",
        now, now, person_id, start, start,
    )  # fmt: skip
    skips = db.all("SELECT at FROM events WHERE kind = 'breaks.skip' AND actor = ? AND at >= ? ORDER BY at", person_id, start)
    today = since = 0
    last_end = begun = rows[0].leased_at if rows else now
    for row in rows:
        if row.leased_at - last_end >= BREAK_MS:
            since, begun = 0, row.leased_at
        today, since, last_end = today + row.active_ms, since + row.active_ms, max(last_end, row.ended_at)
    if now - last_end >= BREAK_MS:
        since, begun = 0, now
    skipped_at = max((row.at for row in skips if row.at >= begun), default=None)
    if skipped_at is not None:
        since = sum(row.active_ms for row in rows if row.leased_at >= skipped_at)
    return Worked(today, since, last_end, skipped_at is not None)


def day_start(db: Database, person_id: str) -> int:
    """Midnight where this person lives."""
    name = db.value("SELECT timezone FROM accounts WHERE id = ?", person_id)
    here = datetime.fromtimestamp(db.now() / 1000, zone_of(str(name)))
    return int(here.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)


def zone_of(name: str) -> tzinfo:
    """UTC for a name that is not known here."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def leave(db: Database, person_id: str, project: Row) -> None:
    """Not for me: no reason is asked for. An open item of the project is put back."""
    was_paused = pausing.is_paused(db, person_id, project.id) or _was_paused(db, person_id, project.id)
    _set(db, person_id, project, "opted_out", was_paused=was_paused)


def come_back(db: Database, person_id: str, project: Row) -> None:
    """Whoever was paused when leaving is paused still."""
    if has_left(db, person_id, project.id):
        _set(db, person_id, project, "paused" if _was_paused(db, person_id, project.id) else "qualified")


def has_left(db: Database, person_id: str, project_id: str) -> bool:
    query = "SELECT 1 FROM qualifications WHERE account_id = ? AND project_id = ? AND state = 'opted_out'"
    return db.one(query, person_id, project_id) is not None


def _was_paused(db: Database, person_id: str, project_id: str) -> bool:
    """When this person left."""
    query = "SELECT was_paused FROM qualifications WHERE account_id = ? AND project_id = ? AND state = 'opted_out'"
    return bool(db.value(query, person_id, project_id))


def _set(db: Database, person_id: str, project: Row, state: str, *, was_paused: bool = False) -> None:
    with db.transaction():
        row = {"account_id": person_id, "project_id": project.id, "state": state, "reason": "own choice", "was_paused": int(was_paused)}
        db.put("qualifications", {**row, "changed_at": db.now()}, ("account_id", "project_id"), person_id)
        if state == "opted_out":
            open_ones = db.all(
                "SELECT a.id FROM assignments a JOIN items i ON i.id = a.item_id JOIN rounds r ON r.id = i.round_id"
                " WHERE a.account_id = ? AND r.project_id = ? AND a.state = 'leased'",
                person_id, project.id,
            )  # fmt: skip
            for each in open_ones:
                db.change("assignments", each.id, {"state": "released", "ended_at": db.now(), "reason": "left"}, person_id)


def _num_disturbing(db: Database, person_id: str, since: int) -> int:
    query = "SELECT count(*) FROM assignments WHERE account_id = ? AND state = 'skipped' AND reason = 'disturbing' AND ended_at >= ?"
    return int(db.value(query, person_id, since))
