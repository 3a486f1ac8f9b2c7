"""A project's settings under another name: neither its items, nor its rounds, nor what anybody has said."""

from __future__ import annotations

import dataclasses

from polyhead.client.annotate.problems import Clash
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.projects.yaml_writer import to_yaml
from polyhead.client.annotate.storage.database import Database, Row


def copied(db: Database, slug: str, name: str) -> str:
    """YAML of the newest settings under a new name. NotThere, ConfigError for what is no name, Clash for one that is taken."""
    project = projects.find_project(db, slug)
    version = db.value("SELECT max(version) FROM project_versions WHERE project_id = ?", project.id)
    text = to_yaml(dataclasses.replace(projects.config_of(db, project.id, version), slug=name))
    read_project(text, "the copy")
    if db.one("SELECT 1 FROM projects WHERE slug = ?", name) is not None:
        raise Clash(f"there is a project with this name already: {name}\nhint: choose another name", code="NAME_TAKEN", field="name")
    return text


def copy_project(db: Database, slug: str, name: str, actor: str) -> Row:
    """A draft with these settings. Nothing is stored where the name cannot be used."""
    with db.transaction():
        return projects.store_project(db, read_project(copied(db, slug, name)), actor)
