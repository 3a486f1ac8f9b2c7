"""What trainers hold, and what becomes of it: names, dtypes, the trunk's own tensors, the canonical bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from polyhead.client import RawTensor, errors
from polyhead.client.results.records import TrunkInfo
from polyhead.client.results.results import HeadKind
from polyhead.client.weights.canonical import serialise
from polyhead.client.weights.names import TensorNames
from polyhead.client.weights.pushing import plan_push
from polyhead.client.weights.tensors import as_source, to_float32
from polyhead.client.weights.weights import SortedWeights, collect, guess_kind, sort_weights
from polyhead.client.wire import convert
from polyhead.v1 import heads_pb2
from tests.client.fake_messages import D_MODEL, EMBEDDING, HEAD_SHAPES, TRUNK_NAMES, TRUNK_TENSORS, VOCAB, make_trunk

LAYER, NORM = HEAD_SHAPES
HEAD = {LAYER: np.full((8, D_MODEL), 0.5, np.float32), NORM: np.ones(D_MODEL, np.float32)}
SCORE = np.ones((1, D_MODEL), np.float32)


def trunk(**changes: Any) -> TrunkInfo:
    return convert.trunk_info(make_trunk(**changes))


def sort(weights: Any, kind: HeadKind = HeadKind.POLICY, **changes: Any) -> SortedWeights:
    return sort_weights(collect(weights), trunk(**changes), kind)


@pytest.mark.parametrize(
    ("given", "standard"),
    [
        (LAYER, LAYER),
        ("module." + LAYER, LAYER),
        ("_orig_mod.module." + LAYER, LAYER),
        ("model.layers.1._checkpoint_wrapped_module.mlp.up_proj.weight", LAYER),
        (
            "_fsdp_wrapped_module.model.layers.1._fsdp_wrapped_module._checkpoint_wrapped_module.mlp._orig_mod.up_proj.weight",
            LAYER,
        ),
        ("layers.1.mlp.up_proj.weight", LAYER),
        ("model.model.layers.1.mlp.up_proj.weight", LAYER),
        ("pretrained_model.model.layers.1.mlp.up_proj.weight", LAYER),
        ("module.pretrained_model.norm.weight", NORM),
        ("norm.weight", NORM),
        ("embed_tokens.weight", TRUNK_NAMES[0]),
        ("v_head.summary.weight", "score.weight"),
        ("module.value_head.weight", "score.weight"),
        ("score.weight", "score.weight"),
        ("v_head.summary.bias", "score.bias"),
        ("embed_out.weight", "lm_head.weight"),
        ("vision.weight", "vision.weight"),
    ],
)
def test_names(given: str, standard: str) -> None:
    assert TensorNames(trunk()).standard(given) == standard


def test_every_tensor_is_accounted_for() -> None:
    extra = {"model.rotary_emb.inv_freq": np.ones(2, np.float32), "v_head.summary.weight": SCORE}
    found = sort({"module." + LAYER: HEAD[LAYER], NORM: HEAD[NORM], **TRUNK_TENSORS, **extra, "lm_head.weight": EMBEDDING})
    assert set(found.tensors) == {LAYER, NORM}
    assert found.converted == {"module." + LAYER: LAYER}
    assert found.ignored == {
        **dict.fromkeys(TRUNK_NAMES, "the trunk's, unchanged"),
        "model.rotary_emb.inv_freq": "not a tensor of a head",
        "v_head.summary.weight": "a policy head has no scalar output",
        "lm_head.weight": "tied: it is the trunk's embedding",
    }
    assert set(found.trunk_sha256) == set(TRUNK_NAMES)


def test_trained_output_of_a_tied_model_is_sent() -> None:
    assert "lm_head.weight" in sort({**HEAD, "lm_head.weight": EMBEDDING + 1}).tensors


def test_value_head_leaves_the_vocabulary_out() -> None:
    output = {"v_head.summary.weight": SCORE, "v_head.summary.bias": np.zeros(1, np.float32), "lm_head.weight": EMBEDDING}
    found = sort({**HEAD, **output}, HeadKind.VALUE)
    assert set(found.tensors) == {LAYER, NORM, "score.weight"}
    assert (found.ignored["v_head.summary.bias"], found.output_bias) == ("kept beside the file: bias 0", 0.0)


@pytest.mark.parametrize("name", ["v_head.summary", "value_head", "score"])
def test_a_trained_bias_is_kept(name: str) -> None:
    """TRL's and OpenRLHF's value heads add one; it was refused. A head subtracts what it keeps, so the sign turns."""
    weights = {**HEAD, f"{name}.weight": SCORE, f"{name}.bias": np.array([0.25], np.float32)}
    found = sort(weights, HeadKind.VALUE)
    assert set(found.tensors) == {LAYER, NORM, "score.weight"}
    assert found.output_bias == 0.25
    upload = plan_push("value", weights, {}).prepare(trunk(), HeadKind.VALUE)
    assert upload.header.manifest.bias == -0.25
    with pytest.raises(errors.InvalidArgument, match=r"a bias of their own, 0\.25: leave bias= out"):
        plan_push("value", weights, {"bias": 1.0}).prepare(trunk(), HeadKind.VALUE)


def test_a_bias_of_zero_is_said_and_a_callers_own_stands() -> None:
    weights = {**HEAD, "score.weight": SCORE, "score.bias": np.zeros(1, np.float32)}
    assert plan_push("value", weights, {}).prepare(trunk(), HeadKind.VALUE).header.manifest.HasField("bias")
    assert plan_push("value", weights, {"bias": 1.5}).prepare(trunk(), HeadKind.VALUE).header.manifest.bias == 1.5


def test_a_policy_with_a_value_head_beside_it_leaves_that_out() -> None:
    """A bias that is not zero used to refuse TRL's whole model as a policy."""
    output = {"v_head.summary.weight": SCORE, "v_head.summary.bias": np.ones(1, np.float32)}
    found = sort({**HEAD, **output})
    assert set(found.tensors) == {LAYER, NORM}
    assert found.output_bias is None


