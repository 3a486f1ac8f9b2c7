"""Which requests had which id, over all that is kept in one store folder: a request id stands for one request, whatever that one did.

Each part of the folder says what it knows of an id. Knows no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from polyhead.heads.format.errors import AlreadyExists

LookUp = Callable[[str], Iterable[tuple[str, str]]]  # request id -> (digest of a request with this id, what it did: "made policy@3")


class RequestIds:
    """The look-ups of all parts. A part asks before it takes a lock of its own: another part's look-up takes that one's."""

    def __init__(self) -> None:
        self._look_ups: list[LookUp] = []

    def add(self, look_up: LookUp) -> None:
        """Ask this part, too."""
        self._look_ups.append(look_up)

    def check(self, request_id: str, request_digest: str, field: str = "request_id") -> None:
        """AlreadyExists if the id stands for another request. A record without a digest, of an older store, says nothing here."""
        for look_up in self._look_ups if request_id else ():
            refuse_other(look_up(request_id), request_digest, field)


def refuse_other(known: Iterable[tuple[str, str]], request_digest: str, field: str = "request_id") -> None:
    """AlreadyExists if one of the requests with an id is another one than this."""
    for digest, did in known:
        if digest and request_digest and digest != request_digest:
            raise AlreadyExists(f"the request id was used for another request: it {did}", field=field)
