"""A project's settings as YAML, and under another name."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyhead.client.annotate.commands import annotate_app, default_project
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.projects.yaml_writer import to_yaml
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.catalogs import catalog
from tests.client.annotate.site import CHOOSE, RunningSite, begin

RATE = """
slug: "123"
kind: rate
title: {en: "yes: no", ar: "نعم"}
guidelines: "One line\\n\\n  # another\\n"
source: stored
answer: {flags: [instructgpt11, odd], flag_texts: {odd: {en: Odd}}, tie: false, after_none: end}
prompt: {system: "- a\\n- b"}
sensitive: true
leak_words: ["null", "1.0"]
queue: {replay_share: 0.15}
"""
PROBE = """
slug: p
kind: probe
reveal: stream
arms: {drawn: [{head: 'policy@7', weight: 3}], show: 1}
rules: {rule_set: 'r@1', attempts: 7}
"""


@pytest.mark.parametrize("config", [default_project(), *map(read_project, (CHOOSE, RATE, PROBE))], ids=lambda config: config.slug)
def test_settings_as_yaml_read_as_themselves(config: projects.ProjectConfig) -> None:
    text = to_yaml(config)
    assert read_project(text) == config
    assert "lease_min: 30" not in text, "what is so anyway is not written"


async def test_a_copy_on_the_page_has_settings_alone(site: RunningSite) -> None:
    """A draft, without items and rounds; a name that is taken, or is none, is said beside the field, and nothing is stored."""
    async with site.person("admin", "boss-1") as admin, site.person() as person:
        await person.claim()  # makes an item
        made = await admin.form("/admin/p/helpful/copy", name=" helpful-2 ")
        assert made.headers["location"] == "/admin/p/helpful-2"
        page = (await admin.get("/admin/p/helpful-2")).text
        assert "slug: helpful-2" in page
        copied = projects.open_project(site.db, "helpful-2")
        assert (copied.row.state, copied.version, copied.round_id) == ("draft", 1, "")
        assert copied.config.arms == projects.open_project(site.db, "helpful").config.arms
        assert site.db.value("SELECT count(*) FROM rounds WHERE project_id = ?", copied.row.id) == 0
        words = catalog("en")
        for name, status, sentence in (("helpful", 409, words("error.NAME_TAKEN", name="helpful")), ("A b", 422, words("error.NAME"))):
            page = (await admin.form("/admin/p/helpful-2/copy", status, name=name)).text
            assert sentence in page
            assert f'value="{name}"' in page
        await admin.form("/admin/p/none/copy", 404, name="x")
        assert "helpful-2" not in (await person.get("/")).text
    assert site.db.value("SELECT count(*) FROM projects") == 2


def test_a_copy_by_the_command_line(tmp_path: Path) -> None:
    path, file = tmp_path / "a.db", tmp_path / "other.yaml"
    db = Database.create(path)
    begin(db, read_project(CHOOSE))
    db.close()

    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(annotate_app, ["copy", *words, "--db", str(path)])
        return done.exit_code, done.output

    said = "project second is a draft with the settings of helpful: open a round on its page, /admin/p/second\n"
    assert run("helpful", "second") == (0, said)
    code, said = run("helpful", "second")
    assert (code, said.splitlines()) == (
        1,
        ["error: there is a project with this name already: second", "hint: choose another name"],
    )
    assert "must be 1 to 40 of a-z, 0-9 and -: 'Second'" in run("helpful", "Second")[1]
    assert "no such project: 'none'" in run("none", "third")[1]
    assert run("helpful", "third", "--file", str(file))[0] == 0
    assert read_project(file.read_text(encoding="utf-8")).slug == "third"
    assert "File exists" in run("helpful", "third", "--file", str(file))[1]
    db = Database.open(path)
    assert [row.slug for row in db.all("SELECT slug FROM projects ORDER BY slug")] == ["helpful", "second"]
    db.close()
