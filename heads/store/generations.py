"""The active set and its history: one record file per generation, the highest number wins. Knows neither versions nor blobs.

Older ones are packed into one file, and those that are older still are dropped; see `heads/store/pack.py`.

The rename of a generation's record is the commit point of an activation, and the fsync of the folder after it makes it last.
"""

from __future__ import annotations

import contextlib
from typing import ClassVar

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, NotFound, PolyheadError
from polyhead.heads.store import io_errors, layout, osio, pack, records
from polyhead.heads.store.pack import Pack, Retention
from polyhead.heads.store.records import DamagedRecord, GenerationRecord
from polyhead.heads.store.reserve import write_with_reserve


class CommitUncertain(PolyheadError):
    """The activation may or may not survive a restart. The server must end its process: the restart decides."""

    reason: ClassVar[str] = "COMMIT_UNCERTAIN"


class GenerationFolder:
    """The generation records in memory and on disk. The caller holds the store's lock for everything but `current`."""

    def __init__(self, files: osio.StoreFiles) -> None:
        self._files = files
        self._records: dict[int, GenerationRecord] = {}
        self._by_request: dict[str, int] = {}
        self._first_with: dict[tuple[tuple[str, int], ...], int] = {}  # heads, sorted -> the lowest number that has them
        self.highest = 0  # of all files, readable or not
        self.current: GenerationRecord | None = None  # None: nothing was ever activated, or the newest record is damaged
        self.damaged: dict[int, str] = {}  # number -> what is wrong
        self.pack_damage = ""  # what is wrong with the packed history; it is left alone then
        self._pack = Pack()
        self._files_of: set[int] = set()  # numbers that have a file of their own
        self._is_uncertain = False

    def load(self) -> None:
        """Read every record. FailedPrecondition for a file that does not belong here or a newer format."""
        for file_name in self._files.list(layout.GENERATIONS):
            if f"{layout.GENERATIONS}/{file_name}" == layout.PACK:
                self._load_pack()
                continue
            number = layout.parse_number(file_name)
            if number is None:
                raise FailedPrecondition(f"an unexpected file among the generations: {file_name[:80]!r}")
            self._files_of.add(number)
        for number in sorted(self._files_of - self._pack.lines.keys()):  # a packed one has lost its file, but for a crash
            if number > self._pack.dropped:
                self._load_file(number)
        self.highest = max((0, *self._records, *self.damaged))
        self.current = self._records.get(self.highest)

    def _load_pack(self) -> None:
        try:
            self._pack, found = pack.decode(self._files.read(layout.PACK, pack.MAX_PACK_BYTES + records.MAX_RECORD_BYTES))
        except DamagedRecord as damage:
            self.pack_damage = str(damage)
            return
        for record in found.values():
            self._keep(record)

    def _load_file(self, number: int) -> None:
        try:
            record = records.decode_generation(self._files.read(layout.generation_path(number), records.MAX_RECORD_BYTES))
            if record.number != number:
                raise DamagedRecord("the record is another generation's")
        except DamagedRecord as damage:
            self.damaged[number] = str(damage)
            return
        self._keep(record)

    def compact(self, limits: Retention, now: float) -> int:
        """Pack the older records and drop those that need not be kept; how many files are gone for it. OSError: some files are left.

        The pack is durable before the first file goes, so that a record is always in one of the two. Damaged records keep their files.
        """
        files = sorted(self._files_of - self.damaged.keys())
        surplus = files[: -limits.num_files]
        if self.pack_damage or self._is_uncertain or len(files) <= limits.max_files:
            return 0
        new = {number: self._records[number] for number in surplus if number in self._records and number not in self._pack.lines}
        packed = pack.repacked(self._pack, new, self._records, limits, now)
        self._files.put(layout.PACK, packed.encode(), "pack")
        self._files.fsync_folder(layout.GENERATIONS, "pack")
        for number in self._pack.lines.keys() - packed.lines.keys() | new.keys() - packed.lines.keys():
            self._forget(number)
        self._pack = packed
        self._first_with = {}
        for record in self._records.values():
            self._note_heads(record)
        for number in surplus:
            with contextlib.suppress(FileNotFoundError):
                self._files.unlink(layout.generation_path(number), "generation")
            self._files_of.discard(number)
        return len(surplus)

    def sha256_of(self, number: int) -> str:
        """SHA-256 of a generation's record, which `previous` of the next one names. "" if neither it nor its hash is kept."""
        if number in self._records:
            return records.sha256_of(self._records[number])
        return self._pack.dropped_sha256 if number and number == self._pack.dropped else ""

    def get(self, number: int) -> GenerationRecord:
        """NotFound; DataLoss if the record is damaged."""
        layout.generation_path(number)
        if number in self.damaged:
            raise DataLoss(f"generation {number}: {self.damaged[number]}")
        if number <= self._pack.dropped:
            raise NotFound(f"generation {number} is no longer kept: the history begins with {self._pack.dropped + 1}", field="generation")
        if number not in self._records:
            raise NotFound(f"no such generation: {number}", field="generation")
        return self._records[number]

    def find_request(self, request_id: str) -> GenerationRecord | None:
        """The generation that an activation with this request id made."""
        number = self._by_request.get(request_id) if request_id else None
        return self._records[number] if number else None

    def same_as(self, record: GenerationRecord) -> int:
        """The first generation with the same heads; 0 if it is this one."""
        first = self._first_with.get(_sorted_heads(record), 0)
        return first if first < record.number else 0

    def before_current(self) -> GenerationRecord | None:
        """The newest readable record but the current one."""
        number = self.highest - 1
        while number > self._pack.dropped and number not in self._records:
            number -= 1
        return self._records.get(number)

    def find(self, number: int | None) -> GenerationRecord | None:
        """A readable record that is kept."""
        return self._records.get(number) if number else None

    def history(self) -> list[GenerationRecord]:
        """Every readable record, newest first."""
        return [self._records[number] for number in sorted(self._records, reverse=True)]

    def commit(self, record: GenerationRecord) -> None:
        """Make `record` the active set. OSError: nothing has changed. CommitUncertain: the process must end."""
        if self._is_uncertain:
            raise CommitUncertain("an earlier activation may or may not have been stored; restart the server")
        path = layout.generation_path(record.number)
        data = records.encode_generation(record)
        try:
            write_with_reserve(self._files, lambda: self._files.commit(path, data, "generation"))
        except io_errors.RenameIssued:
            self._is_uncertain = True
            raise CommitUncertain(f"generation {record.number} may or may not have been stored; restart the server") from None
        self.highest = record.number
        self._files_of.add(record.number)
        self._keep(record)
        self.current = record

    def fill_in(self, record: GenerationRecord) -> None:
        """Hold the record of a generation before the current one, which another store has. OSError: nothing has changed."""
        if record.number <= self._pack.dropped or record.number in self._records:
            return
        self._files.put(layout.generation_path(record.number), records.encode_generation(record), "generation")
        self._files.fsync_folder(layout.GENERATIONS, "generation")
        self._files_of.add(record.number)
        self.damaged.pop(record.number, None)
        self._keep(record)

    def _keep(self, record: GenerationRecord) -> None:
        self._records[record.number] = record
        self._note_heads(record)
        if record.request_id:
            self._by_request[record.request_id] = record.number

    def _note_heads(self, record: GenerationRecord) -> None:
        heads = _sorted_heads(record)
        self._first_with[heads] = min(record.number, self._first_with.get(heads, record.number))

    def _forget(self, number: int) -> None:
        record = self._records.pop(number)
        self._by_request.pop(record.request_id, None)


def _sorted_heads(record: GenerationRecord) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(record.heads.items()))
