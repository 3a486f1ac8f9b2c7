"""The store compared with dictionaries, over random pushes, activations, rollbacks, deletions and restarts."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from polyhead.heads.format.errors import (
    FailedPrecondition,
    NotFound,
)
from polyhead.heads.store.store import HeadStore
from tests.heads.store.store_support import RAM, TRUNK, activate, assert_no_leftovers, blob, push


class StoreAgainstModel(RuleBasedStateMachine):
    """K11: random pushes, activations, rollbacks, deletions and restarts, compared with dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=RAM)
        self.store = HeadStore.open(Path(self.folder.name) / "store", TRUNK)
        self.versions: dict[tuple[str, int], bytes] = {}
        self.highest: dict[str, int] = {}
        self.generations: list[dict[str, int]] = []

    def teardown(self) -> None:
        self.store.close()
        assert_no_leftovers(Path(self.folder.name) / "store")
        self.folder.cleanup()

    @rule(name=st.sampled_from(["policy", "value"]), label=st.integers(0, 4))
    def push(self, name: str, label: int) -> None:
        version = push(self.store, name, label)
        self.highest[name] = self.highest.get(name, 0) + 1
        assert version == self.highest[name]
        self.versions[name, version] = blob(label)

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        if self.versions:
            name, version = data.draw(st.sampled_from(sorted(self.versions)))
            heads = {**(self.generations[-1] if self.generations else {}), name: version}
            activate(self.store, heads)
            self.generations.append(heads)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        if self.generations:
            number = data.draw(st.integers(1, len(self.generations)))
            heads = self.generations[number - 1]
            if heads.items() <= self.versions.keys():
                activate(self.store, dict(self.store.generation(number).heads))
                self.generations.append(heads)
            else:
                with pytest.raises(NotFound):
                    activate(self.store, heads)

    @rule(data=st.data(), force=st.booleans())
    def delete(self, data: st.DataObject, force: bool) -> None:
        if self.versions:
            name, version = data.draw(st.sampled_from(sorted(self.versions)))
            kept = self.generations[-1:] if force else self.generations[-2:]
            if any(heads.get(name) == version for heads in kept):
                with pytest.raises(FailedPrecondition):
                    self.store.delete_version(name, version, force=force)
            else:
                self.store.delete_version(name, version, force=force)
                del self.versions[name, version]

    @rule(keep=st.integers(1, 3))
    def collect(self, keep: int) -> None:
        self.store.collect(keep)
        kept = {item for heads in self.generations[-2:] for item in heads.items()}
        for name in self.highest:
            numbers = sorted(version for other, version in self.versions if other == name)
            for version in numbers[:-keep]:
                if (name, version) not in kept:
                    del self.versions[name, version]

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = HeadStore.open(Path(self.folder.name) / "store", TRUNK)

    @invariant()
    def agrees(self) -> None:
        stored = [record for name in self.store.names() for record in self.store.versions(name)]
        found = {(record.name, record.version): record.digest for record in stored}
        assert found == {key: hashlib.sha256(content).hexdigest() for key, content in self.versions.items()}
        assert [dict(record.heads) for record in reversed(self.store.history())] == self.generations
        current = self.store.current
        assert (dict(current.heads) if current else None) == (self.generations[-1] if self.generations else None)


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
