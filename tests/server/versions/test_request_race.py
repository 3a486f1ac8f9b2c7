"""One request id, used at once for two requests of different parts of the store: the first to store wins, the other is refused."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from polyhead.heads.format.errors import AlreadyExists
from polyhead.heads.store.store import HeadStore
from polyhead.server.ood.store import OodStore
from tests.heads.store.store_support import blob, manifest
from tests.server.ood.test_ood_store import make_fit, make_model
from tests.server.rewards.test_library import RECIPE, RULES, TRUNK, World

ID = "the same"


@pytest.fixture
def heads(tmp_path: Path) -> Iterator[HeadStore]:
    with HeadStore.open(tmp_path / "store", TRUNK) as store:
        store.add_version("policy", store.put_blob(blob("policy 1")), manifest())
        yield store


class Requests:
    """A request of each part under one id, each by its own steps: ask whether the id is free, then store."""

    def __init__(self, heads: HeadStore) -> None:
        self.heads, self.world, self.fits = heads, World(heads), OodStore(heads, keep_versions=3)
        self.world.users = []
        self.world.library.add(RECIPE, "", "")
        self.pushed = heads.put_blob(blob("policy 2"))

    def push(self, digest: str) -> object:
        self.heads.check_request(ID, digest)
        return self.heads.add_version("policy", self.pushed, manifest(), request_id=ID, request_digest=digest)

    def label(self, digest: str) -> object:
        self.heads.check_request(ID, digest)
        return self.heads.label("policy", 1, add=["best"], request_id=ID, request_digest=digest)

    def activate(self, digest: str) -> object:
        self.heads.check_request(ID, digest)
        return self.heads.commit_generation({"policy": 1}, parent=None, request_id=ID, request_digest=digest)

    def add(self, digest: str) -> object:
        return self.world.library.add(RULES, ID, digest)

    def retire(self, digest: str) -> object:
        return self.world.library.retire(None, "terse@1", ID, digest)

    def fit(self, digest: str) -> object:
        self.fits.find_request(ID, digest)
        return self.fits.add(make_fit(request_id=ID, request_digest=digest), make_model())


def is_refused(ask: Callable[[str], object]) -> bool:
    try:
        ask(hashlib.sha256(ask.__name__.encode()).hexdigest())
    except AlreadyExists as error:
        assert "the request id was used for another request" in error.message  # noqa: PT017  the other kind is no error here
        return True
    return False


@pytest.mark.parametrize("names", [("push", "add"), ("activate", "retire"), ("label", "fit"), ("fit", "add"), ("push", "activate")])
def test_one_of_two_wins(heads: HeadStore, names: tuple[str, str]) -> None:
    """Each part stored under a lock of its own, so both were told that the id is free, and both stored."""
    requests, both_asked, asked = Requests(heads), threading.Barrier(2), threading.local()

    def meet(request_id: str) -> list[tuple[str, str]]:
        """Neither goes on from its first look-up before both are there."""
        if not hasattr(asked, "once"):
            asked.once = True
            both_asked.wait(10)
        return []

    heads.request_ids.add(meet)
    calls = [getattr(requests, name) for name in names]
    with ThreadPoolExecutor(2) as threads:
        refused = [each.result(30) for each in [threads.submit(is_refused, call) for call in calls]]
    assert sorted(refused) == [False, True]
    asked.once = True
    assert [is_refused(call) for call in calls] == refused, "what was decided holds"


def test_equal_requests_are_one(heads: HeadStore) -> None:
    """A retry that comes while the first is being stored gets its answer, and the id is free again for its request alone."""
    with heads.request_ids.storing(ID, "digest"):
        assert heads.label("policy", 1, add=["best"], request_id=ID, request_digest="digest").labels == ("best",)
        with pytest.raises(AlreadyExists, match="the request id was used for another request: it is being stored"):
            heads.label("policy", 1, add=["worst"], request_id=ID, request_digest="another")
    assert heads.label("policy", 1, request_id=ID, request_digest="digest").labels == ("best",)
