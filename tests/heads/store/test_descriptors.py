"""A process without a free descriptor: the active set can be changed, and what fails has failed before anything happened."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polyhead.heads.format.errors import PolyheadError, ResourceExhausted
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import RAM, TRUNK, activate, active_labels, assert_no_leftovers, blob, push


def try_to(store: HeadStore, act: Callable[[HeadStore], object]) -> PolyheadError | None:
    try:
        act(store)
    except PolyheadError as failure:
        return failure
    return None


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=RAM) as name:
        yield Path(name) / "store"


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open `count` more."""
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 32, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


def run_out_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the `call`th on, each call that wants a new descriptor fails."""
    calls: list[int] = []

    def limited(wanted: Callable[..., int]) -> Callable[..., int]:
        def take(*args: Any, **kwargs: Any) -> int:
            calls.append(1)
            if len(calls) >= call:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return wanted(*args, **kwargs)

        return take

    monkeypatch.setattr(os, "open", limited(os.open))
    monkeypatch.setattr(os, "dup", limited(os.dup))


def test_no_descriptor_before_the_rename_is_no_uncertain_commit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE while the record was being staged was taken for a rename that may have happened: the process ended with status 70."""
    with HeadStore.open(folder, TRUNK) as store:
        versions = [push(store, "policy", label) for label in "ab"]
        activate(store, {"policy": versions[0]})
        store.files._spares.close()
        call, is_refused = 0, True
        while is_refused:
            call += 1
            with monkeypatch.context() as patch:
                run_out_at(call, patch)
                is_refused = isinstance(try_to(store, lambda store: activate(store, {"policy": versions[1]})), ResourceExhausted)
            assert active_labels(store)["policy"] == blob("a" if is_refused else "b")
        assert call > 5, "the blob is looked at, the record staged, and both folders are opened"
    HeadStore.open(folder, TRUNK).close()  # takes away what could not be unlinked
    assert_no_leftovers(folder)


def test_the_spare_descriptors_carry_an_activation(folder: Path) -> None:
    """And are there for the next one."""
    with HeadStore.open(folder, TRUNK) as store:
        versions = [push(store, "policy", label) for label in "abc"]
        with descriptors_left(0):
            for version in versions:
                activate(store, {"policy": version})
        assert store.current is not None
        assert (store.current.number, dict(store.current.heads)) == (3, {"policy": versions[-1]})


def test_a_closed_store_leaves_no_descriptor_behind(folder: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    HeadStore.open(folder, TRUNK).close()
    assert sorted(os.listdir("/proc/self/fd")) == before
