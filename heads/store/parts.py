"""What one open store consists of: its folders, its lock, what is damaged, and which request ids were used.

On top of it `head_versions.py` keeps head files and versions, `deletion.py` deletes them, `active_set.py` has the generations, and
`store.py` opens and closes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.pauses import pausing
from polyhead.heads.store import io_errors, layout, osio
from polyhead.heads.store.blobs import BlobFolder
from polyhead.heads.store.damage import Inspector, StoreDamage
from polyhead.heads.store.generations import GenerationFolder
from polyhead.heads.store.osio import StoreFiles
from polyhead.heads.store.request_ids import RequestIds
from polyhead.heads.store.reserve import write_reserve
from polyhead.heads.store.versions import VersionFolder


class StoreParts:
    """The state of one store folder, which all methods of HeadStore share under one lock."""

    def __init__(self, path: str, trunk_id: str, files: StoreFiles, max_staged: int) -> None:
        self.path = path
        self.trunk_id = trunk_id
        self.damage: StoreDamage | None = None  # of the active set: not None means that nothing may be served
        self.restart_damage: StoreDamage | None = None  # found by `check_folder`: what is served would not come back after a restart
        self.other_damage: tuple[StoreDamage, ...] = ()  # of versions and generations that are not served, or not from the disk
        self._files = files
        self._lock = threading.RLock()
        self._blobs = BlobFolder(files, self._lock, max_staged)
        self._versions = VersionFolder(files)
        self._generations = GenerationFolder(files)
        self._inspector = Inspector(path, self._blobs, self._versions, self._generations)
        self.request_ids = RequestIds()  # of this folder; what is kept beside the heads adds its own
        self.request_ids.add(self._asked_before)

    def check_request(self, request_id: str, request_digest: str) -> None:
        """AlreadyExists if the id stands for another request, whatever that one did. A record without a digest says nothing here."""
        self.request_ids.check(request_id, request_digest)

    def _asked_before(self, request_id: str) -> list[tuple[str, str]]:
        with self._lock:
            return list(self._requests(request_id))

    def _requests(self, request_id: str) -> Iterator[tuple[str, str]]:
        """(digest, what it did) of the requests with this id."""
        if version := self._versions.find_request(request_id):
            yield version.request_digest, f"made {version.name}@{version.version}"
        if generation := self._generations.find_request(request_id):
            yield generation.request_digest, f"made generation {generation.number}"
        if labelled := self._versions.find_label_request(request_id):
            yield dict(labelled.label_requests)[request_id], f"made labels of {labelled.name}@{labelled.version}"

    def disk_space(self) -> tuple[int, int]:
        """(bytes free, bytes in all) of the file system that the store is on; also when its folder was deleted."""
        with io_errors.plain_errors("could not measure the disk"):
            return self._files.disk_bytes()

    def disk_bytes(self) -> int:
        """What the blobs, staged files and the reserve take on disk, in bytes."""
        with self._guard("could not measure the store"):
            total = 0
            for folder in (layout.BLOBS, osio.STAGING):
                with contextlib.suppress(FileNotFoundError):  # also the folder may be gone
                    for name in self._files.list(folder):
                        with contextlib.suppress(FileNotFoundError):  # a push may end meanwhile
                            total += self._files.size(f"{folder}/{name}")
            return total + (self._files.size(layout.RESERVE) if self._files.exists(layout.RESERVE) else 0)

    def _refuse_while_damaged(self) -> None:
        if self.damage:
            raise FailedPrecondition(f"the store has to be repaired first: {self.damage.what}")

    def _write_reserve(self) -> None:
        try:
            write_reserve(self._files)
        except OSError as error:
            if not io_errors.is_disk_full(error):
                raise

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        with self._lock, pausing(None), io_errors.plain_errors(what):
            yield
