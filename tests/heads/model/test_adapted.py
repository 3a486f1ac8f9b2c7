"""An adapter beside its base computes what the merged head computes, and shares every weight of the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.lora import LoraAdapter
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.model.adapted import Adapter, AdapterRows, HeadGroup, build_lora_head
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import HeadModule, build_head, build_trunk, initial_head
from polyhead.heads.model.merge import merge
from polyhead.heads.model.spec import ModelSpec, describe, trunk_id
from polyhead.heads.model.split import split, write_head_folder
from tests.cases import in_turn
from tests.heads.adapters import merge_by_hand, random_adapter
from tests.heads.models import FAMILIES, random_ids, save_tiny

NUM_TOKENS = 12


class Base:
    """A tiny family's head with this output."""

    def __init__(self, family: str, folder: Path, output: OutputKind | None = None) -> None:
        save_tiny(family, folder)
        self.checkpoint = Checkpoint.open(folder)
        self.spec: ModelSpec = describe(self.checkpoint, 2)
        self.output = output or (OutputKind.TIED if self.spec.tied else OutputKind.OWN)
        self.embedding = build_trunk(self.checkpoint, self.spec, torch.float32).embedding
        self.tensors = initial_head(self.checkpoint, self.spec, self.output)
        if self.output is OutputKind.SCORE:
            self.tensors["score.weight"] = torch.randn(1, self.spec.d_model, generator=torch.Generator().manual_seed(5))
        self.head = self.build(self.tensors)

    def build(self, tensors: dict[str, Tensor]) -> HeadModule:
        return build_head(self.spec, tensors, self.output, self.embedding, torch.float32)


@torch.no_grad()
def run(head: HeadModule) -> Tensor:
    states = torch.randn(1, NUM_TOKENS, head.spec.d_model, generator=torch.Generator().manual_seed(9))
    return head(states, torch.arange(NUM_TOKENS)[None])


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-4), (found - wanted).abs().max()


@pytest.mark.parametrize(("family", "output"), in_turn(sorted(FAMILIES), [None, OutputKind.SCORE]))
def test_beside_equals_merged(family: str, output: OutputKind | None, tmp_path: Path) -> None:
    """Every linear of every family, with logits and with a score."""
    base = Base(family, tmp_path, output)
    tensors = random_adapter(base.spec, rank=3, targets=("",))
    adapter = Adapter.of(tensors, LoraAdapter(rank=3, alpha=1.5), torch.float32, "cpu")
    before = run(base.head)
    found, wanted = run(build_lora_head(base.head, adapter)), run(base.build(merge_by_hand(base.tensors, tensors, 0.5)))
    assert_close(found, wanted)
    assert (found - before).abs().max() > 0.01, "the adapter changes the head"
    assert torch.equal(run(base.head), before), "the base is untouched"
    assert torch.equal(HeadGroup(base.head)([], *_inputs(base)), before), "a group without adapters is the base, bit for bit"