def test_a_scalar_model_is_no_policy() -> None:
    """A tied model's reward checkpoint became a policy, without a word."""
    with pytest.raises(errors.InvalidArgument, match=r"a scalar model's weights, with 'score.weight'.*policy head\nhint: .*\"preference\""):
        sort({**HEAD, "score.weight": SCORE})
    with pytest.raises(errors.InvalidArgument, match=r"'score.weight'\nhint: a language model has no scalar output"):
        sort(HEAD, HeadKind.PREFERENCE)


@pytest.mark.parametrize(
    ("config", "reading"),
    [
        ({"architectures": ["LlamaForSequenceClassification"], "pad_token_id": 2}, ("last", 2)),
        ({"architectures": ["LlamaForSequenceClassification"], "pad_token_id": None}, ("last", -1)),
        ({"architectures": ["LlamaForSequenceClassification"], "pad_token_id": VOCAB}, ("last", -1)),
        ({"architectures": ["LlamaForCausalLM"], "pad_token_id": 2}, ("", None)),
        ({}, ("", None)),
    ],
)
def test_a_preference_head_is_read_where_its_class_reads(config: dict[str, Any], reading: tuple[str, int | None], tmp_path: Path) -> None:
    """With pad = EOS the class reads before the EOS, which a sample ends with."""
    safetensors.numpy.save_file({**HEAD, "score.weight": SCORE}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))

    def sent(kind: HeadKind, **options: Any) -> tuple[str, int | None]:
        manifest = plan_push("preference", tmp_path, options).prepare(trunk(), kind).header.manifest
        read = heads_pb2.ReadPosition.Name(manifest.read).removeprefix("READ_POSITION_").lower()
        return "" if read == "unspecified" else read, manifest.pad_token_id if manifest.HasField("pad_token_id") else None

    assert sent(HeadKind.PREFERENCE) == reading
    assert sent(HeadKind.VALUE) == ("", None)
    assert sent(HeadKind.PREFERENCE, read="eos") == ("eos", None)  # what the caller says counts
    assert sent(HeadKind.PREFERENCE, pad_token_id=1) == ("", 1)


