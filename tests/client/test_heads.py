"""Versions and the active set through a fake server: push, pull, activate, update, lists, watch; and the trunk's calls."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from polyhead.client import Client, HeadKind, RawTensor, errors
from polyhead.v1 import heads_pb2, types_pb2
from tests.client.fake_messages import D_MODEL, EMBEDDING, HEAD_SHAPES, TRUNK_NAMES, TRUNK_TENSORS
from tests.client.fake_server import FakeServer
from tests.client.fake_state import rich_error

LAYER, NORM = HEAD_SHAPES
HEAD = {LAYER: torch.full((8, D_MODEL), 0.5).bfloat16(), NORM: torch.ones(D_MODEL).bfloat16()}
SCORE = {"v_head.summary.weight": torch.ones(1, D_MODEL)}


def test_push_and_pull_round_trip(client: Client, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    version = client.push_head("policy", HEAD, progress=lambda sent, total: seen.append((sent, total)))
    assert version == 1
    assert seen[-1][0] == seen[-1][1]
    pulled = client.pull_head("policy@1", tmp_path)
    layer = pulled[LAYER]
    assert isinstance(layer, RawTensor)
    assert layer.to_float32().tolist() == HEAD[LAYER].tolist()
    assert client.push_head("policy", pulled) == 2
    assert json.loads((tmp_path / "head.json").read_text())["kind"] == "policy"
    report = client.push("policy", tmp_path)
    assert report.head.digest == client.push("policy", HEAD).head.digest, (
        "equal weights have equal digests, however they are given"
    )


def test_head_json_is_what_polyhead_reads(client: Client, server: FakeServer, tmp_path: Path) -> None:
    manifest = pytest.importorskip("polyhead.heads.format.manifest")
    client.push("pref", {**HEAD, **SCORE}, kind="preference", bias=0.25)
    server.records[0].manifest.trunk_id = "ab" * 32
    server.records[0].manifest.precision = "float32"
    server.records[0].manifest.read = heads_pb2.READ_POSITION_LAST
    server.records[0].manifest.unfinished = heads_pb2.UNFINISHED_READ_LAST
    client.pull_head("pref@1", tmp_path)
    read = manifest.HeadManifest.from_json((tmp_path / "head.json").read_text())
    assert (read.kind.value, read.bias, read.split_layer, read.num_layers) == ("preference", 0.25, 1, 2)
    client.push("pref", tmp_path)
    sent = server.requests["PushHead"][1].manifest
    assert (sent.kind, sent.bias, sent.output) == (types_pb2.HEAD_KIND_PREFERENCE, 0.25, heads_pb2.OUTPUT_KIND_SCORE)
    assert sent.trunk_id == "ab" * 32


def test_kind_comes_from_the_active_version_or_from_the_caller(client: Client, server: FakeServer) -> None:
    client.push_head("policy", HEAD)
    assert server.requests["PushHead"][0].manifest.kind == types_pb2.HEAD_KIND_POLICY
    with pytest.raises(errors.InvalidArgument, match="give kind="):
        client.push_head("other", {**HEAD, **SCORE})
    client.push_head("other", {**HEAD, **SCORE}, kind="value")
    assert server.requests["PushHead"][1].manifest.output == heads_pb2.OUTPUT_KIND_SCORE
    with pytest.raises(errors.InvalidArgument, match="kind must be one of"):
        client.push_head("other", HEAD, kind="reward")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'knid'"):
        client.push_head("other", HEAD, knid="value")  # type: ignore[call-arg]


def test_changed_trunk_is_refused_before_a_byte_is_sent(client: Client, server: FakeServer) -> None:
    with pytest.raises(errors.FailedPrecondition, match="freeze the trunk"):
        client.push_head("policy", {**HEAD, TRUNK_NAMES[0]: EMBEDDING + 1})
    assert not server.requests["PushHead"]


def test_report_and_trunk_hashes(client: Client, server: FakeServer) -> None:
    weights = {**{"module." + name: tensor for name, tensor in HEAD.items()}, **TRUNK_TENSORS}
    report = client.push("policy", iter(weights.items()), labels=["best"], validate_only=True)
    assert (report.version, report.num_trunk_tensors_compared) == (0, 2)
    assert report.used == sorted(HEAD)
    assert set(report.converted.values()) == set(HEAD)
    sent = server.requests["PushHead"][0]
    assert set(sent.trunk_sha256) == set(TRUNK_NAMES)
    assert (list(sent.labels), sent.manifest.output) == (["best"], heads_pb2.OUTPUT_KIND_TIED)


def test_base_fills_in_what_is_missing(client: Client, server: FakeServer) -> None:
    with pytest.raises(errors.InvalidArgument, match="lack a tensor"):
        client.push("policy", {LAYER: HEAD[LAYER]})
    report = client.push("policy", {LAYER: HEAD[LAYER]}, base="policy@7")
    assert (report.missing, report.sent) == ([NORM], [LAYER])
    header = server.requests["PushHead"][0]
    assert (header.delta_base, header.manifest.base) == ("policy@7", "policy@7")
    assert (header.num_bytes, header.sha256) == (0, ""), "a client that does not hold the whole file cannot say its hash"
    assert header.manifest.output == heads_pb2.OUTPUT_KIND_UNSPECIFIED


def test_only_what_differs_from_the_base_is_sent(client: Client, server: FakeServer) -> None:
    client.push("policy", HEAD)
    changed = {**HEAD, NORM: HEAD[NORM] + 1}
    report = client.push("policy", changed, base="policy@1")
    assert (report.sent, report.used, report.missing) == ([NORM], sorted(HEAD), [])
    header = server.requests["PushHead"][1]
    assert (header.delta_base, header.delta_num_bytes) == ("policy@1", report.num_bytes_sent)
    assert report.num_bytes_sent == len(server.files["policy@2"]) < len(server.files["policy@1"])
    whole = client.push("policy", changed)
    assert (header.sha256, header.num_bytes) == (whole.head.digest, whole.num_bytes_sent)
    assert (whole.sent, server.requests["PushHead"][2].delta_base) == (sorted(HEAD), "")


def test_a_part_of_a_head_sends_what_differs_of_it(client: Client, server: FakeServer) -> None:
    client.push("policy", HEAD)
    report = client.push("policy", {LAYER: HEAD[LAYER] * 2, NORM: HEAD[NORM]}, base="policy@1")
    assert report.sent == [LAYER, NORM], "leaving so little out is not worth a delta"
    report = client.push("policy", {NORM: HEAD[NORM]}, base="policy@1")
    assert (report.sent, report.missing) == ([NORM], [LAYER]), "a file holds at least one tensor"
    same = client.push("policy", HEAD, base="policy@1")
    assert same.sent == [NORM], "nothing changed: the smallest one goes"
    assert server.requests["PushHead"][3].sha256 == server.requests["PushHead"][0].sha256


def test_a_lora_head_as_base_is_sent_whole(client: Client, server: FakeServer) -> None:
    client.push("policy", HEAD)
    server.records[0].manifest.lora.rank = 4
    report = client.push("policy", {**HEAD, NORM: HEAD[NORM] + 1}, base="policy@1")
    assert (report.sent, server.requests["PushHead"][1].delta_base) == (sorted(HEAD), "")


def test_what_cannot_be_a_delta_is_sent_whole(client: Client, server: FakeServer) -> None:
    client.push("policy", HEAD)
    for weights in ({**HEAD, LAYER: HEAD[LAYER].float()}, {name: tensor + 1 for name, tensor in HEAD.items()}):
        client.push("policy", weights, base="policy@1")
    client.push("policy", HEAD, base="policy@9")  # unknown: the server says so when it sees the push
    client.push("policy", HEAD, base="policy")
    server.failures["ListHeadTensors"] = [rich_error(grpc.StatusCode.UNIMPLEMENTED, "an older server")]
    client.push("policy", {**HEAD, NORM: HEAD[NORM] + 1}, base="policy@1")
    pushes = server.requests["PushHead"]
    assert [(push.delta_base, bool(push.sha256)) for push in pushes] == [("", True)] * len(pushes)
    assert [push.manifest.base for push in pushes] == ["", "policy@1", "policy@1", "policy@9", "policy", "policy@1"]
    assert [request.head for request in server.requests["ListHeadTensors"]] == ["policy@1", "policy@1", "policy@9", "policy@1"]


def test_error_of_the_callers_own_progress_comes_through(client: Client) -> None:
    def progress(sent: int, total: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        client.push_head("policy", HEAD, progress=progress)


def test_update_pushes_all_and_activates_once(client: Client, server: FakeServer) -> None:
    generation = client.update({"policy": HEAD, "policy2": HEAD}, expected_generation=3, note="round 1", request_id="round-1")
    assert generation.heads == {"policy": 1, "policy2": 1}
    assert (generation.num_pinned_requests, generation.num_aborted_requests, generation.num_following_requests) == (2, 1, 3)
    activation = server.requests["ActivateHeads"][0]
    assert (activation.expected_generation, activation.note, activation.request_id) == (3, "round 1", "round-1")
    first = [push.request_id for push in server.requests["PushHead"]]
    client.update({"policy": HEAD, "policy2": HEAD}, request_id="round-1")
    assert [push.request_id for push in server.requests["PushHead"]] == first * 2
    assert len(set(first)) == 2
    assert not server.requests["ActivateHeads"][1].HasField("expected_generation")


def test_update_sends_nothing_if_one_head_is_wrong(client: Client, server: FakeServer) -> None:
    with pytest.raises(errors.FailedPrecondition):
        client.update({"policy": HEAD, "policy2": {**HEAD, TRUNK_NAMES[0]: EMBEDDING + 1}})
    assert not server.requests["PushHead"]


def test_damaged_pull_is_refused(client: Client, server: FakeServer) -> None:
    client.push_head("policy", HEAD)
    server.files["policy@1"] = server.files["policy@1"][:-1] + b"x"
    with pytest.raises(errors.DataLoss, match="pull again"):
        client.pull_head("policy@1")


def test_records(client: Client, server: FakeServer) -> None:
    heads = client.heads()
    assert [(head.ref, head.active, head.kind) for head in heads] == [
        ("policy@2", True, HeadKind.POLICY), ("policy@1", False, HeadKind.POLICY)
    ]  # fmt: skip
    assert client.head("policy").version == 7
    with pytest.raises(errors.NotFound):
        client.head("nobody")
    assert client.copy_head("policy@7", "reference", kind="policy", bias=0.0) == 5
    assert server.requests["CopyHead"][0].HasField("bias")
    assert client.rollback().number == 5
    assert not server.requests["RollbackHeads"][0].HasField("to_generation")
    client.delete_head("policy@1")
    assert client.generations(limit=1)[0].heads == {"policy": 7}
    with pytest.raises(TypeError, match="heads must map names"):
        client.activate({"policy": "7"})  # type: ignore[dict-item]


def test_watch_ends_when_left(client: Client, server: FakeServer) -> None:
    for generation in client.watch():
        assert generation.number == 3
        break
    assert server.cancelled.wait(60)


def test_trunk_calls(client: Client) -> None:
    info = client.trunk()
    assert (info.d_model, info.tensors[TRUNK_NAMES[0]].dtype, info.head_tensors[LAYER]) == (D_MODEL, "float32", (8, D_MODEL))
    assert client.tokenize("ab c") == [2, 1]
    assert client.tokenize_batch(["ab c", "abc"]) == [[2, 1], [3]]
    assert client.detokenize([1, 2]) == "x xx"
    assert client.encode([5, 6])[:, 0].tolist() == [5, 6]
    assert [states.shape for states in client.encode([[5, 6], [7]])] == [(2, D_MODEL), (1, D_MODEL)]
    assert client.encode(np.array([5, 6])).shape == (2, D_MODEL)
    assert np.array_equal(client.output_embedding(), EMBEDDING)
    assert client.status().resident_heads[0].references == ("policy@7", "reference@1")


def test_labels_and_removals(client: Client, server: FakeServer) -> None:
    assert client.label("policy@7", "best", "paper", request_id="l").labels == ("best", "paper")
    assert client.unlabel("policy@7", "best").ref == "policy@7"
    added, removed = server.requests["LabelHead"]
    assert (added.head, list(added.add), list(added.remove), added.request_id) == ("policy@7", ["best", "paper"], [], "l")
    assert (list(removed.add), list(removed.remove), len(removed.request_id)) == ([], ["best"], 36)
    assert client.push("policy", HEAD).removed == ("policy@0",)
    assert client.update({"policy": HEAD}).removed == ("policy@0", "value@1"), "of the pushes and of the activation"


def test_an_activation_names_the_weights_that_were_pushed(client: Client, server: FakeServer) -> None:
    """By what this client pushed under a number, or what a report says; a number that it knows nothing of goes alone."""

    def sent() -> tuple[dict[str, int], dict[str, str]]:
        request = server.requests["ActivateHeads"][-1]
        return dict(request.heads), dict(request.digests)

    report = client.push("policy", HEAD)
    assert len(report.head.digest) == 64
    for given in ({"policy": report}, {"policy": report.head}, {"policy": report.version}):
        client.activate(given)
        assert sent() == ({"policy": report.version}, {"policy": report.head.digest})
    client.activate({"policy": 99})
    assert sent() == ({"policy": 99}, {})
    client.update({"policy": HEAD})
    assert sent()[1] == {"policy": report.head.digest}
    with pytest.raises(ValueError, match="is not a version of value"):
        client.activate({"value": report})
    with pytest.raises(TypeError, match="version numbers or push reports"):
        client.activate({"policy": "7"})  # type: ignore[dict-item]


def test_a_name_leaves_the_active_set(client: Client, server: FakeServer) -> None:
    client.activate({"policy": 7}, expected_versions={"policy": 6, "reference": 0})
    assert dict(server.requests["ActivateHeads"][-1].expected_versions) == {"policy": 6, "reference": 0}
    with pytest.raises(TypeError, match="expected_versions must map"):
        client.activate({"policy": 7}, expected_versions={"policy": "6"})  # type: ignore[dict-item]
    client.rollback(expected_versions={"policy": 7})
    assert dict(server.requests["RollbackHeads"][-1].expected_versions) == {"policy": 7}
    client.activate(deactivate=["reference"])
    assert list(server.requests["ActivateHeads"][-1].deactivate) == ["reference"]
    with pytest.raises(TypeError, match="deactivate must be a list"):
        client.activate(deactivate="reference")


def test_history_rows(client: Client, server: FakeServer) -> None:
    server.generations.insert(0, heads_pb2.Generation(number=10, parent=7, same_as=8, gone=["policy@1"]))
    newest = client.generations()[0]
    assert (newest.parent, newest.same_as, newest.gone) == (7, 8, ("policy@1",))


@pytest.mark.parametrize("number", [-1, 1 << 64])
def test_numbers_that_no_message_holds_are_named(client: Client, number: int) -> None:
    """They were a bare ValueError of protobuf's: "Value out of range: -1"."""
    calls = {
        "heads[policy]": lambda: client.activate({"policy": number}),
        "expected_versions[policy]": lambda: client.activate({"policy": 1}, expected_versions={"policy": number}),
        "expected_generation": lambda: client.activate({"policy": 1}, expected_generation=number),
        "to": lambda: client.rollback(to=number),
    }
    for field, call in calls.items():
        with pytest.raises(errors.InvalidArgument, match=str(number)) as caught:
            call()
        assert caught.value.field == field
