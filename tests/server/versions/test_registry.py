"""The active set: bootstrap, restore, activate, roll back, residency, and what happens when a step fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead.heads.format.errors import (
    AlreadyExists,
    Conflict,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolyheadError,
    ResourceExhausted,
)
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.format.pauses import pausing
from polyhead.heads.store import failpoints
from polyhead.server.engine.work.live import ServedHead
from polyhead.server.versions.consent import Alone, Note, Require, Wish
from polyhead.server.versions.preconditions import Expected
from polyhead.server.versions.push_requests import CopyRequest
from tests.server.fakes import World


@pytest.fixture
def ready(world: World) -> World:
    world.registry.bootstrap(world.policy)
    return world


def assert_unchanged(world: World, generation: int) -> None:
    current = world.store.current
    assert current is not None
    assert current.number == world.registry.active.generation == world.engine.active.generation == generation


def test_bootstrap_makes_five_heads_of_two_files(ready: World) -> None:
    heads = ready.registry.active.heads
    assert {name: head.manifest.kind.value for name, head in heads.items()} == {
        "policy": "policy",
        "reference": "policy",
        "rule": "rule",
        "preference": "preference",
        "value": "value",
    }
    assert heads["policy"].live is heads["reference"].live is heads["rule"].live
    assert heads["preference"].live is heads["value"].live
    assert heads["rule"].manifest.template == "example-rule-prompt@1"
    assert heads["value"].manifest.untrained
    assert heads["value"].manifest.output is OutputKind.SCORE
    assert_unchanged(ready, 1)
    assert len(ready.registry.resident()) == 2


def test_bootstrap_is_idempotent(ready: World) -> None:
    again = ready.registry.bootstrap(ready.policy)
    assert (again.number, len(ready.store.versions("policy"))) == (1, 1)


def test_restore_serves_what_was_active(world_model: Path, tmp_path: Path) -> None:
    first = World.open(world_model, tmp_path / "s")
    assert not first.registry.restore()
    first.registry.bootstrap(first.policy)
    version = first.push("policy", first.changed(1))
    first.registry.activate({"policy": version})
    expected = {name: (head.version, head.live.digest) for name, head in first.registry.active.heads.items()}
    first.close()
    second = World.open(world_model, tmp_path / "s")
    assert second.registry.restore()
    assert {name: (head.version, head.live.digest) for name, head in second.registry.active.heads.items()} == expected
    second.close()


def test_restore_refuses_a_damaged_set_and_names_the_repair(world_model: Path, tmp_path: Path) -> None:
    first = World.open(world_model, tmp_path / "s")
    first.registry.bootstrap(first.policy)
    version = first.push("policy", first.changed(1))
    first.registry.activate({"policy": version})
    digest = first.registry.active.heads["policy"].live.digest
    first.close()
    blob = tmp_path / "s" / "blobs" / digest
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    second = World.open(world_model, tmp_path / "s")
    with pytest.raises(DataLoss):
        second.registry.restore()
    assert "polyhead heads rollback --to 1" in second.registry.damage
    assert not second.registry.active.heads
    with pytest.raises(FailedPrecondition):
        second.registry.rollback()
    second.registry.rollback(1)
    assert not second.registry.damage
    assert second.registry.active.heads["policy"].version == 1
    second.close()


def test_activation_merges_and_reports(ready: World) -> None:
    version = ready.push("policy", ready.changed(1))
    done = ready.registry.activate({"policy": version}, expected=Expected(1), request_id="a", note="round 1")
    assert (done.record.number, done.record.parent, done.record.note) == (2, 1, "round 1")
    assert done.report is not None
    assert done.report.num_pinned == 2
    assert ready.registry.active.heads["policy"].version == 2
    assert ready.registry.active.heads["value"].version == 1


def test_repeated_activation_gets_the_first_answer_before_anything_else(ready: World) -> None:
    version = ready.push("policy", ready.changed(1))
    first = ready.registry.activate({"policy": version}, expected=Expected(1), request_id="a")
    again = ready.registry.activate({"policy": version}, expected=Expected(1), request_id="a")
    assert again.record == first.record
    assert again.report is None
    with pytest.raises(AlreadyExists):
        ready.registry.activate({"policy": 1}, request_id="a")


def test_a_push_pauses_between_its_pieces(ready: World) -> None:
    """Reading, the check of each tensor, the modules, and each layer that is packed: none of it holds the cores for long."""
    calls: list[int] = []
    with pausing(calls.append):
        ready.push("policy", ready.changed(1))
    assert calls == [0] * (1 + len(ready.policy) + 1), "one slice, its tensors and the modules; nothing is packed here"


def test_a_version_that_comes_back_into_memory_pauses_between_the_same_pieces(ready: World) -> None:
    """It was read and hashed in one go: a tenth of a second of a core for 85 MB."""
    version = ready.push("policy", ready.changed(1))
    ready.cache.residency.forget("policy", version)
    calls: list[int] = []
    with pausing(calls.append):
        ready.registry.activate({"policy": version})
    assert len(calls) == 1 + len(ready.policy) + 1


def test_a_sum_that_overflows_is_looked_at_again(ready: World) -> None:
    large = {name: tensor.clone() for name, tensor in ready.policy.items()}
    large["model.norm.weight"] = torch.full((len(large["model.norm.weight"]),), 3e38)
    with pytest.raises(DataLoss):  # the canary's, not the check of the numbers: each of them is finite
        ready.push("policy", large)
    large["model.norm.weight"][3] = float("inf")
    with pytest.raises(InvalidArgument, match=r"NaN or infinity: 'model\.norm\.weight'"):
        ready.push("policy", large)


def test_stale_generation_is_a_conflict(ready: World) -> None:
    with pytest.raises(Conflict) as caught:
        ready.registry.activate({"policy": 1}, expected=Expected(7))
    assert caught.value.metadata == {"current_generation": "1"}
    assert_unchanged(ready, 1)


def test_a_name_that_moved_on_is_a_conflict_and_another_one_is_not(ready: World) -> None:
    """Two runs share a server: each asks for the version that it activated itself, and only its own name counts."""
    first, second = ready.push("policy", ready.changed(1)), ready.push("policy", ready.changed(2))
    ready.registry.activate({"policy": first}, expected=Expected(versions={"policy": 1}))
    ready.registry.activate({"reference": 1}, expected=Expected(versions={"reference": 1, "nobody": 0}))
    with pytest.raises(Conflict, match=r"policy has moved on: policy@2 is active, not policy@1") as caught:
        ready.registry.activate({"policy": second}, expected=Expected(versions={"policy": 1}))
    assert caught.value.field == "expected_versions[policy]"
    assert caught.value.metadata == {"current_generation": "3", "name": "policy", "current_version": str(first)}
    for wrong in ({"policy": 0}, {"nobody": 1}):
        with pytest.raises(Conflict):
            ready.registry.activate({"policy": second}, expected=Expected(versions=wrong))
    assert ready.registry.active.generation == 3


def test_a_version_that_holds_other_weights_is_not_activated(ready: World) -> None:
    """Its number is the same on two servers behind one address; the weights that the caller pushed are on the other one."""
    version = ready.push("policy", ready.changed(1))
    held = ready.registry.store.get("policy", version).digest
    with pytest.raises(FailedPrecondition, match=rf"policy@{version} holds other weights here: digest {held[:12]}, not ababab") as caught:
        ready.registry.activate({"policy": version}, digests={"policy": "ab" * 32})
    assert caught.value.field == "digests[policy]"
    assert_unchanged(ready, 1)
    assert ready.registry.activate({"policy": version}, digests={"policy": held}).record.number == 2


def test_a_retry_gets_its_answer_before_the_condition_is_looked_at(ready: World) -> None:
    version = ready.push("policy", ready.changed(1))
    condition = Expected(versions={"policy": 1})
    first = ready.registry.activate({"policy": version}, expected=condition, request_id="a", request_digest="d")
    again = ready.registry.activate({"policy": version}, expected=condition, request_id="a", request_digest="d")
    assert again.record.number == first.record.number


def test_unknown_version_names_the_field(ready: World) -> None:
    with pytest.raises(NotFound) as caught:
        ready.registry.activate({"policy": 99})
    assert caught.value.field == "heads[policy]"
    assert_unchanged(ready, 1)


def test_canary_failure_leaves_everything_as_it_was(ready: World) -> None:
    version = ready.push("policy", ready.changed(1))
    copied = ready.publisher.copy(CopyRequest(source=f"policy@{version}", target="reference")).version
    ready.engine.refuse = lambda head: DataLoss("canary") if head.name == "reference" else None
    before = ready.registry.active
    with pytest.raises(DataLoss):
        ready.registry.activate({"policy": version, "reference": copied})
    assert ready.registry.active is before
    assert_unchanged(ready, 1)


def test_error_after_the_commit_point_ends_the_process(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    version = ready.push("policy", ready.changed(1))
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    failpoints.arm("before_flip", "EIO")
    with pytest.raises(OSError, match="Input/output"):
        ready.registry.activate({"policy": version})
    failpoints.disarm()
    assert codes == [70]


def test_error_before_the_commit_point_does_not(ready: World) -> None:
    version = ready.push("policy", ready.changed(1))
    failpoints.arm("before_generation_write", "ENOSPC*")
    with pytest.raises(PolyheadError):
        ready.registry.activate({"policy": version})
    failpoints.disarm()
    assert_unchanged(ready, 1)
    ready.registry.activate({"policy": version})
    assert_unchanged(ready, 2)


def test_rollback_twice_goes_back_twice(ready: World) -> None:
    for seed in (1, 2):
        ready.registry.activate({"policy": ready.push("policy", ready.changed(seed))})
    assert ready.registry.rollback().record.heads["policy"] == 2
    assert ready.registry.rollback(request_id="r").record.heads["policy"] == 1
    assert ready.registry.rollback(request_id="r").record.number == 5
    assert ready.registry.rollback(3).record.heads["policy"] == 3
    with pytest.raises(NotFound):
        ready.registry.rollback(99)


def test_a_rollback_that_was_overtaken_is_refused(ready: World) -> None:
    """The replicas were asked to load the parent's versions; those of another generation became active, which none of them had loaded."""
    first, second, third = (ready.push("policy", ready.changed(seed)) for seed in (1, 2, 3))
    for version in (first, second):
        ready.registry.activate({"policy": version})
    asked: list[int] = []

    class Overtaken(Alone):
        def may_wait(self, wish: Wish) -> bool:
            return wish.require is not Require.PRIMARY

        @contextlib.contextmanager
        def asking(self, heads: Mapping[str, int], wish: Wish, note: Note) -> Iterator[None]:
            asked.append(heads["policy"])
            ready.registry.consent = Alone()
            ready.registry.activate({"policy": third})
            yield

    ready.registry.consent = Overtaken()
    with pytest.raises(Conflict, match="generation 4, not 3"):
        ready.registry.rollback(wish=Wish(Require.ALL))
    assert_unchanged(ready, 4)
    ready.registry.consent = Overtaken()
    assert ready.registry.rollback(2).record.heads["policy"] == first, "a number says what is meant"
    assert asked == [first, first]
    ready.registry.consent = Overtaken()
    assert ready.registry.rollback().record.heads["policy"] == first, "the primary alone waits for nobody: the newest change is undone"


