"""Writes an export: ROWS.jsonl, beside it ROWS.keys.jsonl, whose line i says where row i comes from, and a card that counts.

The same database and the same `until_seq` give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from polyhead.client.annotate.exports.chosen import chosen
from polyhead.client.annotate.exports.formats import FORMATS, rows_of
from polyhead.client.annotate.exports.judgements import Judgement, last_seq
from polyhead.client.annotate.exports.options import Options
from polyhead.client.annotate.exports.tools import interface
from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.storage.database import Database, new_id, to_json

NAMES = (*FORMATS, "events")


@dataclass(frozen=True)
class Written:
    """What an export came to."""

    path: Path
    num_rows: int
    num_answers: int
    left_out: dict[str, int]  # by reason
    until_seq: int
    digest: bytes  # SHA-256 of the rows


@dataclass(frozen=True)
class Made:
    """An export that is not written yet."""

    found: list[Judgement]
    rows: list[str]
    keys: list[str]
    left_out: dict[str, int]


def export(db: Database, slug: str, format_name: str, path: Path, options: Options, by: str) -> Written:
    """Write the files and note in the database that they were written."""
    written = write_files(db, slug, format_name, path, options)
    note_export(db, slug, format_name, options, written, by)
    return written


def write_files(db: Database, slug: str, format_name: str, path: Path, options: Options) -> Written:
    """Only reads the database. Invalid for a format that is not known, NotThere for a project that is not."""
    check_format(format_name)
    projects.find_project(db, slug)
    until = options.filters.until_seq or last_seq(db)
    options = replace(options, filters=replace(options.filters, until_seq=until))
    made = make(db, slug, format_name, options)
    digest = _write(path, made.rows)
    if format_name == "events":
        return Written(path, len(made.rows), 0, {}, until, digest)
    _write(path.with_suffix(".keys.jsonl"), made.keys)
    written = Written(path, len(made.rows), len(made.found), made.left_out, until, digest)
    _write(path.with_suffix(".md"), [_card(db, slug, format_name, written, options)])
    if format_name == "label-studio":
        _write(path.with_suffix(".xml"), [interface(made.found)])
    return written


def make(db: Database, slug: str, format_name: str, options: Options) -> Made:
    """The rows, where each comes from, and what made none."""
    if format_name == "events":
        return Made([], _events(db, options.filters.until_seq or last_seq(db)), [], {})
    rows: list[str] = []
    keys: list[str] = []
    left_out: Counter[str] = Counter()
    found = chosen(db, slug, options.filters, left_out)
    for judgement in found:
        for row in rows_of(format_name, judgement, left_out, options.shape):
            rows.append(to_json(row))
            keys.append(to_json({**judgement.about, "dialogue": judgement.dialogue, "polarity": judgement.polarity}))
    return Made(found, rows, keys, dict(sorted(left_out.items())))


def check_format(name: str) -> None:
    if name not in NAMES:
        raise Invalid(f"unknown format: {name[:40]!r}\nhint: {', '.join(NAMES)}", field="format")


def _events(db: Database, until: int) -> list[str]:
    """The log itself, of all projects: what the tables can be made from. Each line carries the SHA-256 of its body."""
    rows = db.all("SELECT * FROM events WHERE seq <= ? ORDER BY seq", until)
    return [
        to_json(
            {**{k: v for k, v in row.columns.items() if k != "body_json"}, "body": row.json("body"), "body_sha256": row.body_sha256.hex()}
        )
        for row in rows
    ]


def note_export(db: Database, slug: str, format_name: str, options: Options, written: Written, by: str) -> None:
    """A row of `exports`: what was handed out, when, to whom."""
    choices = {"project": slug, "round": options.filters.round_number, "choices": options.in_words()}
    row = {
        "id": new_id(), "format": format_name, "filters_json": to_json(choices), "up_to_seq": written.until_seq,
        "num_rows": written.num_rows, "left_out_json": to_json(written.left_out), "sha256": written.digest,
        "created_by": by,
        "created_at": db.now(),
    }  # fmt: skip
    with db.transaction():
        db.insert("exports", row, by)


def _write(path: Path, lines: list[str]) -> bytes:
    """Whole or not at all, for its owner alone: annotators' words are in it. The SHA-256 of the bytes."""
    data = "".join(f"{line}\n" for line in lines).encode()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    return hashlib.sha256(data).digest()


def _card(db: Database, slug: str, format_name: str, written: Written, options: Options) -> str:
    project = projects.open_project(db, slug)
    lines = [
        f"# {project.config.words(project.config.title, 'en') or slug}",
        "",
        f"{written.num_rows} rows of {written.num_answers} answers, format `{format_name}`, kind `{project.config.kind.value}`,"
        f" log up to {written.until_seq}.",
        "",
        "Left out, by reason:" if written.left_out else "Nothing was left out.",
        *(f"- {reason}: {count}" for reason, count in written.left_out.items()),
        "",
        "Chosen:" if options.in_words() else "Nothing was excluded by choice.",
        *(f"- {each}" for each in options.in_words()),
        "",
        f"`{written.path.stem}.keys.jsonl` says where each row comes from.",
    ]
    return "\n".join(lines)
