"""A head out of a running server, as a torch module that can be trained. The trunk stays on the server, which is asked for its states."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig

from polyhead.client import Client, HeadKind
from polyhead.client.results.records import HeadVersion
from polyhead.client.weights.tensors import RawTensor
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.model.family import HeadModule, build_head, state_of, trainable_parameters
from polyhead.heads.model.spec import ModelSpec, describe_config


def head_to_start_from(client: Client, reference: str, kind: HeadKind) -> HeadVersion:
    """The served head that training of such a head starts from. Raises ValueError for one of another kind, and for an adapter.

    A value head may start from a preference head: both give one number.
    """
    head = client.head(reference)
    if head.kind is not kind and not (kind is HeadKind.VALUE and head.kind is HeadKind.PREFERENCE):
        raise ValueError(f"{reference!r} cannot start a {kind.value} head: it is a {head.kind.value} head")
    _check_whole(head)
    return head


def remote_spec(client: Client) -> ModelSpec:
    """What the served model's modules look like, from its config alone."""
    trunk = client.trunk()
    plain: dict[str, Any] = json.loads(trunk.config_json)
    return describe_config(AutoConfig.for_model(plain.pop("model_type"), **plain), trunk.split_layer, trunk.tied)


def pull_module(client: Client, reference: str, embedding: nn.Parameter | None = None) -> HeadModule:
    """The head `reference` ("policy", "preference@3") in float32, its own parameters ready for gradients. ValueError for an adapter.

    `embedding` is the frozen output matrix that a tied policy head reads; it is fetched if it is needed and not given.
    """
    served = client.head(reference)
    _check_whole(served)
    spec = remote_spec(client)
    tensors = {name: _to_torch(tensor) for name, tensor in client.pull_head(served.ref).items()}
    output = _output_of(spec, tensors)
    if output is OutputKind.TIED and embedding is None:
        embedding = pull_embedding(client)
    head = build_head(spec, tensors, output, embedding, torch.float32)
    for parameter in trainable_parameters(head).values():
        parameter.requires_grad_(True)
    return head


def pull_embedding(client: Client) -> nn.Parameter:
    """(vocab, d_model): the frozen output matrix of a tied model."""
    return nn.Parameter(torch.from_numpy(client.output_embedding()), requires_grad=False)


def weights_of(head: HeadModule) -> dict[str, torch.Tensor]:
    """What to push: the head's own tensors under their standard names."""
    return state_of(head)


def _check_whole(head: HeadVersion) -> None:
    """Raise ValueError for a LoRA head: its own tensors are no layers."""
    if head.manifest.lora is not None:
        hint = "hint: start from that head, train the adapter with PEFT, or push it merged (polyhead merge)"
        raise ValueError(f"{head.ref} is an adapter on {head.manifest.base}, and whole heads alone can be trained\n{hint}")


def _to_torch(tensor: RawTensor | NDArray[Any]) -> torch.Tensor:
    """Float32, in memory of its own."""
    array = tensor.to_float32() if isinstance(tensor, RawTensor) else tensor
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _output_of(spec: ModelSpec, tensors: dict[str, torch.Tensor]) -> OutputKind:
    if "score.weight" in tensors:
        return OutputKind.SCORE
    return OutputKind.OWN if spec.output in tensors else OutputKind.TIED
