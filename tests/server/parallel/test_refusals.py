"""What cannot be shared by ranks is refused in a sentence, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.model.spec import describe_config
from polyhead.server.config import load_config
from polyhead.server.parallel.shares import check_shares
from tests.heads.models import tiny_config


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"trunk_dtype": "int8"}, "--tensor-parallel 2 serves float32 and bfloat16: trunk_dtype is int8\nhint: leave out --trunk-dtype"),
        ({"device": "cuda", "head_dtype": "fp8"}, "--tensor-parallel 2 serves float32 and bfloat16: head_dtype is fp8"),
        ({"output_dtype": "int8"}, "--tensor-parallel 2 serves float32 and bfloat16: output_dtype is int8"),
        ({"layers": "plain"}, "--tensor-parallel 2 needs our own layers"),
        ({"deterministic": True}, "--tensor-parallel 2 cannot promise the same bits"),
        ({"device": "cuda:0", "head_device": "cuda:1"}, "--tensor-parallel 2 has heads on every rank, beside the trunk"),
        ({"device": "cuda:1"}, "--tensor-parallel 2 takes the GPUs from cuda:0 on, one for each rank: --device is cuda:1"),
        ({"device": "cuda", "cuda_graphs": True}, "--tensor-parallel 2 runs without CUDA graphs"),
        ({"tensor_parallel": 0}, "--tensor-parallel must be at least 1: 0"),
    ],
)
def test_settings(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        load_config({"tensor_parallel": 2, **flags})
    assert str(refused.value.message).startswith(message)


def test_gpus_run_without_graphs_unless_these_are_asked_for() -> None:
    assert not load_config({"tensor_parallel": 2, "device": "cuda"}).cuda_graphs
    assert load_config({"device": "cuda"}).cuda_graphs


@pytest.mark.parametrize(
    ("family", "size", "changes", "message"),
    [
        ("llama", 3, {}, "3 ranks cannot share the model's num_attention_heads: 4\nhint: this model can be shared by 2 ranks"),
        ("llama", 4, {}, "4 ranks cannot share the model's num_key_value_heads: 2"),
        ("llama", 2, {"intermediate_size": 49}, "2 ranks cannot share the model's intermediate_size: 49\nhint: serve this model without"),
        ("qwen3_moe", 2, {}, "layers of this kind are not shared by ranks: Qwen3MoeDecoderLayer (model_type 'qwen3_moe')\nhint: leave out"),
        ("phi3", 2, {}, "layers of this kind are not shared by ranks: Phi3DecoderLayer"),
        ("llama", 2, {"hidden_act": "gelu"}, "layers of this kind are not shared by ranks: GELU"),
    ],
)
def test_models(family: str, size: int, changes: dict[str, Any], message: str) -> None:
    spec = describe_config(tiny_config(family, **changes), 2, False)
    with pytest.raises(FailedPrecondition) as refused:
        check_shares(spec, size)
    assert refused.value.message.startswith(message)
    assert refused.value.field == "tensor_parallel"
