"""Commands on the store of a stopped server, `--store DIR`: the repairs that a server with a damaged active set names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from polyhead.client.errors import FailedPrecondition, InvalidArgument
from polyhead.client.results.records import Generation

if TYPE_CHECKING:
    from polyhead.heads.store.store import GenerationRecord, HeadStore

__all__ = ["delete", "history", "rollback"]


def rollback(store: Path, to: int | None) -> Generation:
    """Make generation `to` the active one of a store that no server uses; 0 empties the active set."""
    if to is None:
        raise InvalidArgument("no generation is given\nhint: give --to; `polyhead heads history --store` lists them", field="to")
    with _opened(store) as opened:
        return _generation(opened.repair_to(to))


def delete(store: Path, name: str, version: int) -> None:
    """Delete a version, damaged or not."""
    with _opened(store) as opened:
        opened.delete_version(name, version)


def history(store: Path, limit: int) -> list[Generation]:
    """Generations that can be read, newest first."""
    with _opened(store) as opened:
        past = opened.past(opened.history()[:limit])
        return [replace(_generation(each.record), gone=tuple(each.gone), same_as=each.same_as) for each in past]


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[HeadStore]:
    """The store under its lock. Its errors become errors of the client, which the command line prints."""
    try:
        from polyhead.heads.format.errors import PolyheadError
        from polyhead.heads.store.store import HeadStore
    except ImportError:
        raise FailedPrecondition("repairing a store needs the server's packages: pip install 'polyhead[server]'") from None
    try:
        with HeadStore.open(folder, HeadStore.read_trunk_id(folder)) as store:
            yield store
    except PolyheadError as error:
        raise FailedPrecondition(error.message) from None


def _generation(record: GenerationRecord) -> Generation:
    return Generation(
        number=record.number, parent=record.parent or 0, heads=dict(record.heads), created_at=record.created_at, note=record.note
    )
