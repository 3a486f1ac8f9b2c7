"""What in a store cannot be used, and the command that repairs it. Changes nothing: an operator decides on repairs.

A damaged active set is reported, never replaced by an older one: a policy that silently went back a round spoils the next.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from polyhead.heads.format.errors import PolyheadError
from polyhead.heads.store import io_errors, layout, osio
from polyhead.heads.store.blobs import BlobFolder
from polyhead.heads.store.generations import GenerationFolder
from polyhead.heads.store.records import GenerationRecord
from polyhead.heads.store.versions import VersionFolder


@dataclass(frozen=True, slots=True)
class StoreDamage:
    """What cannot be used, and the shell command that repairs it. For an operator: it holds a path."""

    what: str
    repair: str


class Inspector:
    """Looks at the three folders of one store. The caller holds the store's lock; methods raise OSError."""

    def __init__(self, path: str, blobs: BlobFolder, versions: VersionFolder, generations: GenerationFolder) -> None:
        self._path = path
        self._blobs = blobs
        self._versions = versions
        self._generations = generations

    def find_active_damage(self, *, is_thorough: bool = False) -> StoreDamage | None:
        """Why the newest generation cannot be served; None if it can, or if there is none. `is_thorough` hashes its blobs."""
        newest = self._generations.highest
        current = self._generations.current
        if newest in self._generations.damaged:
            what = f"the record of the active set, generation {newest}, cannot be used: {self._generations.damaged[newest]}"
            return StoreDamage(what, self._rollback_command())
        for name, version in sorted(current.heads.items()) if current else ():
            if problem := self.find_problem(name, version, is_thorough=is_thorough):
                return StoreDamage(f"the active set, generation {newest}, cannot be used: {problem}", self._rollback_command())
        return None

    def find_problem(self, name: str, version: int, *, is_thorough: bool = False) -> str:
        """Why a version cannot be loaded; "" if it can. `is_thorough` hashes its blob unless that was done since the file last changed."""
        try:
            record = self._versions.get(name, version)
            num_bytes = self._blobs.num_bytes(record.blob)
        except FileNotFoundError:
            return f"the weights of {name}@{version} are missing"
        except PolyheadError as error:
            return error.message
        if num_bytes != record.num_bytes:
            return f"the weights of {name}@{version} are damaged: {num_bytes} bytes instead of {record.num_bytes}"
        if self._blobs.is_corrupt(record.blob) or (is_thorough and not self._blobs.verify(record.blob)):
            return f"the weights of {name}@{version} are damaged: another SHA-256 than {record.blob[:12]}..."
        if record.manifest.lora is not None and (problem := self.find_problem(*record.manifest.base_version(), is_thorough=is_thorough)):
            return f"{name}@{version} is built on {record.manifest.base}: {problem}"
        return ""

    def find_restart_damage(self, files: osio.StoreFiles) -> StoreDamage | None:
        """Why what is served would not come back after a restart: the folder is no longer ours, or has lost the active set's record."""
        restore = "stop the server, put the store's folder back from a backup, start it again; what it serves now is in memory alone"
        try:
            files.check_place()
            current = self._generations.current
            if current and not files.exists(layout.generation_path(current.number)):
                return StoreDamage(f"the record of the active set, generation {current.number}, was deleted", restore)
        except io_errors.NotOurs as error:
            return StoreDamage(str(error.strerror), restore)
        except OSError as error:
            return StoreDamage(f"the store's folder cannot be read: {error.strerror}", restore)
        return None

    def find_corrupt(self) -> Iterator[StoreDamage]:
        """Active versions that are served from memory, and whose files are missing or no longer what was stored."""
        current = self._generations.current
        for name, version in sorted(current.heads.items()) if current else ():
            if problem := self.find_problem(name, version):
                what = f"{problem}; it is served from memory, but would not be after a restart"
                yield StoreDamage(what, f"push the head of {name}@{version} again, or activate another version")

    def find_other_damage(self) -> Iterator[StoreDamage]:
        """Versions and generations that cannot be used, the active set left out."""
        current = self._generations.current
        active = set(current.heads.items()) if current else set()
        versions = {(record.name, record.version) for record in self._versions.all()} | self._versions.damaged.keys()
        for name, version in sorted(versions - active):
            if version == 0:  # the record of the last number given out
                problem = f"no new version of {name} can be made: {self._versions.damaged[name, 0]}"
                yield StoreDamage(problem, f"rm {shlex.quote(os.path.join(self._path, layout.high_water_path(name)))}")
            elif problem := self.find_problem(name, version):
                yield StoreDamage(problem, f"polyhead heads delete {name}@{version} {self._store_option()}")
        if problem := self._generations.pack_damage:
            yield StoreDamage(f"older generations: {problem}", f"rm {shlex.quote(os.path.join(self._path, layout.PACK))}")
        for number, problem in sorted(self._generations.damaged.items()):
            if number != self._generations.highest:
                yield StoreDamage(f"generation {number}: {problem}", f"polyhead heads history {self._store_option()}")

    def _rollback_command(self) -> str:
        """Back to the newest generation that is whole; to 0, no heads at all, if none is. Hashes what it proposes."""
        candidates = [record.number for record in self._generations.history() if record.number != self._generations.highest]
        target = next((number for number in candidates if self._is_whole(self._generations.get(number))), 0)
        return f"polyhead heads rollback --to {target} {self._store_option()}"

    def _is_whole(self, generation: GenerationRecord) -> bool:
        return not any(self.find_problem(name, version, is_thorough=True) for name, version in generation.heads.items())

    def _store_option(self) -> str:
        return f"--store {shlex.quote(self._path)}"
