"""The active set: the only place that turns stored versions into heads that serve. Knows nothing of the wire or of requests.

One lock makes activations serial. Everything that can fail comes before the store's commit; after it, the process either flips
the engine's pointer or ends, and the restart decides.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted
from polyhead.heads.store import failpoints, records
from polyhead.heads.store.store import CommitUncertain, GenerationRecord, HeadStore
from polyhead.server.engine.work.live import ActiveSet, ServedHead
from polyhead.server.engine.work.reports import SwapReport
from polyhead.server.versions.changes import Change, Changes
from polyhead.server.versions.consent import Alone, Consent, Require, Wish
from polyhead.server.versions.engine_port import EnginePort
from polyhead.server.versions.first_heads import add_first_versions
from polyhead.server.versions.head_cache import HeadCache
from polyhead.server.versions.lookup import digests
from polyhead.server.versions.manifests import ServedTrunk
from polyhead.server.versions.preconditions import (
    ANY,
    Expected,
    answered,
    check_digests,
    check_expected,
    check_leaving,
    stored_generation,
    stored_version,
)
from polyhead.server.versions.residency import Pin
from polyhead.server.versions.upkeep import Upkeep
from polyhead.server.versions.watch import GenerationFeed

EXIT_AFTER_COMMIT = 70  # EX_SOFTWARE: the set is committed, but this process cannot serve it
FLIP_TIMEOUT_S = 300.0  # an engine that makes no step for so long is dead

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Activation:
    """What a change of the active set did; without a report if it was the repetition of an earlier one."""

    record: GenerationRecord
    report: SwapReport | None


@dataclass(frozen=True, slots=True)
class _Call:
    """One call for a change: who asks and on what condition, how far it is, and what it keeps in memory until it is done."""

    expected: Expected
    wish: Wish
    request_id: str
    request_digest: str
    change: Change
    pin: Pin


class Registry(Upkeep):
    """Methods block unless they say otherwise; call them from a worker thread."""

    def __init__(
        self,
        store: HeadStore,
        trunk: ServedTrunk,
        cache: HeadCache,
        engine: EnginePort,
        *,
        keep_versions: int = 10,
        on_swap: Callable[[Iterable[str], str, float], None] = lambda heads, outcome, seconds: None,
    ) -> None:
        super().__init__(store, cache, keep_versions)
        self.trunk = trunk
        self.feed = GenerationFeed()
        self.changes = Changes()
        self.consent: Consent = Alone()
        self._engine = engine
        self._on_swap = on_swap  # (head names, "ok" or "failed", seconds)
        self._mutation = threading.Lock()

    # ---- the start

    def bootstrap(self, policy: Mapping[str, Tensor]) -> GenerationRecord:
        """Fill an empty store with the five heads that any model gives, and make them generation 1."""
        heads = add_first_versions(self.store, self.trunk, policy)
        return self.activate(heads, request_id="bootstrap", note="made from the model's own layers").record

    def restore(self) -> bool:
        """Load the stored active set at the start: digests, numbers and a canary forward pass. False if there is none yet.

        DataLoss if the set is damaged: `damage` then says how to repair it, and nothing older is served in its place.
        """
        if (damage := self.store.verify_active()) is not None:
            raise DataLoss(damage.what)
        record = self.store.current
        if record is None:
            return False
        with self.residency.pinning() as pin:
            self._flip(record, self._cache.load([self.store.get(*head) for head in record.heads.items()], pin))
        return True

    # ---- changes of the active set

    def activate(
        self,
        heads: Mapping[str, int],
        *,
        deactivate: Collection[str] = (),
        digests: Mapping[str, str] = MappingProxyType({}),
        expected: Expected = ANY,
        wish: Wish = Wish(),  # noqa: B008  frozen
        request_id: str = "",
        request_digest: str = "",
        note: str = "",
    ) -> Activation:
        """Make these versions active and let the names in `deactivate` go; the other names stay as they are.

        `digests` of weights that the versions must hold. `wish`: which replicas have to have loaded them. A repeated request id gets the
        first answer.
        """
        if not heads and not deactivate:
            raise InvalidArgument("an activation needs at least one head", field="heads")
        check_digests(self.store, heads, digests)
        names = [*(f"{name[:64]}@{version}" for name, version in heads.items()), *(f"without {name[:64]}" for name in deactivate)]
        with self._call(f"activation of {', '.join(names)}", expected, wish, request_id, request_digest) as call:
            if first := self._answered(call, heads):
                return first
            self._load_ahead(heads, call)
            with self._asking(heads, call), self._mutation:
                return self._answered(call, heads) or self._activate(heads, deactivate, note, call)

    def _activate(self, heads: Mapping[str, int], deactivate: Collection[str], note: str, call: _Call) -> Activation:
        current = self.store.current
        before = current.heads if current else {}
        check_leaving(deactivate, heads, before)
        merged = {name: version for name, version in {**before, **heads}.items() if name not in deactivate}
        return self._change(merged, {*heads, *deactivate}, call, self._committing(merged, current.number if current else None, note, call))

    def rollback(
        self,
        to_generation: int | None = None,
        *,
        expected: Expected = ANY,
        wish: Wish = Wish(Require.PRIMARY),  # noqa: B008  frozen
        request_id: str = "",
        request_digest: str = "",
    ) -> Activation:
        """A new generation equal to an earlier one, by default the active one's parent. Rolling back twice goes back twice.

        Conflict if it goes to the parent, waits for replicas, and another change comes between: they have loaded other versions.
        """
        what = f"rollback to generation {to_generation}" if to_generation else "rollback"
        with self._call(what, expected, wish, request_id, request_digest) as call:
            if first := self._answered(call, {}):
                return first
            asked = self.store.current if self.consent.may_wait(wish) else None
            heads = self.rollback_heads(to_generation) if self.store.damage is None else {}
            if heads:
                self._load_ahead(heads, call)
            with self._asking(heads, call), self._mutation:
                return self._answered(call, {}) or self._rollback(to_generation, asked, call)

    def _rollback(self, to_generation: int | None, asked: GenerationRecord | None, call: _Call) -> Activation:
        """`asked`: what was active when replicas were asked; None if none had to be."""
        if self.store.damage is not None:
            return self._repair(to_generation, call)
        if to_generation is None and asked is not None:
            check_expected(self.store, Expected(asked.number))
        current = self.store.current
        number = to_generation if to_generation is not None else (current.parent if current else None)
        if number is None:
            raise FailedPrecondition("the active generation is the first one: there is nothing to go back to")
        target = stored_generation(self.store, number, "to_generation")
        note = f"rollback to generation {number}"
        return self._change(target.heads, target.heads, call, self._committing(target.heads, target.parent, note, call))

    def adopt(self, record: GenerationRecord) -> Activation:
        """A follower's change: make a generation of its primary the active one, its record as it is."""
        with self._call(f"generation {record.number} of the primary", ANY, Wish(), "", "") as call:
            self._load_ahead(record.heads, call)
            with self._mutation:
                return self._change(record.heads, record.heads, call, lambda: self._adopted(record))

    def _adopted(self, record: GenerationRecord) -> GenerationRecord:
        self.store.adopt_generation(record)
        return record

    @contextlib.contextmanager
    def prepared(self, heads: Mapping[str, int]) -> Iterator[None]:
        """These versions are loaded and tried out, and stay in memory until the block ends: they may be activated next."""
        names = ", ".join(f"{name}@{version}" for name, version in heads.items())
        with self._call(f"preparation of {names}", ANY, Wish(), "", "") as call:
            self._load(heads, call)
            self.store.verify(heads)
            call.change.note("waiting for the primary")
            yield

    @contextlib.contextmanager
    def _call(self, what: str, expected: Expected, wish: Wish, request_id: str, request_digest: str) -> Iterator[_Call]:
        """What the change loads stays in memory until it is done."""
        with self.changes.begin(what) as change, self.residency.pinning() as pin:
            yield _Call(expected, wish, request_id, request_digest, change, pin)

    @contextlib.contextmanager
    def _asking(self, heads: Mapping[str, int], call: _Call) -> Iterator[None]:
        """Replicas that have to have loaded the versions have; outside the lock, so that an emergency rollback waits for no replica."""
        with contextlib.ExitStack() as asked:
            try:
                if heads:
                    asked.enter_context(self.consent.asking(heads, call.wish, call.change.note))
            except BaseException:
                self._on_swap(heads, "failed", call.change.seconds)
                raise
            yield

    def _answered(self, call: _Call, heads: Mapping[str, int]) -> Activation | None:
        """What this request did before, if it is a repetition: asked first, and again when it is the change's turn."""
        first = answered(self.store, call.request_id, call.request_digest, heads)
        return Activation(first, None) if first else None

    def _load(self, heads: Mapping[str, int], call: _Call) -> dict[str, ServedHead]:
        return self._cache.load([stored_version(self.store, *head) for head in heads.items()], call.pin, call.change.note)

    def _load_ahead(self, heads: Mapping[str, int], call: _Call) -> None:
        """Outside the lock, so that a change whose heads are in memory (an emergency rollback above all) does not queue behind a load."""
        try:
            check_expected(self.store, call.expected)
            self._load(heads, call)
            self.store.verify(heads)
        except BaseException:
            self._on_swap(heads, "failed", call.change.seconds)
            raise

    def _change(
        self, heads: Mapping[str, int], changed: Collection[str], call: _Call, commit: Callable[[], GenerationRecord]
    ) -> Activation:
        """`heads` become the active set by `commit`; `changed` are the names that the metrics count."""
        change = call.change
        try:
            check_expected(self.store, call.expected)
            loaded = self._load(heads, call)
            self.store.verify(heads)
            change.note("writing it down")
            record = commit()
        except CommitUncertain as error:
            self._end_process(error)
            raise
        except BaseException:
            self._on_swap(changed, "failed", change.seconds)
            raise
        change.note(f"generation {record.number} waits for the end of the engine's step")
        report = self._flip(record, loaded)
        change.note(f"generation {record.number} is active")
        self._on_swap(changed, "ok", change.seconds)
        self.residency.trim()
        return Activation(record, report)

    def _committing(self, heads: Mapping[str, int], parent: int | None, note: str, call: _Call) -> Callable[[], GenerationRecord]:
        """The commit of a new generation. On a full disk versions that may be collected are deleted, and it is tried again."""

        def commit() -> GenerationRecord:
            return self.store.commit_generation(
                heads,
                request_id=call.request_id,
                request_digest=call.request_digest,
                expected_generation=call.expected.generation,
                parent=parent,
                note=note,
            )

        def commit_with_room() -> GenerationRecord:
            try:
                return commit()
            except ResourceExhausted:
                if not self.collect(also_keep=set(heads.items())):
                    raise
                return commit()

        return commit_with_room

    def _repair(self, to_generation: int | None, call: _Call) -> Activation:
        """The way out of a damaged active set while the server runs: an intact generation that the caller names."""
        if not to_generation:
            raise FailedPrecondition("the active set is damaged: name the generation to go back to", field="to_generation")
        target = stored_generation(self.store, to_generation, "to_generation")
        loaded = self._load(target.heads, call)
        try:
            record = self.store.repair_to(to_generation, request_id=call.request_id, request_digest=call.request_digest)
        except CommitUncertain as error:
            self._end_process(error)
            raise
        return Activation(record, self._flip(record, loaded))

    def _flip(self, record: GenerationRecord, heads: Mapping[str, ServedHead]) -> SwapReport:
        """Past the commit point: the engine serves the new set, or the process ends."""
        try:
            failpoints.hit("before_flip")
            active = ActiveSet(record.number, dict(heads), records.history_id(record))
            report = self._engine.activate(active).result(FLIP_TIMEOUT_S)
            self.residency.serve(digests(active))
            self._active = active
            self.feed.announce(record.number)
            failpoints.hit("before_ack")
            return report
        except BaseException as error:
            self._end_process(error)
            raise

    def _end_process(self, error: BaseException) -> None:
        log.critical("an activation failed after its commit: the process ends, the next start serves what the store holds", exc_info=error)
        logging.shutdown()
        os._exit(EXIT_AFTER_COMMIT)
