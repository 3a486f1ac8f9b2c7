"""Exports read by the tools that they are for: Label Studio's interface checks every task, Argilla's client maps every record.

`make test-exports` installs both packages in an environment of its own. Not collected where they are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from uuid import uuid4

import argilla
import pytest
from argilla.records._mapping import IngestedRecordMapper
from label_studio_sdk.label_interface import LabelInterface

from polyhead.client.annotate.exports.options import Options
from polyhead.client.annotate.exports.writing import export
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.projects import projects
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import RunningSite, running

pytestmark = pytest.mark.filterwarnings("default")  # the tools' own
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
SAID = [*MESSAGES, {"role": "assistant", "content": "You fool."}]
REPLIES = ["a", "b", "c"]
Body = Callable[[list[str]], dict[str, Any]]
KINDS: dict[str, tuple[str, dict[str, Any], Body]] = {  # kind -> (more of its project, an item, the answer for the cards shown)
    "choose": ("", {"messages": MESSAGES, "replies": REPLIES}, lambda ids: {"choice": ids[1], "tied": [ids[0]]}),
    "rank": ("", {"messages": MESSAGES, "replies": REPLIES}, lambda ids: {"ranks": dict(zip(ids, (2, 1, 2), strict=True))}),
    "compare": ("answer: {strength: hh8}", {"messages": MESSAGES, "replies": REPLIES[:2]}, lambda ids: {"position": 7}),
    "rate": ("", {"messages": MESSAGES, "replies": REPLIES}, lambda ids: {"ratings": {key: {"overall": 5, "flags": {}} for key in ids}}),
    "rulecheck": (
        "rules: {rule_set: example-rules@1}",
        {"messages": SAID, "rule": {"id": "no-insults", "text": "Do not insult."}},
        lambda ids: {"verdict": 4},
    ),
    "demonstrate": ("", {"messages": MESSAGES}, lambda ids: {"text": "Air scatters blue light."}),
    "edit": ("", {"messages": MESSAGES, "replies": ["The sky is."]}, lambda ids: {"text": "The sky is blue.", "candidate": ids[0]}),
}


async def exported(path: Path, kind: str, format_name: str) -> tuple[list[dict[str, Any]], Path]:
    """(rows of one answer of this kind, the file)"""
    more, item, body = KINDS[kind]
    async with running(path / "a.db", FakeModel(), f"slug: work\nkind: {kind}\nsource: stored\n{more}") as site:
        (path / "items.jsonl").write_text(json.dumps(item), encoding="utf-8")
        import_items(site.db, projects.open_project(site.db, "work"), path / "items.jsonl", "test")
        await answer(site, body)
        export(site.db, "work", format_name, path / "rows.jsonl", Options(), "test")
    return [json.loads(line) for line in (path / "rows.jsonl").read_text(encoding="utf-8").splitlines()], path / "rows.jsonl"


async def answer(site: RunningSite, body: Body) -> None:
    async with site.person() as person:
        state = (await person.claim("work"))["state"]
        ids = [card["id"] for card in state["view"]["candidates"]] if state["view"] else []
        await person.answer(state["assignment"]["id"], None, body(ids))


@pytest.mark.parametrize("kind", KINDS)
async def test_label_studio_takes_every_task(tmp_path: Path, kind: str) -> None:
    """The interface beside the rows is one that Label Studio parses, and each task and annotation is valid in it."""
    rows, path = await exported(tmp_path, kind, "label-studio")
    interface = LabelInterface(path.with_suffix(".xml").read_text(encoding="utf-8"))
    interface.validate()
    for row in rows:
        assert interface.validate_task({"data": row["data"]})  # with annotations it calls itself without its argument, in 2.0 and 2.1
        for annotation in row["annotations"]:
            assert interface.validate_annotation(annotation)
            assert annotation["result"]


@pytest.mark.parametrize("kind", KINDS)
async def test_argilla_maps_every_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """By the client's own mapper, into a dataset whose fields and questions have the exported names: each text is a field, each answer a
    response."""
    rows, _ = await exported(tmp_path, kind, "argilla")
    names = [name.removesuffix(".response") for name in rows[0] if name.endswith(".response")]
    fields = [name for name in rows[0] if name == "prompt" or name.startswith("reply_")]
    monkeypatch.setattr(argilla.Argilla, "_get_default", mock.MagicMock())  # nothing here calls a server
    settings = argilla.Settings(
        fields=[argilla.TextField(name=name) for name in fields], questions=[argilla.TextQuestion(name=name) for name in names]
    )
    dataset: Any = SimpleNamespace(settings=settings, schema=settings.schema)
    for row in rows:
        mapping = {name: name for name in row if name.endswith(".response")}  # as the guide says it
        record = IngestedRecordMapper(dataset, uuid4(), mapping)(dict(row))
        model = record.api_model()
        assert model.external_id == row["id"]
        assert model.fields == {name: row[name] for name in fields}
        assert {each.question_name: each.value for each in record.responses} == {name: row[f"{name}.response"] for name in names}
