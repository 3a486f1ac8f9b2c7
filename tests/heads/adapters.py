"""Random adapters, and what they amount to: W + scaling * B A, computed by hand. The scaling is the test's own number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polyhead.heads.model.spec import ModelSpec

ATTENTION = ("q_proj", "o_proj")


def random_adapter(
    spec: ModelSpec, rank: int = 3, seed: int = 0, targets: Sequence[str] = ATTENTION, ranks: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Both matrices for every linear of the head whose name ends in a target ("" means all); large enough to show."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (out_size, in_size) in spec.head_linears.items():
        if any(module.endswith(target) for target in targets):
            size = (ranks or {}).get(module, rank)
            tensors[f"{module}.lora_A.weight"] = 0.3 * torch.randn(size, in_size, generator=generator)
            tensors[f"{module}.lora_B.weight"] = 0.3 * torch.randn(out_size, size, generator=generator)
    return tensors


def merge_by_hand(head: Mapping[str, Tensor], adapter: Mapping[str, Tensor], scaling: float | Mapping[str, float]) -> dict[str, Tensor]:
    """The plain head that computes the same. `scaling` for all modules, or by module."""
    merged = {name: tensor.clone() for name, tensor in head.items()}
    for name, a in adapter.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            factor = scaling if isinstance(scaling, float) else scaling[module]
            merged[f"{module}.weight"] += factor * (adapter[f"{module}.lora_B.weight"].float() @ a.float())
    return merged
