"""LoRA heads from push to serving: what a push says and gets, what stays in memory, restart, rollback, copies, damage."""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead.heads.format.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PolyheadError,
    ResourceExhausted,
)
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.lora import LoraAdapter, adapted_digest
from polyhead.server.engine.work.live import LiveHead
from polyhead.server.versions.head_loader import to_file
from polyhead.server.versions.manifests import ManifestPatch
from polyhead.server.versions.push_requests import CopyRequest
from polyhead.v1 import heads_pb2 as pb
from tests.heads.adapters import merge_by_hand, random_adapter
from tests.server.fakes import World, heads_server
from tests.server.rpc.services.calls import collect, field_of, header, push, refused

LORA = LoraAdapter(rank=3, alpha=1.5)


@pytest.fixture
def ready(world: World) -> World:
    world.registry.bootstrap(world.policy)
    return world


def adapter(world: World, seed: int = 0) -> dict[str, torch.Tensor]:
    return random_adapter(world.spec, seed=seed)


def patch(lora: LoraAdapter = LORA, **fields: Any) -> ManifestPatch:
    return ManifestPatch(lora=lora, **fields)


def push_adapter(world: World, name: str = "policy", seed: int = 0, base: str | None = None, **fields: Any) -> int:
    return world.push(name, adapter(world, seed), manifest=patch(base=base), **fields)


def live_of(world: World, reference: str) -> LiveHead:
    return world.resolve(reference).live


@torch.no_grad()
def output(live: LiveHead) -> torch.Tensor:
    states = torch.randn(1, 6, live.module.spec.d_model, generator=torch.Generator().manual_seed(1))
    return live.module(states, torch.arange(6)[None])


def assert_serves_adapter(world: World, reference: str, seed: int = 0) -> None:
    """The head computes what the merged one does, over the very weights of its base."""
    live = live_of(world, reference)
    file = world.cache.loader.open(bytearray(to_file(merge_by_hand(world.policy, adapter(world, seed), 0.5))))
    merged = world.cache.loader.build("merged", file, OutputKind.TIED)
    assert torch.allclose(output(live), output(merged), atol=1e-4)
    assert live.base is not None
    own = {parameter.data_ptr() for parameter in live.base.module.parameters()}
    assert {parameter.data_ptr() for parameter in live.module.parameters()} == own


# ---- pushing


async def test_a_lora_head_is_no_base_of_a_delta(ready: World) -> None:
    version = push_adapter(ready)
    name = "model.norm.weight"
    sent = to_file({name: ready.changed(1)[name]})
    delta = {"delta_base": f"policy@{version}", "delta_num_bytes": len(sent), "delta_sha256": hashlib.sha256(sent).hexdigest()}
    async with heads_server(ready) as (stub, _):
        parts = iter([header(sent, num_bytes=0, sha256="", **delta)])
        error = await refused(stub.PushHead(parts), "FAILED_PRECONDITION")
    assert field_of(error) == "header.delta_base"
    assert "the weights under it are policy@1" in str(error.details())


def test_a_push_builds_on_the_active_version(ready: World) -> None:
    version = push_adapter(ready, metrics={"loss": 0.25})
    record = ready.store.get("policy", version)
    assert (record.manifest.base, record.manifest.kind, record.manifest.output) == ("policy@1", HeadKind.POLICY, OutputKind.TIED)
    assert dict(record.metrics) == {"loss": 0.25}
    assert record.blob == hashlib.sha256(to_file(adapter(ready))).hexdigest()
    assert record.digest == adapted_digest(record.blob, ready.store.get("policy", 1).digest, LORA)
    assert_serves_adapter(ready, f"policy@{version}")


def test_round_after_round_builds_on_the_same_base(ready: World) -> None:
    """The active version is a LoRA head after the first round: its base is meant, not the adapter."""
    for seed in (1, 2):
        version = push_adapter(ready, seed=seed)
        ready.registry.activate({"policy": version})
        assert ready.store.get("policy", version).manifest.base == "policy@1"
    assert_serves_adapter(ready, "policy", seed=2)
    version = ready.push("policy", ready.changed(1), manifest=ManifestPatch())
    manifest = ready.store.get("policy", version).manifest
    assert (manifest.lora, manifest.base) == (None, ""), "a plain push after it is a plain head"