def test_rollback_of_the_first_generation(ready: World) -> None:
    with pytest.raises(FailedPrecondition):
        ready.registry.rollback()


def test_resolve(ready: World) -> None:
    registry, active = ready.registry, ready.registry.active
    assert ready.resolve("policy") is active.heads["policy"]
    assert ready.resolve("policy@1") is active.heads["policy"]
    version = ready.push("policy", ready.changed(1))
    ready.cache.residency.forget("policy", version)
    assert registry.find(f"policy@{version}", active, "f") is None
    loaded = ready.resolve(f"policy@{version}")
    assert (loaded.version, loaded.live.digest != active.heads["policy"].live.digest) == (version, True)
    assert registry.find(f"policy@{version}", active, "f") is loaded
    for bad in ("nope", "policy@9"):
        with pytest.raises(NotFound) as caught:
            ready.resolve(bad, "arms[0].head")
        assert (caught.value.field, caught.value.metadata["name"]) == ("arms[0].head", bad)
    with pytest.raises(InvalidArgument):
        ready.resolve("../x")


def test_a_request_sees_one_active_set_and_looks_each_head_up_once(ready: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name was looked up up to four times for one request, each time in the set that was active by then."""
    looked_up: list[str] = []
    resolve = ready.registry.resolve

    def counted(reference: str, *others: Any) -> ServedHead:
        looked_up.append(reference)
        return resolve(reference, *others)

    monkeypatch.setattr(ready.registry, "resolve", counted)
    version = ready.push("policy", ready.changed(1))
    with ready.registry.resolving() as find:
        first = find("policy", "arms[0].head")
        ready.registry.activate({"policy": version})
        assert find("policy", "score.heads[0]") is first
        assert find("value", "score.heads[1]") is find("value", "score.recipe")
    assert looked_up == ["policy", "value"]
    assert ready.resolve("policy").version == version


def test_a_load_that_cannot_fit_is_refused_before_it_allocates(world_model: Path, tmp_path: Path) -> None:
    small = World.open(world_model, tmp_path / "s", budget=10)
    with pytest.raises(ResourceExhausted) as caught:
        small.registry.bootstrap(small.policy)
    assert caught.value.retry_after_s is None
    assert small.engine.warmed == []
    assert small.registry.resident() == []
    small.close()


def test_running_requests_hold_memory_and_idle_heads_give_way(world_model: Path, tmp_path: Path) -> None:
    probe = World.open(world_model, tmp_path / "probe")
    budget = 3 * probe.head_bytes + 4 * probe.spec.d_model
    probe.close()
    world = World.open(world_model, tmp_path / "s", budget=budget)
    world.registry.bootstrap(world.policy)  # two files
    first = world.push("policy", world.changed(1))
    digest = world.store.get("policy", first).digest
    world.engine.leases = {digest: 1}
    with pytest.raises(ResourceExhausted) as caught:
        world.push("policy", world.changed(2))
    assert caught.value.retry_after_s == 5.0
    world.engine.leases = {}
    world.push("policy", world.changed(2))
    assert digest in world.engine.dropped
    assert world.registry.residency.num_bytes <= budget
    world.close()


def test_memory_is_flat_over_many_swaps(ready: World) -> None:
    for seed in range(8):
        ready.registry.activate({"policy": ready.push("policy", ready.changed(seed))})
        ready.registry.collect()
    assert len(ready.registry.resident()) <= 2 + ready.registry.residency.max_idle_per_name + 1


def test_collect_keeps_active_previous_and_labelled(world_model: Path, tmp_path: Path) -> None:
    world = World.open(world_model, tmp_path / "s", keep_versions=1)
    world.registry.bootstrap(world.policy)
    world.push("policy", world.changed(1), labels=("best",))
    for seed in (2, 3, 4):
        world.registry.activate({"policy": world.push("policy", world.changed(seed))})
    world.registry.collect()
    assert [record.version for record in world.store.versions("policy")] == [2, 4, 5]
    world.close()


def test_evicted_weights_are_freed_without_the_garbage_collector(ready: World) -> None:
    """A cycle in a module would keep weights until a collection that nobody triggers."""
    import gc
    import weakref

    version = ready.push("policy", ready.changed(1))
    head = ready.cache.residency.served("policy", version)
    assert head is not None
    module = weakref.ref(head.live.module)
    gc.disable()
    try:
        del head
        ready.cache.residency.forget("policy", version)
        assert module() is None
    finally:
        gc.enable()
