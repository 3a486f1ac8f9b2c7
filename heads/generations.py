"""The active set and its history: one record file per generation, the highest number wins. Knows neither versions nor blobs.

The rename of a generation's record is the commit point of an activation, and the fsync of the folder after it makes it last.
"""

from __future__ import annotations

from typing import ClassVar

from polyhead.heads import layout, osio, records
from polyhead.heads.errors import DataLoss, FailedPrecondition, NotFound, PolyheadError
from polyhead.heads.records import DamagedRecord, GenerationRecord
from polyhead.heads.reserve import write_with_reserve


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
        self._is_uncertain = False

    def load(self) -> None:
        """Read every record. FailedPrecondition for a file that does not belong here or a newer format."""
        for file_name in self._files.list(layout.GENERATIONS):
            number = layout.parse_number(file_name)
            if number is None:
                raise FailedPrecondition(f"an unexpected file among the generations: {file_name[:80]!r}")
            self.highest = max(self.highest, number)
            try:
                record = records.decode_generation(self._files.read(layout.generation_path(number), records.MAX_RECORD_BYTES))
                if record.number != number:
                    raise DamagedRecord("the record is another generation's")
            except DamagedRecord as damage:
                self.damaged[number] = str(damage)
                continue
            self._keep(record)
        self.current = self._records.get(self.highest)

    def get(self, number: int) -> GenerationRecord:
        """NotFound; DataLoss if the record is damaged."""
        layout.generation_path(number)
        if number in self.damaged:
            raise DataLoss(f"generation {number}: {self.damaged[number]}")
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
        except osio.RenameIssued:
            self._is_uncertain = True
            raise CommitUncertain(f"generation {record.number} may or may not have been stored; restart the server") from None
        self.highest = record.number
        self._keep(record)
        self.current = record

    def _keep(self, record: GenerationRecord) -> None:
        self._records[record.number] = record
        heads = _sorted_heads(record)
        self._first_with[heads] = min(record.number, self._first_with.get(heads, record.number))
        if record.request_id:
            self._by_request[record.request_id] = record.number


def _sorted_heads(record: GenerationRecord) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(record.heads.items()))