def test_a_base_by_name_or_version(ready: World) -> None:
    assert ready.store.get("fresh", push_adapter(ready, "fresh", base="policy")).manifest.base == "policy@1"
    assert ready.store.get("fresh", push_adapter(ready, "fresh", base="reference@1")).manifest.base == "reference@1"
    with pytest.raises(InvalidArgument, match="no active head to build on: 'other'") as caught:
        push_adapter(ready, "other")
    assert caught.value.field == "header.manifest.base"
    with pytest.raises(NotFound, match="policy@99"):
        push_adapter(ready, base="policy@99")
    with pytest.raises(FailedPrecondition, match="cannot be built on another one: fresh@1"):
        push_adapter(ready, base="fresh@1")


def test_kind_and_output_come_from_the_base(ready: World) -> None:
    tensors = adapter(ready)
    value = ready.store.get("value", ready.push("value", tensors, manifest=patch()))
    assert (value.manifest.kind, value.manifest.output, value.manifest.untrained) == (HeadKind.VALUE, OutputKind.SCORE, True)
    rule = ready.store.get("rule", ready.push("rule", tensors, manifest=patch(kind=HeadKind.RULE, base="policy@1")))
    assert (rule.manifest.kind, rule.manifest.template) == (HeadKind.RULE, "example-rule-prompt@1")
    with pytest.raises(InvalidArgument, match="a value head cannot have output 'tied'"):
        ready.push("value", tensors, manifest=patch(kind=HeadKind.VALUE, base="policy@1"))
    with pytest.raises(FailedPrecondition, match="has the output of its base"):
        ready.push("policy", tensors, manifest=patch(output=OutputKind.OWN))


def test_what_does_not_fit_is_refused_and_leaves_nothing(ready: World) -> None:
    good, before = adapter(ready), ready.store.disk_bytes()
    module = next(iter(good)).removesuffix(".lora_A.weight")
    lower = module.replace("layers.2", "layers.1").replace("layers.3", "layers.1")
    bad: list[tuple[dict[str, torch.Tensor], LoraAdapter, type[PolyheadError], str]] = [
        ({**good, f"{lower}.lora_A.weight": good[f"{module}.lora_A.weight"]}, LORA, FailedPrecondition, "touches the trunk"),
        (good, LoraAdapter(rank=4, alpha=1.0), FailedPrecondition, "must have shape"),
        ({**good, f"{module}.lora_A.weight": good[f"{module}.lora_A.weight"] * float("nan")}, LORA, InvalidArgument, "NaN"),
        ({name: tensor for name, tensor in good.items() if "lora_B" not in name}, LORA, FailedPrecondition, "other half"),
        (good, LoraAdapter(rank=3, alpha=1.0, alpha_pattern={lower: 1.0}), InvalidArgument, "does not adapt"),
        (ready.policy, LORA, FailedPrecondition, "not a matrix"),
    ]
    for tensors, lora, error, said in bad:
        with pytest.raises(error, match=said):
            ready.push("policy", tensors, manifest=patch(lora))
    assert ready.store.disk_bytes() == before
    with pytest.raises(FailedPrecondition, match="missing"):
        ready.push("policy", good, manifest=ManifestPatch())
    assert ready.push("policy", good, manifest=patch(), is_dry_run=True) == 0
    assert ready.store.disk_bytes() == before


def test_repetition_of_a_request_id(ready: World) -> None:
    assert push_adapter(ready, request_id="p") == push_adapter(ready, request_id="p") == 2
    with pytest.raises(AlreadyExists):
        ready.push("policy", adapter(ready), manifest=patch(LoraAdapter(rank=3, alpha=9.0)), request_id="p")
    with pytest.raises(AlreadyExists):
        push_adapter(ready, seed=1, request_id="p")


