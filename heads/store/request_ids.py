"""Which requests had which id, over all that is kept in one store folder: a request id stands for one request, whatever that one did.

Each part of the folder says what it knows of an id. Knows no part.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator

from polyhead.heads.format.errors import AlreadyExists

LookUp = Callable[[str], Iterable[tuple[str, str]]]  # request id -> (digest of a request with this id, what it did: "made policy@3")


class RequestIds:
    """The look-ups of all parts. A part asks before it takes a lock of its own: another part's look-up takes that one's."""

    def __init__(self) -> None:
        self._look_ups: list[LookUp] = []
        self._lock = threading.Lock()  # of the next one; nothing is looked up or stored with it held
        self._storing: dict[str, list[str]] = {}  # request id -> digests of the requests that are storing under it

    def add(self, look_up: LookUp) -> None:
        """Ask this part, too."""
        self._look_ups.append(look_up)

    def check(self, request_id: str, request_digest: str, field: str = "request_id") -> None:
        """AlreadyExists if the id stands for another request. A record without a digest, of an older store, says nothing here."""
        for look_up in self._look_ups if request_id else ():
            refuse_other(look_up(request_id), request_digest, field)

    @contextlib.contextmanager
    def storing(self, request_id: str, request_digest: str, field: str = "request_id") -> Iterator[None]:
        """Around what writes a request's record down: of two requests of any parts that have one id, the first to come here wins.

        The id is its own until the block ends, and then its record says so. AlreadyExists for the other one. Requests that are equal both
        come in: the part's own lock makes the second a repetition.
        """
        if not request_id:
            yield
            return
        with self._lock:
            refuse_other(((digest, "is being stored") for digest in self._storing.get(request_id, ())), request_digest, field)
            self._storing.setdefault(request_id, []).append(request_digest)
        try:
            self.check(request_id, request_digest, field)
            yield
        finally:
            with self._lock:
                self._storing[request_id].remove(request_digest)
                if not self._storing[request_id]:
                    del self._storing[request_id]


def refuse_other(known: Iterable[tuple[str, str]], request_digest: str, field: str = "request_id") -> None:
    """AlreadyExists if one of the requests with an id is another one than this."""
    for digest, did in known:
        if digest and request_digest and digest != request_digest:
            raise AlreadyExists(f"the request id was used for another request: it {did}", field=field)
