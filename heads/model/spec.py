"""What a decoder's modules look like and where they are cut: found in its config and its module tree, without weights.

Whether a family is supported is decided by what these say, and by composition.py at load, not by a list; a refusal names its reason.

Names. Every tensor has a global name: what `state_dict()` of the unsplit ForCausalLM calls it
(`model.layers.24.mlp.up_proj.weight`), or `score.weight`. Head files use them. For dense families `save_pretrained` writes the
same names, but a mixture of experts keeps its experts fused here (`...mlp.experts.gate_up_proj`) where `save_pretrained` writes
one tensor per expert: transformers loads both forms, and `ModelSpec.sources` says which tensors of a file make up each one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import SCORE_NAME, OutputKind
from polyhead.heads.model.checkpoint import Checkpoint, trunk_digest
from polyhead.heads.model.skeleton import build_skeleton

_LAYER_TYPES = ("full_attention", "sliding_attention")


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
    linears: Mapping[str, tuple[int, int]]  # global module name -> (out, in) of every linear; experts left out

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
    def head_linears(self) -> dict[str, tuple[int, int]]:
        """Global module names of the linears in layers [k, L): what an adapter may stand beside."""
        return {name: sizes for name, sizes in self.linears.items() if self._part(f"{name}.weight") == "head"}

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
        linears=_linears(model),
    )


def trunk_id(checkpoint: Checkpoint, spec: ModelSpec) -> str:
    """The trunk's identity (64 hex digits). Reads and hashes all of the trunk's tensors once."""
    return trunk_digest(checkpoint, spec.split_layer, {name: spec.sources_of(name) for name in spec.trunk_names})


# Refusals: each names what the model has and why it cannot be split.


def refusal(config: Any, reason: str) -> FailedPrecondition:
    return FailedPrecondition(f"{reason}: model_type {config.model_type!r}")


def _refuse_by_config(config: Any) -> None:
    if config.is_encoder_decoder:
        raise refusal(config, "only decoders can be split, this is an encoder-decoder")
    if getattr(config, "quantization_config", None) is not None:
        raise refusal(config, "the checkpoint is quantised; give the plain one and quantise the trunk when serving")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refusal(config, "transformers has no causal language model for this config")
    if config.get_text_config() is not config:
        raise refusal(config, "a model of several towers cannot be split; use its text model")
    if config.model_type == "falcon":
        raise refusal(config, "the family does not pass attention arguments on to its attention function")
    if found := sorted(_rope_types(getattr(config, "rope_parameters", None)) & {"longrope", "dynamic"}):
        raise refusal(
            config, f"rope frequencies depend on the longest position in a batch ({found[0]}), so no state is reusable"
        )
    if unknown := sorted(set(getattr(config, "layer_types", None) or ()) - set(_LAYER_TYPES)):
        raise refusal(config, f"layers of another kind than full or sliding-window attention ({unknown[0]})")
    if getattr(config, "num_kv_shared_layers", 0):
        raise refusal(config, "layers share keys and values across the cut")
    if getattr(config, "hidden_size_per_layer_input", 0):
        raise refusal(config, "layers read per-layer embeddings, which a boundary state does not carry")
    if getattr(config, "use_bidirectional_attention", False):
        raise refusal(config, "attention is not causal")


def _rope_types(rope: Any) -> set[str]:
    if not isinstance(rope, dict):
        return set()
    own = {str(rope[key]) for key in ("rope_type", "type") if key in rope}
    return own.union(*(_rope_types(value) for value in rope.values()))


def _refuse_by_modules(model: PreTrainedModel, config: Any) -> None:
    if not any("Rotary" in type(module).__name__ for module in model.modules()):
        raise refusal(config, "positions are not rotary (learned, ALiBi or none), so a head cannot place boundary states")
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise refusal(config, "attention is not causal")
    for conversion in get_model_conversion_mapping(model, add_legacy=False):
        if type(conversion) is not WeightRenaming and not _stacks_experts(conversion):
            raise refusal(
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
        raise refusal(config, "the model has no base model of its own")
    children = dict(decoder.named_children())
    layers = [
        name for name, child in children.items() if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    embedding = [name for name, child in children.items() if isinstance(child, nn.Embedding)]
    with_weights = [name for name, child in children.items() if next(child.parameters(), None) is not None]
    rest = [name for name in with_weights if name not in layers + embedding]
    if (len(layers), len(embedding), len(rest)) != (1, 1, 1):
        raise refusal(config, f"the base model is not embedding, layers and final norm but {', '.join(with_weights)}")
    return model.base_model_prefix, layers[0], rest[0], embedding[0]


def _linears(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """A linear inside an expert sees the tokens that were routed to it, in another order: no adapter can be told which are its own."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and ".experts." not in name
    }


def _output_name(model: PreTrainedModel) -> str:
    output = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is output]
    if not names:
        raise refusal(model.config, "the model has no output projection")
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