# ---- serving


def test_restart_serves_the_same_head(world_model: Path, tmp_path: Path) -> None:
    first = World.open(world_model, tmp_path / "s")
    first.registry.bootstrap(first.policy)
    version = push_adapter(first)
    first.registry.activate({"policy": version})
    first.registry.activate({"reference": first.push("reference", first.changed(1))})
    expected = {name: head.live.digest for name, head in first.registry.active.heads.items()}
    first.close()
    second = World.open(world_model, tmp_path / "s")
    assert second.registry.restore()
    assert {name: head.live.digest for name, head in second.registry.active.heads.items()} == expected
    assert_serves_adapter(second, "policy")
    second.registry.rollback(1)
    assert second.registry.active.heads["policy"].version == 1
    second.registry.rollback(2)
    assert_serves_adapter(second, "policy")
    second.close()


def test_a_damaged_base_or_adapter_is_never_served(world_model: Path, tmp_path: Path) -> None:
    first = World.open(world_model, tmp_path / "s")
    first.registry.bootstrap(first.policy)
    base = first.push("base", first.changed(1))
    versions = [push_adapter(first, base=f"base@{base}")]
    first.registry.activate({"policy": versions[0]})
    blob = tmp_path / "s" / "blobs" / first.store.get("base", base).digest
    first.close()
    blob.write_bytes(bytes(reversed(blob.read_bytes())))
    second = World.open(world_model, tmp_path / "s")
    with pytest.raises(DataLoss, match=r"policy@2 is built on base@1"):
        second.registry.restore()
    assert "rollback --to 1" in second.registry.damage
    second.registry.rollback(1)
    with pytest.raises(DataLoss):
        second.resolve("policy@2")
    with pytest.raises(DataLoss):
        second.registry.activate({"policy": 2})
    second.close()


def test_copies_share_the_weights(ready: World) -> None:
    version = push_adapter(ready)
    record = ready.publisher.copy(CopyRequest(source=f"policy@{version}", target="reference"))
    source = ready.store.get("policy", version)
    assert (record.digest, record.blob, record.manifest.base) == (source.digest, source.blob, "policy@1")
    assert record.manifest.lora == LORA
    ready.registry.activate({"policy": version, "reference": record.version})
    heads = ready.registry.active.heads
    assert heads["policy"].live is heads["reference"].live
    rule = ready.publisher.copy(CopyRequest(source="policy", target="rule", kind=HeadKind.RULE))
    assert live_of(ready, f"rule@{rule.version}") is heads["policy"].live


def test_deleting(ready: World) -> None:
    base = ready.push("base", ready.changed(1))
    version = push_adapter(ready, base=f"base@{base}")
    with pytest.raises(FailedPrecondition, match=f"policy@{version}"):
        ready.registry.delete(f"base@{base}", "head")
    ready.registry.delete(f"policy@{version}", "head")
    ready.registry.delete(f"base@{base}", "head")
    assert ready.store.names() == ["policy", "preference", "reference", "rule", "value"]


# ---- memory


@pytest.fixture
def tight(world_model: Path, tmp_path: Path) -> Iterator[World]:
    """Room for the first two files, one more head and a few adapters."""
    world = World.open(world_model, tmp_path / "tight")
    world.registry.bootstrap(world.policy)
    world.cache.residency.budget = world.cache.residency.num_bytes + world.head_bytes * 3 // 2
    yield world
    world.close()


def resident(world: World) -> dict[str, int]:
    return {reference: head.num_bytes for head in world.registry.resident() for reference in head.references}


def test_ten_adapters_count_their_own_bytes_only(ready: World) -> None:
    before = ready.cache.residency.num_bytes
    ready.cache.residency.max_idle_per_name = 20
    for seed in range(10):
        push_adapter(ready, seed=seed)
    own = sum(4 * tensor.numel() for tensor in adapter(ready).values())
    assert ready.cache.residency.num_bytes == before + 10 * own
    assert resident(ready)["policy@5"] == own


