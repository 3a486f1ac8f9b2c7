"""Projects as stored: a row each, numbered versions of their configuration, and rounds, which name the heads that were served."""

from __future__ import annotations

import dataclasses
import functools
import json

from polyhead.client import Status, TrunkInfo
from polyhead.client.annotate.problems import NotThere
from polyhead.client.annotate.projects.config import ProjectConfig, from_json
from polyhead.client.annotate.storage.database import Database, Row, new_id, sha256, to_json


@dataclasses.dataclass(frozen=True)
class OpenProject:
    """One project and what is under way in it."""

    row: Row
    version: int
    config: ProjectConfig
    round_id: str  # "": no round is open
    close_reason: str = ""  # of the newest round, where none is open: "trunk", or "" for a person's choice

    @property
    def is_live(self) -> bool:
        return self.config.is_live

    @property
    def why_idle(self) -> str:
        """Why nothing is handed out; "": something may be."""
        if self.row.state == "open" and not self.round_id and self.close_reason == "trunk":
            return "trunk_changed"
        return "" if self.row.state == "open" and self.round_id else "paused"


def store_project(db: Database, config: ProjectConfig, actor: str) -> Row:
    """A new project, or a new version of the one with this slug. Nothing changes where the newest version says the same."""
    text = to_json(_plain(config))
    with db.transaction():
        project = db.one("SELECT * FROM projects WHERE slug = ?", config.slug)
        if project is None:
            row = {"id": new_id(), "slug": config.slug, "kind": config.kind.value, "state": "draft", "created_at": db.now()}
            db.insert("projects", {**row, "sensitive": int(config.sensitive)}, actor)
            project = find_project(db, config.slug)
        newest = db.one("SELECT * FROM project_versions WHERE project_id = ? ORDER BY version DESC", project.id)
        if newest is None or newest.sha256 != sha256(text):
            made = {"project_id": project.id, "version": (newest.version if newest else 0) + 1, "config_json": text}
            made |= {"guidelines_json": to_json(config.guidelines), "sha256": sha256(text), "created_by": actor, "created_at": db.now()}
            db.insert("project_versions", made, actor)
        return project


def find_project(db: Database, slug: str) -> Row:
    project = db.one("SELECT * FROM projects WHERE slug = ?", slug)
    if project is None:
        raise NotThere(f"no such project: {slug[:40]!r}", field="project")
    return project


def open_round(
    db: Database, project: Row, actor: str, *, name: str = "", status: Status | None = None, trunk: TrunkInfo | None = None
) -> str:
    """Close the round that is open, and open the next one on the newest version of the configuration."""
    with db.transaction():
        close_round(db, project, actor)
        number = int(db.value("SELECT coalesce(max(number), 0) FROM rounds WHERE project_id = ?", project.id)) + 1
        version = db.value("SELECT max(version) FROM project_versions WHERE project_id = ?", project.id)
        row = {"id": new_id(), "project_id": project.id, "number": number, "name": name or f"round {number}", "project_version": version}
        db.insert("rounds", {**row, "opened_at": db.now()}, actor)
        db.change("projects", project.id, {"state": "open"}, actor)
        if status is not None:
            bind_round(db, row["id"], status, trunk)
        return str(row["id"])


def close_round(db: Database, project: Row, actor: str) -> int | None:
    """Nothing is handed out until the next round begins; what people have before them may be finished. The number of the round that was
    closed; None: none was open."""
    with db.transaction():
        row = db.one("SELECT * FROM rounds WHERE project_id = ? AND closed_at IS NULL", project.id)
        if row is None:
            return None
        db.change("rounds", row.id, {"closed_at": db.now()}, actor)
        return int(row.number)


def close_rounds_of_other_trunks(db: Database, trunk: TrunkInfo) -> list[str]:
    """Close the rounds of live projects that began on another trunk or tokenizer than is served now: what is drawn from now on is not
    comparable. Dialogues under way go on. Returns the slugs; stored projects need no model, and stay open."""
    rows = db.all(
        "SELECT id, project_id, project_version FROM rounds"
        " WHERE closed_at IS NULL AND trunk_id IS NOT NULL AND (trunk_id, tokenizer_sha256) != (?, ?)",
        trunk.trunk_id,
        trunk.tokenizer_sha256,
    )
    closed = []
    for row in rows:
        config = config_of(db, row.project_id, row.project_version)
        if config.is_live:
            with db.transaction():
                db.change("rounds", row.id, {"closed_at": db.now(), "close_reason": "trunk"})
            closed.append(config.slug)
    return closed


def bind_round(db: Database, round_id: str, status: Status, trunk: TrunkInfo | None = None) -> None:
    """Note what was served when the round began. Turns note what each of them was served with."""
    changes = {"generation": status.generation, "heads_json": to_json(status.active)}
    if trunk is not None:
        changes |= {"trunk_id": trunk.trunk_id, "precision": trunk.precision, "tokenizer_sha256": trunk.tokenizer_sha256}
    with db.transaction():
        if db.value("SELECT generation FROM rounds WHERE id = ?", round_id) is None:
            db.change("rounds", round_id, changes)


def open_project(db: Database, slug: str) -> OpenProject:
    """A project with the version that its open round was begun with."""
    return _opened(db, find_project(db, slug))


def project_of_item(db: Database, item_id: str) -> OpenProject:
    """The project of an item, with the version of the item's own round."""
    found = db.one("SELECT r.id, r.project_id, r.project_version FROM items i JOIN rounds r ON r.id = i.round_id WHERE i.id = ?", item_id)
    assert found is not None, item_id
    row = db.one("SELECT * FROM projects WHERE id = ?", found.project_id)
    assert row is not None
    return OpenProject(row, found.project_version, config_of(db, row.id, found.project_version), found.id)


def list_projects(db: Database) -> list[OpenProject]:
    """All but drafts, by slug."""
    return [_opened(db, row) for row in db.all("SELECT * FROM projects WHERE state != 'draft' ORDER BY slug")]


def config_of(db: Database, project_id: str, version: int) -> ProjectConfig:
    text = db.value("SELECT config_json FROM project_versions WHERE project_id = ? AND version = ?", project_id, version)
    return _parsed(text)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> ProjectConfig:
    return from_json(json.loads(text))


def _opened(db: Database, row: Row) -> OpenProject:
    last = db.one("SELECT * FROM rounds WHERE project_id = ? ORDER BY closed_at IS NULL DESC, number DESC", row.id)
    if last is not None and last.closed_at is None:
        return OpenProject(row, last.project_version, config_of(db, row.id, last.project_version), last.id)
    version = db.value("SELECT max(version) FROM project_versions WHERE project_id = ?", row.id)
    return OpenProject(row, version, config_of(db, row.id, version), "", last.close_reason if last is not None else "")


def _plain(config: ProjectConfig) -> dict[str, object]:
    """As the file could have said it."""
    return dataclasses.asdict(config)
