"""New versions, from a push or a copy: what is checked, what they get, and how one is deleted."""

from __future__ import annotations

import pytest
import torch

from polyhead.heads.format.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.server.versions.manifests import ManifestPatch
from polyhead.server.versions.push_requests import CopyRequest
from tests.server.fakes import World


@pytest.fixture
def ready(world: World) -> World:
    world.registry.bootstrap(world.policy)
    return world


class TestPublish:
    def test_defaults_come_from_the_active_version(self, ready: World) -> None:
        version = ready.push("policy", ready.changed(1), manifest=ManifestPatch())
        manifest = ready.store.get("policy", version).manifest
        assert (manifest.kind, manifest.output, manifest.trunk_id) == (HeadKind.POLICY, OutputKind.TIED, ready.trunk_id)

    def test_a_new_name_needs_its_kind(self, ready: World) -> None:
        with pytest.raises(InvalidArgument) as caught:
            ready.push("fresh", ready.policy, manifest=ManifestPatch())
        assert caught.value.field == "header.manifest.kind"

    def test_scores_are_recognised_by_the_file(self, ready: World) -> None:
        layers = {name: ready.policy[name] for name in ready.spec.head_names}
        score = {**layers, "score.weight": torch.ones(1, ready.spec.d_model)}
        version = ready.push("value", score, manifest=ManifestPatch())
        manifest = ready.store.get("value", version).manifest
        assert (manifest.output, manifest.untrained) == (OutputKind.SCORE, False)

    def test_another_trunk_is_named(self, ready: World) -> None:
        other = "a" * 64
        with pytest.raises(FailedPrecondition) as caught:
            ready.push("policy", ready.policy, manifest=ManifestPatch(trunk_id=other))
        assert other in caught.value.message
        assert ready.trunk_id in caught.value.message

    def test_a_changed_trunk_tensor_is_named(self, ready: World) -> None:
        name = ready.spec.trunk_sources[0]
        good = {name: ready.checkpoint.sha256(name)}
        assert ready.push("policy", ready.changed(1), trunk_sha256=good)
        with pytest.raises(FailedPrecondition, match=name):
            ready.push("policy", ready.changed(2), trunk_sha256={name: "0" * 64})

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_numbers_must_be_finite(self, ready: World, bad: float) -> None:
        tensors = ready.changed(1)
        name = ready.spec.head_names[3]
        tensors[name].view(-1)[-1] = bad
        with pytest.raises(InvalidArgument, match=name):
            ready.push("policy", tensors)
        assert len(ready.store.versions("policy")) == 1

    def test_canary_must_be_finite(self, ready: World) -> None:
        tensors = {name: tensor * 1e38 for name, tensor in ready.policy.items()}
        with pytest.raises((DataLoss, InvalidArgument)):
            ready.push("policy", tensors)

    def test_missing_and_unknown_tensors_are_listed(self, ready: World) -> None:
        tensors = ready.changed(1)
        gone = ready.spec.head_names[0]
        del tensors[gone]
        with pytest.raises(FailedPrecondition, match=f"missing: {gone}"):
            ready.push("policy", tensors)

    def test_dry_run_stores_nothing(self, ready: World) -> None:
        before = ready.store.disk_bytes()
        assert ready.push("policy", ready.changed(1), is_dry_run=True) == 0
        assert ready.store.disk_bytes() == before

    def test_repetition_and_reuse_of_a_request_id(self, ready: World) -> None:
        tensors = ready.changed(1)
        assert ready.push("policy", tensors, request_id="p") == ready.push("policy", tensors, request_id="p") == 2
        with pytest.raises(AlreadyExists):
            ready.push("policy", ready.changed(2), request_id="p")

    def test_bfloat16_files_are_served_in_the_served_dtype(self, ready: World) -> None:
        version = ready.push("policy", {name: tensor.bfloat16() for name, tensor in ready.policy.items()})
        head = ready.resolve(f"policy@{version}")
        assert head.live.module.dtype is torch.float32


class TestCopy:
    def test_reference_becomes_the_policy(self, ready: World) -> None:
        version = ready.push("policy", ready.changed(1))
        record = ready.publisher.copy(CopyRequest(source=f"policy@{version}", target="reference"))
        assert (record.version, record.manifest.base) == (2, f"policy@{version}")
        assert record.digest == ready.store.get("policy", version).digest

    def test_value_from_preference_with_bias_on_another(self, ready: World) -> None:
        record = ready.publisher.copy(CopyRequest(source="preference", target="value", kind=HeadKind.VALUE))
        assert record.manifest.kind is HeadKind.VALUE
        biased = ready.publisher.copy(CopyRequest(source="preference", target="preference", bias=0.5))
        assert biased.manifest.bias == 0.5
        scaled = ready.publisher.copy(CopyRequest(source="preference", target="preference", scale=2.0))
        assert (scaled.manifest.scale, scaled.manifest.bias, biased.manifest.scale) == (2.0, 0.0, 1.0)

    def test_another_output_is_refused(self, ready: World) -> None:
        with pytest.raises(InvalidArgument):
            ready.publisher.copy(CopyRequest(source="policy", target="value", kind=HeadKind.VALUE))

    def test_a_rule_head_gets_its_answers(self, ready: World) -> None:
        record = ready.publisher.copy(CopyRequest(source="policy", target="rule", kind=HeadKind.RULE))
        assert (record.manifest.violated_token_id, record.manifest.followed_token_id) == (5, 7)

    def test_token_outside_the_vocabulary(self, ready: World) -> None:
        with pytest.raises(InvalidArgument, match="vocabulary"):
            ready.publisher.copy(CopyRequest(source="preference", target="preference", append_token_id=10**6))


def test_delete(ready: World) -> None:
    version = ready.push("policy", ready.changed(1))
    with pytest.raises(FailedPrecondition):
        ready.registry.delete("policy@1", "head")
    with pytest.raises(InvalidArgument):
        ready.registry.delete("policy", "head")
    ready.registry.delete(f"policy@{version}", "head")
    with pytest.raises(NotFound):
        ready.registry.get(f"policy@{version}", "head")