def test_a_base_stays_in_memory_with_its_adapter(tight: World) -> None:
    """The base is not active. It may go with the last adapter on it, and not before: nothing is freed under one, or loaded twice."""
    base = tight.push("base", tight.changed(1))
    version = push_adapter(tight, base=f"base@{base}")
    tight.registry.activate({"policy": version})
    weights = tight.cache.residency.live(tight.store.get("base", base).digest)
    assert weights is not None
    with pytest.raises(ResourceExhausted):
        tight.push("other", tight.changed(2))
    assert live_of(tight, "policy").base is weights
    assert live_of(tight, f"base@{base}") is weights
    tight.registry.rollback()
    live_of(tight, f"policy@{version}")  # used after its base
    digest = weights.digest
    del weights
    other = tight.push("other", tight.changed(2))
    assert tight.cache.residency.live(tight.store.get("base", base).digest) is None, "idle base and adapter made way"
    assert f"policy@{version}" not in resident(tight)
    assert tight.engine.dropped.index(tight.store.get("policy", version).digest) < tight.engine.dropped.index(digest)
    tight.cache.residency.forget("other", other)
    push_again = push_adapter(tight, seed=1, base=f"base@{base}")
    assert_base_is_resident_once(tight, "base", base)
    assert f"policy@{push_again}" in resident(tight)


def test_a_leased_adapter_keeps_its_base(tight: World) -> None:
    base = tight.push("base", tight.changed(1))
    version = push_adapter(tight, base=f"base@{base}")
    tight.engine.leases[tight.store.get("policy", version).digest] = 1
    with pytest.raises(ResourceExhausted):
        tight.push("other", tight.changed(2))
    tight.engine.leases.clear()
    assert tight.push("other", tight.changed(2))


def assert_base_is_resident_once(world: World, name: str, version: int) -> None:
    digest = world.store.get(name, version).digest
    rows = [head for head in world.registry.resident() if head.digest == digest]
    assert [(row.references, row.num_bytes) for row in rows] == [((f"{name}@{version}",), world.head_bytes)]
    assert world.cache.residency.num_bytes == sum(head.num_bytes for head in world.registry.resident())


def test_trimming_and_forgetting_leave_the_base_of_a_resident_adapter(ready: World) -> None:
    base = ready.push("base", ready.changed(1))
    version = push_adapter(ready, base=f"base@{base}")
    ready.registry.activate({"policy": version})
    residency = ready.cache.residency
    residency.max_idle_per_name = 0
    copied = ready.publisher.copy(CopyRequest(source=f"base@{base}", target="base"))
    live_of(ready, f"base@{copied.version}")
    residency.forget("base", base)
    ready.registry.delete(f"base@{copied.version}", "head")
    residency.trim()
    weights = residency.live(ready.store.get("base", base).digest)
    assert weights is live_of(ready, "policy").base
    assert residency.num_bytes == sum(head.num_bytes for head in ready.registry.resident())
    ready.registry.rollback()
    residency.trim()
    residency.trim()
    assert "base@1" not in resident(ready)


def test_the_limit_per_name_spares_the_base_of_another_names_adapter(ready: World) -> None:
    """Both idle: the adapter is within its own name's limit, so its base is not surplus, however long nobody asked for it."""
    base = ready.push("base", ready.changed(1))
    version = push_adapter(ready, "trial", base=f"base@{base}")
    for seed in (2, 3, 4):
        ready.push("base", ready.changed(seed))
    ready.cache.residency.max_idle_per_name = 1
    ready.registry.collect()
    assert {reference for reference in resident(ready) if reference.startswith(("base", "trial"))} == {"base@1", "base@4", "trial@1"}
    ready.registry.delete(f"trial@{version}", "head")
    ready.registry.collect()
    assert {reference for reference in resident(ready) if reference.startswith(("base", "trial"))} == {"base@4"}


