"""Models of random weights, made tensor by tensor where they are served: for transformers, and for our engine, from the same numbers.

A tensor follows from its global name and the seed. Ours is made layer by layer: a layer is filled, taken over by our own layers (and so
quantised, for int8) and emptied before the next, so that a float copy of the whole never exists. Knows no measure.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.format.pauses import Pause, pausing
from polyhead.heads.model.family import HeadModule, TrunkModule
from polyhead.heads.model.skeleton import build_skeleton
from polyhead.heads.model.spec import ModelSpec, describe_config
from polyhead.server.engine.blocks.cache import CacheShape
from polyhead.server.engine.build import EngineConfig, KvSetup, assemble, attention_for, kit_for
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.layers.cuda.varlen_probe import QueryHeads
from polyhead.server.engine.layers.fast import FastHead, FastTrunk
from polyhead.server.engine.layers.kits import Kit
from polyhead.server.engine.layers.layer_calls import LayerCall
from polyhead.server.engine.layers.llama import rotations, take_layers
from polyhead.server.engine.work.live import LiveHead, ServedHead

SPREAD = 0.02  # standard deviation of a matrix's numbers: what such models start their training with
TEMPLATE = "bench@1"
VIOLATED, FOLLOWED = 3, 4
ROLES = {
    "policy": HeadKind.POLICY,
    "reference": HeadKind.POLICY,
    "rule": HeadKind.RULE,
    "preference": HeadKind.PREFERENCE,
    "value": HeadKind.VALUE,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a llama-like model with an output of its own."""

    name: str
    d_model: int
    d_inner: int
    num_layers: int
    split_layer: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    spread: float = SPREAD

    def config(self, num_layers: int, context: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            intermediate_size=self.d_inner,
            num_hidden_layers=num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )

    def spec(self, context: int) -> ModelSpec:
        return describe_config(self.config(self.num_layers, context), self.split_layer, tied=False)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads


TINY = Shape("tiny", 64, 96, 5, 4, 4, 2, 97, spread=0.2)
LLAMA_8B = Shape("8b", 4096, 14336, 32, 26, 32, 8, 128256)
LLAMA_70B = Shape("70b", 8192, 28672, 80, 64, 64, 8, 128256)


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """Every tensor of one model by its global name."""

    seed: int
    spread: float
    dtype: torch.dtype
    device: torch.device

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Norms vary around one, so that one which is left out shows."""
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()) + self.seed)
        noise = torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)
        return noise.mul_(0.1).add_(1.0) if len(shape) == 1 else noise.mul_(self.spread)

    def fill(self, module: nn.Module, prefix: str) -> None:
        """Give every parameter of a module its tensor."""
        names = [name for name, _ in module.named_parameters()]
        tensors = {name: self.tensor(f"{prefix}{name}", tuple(module.get_parameter(name).shape)) for name in names}
        module.load_state_dict(tensors, strict=False, assign=True)
        module.requires_grad_(False)


def unsplit_model(shape: Shape, context: int, weights: RandomWeights) -> LlamaForCausalLM:
    """transformers' own, whole."""
    model = cast(LlamaForCausalLM, build_skeleton(shape.config(shape.num_layers, context)))
    weights.fill(model, "")
    model.generation_config.eos_token_id = None
    return cast(LlamaForCausalLM, model.to(weights.device)).eval()


@dataclass(slots=True)
class RandomEngine:
    """Our engine on random weights, with what heads are made of."""

    shape: Shape
    spec: ModelSpec
    engine: Engine
    kit: Kit  # of heads
    weights: RandomWeights

    def head(self, name: str, kind: HeadKind, version: int, seed: int) -> ServedHead:
        """A head of its own weights; with the trunk's seed a policy is the unsplit model's."""
        output = OutputKind.OWN if kind.has_logits else OutputKind.SCORE
        module = random_head(self, output, replace(self.weights, seed=seed))
        manifest = HeadManifest(
            kind=kind,
            trunk_id="0" * 64,
            split_layer=self.spec.split_layer,
            num_layers=self.spec.num_layers,
            output=output,
            violated_token_id=VIOLATED,
            followed_token_id=FOLLOWED,
            template=TEMPLATE,
        )
        return ServedHead(name, version, manifest, LiveHead(f"{name}-{version}-{seed}", module, module.num_bytes))

    def roles(self) -> dict[str, ServedHead]:
        """Five heads that differ in every layer."""
        return {name: self.head(name, kind, 1, self.weights.seed + number) for number, (name, kind) in enumerate(ROLES.items())}


