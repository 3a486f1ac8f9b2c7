"""All configurations of a server: the files given at its start, and those that a trainer adds or retires while it runs.

What is added is durable before a request can name it. A running request keeps the objects that it found: a retired one stays in use there.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from polyhead.heads.format.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PolyheadError
from polyhead.heads.format.manifest import parse_reference
from polyhead.heads.store.records import check_request_id
from polyhead.server.rewards.configuration_store import ConfigurationStore, StoredConfiguration
from polyhead.server.rewards.configurations import Book, Configuration, ConfigurationFile, ConfigurationKind, parse_file

CONTENT = "content"  # what errors put before a key of what was sent
_KEYS = {  # what only a file of the kind has
    "rules": ConfigurationKind.RULE_SET,
    "template": ConfigurationKind.RULE_TEMPLATE,
    "form": ConfigurationKind.RECIPE,
    "roles": ConfigurationKind.TRANSCRIPT_FORMAT,
}

UsersOf = Callable[[ConfigurationKind, str], Sequence[str]]  # (kind, reference) -> heads that cannot do without it

logger = logging.getLogger(__name__)


class Library:
    """The books by kind, and the store behind them. Methods block on the disk. Thread-safe."""

    def __init__(self, store: ConfigurationStore, books: Mapping[ConfigurationKind, Book], users_of: UsersOf) -> None:
        """Put what is stored into the books. What cannot be read is left out with a warning: it is no reason not to start.

        FailedPrecondition if a file of the start has the name and version of another content that was added.
        """
        self._store, self._books, self._users_of = store, books, users_of
        self._lock = threading.Lock()
        for stored in store.in_use():
            try:
                self._restore(stored)
            except AlreadyExists:
                problem = f"{stored.reference} was added with another content than the file of this start has"
                raise FailedPrecondition(f"{problem}\nhint: give the file a version of its own, or leave it out") from None
            except PolyheadError as error:
                logger.warning("the stored %s %s is not in use: %s", stored.kind.value, stored.reference, error.message)

    def configurations(self) -> Iterator[Configuration]:
        """All of them; those that were added say so."""
        added = {each.key for each in self._store.in_use()}
        for book in dict.fromkeys(self._books.values()):
            for each in book.configurations():
                yield dataclasses.replace(each, is_added=(each.kind, each.reference) in added)

    def add(self, content: str, request_id: str, request_digest: str) -> Configuration:
        """Check a file's content, keep it, and put it to use. The same content again changes nothing.

        InvalidArgument names the key; AlreadyExists for a version that stands for another content, or once did; FailedPrecondition if
        the model's tokenizer cannot serve it.
        """
        check_request_id(request_id)
        with self._lock:
            first = self._answered(request_id, request_digest)
            file = parse_file(content.encode(), "the content", CONTENT)
            kind = _kind_of(file)
            if first is not None:
                return self._find(first.kind, first.reference) or file.listed(kind)
            if (known := self._find(kind, file.reference)) is not None:
                return _same(known, file)
            data = file.content.encode()
            self._store.check_new((kind, file.reference), len(data), CONTENT)
            stored = StoredConfiguration(kind, file.reference, file.sha256, len(data), time.time(), request_id, request_digest)
            with self._store.request_ids.storing(request_id, request_digest):
                self._books[kind].add(file, lambda: self._store.add(stored, data))
            found = self._find(kind, file.reference)
            assert found is not None, "it was added just now"
            return found

    def retire(self, kind: ConfigurationKind | None, reference: str, request_id: str, request_digest: str) -> StoredConfiguration:
        """Take an added version out of use, for good. NotFound; FailedPrecondition for one that was a file at the start, or is needed."""
        check_request_id(request_id)
        with self._lock:
            if (first := self._answered(request_id, request_digest)) is not None:
                return first
            if not parse_reference(reference, "reference")[1]:
                raise InvalidArgument(f"say which version: {reference}\nhint: {reference}@1", field="reference")
            found = self._one(kind, reference)
            stored = self._store.find((found.kind, reference))
            if stored is None or not found.is_added:
                raise FailedPrecondition(f"{reference} was not added: it came with the server or its start", field="reference")
            if users := self._users_of(found.kind, reference):
                raise FailedPrecondition(f"{reference} is what {users[0]} asks with\nhint: delete that version first", field="reference")
            with self._store.request_ids.storing(request_id, request_digest):
                self._store.retire(stored, request_id, request_digest)
            self._books[found.kind].remove(found.kind, reference)
            return stored

    @property
    def store(self) -> ConfigurationStore:
        """Those that were added."""
        return self._store

    def adopt(self, stored: StoredConfiguration, content: bytes) -> None:
        """Take over what was added to another server, or retired there, in place of what has its name and version here. As `add`."""
        with self._lock:
            known, book = self._store.find(stored.key), self._books[stored.kind]
            if stored.retired_at:
                self._store.keep_retired(stored)
                if known is not None and not known.retired_at:
                    book.remove(*stored.key)
                return
            file = parse_file(content, stored.reference, stored.kind.value)
            if known is not None and known.sha256 != stored.sha256:
                logger.warning("%s %s has another content at the primary, which takes its place here", stored.kind.value, stored.reference)
                book.remove(*stored.key)
            book.add(file, lambda: self._store.add(stored, content))

    def _restore(self, stored: StoredConfiguration) -> None:
        file = parse_file(self._store.content(stored), stored.reference, stored.kind.value)
        if (known := self._find(stored.kind, stored.reference)) is not None:
            _same(known, file)
        else:
            self._books[stored.kind].add(file, None)

    def _answered(self, request_id: str, request_digest: str) -> StoredConfiguration | None:
        """What this request did before. AlreadyExists if its id stands for another request, of heads or whatever else is stored."""
        self._store.request_ids.check(request_id, request_digest)
        return self._store.of_request(request_id)

    def _find(self, kind: ConfigurationKind, reference: str) -> Configuration | None:
        return next((each for each in self.configurations() if (each.kind, each.reference) == (kind, reference)), None)

    def _one(self, kind: ConfigurationKind | None, reference: str) -> Configuration:
        found = [each for each in self.configurations() if each.reference == reference and kind in (None, each.kind)]
        if not found:
            raise NotFound(f"no configuration of this name and version: {reference!r}", field="reference")
        if len(found) > 1:
            kinds = ", ".join(each.kind.value for each in found)
            raise InvalidArgument(f"{reference!r} names several: {kinds}\nhint: give its kind", field="kind")
        return found[0]


def _kind_of(file: ConfigurationFile) -> ConfigurationKind:
    for key, kind in _KEYS.items():
        if key in file.values:
            return kind
    known = ", ".join(f"{key} (a {kind.value})" for key, kind in _KEYS.items())
    raise InvalidArgument(f"the content is of no known kind: it has none of the keys {known}", field=CONTENT)


def _same(known: Configuration, file: ConfigurationFile) -> Configuration:
    if known.sha256 != file.sha256:
        problem = f"{known.reference} stands for another content: a change needs a new version"
        raise AlreadyExists(f"{problem}\nhint: raise its version", field=f"{file.field}.version")
    return known
