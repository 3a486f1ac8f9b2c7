"""Whether the database holds together, and whether stored replies can be drawn again from their rows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from polyhead.client import AsyncClient, errors
from polyhead.client.annotate.keeping.rebuild import differences, rebuild
from polyhead.client.annotate.replies.candidates import unpack_ids
from polyhead.client.annotate.storage.database import Database, Row, sha256

_SUMS = (  # what must not be there, as queries that count it
    ("answers whose body is not what was hashed", "SELECT body_json AS text, body_sha256 AS sum FROM answers"),
    ("events whose body is not what was hashed", "SELECT body_json AS text, body_sha256 AS sum FROM events"),
    ("candidates whose text is not what was hashed", "SELECT text, text_sha256 AS sum FROM candidates"),
)
_COUNTS = (
    ("gaps in the log", "SELECT coalesce(max(seq), 0) - count(*) FROM events"),
    ("finished turns without replies", "SELECT count(*) FROM turns t WHERE t.state = 'ready' AND NOT EXISTS"
     " (SELECT 1 FROM views v JOIN view_slots s ON s.view_id = v.id WHERE v.turn_id = t.id)"),
)  # fmt: skip


@dataclass(frozen=True)
class Replayed:
    """One stored reply and what came of drawing it again: same, gone (the version, or another trunk), different."""

    candidate_id: str
    outcome: str
    detail: str = ""


def problems(db: Database) -> list[str]:
    """All that is wrong, in words; nothing of a sound database."""
    found = [f"damaged: {row.columns['integrity_check']}" for row in db.all("PRAGMA integrity_check(5)")]
    found = [each for each in found if each != "damaged: ok"]
    found += [f"a row of {row.table} names a row of {row.parent} that is not there" for row in db.all("PRAGMA foreign_key_check")][:5]
    for what, query in _SUMS:
        count = sum(sha256(row.text) != bytes(row.sum) for row in db.all(query))
        found += [f"{what}: {count}"] if count else []
    for what, query in _COUNTS:
        count = db.value(query)
        found += [f"{what}: {count}"] if count else []
    with TemporaryDirectory() as folder:
        made = rebuild(db, Path(folder) / "rebuilt.db")
        try:
            found += differences(db, made)
        finally:
            made.close()
    return found


async def replay(db: Database, client: AsyncClient, num: int, draw: random.Random | None = None) -> list[Replayed]:
    """Draw so many stored replies again, chosen at random. A server with --deterministic gives the same ids."""
    ids = [row.id for row in db.all("SELECT id FROM candidates WHERE origin = 'live' AND prompt_token_ids IS NOT NULL ORDER BY id")]
    chosen = (draw or random.Random()).sample(ids, min(num, len(ids)))
    trunk = await client.trunk()
    found = []
    for key in chosen:
        row = db.one("SELECT * FROM candidates WHERE id = ?", key)
        assert row is not None
        if (row.trunk_id, row.precision) != (trunk.trunk_id, trunk.precision):
            found.append(Replayed(key, "gone", f"drawn on trunk {row.trunk_id[:12]} at {row.precision}"))
        else:
            found.append(await _drawn_again(client, row))
    return found


async def _drawn_again(client: AsyncClient, row: Row) -> Replayed:
    reference = f"{row.head_name}@{row.head_version}"
    sampling = {name: value for name, value in row.json("sampling").items() if name != "seed" and value not in ([], ())}
    try:
        [sample] = await client.generate(
            [unpack_ids(row.prompt_token_ids)], head=reference, sample_seeds=[int(row.sample_seed)], **sampling
        )
    except errors.NotFound:
        return Replayed(row.id, "gone", f"the server has no {reference}")
    if sample.digest != row.digest:
        return Replayed(row.id, "different", f"{reference} has digest {sample.digest[:12]}, not {row.digest[:12]}")
    is_same = list(sample.token_ids) == unpack_ids(row.token_ids)
    return Replayed(row.id, "same" if is_same else "different", "" if is_same else f"other ids from {reference}")
