"""Cuts a transformers decoder in two: a trunk that maps ids to boundary states, and heads that map states to outputs.

Both are the family's own classes with fewer layers, so its norms, multipliers, soft-caps and logit scaling apply unchanged.
Whether a family is supported is decided by what its config and modules say and by `check_composition`, not by a list.
Knows nothing of caches, batches, versions, or files other than a Checkpoint's; attention is set from outside (`set_attention`).

Names. Every tensor has a global name: what `state_dict()` of the unsplit ForCausalLM calls it
(`model.layers.24.mlp.up_proj.weight`), or `score.weight`. Head files use them. For dense families `save_pretrained` writes the
same names, but a mixture of experts keeps its experts fused here (`...mlp.experts.gate_up_proj`) where `save_pretrained` writes
one tensor per expert: transformers loads both forms, and `ModelSpec.sources` says which tensors of a file make up each one.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from polyhead.heads.checkpoint import Checkpoint, trunk_digest
from polyhead.heads.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.manifest import OutputKind

__all__ = [
    "HeadModule",
    "ModelSpec",
    "TrunkModule",
    "build_head",
    "build_skeleton",
    "build_trunk",
    "check_composition",
    "check_schema",
    "default_split_layer",
    "describe",
    "initial_head",
    "read_tensor",
    "set_attention",
    "state_of",
    "trainable_parameters",
    "trunk_id",
]

SCORE_NAME = "score.weight"
_LAYER_TYPES = ("full_attention", "sliding_attention")
_PER_LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")  # read during forward, one entry per layer
_CHECK_TOKENS = 48


@dataclass(frozen=True)
class ModelSpec:
    """What a family's modules look like and where they are cut. Made by `describe`; holds no weights."""

    config: Any  # the family's own config; every part gets a copy of its own
    split_layer: int
    num_layers: int
    d_model: int
    vocab_size: int
    context_length: int
    tied: bool  # the output projection is the embedding
    base: str  # attribute of the base model inside ForCausalLM: "model", "gpt_neox"
    layers: str  # attributes of the base model: "layers"
    norm: str  # "norm", "final_layer_norm"
    embedding: str  # "embed_tokens", "embed_in"
    output: str  # global name of the output matrix: "lm_head.weight"
    shapes: Mapping[str, tuple[int, ...]]  # global name -> shape, whole model, a tied output left out
    sources: Mapping[str, tuple[str, ...]]  # global name -> the checkpoint's tensors, in memory order

    @property
    def num_head_layers(self) -> int:
        return self.num_layers - self.split_layer

    @property
    def trunk_names(self) -> tuple[str, ...]:
        """Global names of the trunk: the embedding and layers [0, k)."""
        return tuple(name for name in sorted(self.shapes) if self._part(name) == "trunk")

    @property
    def head_names(self) -> tuple[str, ...]:
        """Global names of layers [k, L) and the final norm, without any output."""
        return tuple(name for name in sorted(self.shapes) if self._part(name) == "head")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Global names of the output projection that a checkpoint stores: empty if tied."""
        return tuple(name for name in sorted(self.shapes) if self._part(name) == "output")

    @property
    def trunk_sources(self) -> tuple[str, ...]:
        """The checkpoint's names of the trunk's tensors."""
        return tuple(sorted({source for name in self.trunk_names for source in self.sources_of(name)}))

    @property
    def embedding_name(self) -> str:
        return f"{self.base}.{self.embedding}.weight"

    def head_schema(self, output: OutputKind) -> dict[str, tuple[int, ...]]:
        """Exact names and shapes of a head's file with this output."""
        names = self.head_names + (self.output_names if output is OutputKind.OWN else ())
        if output is OutputKind.TIED and not self.tied:
            raise FailedPrecondition("the model's output is not its embedding, so no head can be tied\nhint: use output 'own'")
        schema = {name: self.shapes[name] for name in names}
        if output is OutputKind.OWN and self.tied:
            schema[self.output] = (self.vocab_size, self.d_model)
        if output is OutputKind.SCORE:
            schema[SCORE_NAME] = (1, self.d_model)
        return schema

    def to_local(self, name: str) -> str:
        """Global name -> name inside a head's own modules, whose layers start at 0."""
        return self._shift(name, -self.split_layer)

    def to_global(self, name: str) -> str:
        """The inverse of `to_local`."""
        return self._shift(name, self.split_layer)

    def _shift(self, name: str, by: int) -> str:
        match = self._layer_pattern.match(name)
        return f"{self.base}.{self.layers}.{int(match[1]) + by}{match[2]}" if match else name

    def _part(self, name: str) -> str:
        if match := self._layer_pattern.match(name):
            return "trunk" if int(match[1]) < self.split_layer else "head"
        if name.startswith(f"{self.base}.{self.norm}."):
            return "head"
        return "trunk" if name.startswith(f"{self.base}.") else "output"

    def sources_of(self, name: str) -> tuple[str, ...]:
        """The checkpoint's tensors that make up a global name; FailedPrecondition if it has none."""
        if name not in self.sources:
            raise FailedPrecondition(
                f"the checkpoint has no tensor for this part of the model: {name!r}\n"
                "hint: the file is incomplete, or it names its tensors in a way that transformers converts while loading"
            )
        return self.sources[name]

    @property
    def _layer_pattern(self) -> re.Pattern[str]:
        return re.compile(rf"^{re.escape(self.base)}\.{re.escape(self.layers)}\.(\d+)(\..*)$")