def test_rslora_and_patterns(tmp_path: Path) -> None:
    base = Base("llama", tmp_path)
    odd, other = "model.layers.3.self_attn.q_proj", "model.layers.2.self_attn.o_proj"
    tensors = random_adapter(base.spec, rank=4, ranks={odd: 2})
    lora = LoraAdapter(rank=4, alpha=6.0, use_rslora=True, rank_pattern={odd: 2}, alpha_pattern={other: 1.0})
    scaling = dict.fromkeys(base.spec.head_linears, 6.0 / 2.0) | {odd: 6.0 / 2**0.5, other: 1.0 / 2.0}
    found = run(build_lora_head(base.head, Adapter.of(tensors, lora, torch.float32, "cpu")))
    assert_close(found, run(base.build(merge_by_hand(base.tensors, tensors, scaling))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_served_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    """float32 layers: the adapter's numbers are widened, nothing is rounded again."""
    base = Base("llama", tmp_path)
    tensors = {name: tensor.to(dtype) for name, tensor in random_adapter(base.spec).items()}
    found = run(build_lora_head(base.head, Adapter.of(tensors, LoraAdapter(3, 3.0), torch.float32, "cpu")))
    assert_close(found, run(base.build(merge_by_hand(base.tensors, tensors, 1.0))))


def test_ten_adapters_hold_no_weight_of_the_base(tmp_path: Path) -> None:
    base = Base("llama", tmp_path)
    own = {parameter.data_ptr() for parameter in base.head.parameters()}
    modules = [HeadGroup(base.head)._module]
    for seed in range(10):
        tensors = random_adapter(base.spec, rank=1, seed=seed)
        adapter = Adapter.of(tensors, LoraAdapter(1, 1.0), torch.float32, "cpu")
        assert adapter.num_bytes == sum(4 * tensor.numel() for tensor in tensors.values())
        modules.append(build_lora_head(base.head, adapter))
    for module in modules:
        assert {parameter.data_ptr() for parameter in module.parameters()} == own
        assert {buffer.data_ptr() for buffer in module.buffers()} == {buffer.data_ptr() for buffer in base.head.buffers()}


def test_a_group_gives_each_row_its_own_adapter(tmp_path: Path) -> None:
    """Two adapters and the base's own rows in one pass; rows of one token each, so that attention mixes nothing."""
    base = Base("llama", tmp_path)
    first, second = (Adapter.of(random_adapter(base.spec, seed=seed), LoraAdapter(3, 3.0), torch.float32, "cpu") for seed in (1, 2))
    group = HeadGroup(base.head)
    states, positions = _inputs(base)
    same = states[:, :1].expand(-1, 1, -1)
    with torch.no_grad():
        heads = (build_lora_head(base.head, first), base.head, build_lora_head(base.head, second))
        alone = [head(same, positions[:, :1]) for head in heads]
        triple = same.expand(-1, 3, -1)
        mask = torch.eye(3, dtype=torch.bool)[None, None]
        rows = [AdapterRows(slice(0, 1), first), AdapterRows(slice(2, 3), second)]
        together = group(rows, triple, torch.zeros(1, 3, dtype=torch.long), attention_mask=mask)
    for found, wanted in zip(together, alone, strict=True):
        assert_close(found, wanted[0])
    assert not torch.allclose(together[0], together[2], atol=1e-2)


def test_a_merged_folder_gives_the_same_logits(tmp_path: Path) -> None:
    """trunk + base + adapter -> a folder that transformers loads; without the base, or with one too many, it is refused."""
    save_tiny("llama", tmp_path / "model")
    facts = split(tmp_path / "model", tmp_path / "parts", split_layer=2)
    checkpoint = Checkpoint.open(tmp_path / "model")
    spec = describe(checkpoint, 2)
    assert facts.trunk_id == trunk_id(checkpoint, spec)
    tensors = random_adapter(spec, targets=("",))
    manifest = HeadManifest(
        HeadKind.POLICY, facts.trunk_id, 2, spec.num_layers, OutputKind.OWN, base="policy@1", lora=LoraAdapter(rank=3, alpha=1.5)
    )
    write_head_folder(tmp_path / "lora", tensors, manifest)
    trunk, base = tmp_path / "parts" / "trunk", tmp_path / "parts" / "heads" / "policy"
    merge(trunk, tmp_path / "lora", tmp_path / "whole", base)
    with pytest.raises(FailedPrecondition, match="built on policy@1"):
        merge(trunk, tmp_path / "lora", tmp_path / "other")
    with pytest.raises(InvalidArgument, match="no LoRA head"):
        merge(trunk, base, tmp_path / "other", base)
    with pytest.raises(FailedPrecondition, match="no plain head"):
        merge(trunk, tmp_path / "lora", tmp_path / "other", tmp_path / "lora")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    own_trunk, ids = build_trunk(checkpoint, spec, torch.float32), random_ids(20)
    head = build_head(spec, initial_head(checkpoint, spec, OutputKind.OWN), OutputKind.OWN, None, torch.float32)
    adapted = build_lora_head(head, Adapter.of(tensors, manifest.lora or LoraAdapter(1, 1.0), torch.float32, "cpu"))
    positions = torch.arange(20)[None]
    with torch.no_grad():
        assert_close(adapted(own_trunk(ids, positions), positions), whole(ids).logits[0])


def _inputs(base: Base) -> tuple[Tensor, Tensor]:
    states = torch.randn(1, NUM_TOKENS, base.spec.d_model, generator=torch.Generator().manual_seed(9))
    return states, torch.arange(NUM_TOKENS)[None]
