"""What the application does with each answer of the model server: rounds are bound to it, or closed; rules and versions are read."""

from __future__ import annotations

import logging

from polyhead.client import Status, errors
from polyhead.client.annotate.admin import rounds
from polyhead.client.annotate.projects import projects, rules
from polyhead.client.annotate.web.access import Site

log = logging.getLogger(__name__)


async def notice(site: Site, status: Status) -> None:
    """`status`: what the server has just said."""
    site.served, site.trunk = status, await site.model.trunk()
    for slug in projects.close_rounds_of_other_trunks(site.db, site.trunk):
        log.warning("project %s: its round is closed, since the model server serves another trunk or tokenizer", slug)
    rounds.note_generation(site.db, status)
    _bind_rounds(site)
    await _read_rules(site)
    await site.keeper.keep()


def _bind_rounds(site: Site) -> None:
    """A round that was opened while no server answered notes what is served as soon as one does."""
    assert site.served is not None
    for row in site.db.all("SELECT id FROM rounds WHERE closed_at IS NULL AND generation IS NULL"):
        projects.bind_round(site.db, row.id, site.served, site.trunk)


async def _read_rules(site: Site) -> None:
    """The rules of projects that have a rule set, as the server words them; a set is asked for once."""
    for project in projects.list_projects(site.db):
        name = project.config.rules.rule_set
        if name and site.rule_sets.get(project.config.slug) != name:
            try:
                rules.store_rules(site.db, project, *await site.model.rules(name))
            except errors.NotFound as error:
                log.error("project %s: %s", project.config.slug, error.message)
            site.rule_sets[project.config.slug] = name