@pytest.mark.parametrize(
    ("weights", "kind", "error", "message"),
    [
        ({LAYER: HEAD[LAYER]}, HeadKind.POLICY, errors.InvalidArgument, "lack a tensor.*'model.norm.weight'"),
        ({"x": SCORE}, HeadKind.POLICY, errors.InvalidArgument, "'model.layers.1.mlp.up_proj.weight' and 1 more"),
        (HEAD, HeadKind.VALUE, errors.InvalidArgument, "'score.weight'"),
        ({**HEAD, "score.weight": SCORE, "score.bias": np.ones(2, np.float32)}, HeadKind.VALUE,
         errors.FailedPrecondition, r"is one number: 'score.bias' has shape \(2,\)"),
        ({**HEAD, "score.weight": SCORE, "score.bias": np.full(1, np.nan, np.float32)}, HeadKind.VALUE,
         errors.FailedPrecondition, "not finite: 'score.bias'"),
        ({**HEAD, LAYER: np.ones((4, D_MODEL), np.float32)}, HeadKind.POLICY, errors.FailedPrecondition,
         r"\(4, 4\), not \(8, 4\)\nhint: gather first"),
        ({**HEAD, NORM: np.ones(D_MODEL)}, HeadKind.POLICY, errors.FailedPrecondition, "float64\nhint: convert"),
        ({**HEAD, "norm.weight": HEAD[NORM]}, HeadKind.POLICY, errors.InvalidArgument, "two of the weights have the name"),
        ({**HEAD, "model.layers.1.q.lora_A.weight": SCORE}, HeadKind.POLICY, errors.FailedPrecondition, "merge_and_unload"),
        ({**HEAD, "score.weight": np.ones((2, D_MODEL), np.float32)}, HeadKind.VALUE, errors.FailedPrecondition,
         "2 numbers and not one.*\nhint: train with num_labels=1"),
        ({}, HeadKind.POLICY, errors.InvalidArgument, "weights are empty"),
        (3, HeadKind.POLICY, TypeError, "a folder, a torch module, a mapping.*: int"),
        ([np.ones(3)], HeadKind.POLICY, TypeError, "an iterable of ndarray\nhint: model.named_parameters"),
        ({LAYER: [1.0]}, HeadKind.POLICY, TypeError, "must be a torch tensor, a numpy array or a RawTensor: list"),
    ],
)  # fmt: skip
def test_refusals(weights: Any, kind: HeadKind, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sort(weights, kind)


@pytest.mark.parametrize("dtype", ["F32", "torch.bfloat16", "torch.float16"])
def test_changed_trunk_tensor_is_refused(dtype: str) -> None:
    """A float32 trainer of a half-precision checkpoint is compared, too: an untouched copy narrows back exactly."""
    kept = sort({**HEAD, **TRUNK_TENSORS}, dtype=dtype)
    assert set(kept.trunk_sha256) == set(TRUNK_NAMES)
    changed = TRUNK_TENSORS[TRUNK_NAMES[1]].copy()
    changed[0, 0] += 1e-4
    with pytest.raises(errors.FailedPrecondition, match=r"changed: 'module\.model\.layers\.0.*\nhint: freeze the trunk"):
        sort({**HEAD, "module." + TRUNK_NAMES[1]: changed}, dtype=dtype)


def test_trunk_tensor_in_a_narrower_dtype_is_not_compared() -> None:
    found = sort({**HEAD, TRUNK_NAMES[0]: torch.from_numpy(EMBEDDING).bfloat16()})
    assert found.ignored[TRUNK_NAMES[0]].startswith("the trunk's, not compared")
    assert not found.trunk_sha256


def test_canonical_bytes_are_those_of_the_library() -> None:
    weights = {"b": np.ones((2, 3), np.float32), "a": np.arange(5, dtype=np.float32), "c": np.ones(1, np.float16)}
    file = serialise(collect(weights))
    data = b"".join(chunk for _, chunk in file.chunks())
    assert data == safetensors.numpy.save(dict(sorted(weights.items())))
    assert (len(data), hashlib.sha256(data).hexdigest()) == (file.num_bytes, file.sha256)


def test_canonical_bytes_of_mixed_torch_dtypes() -> None:
    torch.manual_seed(0)
    weights = {"z": torch.randn(3), "a": torch.randn(2, 2).half(), "m": torch.randn(7).bfloat16(), "k": torch.randn(4, 4).t()}
    file = serialise(collect(weights.items()))
    plain = {name: tensor.contiguous() for name, tensor in weights.items()}
    assert b"".join(chunk for _, chunk in file.chunks()) == safetensors.torch.save(plain)


def test_chunks_are_at_most_a_mebibyte_and_lie_end_to_end() -> None:
    file = serialise(collect({"a": np.zeros(700_000, np.float32), "b": np.zeros(3, np.float32)}))
    offset = 0
    for start, data in file.chunks():
        assert start == offset
        assert len(data) <= 1 << 20
        offset += len(data)
    assert offset == file.num_bytes


def test_bfloat16_keeps_its_bits() -> None:
    tensor = torch.tensor([1.5, -2.25, 3e38, float("inf")], dtype=torch.bfloat16, requires_grad=True)
    source = as_source("x", torch.nn.Parameter(tensor))
    assert (source.dtype, source.shape, source.num_bytes) == ("bfloat16", (4,), 8)
    raw = RawTensor("bfloat16", (4,), bytes(source.read()))
    assert raw.to_float32().tolist() == tensor.float().tolist()
    assert bytes(as_source("x", raw).read()) == raw.data


def test_big_endian_and_strided_arrays_become_little_endian_rows() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    source = as_source("x", array)
    assert source.dtype == "float32"
    assert to_float32("float32", source.shape, bytes(source.read())).tolist() == array.tolist()


def test_sharded_tensors_are_refused() -> None:
    class DTensor(torch.Tensor):
        pass

    for name, value in {"x": DTensor(), "m._flat_param": torch.ones(3), "meta": torch.ones(2, device="meta")}.items():
        with pytest.raises(errors.FailedPrecondition, match="gather first"):
            as_source(name, value)


def test_folders(tmp_path: Path) -> None:
    """A sharded save_pretrained folder, and a head folder, which wins over nothing else being there."""
    names = {"one.safetensors": {LAYER: HEAD[LAYER]}, "two.safetensors": {NORM: HEAD[NORM], **TRUNK_TENSORS}}
    for file, tensors in names.items():
        (tmp_path / file).write_bytes(safetensors.numpy.save(tensors))
    index = {"weight_map": {name: file for file, tensors in names.items() for name in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = sort(tmp_path)
    assert serialise(found.tensors).sha256 == serialise(collect(HEAD)).sha256
    assert len(found.trunk_sha256) == 2
    (tmp_path / "two.safetensors").write_bytes(b"short")
    with pytest.raises(errors.DataLoss, match="two"):
        collect(tmp_path)


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(errors.FailedPrecondition, match="never pickle"):
        collect(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(errors.FailedPrecondition, match="without its adapter_config"):
        collect(tmp_path)
    with pytest.raises(errors.InvalidArgument, match="no such folder"):
        collect(tmp_path / "nowhere")


def test_kind_is_asked_for_where_names_do_not_tell() -> None:
    assert guess_kind(HEAD) is HeadKind.POLICY
    with pytest.raises(errors.InvalidArgument, match='kind="preference" or kind="value"'):
        guess_kind(["module.v_head.summary.weight"])


def test_vocabulary_matters_only_through_d_model() -> None:
    assert "lm_head.weight" in sort({**HEAD, "lm_head.weight": np.ones((VOCAB + 2, D_MODEL), np.float32)}, tied=False).tensors
