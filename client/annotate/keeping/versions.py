"""Head versions that stored replies came from, labelled on the model server: it keeps them beyond --keep-versions, and the replies can be
drawn again. Labels need a trainer's token; without one nothing is labelled, and the pages say so.

What was done is in the log, an event a version: kept, gone (the server has no such version, or another one under its number), let go by an
admin.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from polyhead.client import AsyncClient, errors
from polyhead.client.annotate.problems import Clash, ModelDown, NotThere
from polyhead.client.annotate.storage.database import Database

LABEL = "annotate"
log = logging.getLogger(__name__)


class Fate(enum.StrEnum):
    """What has become of a version."""

    NOT_KEPT = "not_kept"
    KEPT = "kept"
    GONE = "gone"
    LET_GO = "let_go"


@dataclass(frozen=True)
class Version:
    """One version that replies refer to."""

    ref: str  # "policy@7"
    digest: str
    num_replies: int
    fate: Fate


def versions(db: Database) -> list[Version]:
    """All that live replies refer to, by name and number."""
    fates = {(row.ref, row.digest): Fate(row.kind.partition(".")[2]) for row in db.all(_FATES)}
    rows = db.all(
        "SELECT head_name || '@' || head_version AS ref, digest, count(*) AS num FROM candidates WHERE head_version IS NOT NULL"
        " GROUP BY head_name, head_version, digest ORDER BY head_name, head_version, digest"
    )
    return [Version(row.ref, row.digest, row.num, fates.get((row.ref, row.digest), Fate.NOT_KEPT)) for row in rows]


_FATES = (  # the last one of a version counts
    "SELECT kind, json_extract(body_json, '$.ref') AS ref, json_extract(body_json, '$.digest') AS digest FROM events"
    f" WHERE kind IN ({', '.join(repr(f'versions.{fate.value}') for fate in Fate)}) ORDER BY seq"
)


class Keeper:
    """Labels with a trainer's token. `trainer` None: there is none."""

    def __init__(self, db: Database, trainer: AsyncClient | None) -> None:
        self._db = db
        self._trainer = trainer
        self.refusal = ""  # why the server does not label, in its own words

    @property
    def has_token(self) -> bool:
        return self._trainer is not None

    async def keep(self) -> None:
        """Label what replies refer to and is not labelled yet. A server that is down is asked again at the next call."""
        if self._trainer is None:
            return
        for version in await asyncio.to_thread(_open_ones, self._db):
            try:
                self._note(version, await self._label(self._trainer, version))
                self.refusal = ""
            except (errors.Unavailable, errors.ResourceExhausted, errors.DeadlineExceeded):
                return
            except errors.PolyheadError as error:
                if error.message != self.refusal:
                    log.error("%s is not kept: %s", version.ref, error.message)
                self.refusal = error.message
                return

    async def let_go(self, ref: str, digest: str, by: str) -> None:
        """Take the label away: the server may remove the version, and its replies cannot be drawn again."""
        found = next((each for each in versions(self._db) if (each.ref, each.digest) == (ref, digest)), None)
        if found is None or found.fate is not Fate.KEPT:
            raise NotThere("no such version is kept", field="ref")
        if self._trainer is None:
            raise Clash("the pages have no trainer's token", code="NO_TRAINER")
        try:
            await self._trainer.unlabel(ref, LABEL)
        except errors.NotFound:
            pass  # what was to be let go is gone
        except errors.PolyheadError as error:
            raise ModelDown(f"{ref} keeps its label: {error.message}") from None
        self._note(found, Fate.LET_GO, by)

    async def _label(self, trainer: AsyncClient, version: Version) -> Fate:
        """The digest is compared first: another server may have another version under this number."""
        try:
            head = await trainer.head(version.ref)
            if head.digest != version.digest:
                return Fate.GONE
            await trainer.label(version.ref, LABEL)
            return Fate.KEPT
        except errors.NotFound:
            return Fate.GONE

    def _note(self, version: Version, fate: Fate, by: str = "system") -> None:
        with self._db.transaction():
            self._db.event(f"versions.{fate.value}", by, {"ref": version.ref, "digest": version.digest, "label": LABEL}, {})


def _open_ones(db: Database) -> Sequence[Version]:
    """Those that nothing is known of; called in a thread."""
    reader = db.reader()
    try:
        return [each for each in versions(reader) if each.fate is Fate.NOT_KEPT]
    finally:
        reader.close()