def default_split_layer(num_layers: int) -> int:
    """80 % of the layers: 64 of 80 (Sparrow), 24 of 30."""
    return min(max(round(0.8 * num_layers), 1), num_layers - 1)


def describe(checkpoint: Checkpoint, split_layer: int | None = None) -> ModelSpec:
    """Look at a checkpoint's config and module tree; raise FailedPrecondition with the reason if it cannot be split."""
    _refuse_by_config(checkpoint.config)
    spec = describe_config(checkpoint.config, split_layer, bool(checkpoint.config.tie_word_embeddings))
    if spec.tied and not _is_tied(checkpoint, spec.embedding_name, spec.output):
        spec = describe_config(checkpoint.config, split_layer, False)
    model = build_skeleton(checkpoint.config)
    return replace(spec, sources=_find_sources(_renamed(checkpoint, model), spec.shapes, spec.base))


def describe_config(config: Any, split_layer: int | None, tied: bool) -> ModelSpec:
    """A spec from the config alone, without a checkpoint behind it: what a trainer needs that never holds the trunk."""
    num_layers = int(config.num_hidden_layers)
    if split_layer is None:
        split_layer = default_split_layer(num_layers)
    if not 0 < split_layer < num_layers:
        message = f"split_layer must lie inside the model's {num_layers} layers: {split_layer}"
        raise InvalidArgument(message, field="split_layer")
    model = build_skeleton(config)
    _refuse_by_modules(model, config)
    base, layers, norm, embedding = _anatomy(model, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    output = _output_name(model)
    if tied:
        del shapes[output]
    return ModelSpec(
        config=config,
        split_layer=split_layer,
        num_layers=num_layers,
        d_model=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        context_length=int(config.max_position_embeddings),
        tied=tied,
        base=base,
        layers=layers,
        norm=norm,
        embedding=embedding,
        output=output,
        shapes=shapes,
        sources={},
    )


def trunk_id(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """The trunk's identity (64 hex digits). Reads and hashes all of the trunk's tensors once."""
    return trunk_digest(checkpoint, spec.split_layer, {name: spec.sources_of(name) for name in spec.trunk_names})


# Refusals: each names what the model has and why it cannot be split.


def _refusal(config: Any, reason: str) -> FailedPrecondition:
    return FailedPrecondition(f"{reason}: model_type {config.model_type!r}")


def _refuse_by_config(config: Any) -> None:
    if config.is_encoder_decoder:
        raise _refusal(config, "only decoders can be split, this is an encoder-decoder")
    if getattr(config, "quantization_config", None) is not None:
        raise _refusal(config, "the checkpoint is quantised; give the plain one and quantise the trunk when serving")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refusal(config, "transformers has no causal language model for this config")
    if config.get_text_config() is not config:
        raise _refusal(config, "a model of several towers cannot be split; use its text model")
    if config.model_type == "falcon":
        raise _refusal(config, "the family does not pass attention arguments on to its attention function")
    if found := sorted(_rope_types(getattr(config, "rope_parameters", None)) & {"longrope", "dynamic"}):
        raise _refusal(
            config, f"rope frequencies depend on the longest position in a batch ({found[0]}), so no state is reusable"
        )
    if unknown := sorted(set(getattr(config, "layer_types", None) or ()) - set(_LAYER_TYPES)):
        raise _refusal(config, f"layers of another kind than full or sliding-window attention ({unknown[0]})")
    if getattr(config, "num_kv_shared_layers", 0):
        raise _refusal(config, "layers share keys and values across the cut")
    if getattr(config, "hidden_size_per_layer_input", 0):
        raise _refusal(config, "layers read per-layer embeddings, which a boundary state does not carry")
    if getattr(config, "use_bidirectional_attention", False):
        raise _refusal(config, "attention is not causal")


def _rope_types(rope: Any) -> set[str]:
    if not isinstance(rope, dict):
        return set()
    own = {str(rope[key]) for key in ("rope_type", "type") if key in rope}
    return own.union(*(_rope_types(value) for value in rope.values()))


def _refuse_by_modules(model: PreTrainedModel, config: Any) -> None:
    if not any("Rotary" in type(module).__name__ for module in model.modules()):
        raise _refusal(config, "positions are not rotary (learned, ALiBi or none), so a head cannot place boundary states")
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise _refusal(config, "attention is not causal")
    for conversion in get_model_conversion_mapping(model, add_legacy=False):
        if type(conversion) is not WeightRenaming and not _stacks_experts(conversion):
            raise _refusal(
                config, f"transformers computes this family's tensors while loading ({conversion.source_patterns[0]})"
            )


def _stacks_experts(conversion: Any) -> bool:
    """The one conversion that `_expert_names` repeats: separate gate, up and down matrices of each expert."""
    return (conversion.source_patterns, conversion.target_patterns) in (
        (["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"], ["mlp.experts.gate_up_proj"]),
        (["mlp.experts.*.down_proj.weight"], ["mlp.experts.down_proj"]),
    )


def _anatomy(model: PreTrainedModel, config: Any) -> tuple[str, str, str, str]:
    """(base, layers, norm, embedding): attribute names; refuses a base model that has any other part with weights."""
    decoder = getattr(model, model.base_model_prefix, None)
    if not isinstance(decoder, PreTrainedModel):
        raise _refusal(config, "the model has no base model of its own")
    children = dict(decoder.named_children())
    layers = [
        name for name, child in children.items() if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    embedding = [name for name, child in children.items() if isinstance(child, nn.Embedding)]
    with_weights = [name for name, child in children.items() if next(child.parameters(), None) is not None]
    rest = [name for name in with_weights if name not in layers + embedding]
    if (len(layers), len(embedding), len(rest)) != (1, 1, 1):
        raise _refusal(config, f"the base model is not embedding, layers and final norm but {', '.join(with_weights)}")
    return model.base_model_prefix, layers[0], rest[0], embedding[0]


def _output_name(model: PreTrainedModel) -> str:
    output = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is output]
    if not names:
        raise _refusal(model.config, "the model has no output projection")
    return f"{names[0]}.weight"


def _is_tied(checkpoint: Checkpoint, embedding: str, output: str) -> bool:
    """As transformers decides for a config that says so: tied, unless the file holds both and they differ."""
    if output not in checkpoint.tensors or embedding not in checkpoint.tensors:
        return True
    return checkpoint.sha256(output) == checkpoint.sha256(embedding)


def _renamed(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, str]:
    """Name as transformers would rename it while loading -> name in the checkpoint (gpt_neox: embed_out -> lm_head)."""
    renamings = [each for each in get_model_conversion_mapping(model, add_legacy=False) if type(each) is WeightRenaming]
    renamed: dict[str, str] = {}
    for source in checkpoint.names:
        name = source
        for renaming in renamings:
            name = renaming.rename_source_key(name)[0]
        renamed[name] = source
    return renamed


def _find_sources(renamed: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], base: str) -> dict[str, tuple[str, ...]]:
    """Which of the checkpoint's tensors make up each of the model's; none for those it lacks: a trunk folder has no head."""
    sources: dict[str, tuple[str, ...]] = {}
    for name, shape in shapes.items():
        plain = name.removeprefix(f"{base}.")  # saved from the base model alone
        for candidate in ((name,), (plain,), _expert_names(name, shape), _expert_names(plain, shape)):
            if candidate and all(each in renamed for each in candidate):
                sources[name] = tuple(renamed[each] for each in candidate)
                break
    return sources


def _expert_names(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The per-expert tensors that one fused tensor holds, in its memory order: (E, 2 I, D) is gate 0, up 0, gate 1, ..."""
    for fused, parts in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
        stem = name.removesuffix(fused)
        if stem != name and stem.endswith(".experts."):
            return tuple(f"{stem}{expert}.{part}.weight" for expert in range(shape[0]) for part in parts)
    return ()


# Reading weights by global name.


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


# Building the parts.


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
        return cast(torch.dtype, next(self._base().parameters()).dtype)

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

    def _base(self) -> PreTrainedModel:
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


def build_head(
    spec: ModelSpec,
    tensors: Mapping[str, torch.Tensor],
    output: OutputKind,
    tied_embedding: nn.Parameter | None,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> HeadModule:
    """A head of exactly these tensors (global names). Tensors that already have the dtype and device are used, not copied.

    `tied_embedding` is the trunk's `embedding` itself and is needed with OutputKind.TIED; it is shared and stays frozen.
    """
    check_schema(spec, tensors, output)
    model = build_skeleton(spec.config)
    base = getattr(model, spec.base)
    _keep_layers(base, spec, spec.split_layer, spec.num_layers)
    setattr(base, spec.embedding, _NoEmbedding())
    if hasattr(base, "embedding_multiplier"):
        base.embedding_multiplier = 1.0  # granite applies it to inputs_embeds as well; the trunk already did
    local = {spec.to_local(name): tensors[name].detach().to(device=device, dtype=dtype) for name in spec.head_schema(output)}
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
    return {name: parameter for name, parameter in _named_parameters(head).items() if name in names}


def state_of(head: HeadModule) -> dict[str, torch.Tensor]:
    """A head's tensors under the names of a head file, sharing the module's memory."""
    return {name: parameter.detach() for name, parameter in sorted(trainable_parameters(head).items())}


def set_attention(module: nn.Module, name: str) -> None:
    """Make every layer of a part use this attention function ("sdpa", "eager" or one registered with AttentionInterface)."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            part.config._attn_implementation = name


def _named_parameters(head: HeadModule) -> dict[str, nn.Parameter]:
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


_BUILDING = threading.Lock()


def build_skeleton(config: Any, kind: Any = None) -> PreTrainedModel:
    """A model of the family (its ForCausalLM unless `kind` is given) with meta parameters and real buffers (rope frequencies,
    embedding scales), on a config of its own."""
    config = copy.deepcopy(config)
    config._attn_implementation = None  # let the class choose its plain default: sdpa where it has it
    with _BUILDING, _parameters_on_meta():
        return cast(PreTrainedModel, (kind or MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])(config)).eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made by this thread go to the meta device when a module registers them; nothing is initialised.

    Memory of a parameter is reserved for a moment, never touched: a 70B-shaped model costs none. Other threads are unaffected.
    """
    owner = threading.get_ident()
    register, init_weights = nn.Module.register_parameter, PreTrainedModel.init_weights

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and threading.get_ident() == owner:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(module, name, param)

    def init_nothing(model: PreTrainedModel) -> None:
        if threading.get_ident() != owner:
            init_weights(model)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment, method-assign]
    PreTrainedModel.init_weights = init_nothing
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        PreTrainedModel.init_weights = init_weights


# The check at load.


def check_composition(trunk: TrunkModule, head: HeadModule) -> None:
    """Raise FailedPrecondition unless head(trunk(ids)) equals the unsplit model's logits bit for bit, with plain attention.

    `head` is a policy head. The unsplit model is assembled from the very same parameters, so nothing is held twice (a head of
    another dtype than the trunk's is copied for the check). Call it before the trunk is quantised and before other threads use
    the parts: their attention is switched for the check. Also checks that keyword arguments of the call reach the attention
    function of every layer, and that no mask does.
    """
    if head.output is OutputKind.SCORE:
        raise InvalidArgument("the composition is checked with a policy head, not a scalar one", field="head")
    spec, device = trunk.spec, trunk.embedding.device
    head = _at_dtype(head, trunk)
    num_tokens = min(_CHECK_TOKENS, spec.context_length)
    ids = torch.randint(0, spec.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.arange(num_tokens, device=device)[None]
    whole = _whole_model(trunk, head)
    with torch.no_grad(), _attention_of(whole.config._attn_implementation, trunk, head):
        composed = head(trunk(ids, positions), positions)
        unsplit = whole(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
    if not torch.equal(composed, unsplit):
        difference = (composed - unsplit).abs().max().item()
        raise _refusal(spec.config, f"head(trunk(ids)) differs from the unsplit model, by up to {difference:.3g} in the logits")
    _check_arguments(trunk, head, ids, positions)


def _at_dtype(head: HeadModule, trunk: TrunkModule) -> HeadModule:
    """The head itself, or a copy of it at the trunk's dtype."""
    dtype, device = trunk.embedding.dtype, trunk.embedding.device
    if head.dtype == dtype:
        return head
    return build_head(head.spec, state_of(head), head.output, trunk.embedding, dtype, device)


def _whole_model(trunk: TrunkModule, head: HeadModule) -> PreTrainedModel:
    """The unsplit ForCausalLM whose parameters are those of the parts."""
    spec = trunk.spec
    model = build_skeleton(spec.config)
    lower = {f"{spec.base}.{name}": parameter for name, parameter in trunk.decoder.named_parameters()}
    model.load_state_dict(lower | _named_parameters(head), strict=True, assign=True)
    return cast(PreTrainedModel, model.to(trunk.embedding.device))


@contextlib.contextmanager
def _attention_of(name: str, *parts: TrunkModule | HeadModule) -> Iterator[None]:
    before = [part.decoder.config._attn_implementation for part in parts]
    for part in parts:
        set_attention(part, name)
    try:
        yield
    finally:
        for part, old in zip(parts, before, strict=True):
            set_attention(part, old)


@dataclass
class _Probe:
    """What the attention function saw in one call."""

    layers: list[int] = field(default_factory=list)  # layer_idx in call order
    has_mask: bool = False
    arguments: set[str] = field(default_factory=set)


def _check_arguments(trunk: TrunkModule, head: HeadModule, ids: torch.Tensor, positions: torch.Tensor) -> None:
    probes = _Probe(), _Probe()
    with torch.no_grad(), _attention_of("polyhead_probe", trunk, head):
        states = trunk(ids, positions, probe=probes[0])
        head(states, positions, rows=positions[0, -1:], probe=probes[1])
    for probe, count in zip(probes, (trunk.spec.split_layer, trunk.spec.num_head_layers), strict=True):
        if probe.layers != list(range(count)):
            raise _refusal(trunk.spec.config, "the family does not pass attention arguments on to its attention function")
        if probe.has_mask:
            raise _refusal(trunk.spec.config, "the family builds an attention mask that was not asked for")


def _probe_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function that answers zeros and notes what it was given."""
    probe = arguments.pop("probe", None)
    if isinstance(probe, _Probe):
        probe.layers.append(cast(int, module.layer_idx))
        probe.has_mask |= attention_mask is not None
        probe.arguments |= {name for name, argument in arguments.items() if argument is not None}
    batch, num_heads, num_tokens, _ = query.shape
    return query.new_zeros(batch, num_tokens, num_heads, value.shape[-1]), None


AttentionInterface.register("polyhead_probe", _probe_attention)
