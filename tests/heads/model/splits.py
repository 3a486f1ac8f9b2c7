"""Tiny models cut in two, and the whole ones that they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model import family
from polyhead.heads.model import spec as spec_module
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import HeadModule, TrunkModule
from polyhead.heads.model.spec import ModelSpec
from tests.heads.models import VOCAB, random_ids, save_tiny

LENGTH = 40  # five windows of 8
F32 = torch.float32


@dataclass
class Split:
    whole: PreTrainedModel
    checkpoint: Checkpoint
    spec: ModelSpec
    trunk: TrunkModule
    head: HeadModule


def split_tiny(name: str, folder: Path, split_layer: int | None = 2, **overrides: Any) -> Split:
    whole = save_tiny(name, folder, **overrides)
    checkpoint = Checkpoint.open(folder)
    spec = spec_module.describe(checkpoint, split_layer)
    trunk = family.build_trunk(checkpoint, spec, F32)
    return Split(whole, checkpoint, spec, trunk, policy_head(checkpoint, spec, trunk))


def policy_head(checkpoint: Checkpoint, spec: ModelSpec, trunk: TrunkModule) -> HeadModule:
    output = OutputKind.TIED if spec.tied else OutputKind.OWN
    tensors = family.initial_head(checkpoint, spec, output)
    return family.build_head(spec, tensors, output, trunk.embedding if spec.tied else None, F32)


def positions(length: int = LENGTH) -> torch.Tensor:
    return torch.arange(length)[None]


@torch.no_grad()
def assert_composes(split: Split, length: int = LENGTH) -> None:
    ids = random_ids(length)
    composed = split.head(split.trunk(ids, positions(length)), positions(length))
    unsplit = split.whole(input_ids=ids, use_cache=False).logits[0]
    assert composed.shape == (length, VOCAB)
    assert torch.equal(composed, unsplit)
