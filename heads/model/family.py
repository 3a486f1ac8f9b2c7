"""Cuts a transformers decoder in two: a trunk that maps ids to boundary states, and heads that map states to outputs.

Both are the family's own classes with fewer layers, so its norms, multipliers, soft-caps and logit scaling apply unchanged.
Knows nothing of caches, batches, versions, or files other than a Checkpoint's; attention is set from outside (`set_attention`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import SCORE_NAME, OutputKind
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.skeleton import build_skeleton
from polyhead.heads.model.spec import ModelSpec

_PER_LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")  # read during forward, one entry per layer

class TrunkModule(nn.Module):
    """ids -> boundary states. The base model with layers [0, k) and no final norm; frozen."""

    def __init__(self, decoder: PreTrainedModel, spec: ModelSpec) -> None:
        super().__init__()
        self.decoder = decoder
        self.spec = spec

    @property
    def embedding(self) -> nn.Parameter:
        """(vocab, d_model): what tied heads share."""
        return cast(nn.Parameter, self.decoder.get_input_embeddings().weight)

    def forward(self, input_ids_1T: torch.Tensor, position_ids_1T: torch.Tensor, **attention: Any) -> torch.Tensor:
        """(1, T, d_model). `attention` reaches the attention function of every layer as keyword arguments."""
        output = self.decoder(input_ids=input_ids_1T, position_ids=position_ids_1T, use_cache=False, **attention)
        return cast(torch.Tensor, output.last_hidden_state)


class HeadModule(nn.Module):
    """Boundary states -> logits or scalars. The family's ForCausalLM with layers [k, L), or its base model and a `score`."""

    def __init__(self, decoder: PreTrainedModel, score: nn.Linear | None, spec: ModelSpec, output: OutputKind) -> None:
        super().__init__()
        self.decoder = decoder
        self.score = score
        self.spec = spec
        self.output = output

    @property
    def dtype(self) -> torch.dtype:
        """Of the layers; states are cast to it on entry."""
        return cast(torch.dtype, next(self.base.parameters()).dtype)

    def forward(
        self, states_1TD: torch.Tensor, position_ids_1T: torch.Tensor, rows: torch.Tensor | None = None, **attention: Any
    ) -> torch.Tensor:
        """(rows, vocab) logits or (rows,) scalars, for the asked positions of T only (None: all of them)."""
        states_1TD = states_1TD.to(self.dtype)
        call = {"inputs_embeds": states_1TD, "position_ids": position_ids_1T, "use_cache": False, **attention}
        if self.score is None:
            return cast(torch.Tensor, self.decoder(logits_to_keep=0 if rows is None else rows, **call).logits[0])
        hidden_TD = self.decoder(**call).last_hidden_state[0]
        return cast(torch.Tensor, self.score(hidden_TD if rows is None else hidden_TD[rows])[:, 0])

    @property
    def base(self) -> PreTrainedModel:
        """Layers and final norm, without an output."""
        return cast(PreTrainedModel, self.decoder if self.score is not None else getattr(self.decoder, self.spec.base))


def build_trunk(checkpoint: Checkpoint, spec: ModelSpec, dtype: torch.dtype, device: torch.device | str = "cpu") -> TrunkModule:
    """Load the trunk, one tensor at a time: never more than one of them in memory twice."""
    model = build_skeleton(spec.config)
    decoder = getattr(model, spec.base)
    _keep_layers(decoder, spec, 0, spec.split_layer)
    setattr(decoder, spec.norm, nn.Identity())
    tensors = {
        name.removeprefix(f"{spec.base}."): read_tensor(checkpoint, spec, name).to(device=device, dtype=dtype)
        for name in spec.trunk_names
    }
    decoder.load_state_dict(tensors, strict=True, assign=True)
    return TrunkModule(decoder.to(device), spec).eval()


def head_skeleton(spec: ModelSpec) -> PreTrainedModel:
    """The family's ForCausalLM with a head's layers only, without weights. All layers are made first: some families count them."""
    model = build_skeleton(spec.config)
    base = getattr(model, spec.base)
    _keep_layers(base, spec, spec.split_layer, spec.num_layers)
    setattr(base, spec.embedding, _NoEmbedding())
    if hasattr(base, "embedding_multiplier"):
        base.embedding_multiplier = 1.0  # granite applies it to inputs_embeds as well; the trunk already did
    return model


def build_head(
    spec: ModelSpec,
    tensors: Mapping[str, torch.Tensor],
    output: OutputKind,
    tied_embedding: nn.Parameter | None,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    skeleton: PreTrainedModel | None = None,
    output_dtype: torch.dtype | None = None,
) -> HeadModule:
    """A head of exactly these tensors (global names). Tensors that already have the dtype and device are used, not copied.

    `tied_embedding` is the trunk's `embedding` itself and is needed with OutputKind.TIED; it is shared and stays frozen. `skeleton`, which
    `head_skeleton` made, saves the time to make one for each of many heads; it is copied. An output of its own gets `output_dtype`
    where that is given.
    """
    check_schema(spec, tensors, output)
    model = head_skeleton(spec) if skeleton is None else copy.deepcopy(skeleton)
    base = getattr(model, spec.base)
    dtypes = {spec.output: output_dtype or dtype}
    local = {
        spec.to_local(name): tensors[name].detach().to(device=device, dtype=dtypes.get(name, dtype)) for name in spec.head_schema(output)
    }
    if output is OutputKind.SCORE:
        score = _bare_linear(local.pop(SCORE_NAME))
        base_local = {name.removeprefix(f"{spec.base}."): tensor for name, tensor in local.items()}
        base.load_state_dict(base_local, strict=True, assign=True)
        return HeadModule(base.to(device), score, spec, output).eval()
    if output is OutputKind.TIED:
        if tied_embedding is None:
            raise InvalidArgument("a tied head needs the trunk's embedding", field="tied_embedding")
        local[spec.output] = tied_embedding.requires_grad_(False)
    model.load_state_dict(local, strict=True, assign=True)
    return HeadModule(model.to(device), None, spec, output).eval()


