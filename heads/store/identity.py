"""What makes a folder a head store of one trunk: the STORE file. Creates a store, refuses another trunk's. Knows no heads."""

from __future__ import annotations

import re

from polyhead.heads.format.errors import DataLoss, FailedPrecondition
from polyhead.heads.store import layout, osio, records
from polyhead.heads.store.osio import StoreFiles
from polyhead.heads.store.records import DamagedRecord

_FOLDERS = (osio.STAGING, layout.BLOBS, layout.VERSIONS, layout.GENERATIONS)
_KNOWN = frozenset({*_FOLDERS, layout.OOD, layout.CONFIGURATIONS, layout.LOCK, layout.STORE, layout.RESERVE, "lost+found"})
_STAGED = re.compile(r"[0-9a-f]{32}")


def identify(files: StoreFiles, trunk_id: str) -> None:
    """Create what is missing in a new store, compare the trunk of an old one, and empty the staging folder of both.

    FailedPrecondition for another trunk's store or a folder that is none; DataLoss; OSError.
    """
    is_new = not files.exists(layout.STORE)
    if is_new:
        _check_new(files)
    elif (found := read_trunk_id(files)) != trunk_id:
        raise FailedPrecondition(f"the store belongs to another trunk: {found[:12]}... is not {trunk_id[:12]}...")
    for folder in _FOLDERS:
        if not files.exists(folder):
            files.mkdir(folder, "folder")
    for name in files.list(osio.STAGING):
        if not _STAGED.fullmatch(name):
            raise FailedPrecondition(f"an unexpected file in the staging folder: {name[:80]!r}")
        files.unlink(f"{osio.STAGING}/{name}", "staging")
    if is_new:
        files.put(layout.STORE, records.encode("store", {"trunk_id": trunk_id}), "store")
        files.fsync_folder("", "store")


def read_trunk_id(files: StoreFiles) -> str:
    """FailedPrecondition if the folder is no store or of a newer format; DataLoss if its identity is damaged; OSError."""
    try:
        content = records.decode("store", files.read(layout.STORE, records.MAX_RECORD_BYTES))
        return str(content["trunk_id"])
    except FileNotFoundError:
        raise FailedPrecondition("the folder is not a head store: it has no STORE file") from None
    except (DamagedRecord, KeyError):
        raise DataLoss("the store's STORE file is damaged: it no longer says which trunk the heads belong to") from None


def _check_new(files: StoreFiles) -> None:
    """A folder without STORE must hold no more than what an interrupted creation leaves: a home folder is never turned into a store."""
    unknown = [name for name in files.list("") if name not in _KNOWN]
    if unknown:
        raise FailedPrecondition(f"the folder is not empty and not a head store: it holds {unknown[0][:80]!r}")
    for folder in (layout.BLOBS, layout.VERSIONS, layout.GENERATIONS, layout.OOD, layout.CONFIGURATIONS):
        if files.exists(folder) and files.list(folder):
            raise FailedPrecondition(f"the store has lost its STORE file, but holds {folder}: restore it from a backup")