def test_a_base_that_does_not_fit_is_refused_before_it_is_loaded(tight: World) -> None:
    base = tight.push("base", tight.changed(1))
    version = push_adapter(tight, base=f"base@{base}")
    tight.push("other", tight.changed(2))
    tight.registry.activate({"policy": tight.push("policy", tight.changed(2))})
    tight.cache.residency.budget = tight.cache.residency.num_bytes + tight.head_bytes // 2
    warmed = len(tight.engine.warmed)
    with pytest.raises(ResourceExhausted):
        tight.resolve(f"policy@{version}")
    with pytest.raises(ResourceExhausted):
        push_adapter(tight, seed=3, base=f"base@{base}")
    assert len(tight.engine.warmed) == warmed


def test_evicted_adapters_are_freed_without_the_garbage_collector(ready: World) -> None:
    """Adapter first, then its base: no cycle holds either."""
    base = ready.push("base", ready.changed(1))
    version = push_adapter(ready, base=f"base@{base}")
    live = live_of(ready, f"policy@{version}")
    assert live.base is not None
    modules = [weakref.ref(live.module), weakref.ref(live.base.module)]
    gc.disable()
    try:
        del live
        ready.registry.delete(f"policy@{version}", "head")
        assert modules[0]() is None
        assert modules[1]() is not None
        ready.registry.delete(f"base@{base}", "head")
        assert modules[1]() is None
    finally:
        gc.enable()


# ---- on the wire


def wire(**fields: Any) -> pb.HeadManifest:
    return pb.HeadManifest(lora=pb.LoraAdapter(**{"rank": 3, "alpha": 1.5, **fields}))


async def test_push_list_and_pull(ready: World) -> None:
    data = to_file(adapter(ready))
    async with heads_server(ready) as (stub, _):
        done = await stub.PushHead(push(data, manifest=wire(), metrics={"loss": 0.5, "steps": 100}))
        assert (done.head.version, done.head.manifest.base, done.head.resident) == (2, "policy@1", True)
        assert done.head.manifest.lora == pb.LoraAdapter(rank=3, alpha=1.5)
        assert done.head.file_sha256 == hashlib.sha256(data).hexdigest() != done.head.digest
        listed = (await stub.ListHeads(pb.ListHeadsRequest(name="policy"))).heads
        assert listed[0] == done.head
        assert dict(listed[0].metrics) == {"loss": 0.5, "steps": 100.0}
        assert listed[1].file_sha256 == listed[1].digest
        assert not listed[1].manifest.HasField("lora")
        first, *rest = await collect(stub.PullHead(pb.PullHeadRequest(head="policy@2")))
        assert first.head == done.head
        assert b"".join(part.chunk.data for part in rest) == data
        error = await refused(stub.DeleteHead(pb.DeleteHeadRequest(head="policy@1")), "FAILED_PRECONDITION")
        assert error is not None
        patterns = wire(rank=4, rank_pattern=dict.fromkeys(ready.spec.head_linears, 3))
        await refused(stub.PushHead(push(data, manifest=patterns)), "INVALID_ARGUMENT", "manifest.lora.rank_pattern")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"manifest": wire(rank=0)}, "manifest.lora.rank"),
        ({"manifest": wire(alpha=float("nan"))}, "manifest.lora.alpha"),
        ({"manifest": wire(rank_pattern={"q": 0})}, "manifest.lora.rank_pattern[q]"),
        ({"manifest": wire(alpha_pattern={"(.*": 1.0})}, "manifest.lora.alpha_pattern"),
        ({"manifest": wire(fan_in_fan_out=True)}, "header.manifest.lora.fan_in_fan_out"),
        ({"metrics": {f"m{i}": 1.0 for i in range(65)}}, "metrics"),
        ({"metrics": {"loss": float("inf")}}, "metrics"),
        ({"metrics": {"x" * 65: 1.0}}, "metrics"),
    ],
)
async def test_bad_headers_name_the_field_before_any_byte(ready: World, fields: dict[str, Any], field: str) -> None:
    async with heads_server(ready) as (stub, _):
        await refused(stub.PushHead(iter([header(b"x" * 100, **fields)])), "INVALID_ARGUMENT", field)