def trainable_parameters(head: HeadModule) -> dict[str, nn.Parameter]:
    """A head's own parameters by global name, without a tied embedding. They require no gradients until the caller says so."""
    names = head.spec.head_schema(head.output)
    return {name: parameter for name, parameter in named_parameters(head).items() if name in names}


def state_of(head: HeadModule) -> dict[str, torch.Tensor]:
    """A head's tensors under the names of a head file, sharing the module's memory."""
    return {name: parameter.detach() for name, parameter in sorted(trainable_parameters(head).items())}


def set_attention(module: nn.Module, name: str) -> None:
    """Make every layer of a part use this attention function ("sdpa", "eager" or one registered with AttentionInterface)."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.config._attn_implementation = name


def named_parameters(head: HeadModule) -> dict[str, nn.Parameter]:
    spec, named = head.spec, dict(head.decoder.named_parameters())
    if head.score is None:
        return {spec.to_global(name): parameter for name, parameter in named.items()}
    layers = {spec.to_global(f"{spec.base}.{name}"): parameter for name, parameter in named.items()}
    return {**layers, SCORE_NAME: head.score.weight}


def check_schema(spec: ModelSpec, tensors: Mapping[str, torch.Tensor], output: OutputKind) -> None:
    """Raise InvalidArgument that names the first tensor that is missing, unknown or of another shape."""
    schema = spec.head_schema(output)
    if missing := sorted(schema.keys() - tensors.keys()):
        raise InvalidArgument(f"the head lacks {len(missing)} tensors, the first is {missing[0]!r}", field="tensors")
    if unknown := sorted(tensors.keys() - schema.keys()):
        raise InvalidArgument(f"not a tensor of a head with output {output.value!r}: {unknown[0][:120]!r}", field="tensors")
    for name, shape in schema.items():
        if tuple(tensors[name].shape) != shape:
            raise InvalidArgument(f"{name} must have shape {shape}, not {tuple(tensors[name].shape)}", field="tensors")


def _keep_layers(decoder: PreTrainedModel, spec: ModelSpec, start: int, stop: int) -> None:
    """Cut layers and the per-layer lists of the part's own config, and number what is left from 0."""
    layers = getattr(decoder, spec.layers)[start:stop]
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    setattr(decoder, spec.layers, layers)
    config = decoder.config  # one object, shared by all submodules of this part
    values: dict[str, Any] = {"num_hidden_layers": stop - start, "use_cache": False}
    for name in _PER_LAYER_LISTS:
        if isinstance(getattr(config, name, None), list) and len(getattr(config, name)) == spec.num_layers:
            values[name] = getattr(config, name)[start:stop]
    for name, value in values.items():
        setattr(config, name, value)


class _NoEmbedding(nn.Module):
    """Stands where a head's embedding was: a head takes states, never ids."""

    def forward(self, *args: Any) -> torch.Tensor:
        raise AssertionError("a head was called with token ids instead of boundary states")


def _bare_linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def read_tensor(checkpoint: Checkpoint, spec: ModelSpec, name: str) -> torch.Tensor:
    """The tensor of a global name in private memory, as the checkpoint stores it (per-expert tensors stacked)."""
    sources = spec.sources_of(name)
    shape = spec.shapes[name]
    if len(sources) == 1:
        tensor = checkpoint.read(sources[0])
        if tuple(tensor.shape) != shape:
            raise FailedPrecondition(f"{name} has shape {tuple(tensor.shape)}, the config says {shape}")
        return tensor
    first = checkpoint.info(sources[0])
    stacked = torch.empty((len(sources), *first.shape), dtype=first.dtype)
    if stacked.numel() != torch.Size(shape).numel():
        raise FailedPrecondition(f"{name} is made of {len(sources)} tensors of shape {first.shape}, the config says {shape}")
    for row, source in zip(stacked, sources, strict=True):
        checkpoint.read(source, out=row)
    return stacked.view(shape)


def initial_head(checkpoint: Checkpoint, spec: ModelSpec, output: OutputKind) -> dict[str, torch.Tensor]:
    """The model's own upper layers as a head's tensors; a `score` that the checkpoint does not have starts at zero."""
    return {name: _initial_tensor(checkpoint, spec, name, shape) for name, shape in spec.head_schema(output).items()}


def _initial_tensor(checkpoint: Checkpoint, spec: ModelSpec, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if name == SCORE_NAME:
        if name in checkpoint.tensors and checkpoint.info(name).shape == shape:
            return checkpoint.read(name)
        norm = spec.sources_of(f"{spec.base}.{spec.norm}.weight")[0]
        return torch.zeros(shape, dtype=checkpoint.info(norm).dtype)
    if name not in spec.shapes:  # an own output for a tied model starts as a copy of the embedding
        return read_tensor(checkpoint, spec, spec.embedding_name)
    return read_tensor(checkpoint, spec, name)
