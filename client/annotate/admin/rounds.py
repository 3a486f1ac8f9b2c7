"""Projects and rounds as the team runs them: states, versions, and what is served now against what a round began with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from itertools import pairwise
from typing import Any

from polyhead.client import Status
from polyhead.client.annotate.items.counting import Done, done_by_round
from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import from_json
from polyhead.client.annotate.storage.database import Database, Row

STATES = ("open", "paused", "closed")
_DAY_MS = 86_400_000
_NOTED = "generations.noted"  # events: what the model server serves is another generation than before


@dataclass(frozen=True)
class Overview:
    """One line of the first page."""

    project: Row
    title: str
    round: Row | None  # the open one
    num_answers: int
    num_today: int
    num_people: int
    num_reports: int
    changes: str  # of heads since the round began: "policy 3 → 4"
    changed_at: int | None  # when that was noticed first
    done: Done | None  # of the open round; None: it has no items that want judgements
    closed: Row | None  # the newest round, where it was closed since its trunk is no longer served, and none is open


def overview(db: Database, active: Mapping[str, int] | None, locale: str) -> list[Overview]:
    """All projects, drafts too. `active`: what is served now; None while the server does not answer."""
    done, closed = done_by_round(db), closed_by_trunk(db)
    return [_overview(db, row, active, locale, done, closed.get(row.slug)) for row in db.all("SELECT * FROM projects ORDER BY slug")]


def closed_by_trunk(db: Database) -> dict[str, Row]:
    """Slug -> the newest round, of open projects whose round was closed since its trunk is no longer served: until the next one begins."""
    rows = db.all(
        "SELECT p.slug, r.* FROM projects p JOIN rounds r ON r.project_id = p.id WHERE p.state = 'open' AND r.close_reason = 'trunk'"
        " AND r.number = (SELECT max(number) FROM rounds WHERE project_id = p.id) ORDER BY 1"
    )
    return {row.slug: row for row in rows}


def trunk_in_words(trunk_id: str | None, tokenizer_sha256: str | None) -> str:
    """The beginnings of both, enough to tell them apart."""
    return f"{(trunk_id or '–')[:12]}, {(tokenizer_sha256 or '–')[:12]}"


def rounds_of(db: Database, project_id: str) -> Sequence[Row]:
    """The newest first, with their answers counted."""
    return db.all(
        "SELECT r.*, (SELECT count(*) FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id"
        " WHERE i.round_id = r.id AND n.state = 'current') AS answers FROM rounds r WHERE r.project_id = ? ORDER BY r.number DESC",
        project_id,
    )


def imports_of(db: Database, project_id: str) -> Sequence[Row]:
    """Files of items, the newest first."""
    return db.all(
        "SELECT m.*, r.number AS round_number, ifnull(p.pseudonym, m.created_by) AS who FROM imports m JOIN rounds r ON r.id = m.round_id"
        " LEFT JOIN accounts p ON p.id = m.created_by WHERE r.project_id = ? AND m.state = 'done' ORDER BY m.created_at DESC LIMIT 20",
        project_id,
    )


def exports_of(db: Database, slug: str) -> Sequence[Row]:
    """What was handed out of a project, the newest first."""
    return db.all(
        "SELECT x.*, ifnull(p.pseudonym, x.created_by) AS who FROM exports x LEFT JOIN accounts p ON p.id = x.created_by"
        " WHERE json_extract(x.filters_json, '$.project') = ? ORDER BY x.created_at DESC LIMIT 20",
        slug,
    )


def versions_of(db: Database, project_id: str) -> list[tuple[Row, str]]:
    """(version, what it changed against the one before), the newest first."""
    rows = db.all("SELECT * FROM project_versions WHERE project_id = ? ORDER BY version", project_id)
    texts = ["", *(config_text(row.json("config")) for row in rows)]
    changed = ["\n".join(_changes(before, after)) for before, after in pairwise(texts)]
    return list(zip(rows, changed, strict=True))[::-1]


def config_text(config: dict[str, Any]) -> str:
    """A configuration as lines, in the order of its keys."""
    return json.dumps(config, ensure_ascii=False, indent=1, sort_keys=True)


def set_state(db: Database, slug: str, state: str, by: str) -> None:
    """`paused` and `closed` hand out nothing; what is under way may be finished."""
    if state not in STATES:
        raise Invalid(f"must be one of {', '.join(STATES)}", field="state")
    project = projects.find_project(db, slug)
    with db.transaction():
        if project.state != state:
            db.change("projects", project.id, {"state": state}, by)
        if state == "closed":
            projects.close_round(db, project, by)


def note_generation(db: Database, status: Status) -> None:
    """Another generation than the last one that was noted: when heads change is in the log."""
    noted = f"SELECT json_extract(body_json, '$.generation') FROM events WHERE kind = '{_NOTED}' ORDER BY seq DESC LIMIT 1"
    if db.value(noted) != status.generation:
        with db.transaction():
            db.event(_NOTED, "system", {"generation": status.generation, "active": status.active}, {})


def _changed_at(db: Database, current: Row) -> int | None:
    """When another generation than a round's own was noticed first."""
    query = f"SELECT min(at) FROM events WHERE kind = '{_NOTED}' AND at >= ? AND json_extract(body_json, '$.generation') != ?"
    found = db.value(query, current.opened_at, current.generation)
    return int(found) if found is not None else None


