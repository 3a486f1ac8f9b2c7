"""Writes an export: ROWS.jsonl, beside it ROWS.keys.jsonl, whose line i says where row i comes from, and a card that counts.

The same database and the same `until_seq` give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from polyhead.client.annotate import projects
from polyhead.client.annotate.database import Database, new_id, to_json
from polyhead.client.annotate.exports.formats import FORMATS
from polyhead.client.annotate.exports.judgements import Filters, judgements, last_seq
from polyhead.client.annotate.exports.tools import interface
from polyhead.client.annotate.problems import Invalid

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


def export(db: Database, slug: str, format_name: str, path: Path, filters: Filters, by: str) -> Written:
    """Write the files and note in the database that they were written."""
    written = write_files(db, slug, format_name, path, filters)
    note_export(db, slug, format_name, filters, written, by)
    return written


def write_files(db: Database, slug: str, format_name: str, path: Path, filters: Filters) -> Written:
    """Only reads the database. Invalid for a format that is not known, NotThere for a project that is not."""
    if format_name not in NAMES:
        raise Invalid(f"unknown format: {format_name[:40]!r}\nhint: {', '.join(NAMES)}", field="format")
    projects.find_project(db, slug)
    until = filters.until_seq or last_seq(db)
    filters = Filters(filters.round_number, until, filters.exclude)
    if format_name == "events":
        return _write_events(db, path, until)
    rows: list[str] = []
    keys: list[str] = []
    left_out: Counter[str] = Counter()
    found = list(judgements(db, slug, filters, left_out))
    for judgement in found:
        for row in FORMATS[format_name](judgement, left_out):
            rows.append(to_json(row))
            keys.append(to_json({**judgement.about, "dialogue": judgement.dialogue, "polarity": judgement.polarity}))
    digest = _write(path, rows)
    _write(path.with_suffix(".keys.jsonl"), keys)
    written = Written(path, len(rows), len(found), dict(sorted(left_out.items())), until, digest)
    _write(path.with_suffix(".md"), [_card(db, slug, format_name, written, filters)])
    if format_name == "label-studio":
        _write(path.with_suffix(".xml"), [interface(found)])
    return written


def _write_events(db: Database, path: Path, until: int) -> Written:
    """The log itself, of all projects: what the tables can be made from. Each line carries the SHA-256 of its body."""
    rows = [
        to_json(
            {**{k: v for k, v in row.columns.items() if k != "body_json"}, "body": row.json("body"), "body_sha256": row.body_sha256.hex()}
        )
        for row in db.all("SELECT * FROM events WHERE seq <= ? ORDER BY seq", until)
    ]
    return Written(path, len(rows), 0, {}, until, _write(path, rows))


def note_export(db: Database, slug: str, format_name: str, filters: Filters, written: Written, by: str) -> None:
    """A row of `exports`: what was handed out, when, to whom."""
    chosen = {"project": slug, "round": filters.round_number, "exclude": filters.exclude}
    row = {
        "id": new_id(), "format": format_name, "filters_json": to_json(chosen), "up_to_seq": written.until_seq,
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


def _card(db: Database, slug: str, format_name: str, written: Written, filters: Filters) -> str:
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
        f"Excluded by choice: {', '.join(filters.exclude) or 'nothing'}. `{written.path.stem}.keys.jsonl` says where each row comes from.",
    ]
    return "\n".join(lines)