def random_engine(shape: Shape, weights: RandomWeights, config: EngineConfig) -> RandomEngine:
    """Without heads, not started."""
    context = config.max_context
    spec = shape.spec(context)
    cache = CacheShape(shape.num_kv_heads, shape.head_dim, config.block_size, weights.dtype, weights.device)
    setup = KvSetup(cache, attention_for(cache, QueryHeads(shape.num_heads // shape.num_kv_heads)))
    trunk = random_trunk(shape, spec, context, weights, kit_for(config.trunk_quantization, config, setup))
    engine = assemble(trunk, setup, config, frozenset())
    return RandomEngine(shape, spec, engine, kit_for(config.head_quantization, config, setup), weights)


def random_trunk(shape: Shape, spec: ModelSpec, context: int, weights: RandomWeights, kit: Kit) -> FastTrunk:
    skeleton = build_skeleton(shape.config(shape.split_layer, context))
    decoder = cast(Any, skeleton).model
    decoder.norm = nn.Identity()
    weights.fill(decoder.embed_tokens, f"{spec.base}.{spec.embedding}.")
    decoder.rotary_emb.to(weights.device)
    with pausing(_filler(decoder.layers, spec, 0, weights)):
        layers = take_layers(decoder, spec, _calls(shape, shape.split_layer), 0, kit.layer)
    return FastTrunk(TrunkModule(decoder, spec), layers, rotations(decoder, context), kit)


def random_head(ours: RandomEngine, output: OutputKind, weights: RandomWeights) -> FastHead:
    spec, trunk = ours.spec, ours.engine.trunk.module
    assert isinstance(trunk, FastTrunk)
    model = cast(Any, build_skeleton(ours.shape.config(spec.num_head_layers, spec.context_length)))
    base = model.model
    norm = weights.tensor(f"{spec.base}.{spec.norm}.weight", (spec.d_model,)), float(base.norm.variance_epsilon)
    score = None
    if output is OutputKind.SCORE:
        score = nn.Linear(spec.d_model, 1, bias=False, device="meta")
        weights.fill(score, "score.")
    else:
        weights.fill(model.lm_head, "lm_head.")
    with pausing(_filler(base.layers, spec, spec.split_layer, weights)):
        layers = take_layers(base, spec, _calls(ours.shape, spec.num_head_layers), spec.split_layer, ours.kit.layer)
    base.norm.weight = nn.Parameter(norm[0], requires_grad=False)
    module = HeadModule(model if score is None else base, score, spec, output)
    return FastHead(module, layers, norm, trunk, ours.kit, ours.engine.heads.device)


def _filler(layers: nn.ModuleList, spec: ModelSpec, first: int, weights: RandomWeights) -> Pause:
    """Fills the first layer now, and one more at each pause point: `take_layers` has one after each layer."""
    waiting = iter(list(enumerate(layers, first)))

    def fill_next(num_received: int = 0) -> None:
        for number, layer in waiting:
            weights.fill(layer, f"{spec.base}.{spec.layers}.{number}.")
            return

    fill_next()
    return fill_next


def _calls(shape: Shape, num_layers: int) -> list[LayerCall]:
    group = shape.num_heads // shape.num_kv_heads
    return [LayerCall(shape.num_kv_heads, group, shape.head_dim, shape.head_dim, shape.head_dim**-0.5, 0, None)] * num_layers


def num_served_bytes(spec: ModelSpec, kit: Kit, dtype: torch.dtype, num_logit_heads: int, num_score_heads: int) -> int:
    """What trunk and heads will take, known before they are made."""
    embedding = spec.vocab_size * spec.d_model * dtype.itemsize
    trunk = sum(kit.weight_bytes(spec.shapes[name]) for name in spec.trunk_names if name != spec.embedding_name)
    logits, scores = (sum(map(kit.weight_bytes, spec.head_schema(output).values())) for output in (OutputKind.OWN, OutputKind.SCORE))
    return embedding + trunk + num_logit_heads * logits + num_score_heads * scores