def heads_in_words(heads: Mapping[str, int] | None) -> str:
    return ", ".join(f"{name}@{version}" for name, version in sorted((heads or {}).items()))


def changes_between(before: Mapping[str, int] | None, now: Mapping[str, int] | None, names: Sequence[str]) -> str:
    """Of the heads that a project names: "policy 3 → 4"; "" where nothing has changed, or nothing is known."""
    if before is None or now is None:
        return ""
    used = {name.partition("@")[0] for name in names if "@" not in name}
    moved = [name for name in sorted(used) if name in before and before[name] != now.get(name)]
    return ", ".join(f"{name} {before[name]} → {now.get(name, '–')}" for name in moved)


def _overview(
    db: Database, row: Row, active: Mapping[str, int] | None, locale: str, done: Mapping[str, Done], closed: Row | None
) -> Overview:
    text = db.value("SELECT config_json FROM project_versions WHERE project_id = ? ORDER BY version DESC", row.id)
    config = from_json(json.loads(text))
    current = db.one("SELECT * FROM rounds WHERE project_id = ? AND closed_at IS NULL", row.id)
    counts = db.one(
        "SELECT count(*) AS answers, coalesce(sum(n.received_at > ?), 0) AS today, count(DISTINCT a.account_id) AS people"
        " FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id JOIN rounds r ON r.id = i.round_id"
        " WHERE r.project_id = ? AND n.state = 'current'",
        db.now() - db.now() % _DAY_MS, row.id,
    )  # fmt: skip
    num_reports = db.value(
        "SELECT count(*) FROM reports o JOIN items i ON i.id = o.item_id JOIN rounds r ON r.id = i.round_id"
        " WHERE r.project_id = ? AND o.state = 'open'",
        row.id,
    )
    assert counts is not None
    changes = changes_between(current.json("heads"), active, config.head_names) if current is not None else ""
    title = config.words(config.title, locale) or config.slug
    so_far = done.get(current.id) if current is not None and not config.is_free else None
    changed_at = _changed_at(db, current) if current is not None and changes else None
    return Overview(row, title, current, counts.answers, counts.today, counts.people, num_reports, changes, changed_at, so_far, closed)


def _changes(before: str, after: str) -> list[str]:
    """Changed lines alone; of a first version nothing."""
    if not before:
        return []
    lines = list(unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm=""))
    return [line for line in lines[2:] if not line.startswith("@@")]
