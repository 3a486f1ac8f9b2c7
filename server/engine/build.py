"""Puts an engine together from a trunk: sizes the pools, hooks in our attention."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.model.family import TrunkModule, set_attention
from polyhead.heads.model.spec import ModelSpec
from polyhead.server.engine.ahead import LaunchDraws
from polyhead.server.engine.blocks.cache import CacheShape, KvCache, TrunkCache
from polyhead.server.engine.blocks.head_pool import HeadPool
from polyhead.server.engine.blocks.tree import BlockTree
from polyhead.server.engine.compiled.attention import LARGEST_WIDENED
from polyhead.server.engine.compiled.machine import HAS_HALVES
from polyhead.server.engine.compiled.region import region
from polyhead.server.engine.compiled.sampler import draw as compiled_draw
from polyhead.server.engine.compiled.stack import LARGEST_BLOCK, LARGEST_HEAD, CompiledAttention, CompiledKit
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.layers import attention
from polyhead.server.engine.layers.cuda.eight_bit import eight_bit_linears, format_for
from polyhead.server.engine.layers.cuda.fused_probe import fused_for
from polyhead.server.engine.layers.cuda.graphs import step_graphs
from polyhead.server.engine.layers.cuda.sampler import draw as cuda_draw
from polyhead.server.engine.layers.cuda.sampler import launch as cuda_launch
from polyhead.server.engine.layers.cuda.threads import on_device
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention
from polyhead.server.engine.layers.cuda.varlen_probe import QueryHeads, working_varlen
from polyhead.server.engine.layers.fast import FastTrunk, fast_trunk
from polyhead.server.engine.layers.heads import HeadRunner
from polyhead.server.engine.layers.kits import Kit, OutputApart, TorchKit
from polyhead.server.engine.layers.layer_calls import LayerCall, layer_calls
from polyhead.server.engine.layers.linears import Quantization
from polyhead.server.engine.layers.plan import AttentionBackend
from polyhead.server.engine.layers.sampler import Draw, draw
from polyhead.server.engine.layers.torch.attention import TorchAttention
from polyhead.server.engine.layers.torch.dense import dense_linears
from polyhead.server.engine.layers.trunk import TrunkRunner
from polyhead.server.engine.schedule.scheduler import Scheduler, SchedulerLimits
from polyhead.server.engine.work.reports import QueueLimits

HEAD_BLOCKS_PER_BLOCK = 3  # head blocks in the pool for each trunk block: the sampling head's, and room for those that score


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How output projections to the vocabulary are held, whatever trunk and heads are held in."""

    quantization: Quantization
    dtype: torch.dtype  # that they compute in


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and bounds; the defaults suit two cores and SmolLM2."""

    cache_bytes: int = 2 << 30  # of trunk and head caches together
    block_size: int = 16  # tokens
    max_context: int = 4096  # tokens of prompt and reply together; the model's own limit if that is lower
    is_fast: bool = True  # our own layers where the family and the device allow it; else transformers' modules
    trunk_quantization: Quantization = "none"  # both need our own layers, and fp8 torch's products
    head_quantization: Quantization = "none"
    output: OutputForm | None = None  # None: a tied output as the trunk is held, a head's own as the head is
    is_deterministic: bool = False  # refuse what cannot keep results the same bit for bit: all but compiled layers
    has_graphs: bool = True  # CUDA graphs of decode steps, where attention can be recorded (graphs.py) and all is on one device
    device: torch.device | None = None  # of the trunk; None: where its weights are. Our own layers are moved there one by one
    head_device: torch.device | None = None  # of top layers, outputs and their caches, with its number; None: the trunk's
    num_threads: int = 0  # of torch, within the engine's thread; 0: torch's own choice
    tap_layer: int = -1  # a layer inside the trunk whose states are kept, too; 0: none, -1: the model's middle
    scheduler: SchedulerLimits = field(default_factory=SchedulerLimits)
    queue: QueueLimits = field(default_factory=QueueLimits)


def build_engine(
    trunk: TrunkModule, config: EngineConfig, eos_ids: frozenset[int], head_dtype: torch.dtype | None = None
) -> Engine:
    """An engine with empty caches and no heads; with fast layers it takes over the trunk's weights.

    Raises InvalidArgument if `cache_bytes` cannot hold two texts of `max_context`.
    """
    calls = layer_calls(trunk, trunk.spec.d_model)
    if config.device is not None:
        trunk.decoder.get_input_embeddings().to(config.device)
    shape = cache_shape(calls, trunk.embedding, config.block_size)
    queries = QueryHeads.of(calls)
    setup = KvSetup(shape, attention_for(shape, queries), queries)
    like_heads = replace(setup, shape=_head_shape(shape, config, head_dtype))
    num_blocks_for(trunk.spec, config, *_kept(config, setup, like_heads))  # before the weights are taken
    set_attention(trunk, attention.NAME)
    max_context = min(config.max_context, trunk.spec.context_length)
    tied_embedding = _at_heads(trunk, like_heads.shape.device)
    layers = None
    if config.is_fast:
        layers = fast_trunk(trunk, calls, max_context, _kit(config.trunk_quantization, config, setup), tied_embedding)
    if layers is None:
        _check_plain(config)
    return assemble(layers or trunk, setup, config, eos_ids, head_dtype, tied_embedding)


def assemble(
    trunk: TrunkModule | FastTrunk,
    setup: KvSetup,
    config: EngineConfig,
    eos_ids: frozenset[int],
    head_dtype: torch.dtype | None = None,
    tied_embedding: nn.Parameter | None = None,
) -> Engine:
    """An engine around the layers that will run. `setup` is the trunk's; `tied_embedding` is on the heads' device."""
    spec, head_shape = trunk.spec, _head_shape(setup.shape, config, head_dtype)
    with on_device(head_shape.device):
        head_setup = _head_setup(setup, head_shape)
        head_kit, draw_tokens = _kit(config.head_quantization, config, head_setup), draw_for(config, head_setup)
    if isinstance(trunk, FastTrunk):
        setup, head_setup = (_compiled(each) for each in _kept(config, setup, head_setup))
    num_blocks = num_blocks_for(spec, config, setup, head_setup)
    floor = scoring_floor(spec, config)
    tap_layer = chosen_tap_layer(spec, config.tap_layer)
    cache = TrunkCache(
        setup.shape,
        spec.split_layer,
        spec.d_model,
        num_blocks + 1,
        has_taps=tap_layer > 0,
        is_compiled=setup.is_compiled,
        is_cleared=setup.attention.reads_past_ends,
        states_device=head_shape.device,
    )
    num_head_slots = HEAD_BLOCKS_PER_BLOCK * num_blocks + 1
    head_cache = KvCache(
        head_setup.shape,
        spec.num_head_layers,
        num_head_slots,
        is_compiled=head_setup.is_compiled,
        is_cleared=head_setup.attention.reads_past_ends,
    )
    max_tokens = min(config.max_context, spec.context_length) + config.block_size
    can_record = config.has_graphs and isinstance(trunk, FastTrunk) and head_shape.device == setup.shape.device
    recordable = ((cache.kv, setup.attention), (head_cache, head_setup.attention))
    graphs, head_graphs = (step_graphs(*each, max_tokens) if can_record else None for each in recordable)
    trunk_runner = TrunkRunner(trunk, cache, setup.attention, tap_layer, graphs=graphs)
    tree = BlockTree(trunk_runner.cache, HeadPool(head_cache))
    scheduler = Scheduler(tree, replace(config.scheduler, scoring_floor=floor), eos_ids, spec.vocab_size)
    heads = HeadRunner(trunk_runner, head_cache, head_setup.attention, head_kit, head_graphs, tied_embedding=tied_embedding)
    launch = launch_for(setup) if graphs is not None and head_graphs is not None else None
    return Engine(trunk_runner, heads, tree, scheduler, draw_tokens, config.queue, config.num_threads, launch=launch)


@dataclass(frozen=True, slots=True)
class KvSetup:
    """The sizes of a trunk's or the heads' keys and values, and how their layers attend over them."""

    shape: CacheShape
    attention: AttentionBackend
    queries: QueryHeads = field(default_factory=QueryHeads)

    @property
    def can_compile(self) -> bool:
        """Whether compiled layers can work on such a cache."""
        shape = self.shape
        is_float = shape.device.type == "cpu" and shape.dtype == torch.float32 and not isinstance(self.attention, VarlenAttention)
        return is_float and shape.head_dim <= LARGEST_HEAD and shape.block_size <= LARGEST_BLOCK

    @property
    def is_compiled(self) -> bool:
        return isinstance(self.attention, CompiledAttention)


def attention_for(shape: CacheShape, queries: QueryHeads) -> AttentionBackend:
    """One call a layer where a kernel for that works on this device; else torch's own calls."""
    return working_varlen(shape, queries) or TorchAttention()


def _head_shape(shape: CacheShape, config: EngineConfig, head_dtype: torch.dtype | None) -> CacheShape:
    """The trunk's, in the heads' dtype and on their device."""
    return replace(shape, dtype=head_dtype or shape.dtype, device=config.head_device or shape.device)


def _at_heads(trunk: TrunkModule, device: torch.device) -> nn.Parameter | None:
    """The embedding for outputs that are tied to it: itself, or on another device a copy."""
    if not trunk.spec.tied:
        return None
    embedding = trunk.embedding
    return embedding if embedding.device == device else nn.Parameter(embedding.detach().to(device), requires_grad=False)


def _head_setup(setup: KvSetup, shape: CacheShape) -> KvSetup:
    """The trunk's, for heads of this shape. A kernel is tried again for another dtype or device."""
    if shape == setup.shape or not isinstance(setup.attention, VarlenAttention):
        return replace(setup, shape=shape)
    return replace(setup, shape=shape, attention=attention_for(shape, setup.queries))


def _compiled(setup: KvSetup) -> KvSetup:
    """With the attention of compiled layers, where these can run."""
    return replace(setup, attention=CompiledAttention()) if setup.can_compile else setup


def _kit(quantization: Quantization, config: EngineConfig, setup: KvSetup) -> Kit:
    """Layers as `kit_for` has them, and outputs as the configuration wants them."""
    layers, output = kit_for(quantization, config, setup), config.output
    if output is None:
        return layers
    apart = KvSetup(replace(setup.shape, dtype=output.dtype), TorchAttention())  # which matters to layers alone
    return OutputApart(layers, kit_for(output.quantization, config, apart), output.dtype)


def kit_for(quantization: Quantization, config: EngineConfig, setup: KvSetup) -> Kit:
    """How weights are held and run: compiled in float32 on the CPU, by torch's calls elsewhere."""
    if config.is_fast and setup.can_compile:
        if quantization == "fp8":
            raise FailedPrecondition("fp8 is for GPUs; on the CPU int8 serves")
        region()  # compiled now, and not in the first request
        return CompiledKit(quantization == "int8")
    if config.is_deterministic:
        raise FailedPrecondition("bit for bit the same needs float32 or int8 on the CPU", field="deterministic")
    return torch_kit(quantization, setup.shape.device, setup.shape.dtype)


def torch_kit(quantization: Quantization, device: torch.device, dtype: torch.dtype) -> TorchKit:
    """By torch's products, and on a GPU by kernels of our own for what stands between them."""
    fused = fused_for(device, dtype)
    if (form := format_for(quantization, device, dtype)) is not None:
        return TorchKit(eight_bit_linears(form, dtype, fused), fused)
    return TorchKit(dense_linears(dtype, is_on_gpu=device.type == "cuda", silu_up=fused.silu_up if fused else None), fused)


def draw_for(config: EngineConfig, setup: KvSetup) -> Draw:
    """How heads' logits are read: as `kit_for` has their weights."""
    if config.is_fast and setup.can_compile:
        return compiled_draw
    return draw if setup.shape.device.type == "cpu" else cuda_draw


def launch_for(setup: KvSetup) -> LaunchDraws | None:
    """How draws are launched without a wait, where there is something to be done meanwhile."""
    return None if setup.shape.device.type == "cpu" else cuda_launch


def _check_plain(config: EngineConfig) -> None:
    """What transformers' modules cannot do. FailedPrecondition names the setting."""
    asked = {
        "trunk_dtype": config.trunk_quantization != "none",
        "head_dtype": config.head_quantization != "none",
        "output_dtype": config.output is not None,
        "deterministic": config.is_deterministic,
    }
    for field_name, is_asked in asked.items():
        if is_asked:
            raise FailedPrecondition(
                f"{field_name} as asked for needs our own layers, which serve llama, mistral, qwen2 and qwen3\n"
                "hint: leave out --layers plain; for another family serve in float32 or bfloat16",
                field=field_name,
            )


def num_blocks_for(spec: ModelSpec, config: EngineConfig, setup: KvSetup, head_setup: KvSetup) -> int:
    """How many trunk blocks `cache_bytes` pays for, each with its share of head blocks. InvalidArgument if that is too few."""
    num_states = 2 if chosen_tap_layer(spec, config.tap_layer) else 1  # kept of each token
    state_bytes = config.block_size * spec.d_model * setup.shape.dtype.itemsize
    block_bytes = setup.shape.kv_bytes(spec.split_layer) + num_states * state_bytes
    head_block_bytes = head_setup.shape.kv_bytes(spec.num_head_layers)
    num_blocks = config.cache_bytes // (block_bytes + HEAD_BLOCKS_PER_BLOCK * head_block_bytes)
    if num_blocks < 2 * scoring_floor(spec, config) + 2:
        raise InvalidArgument(
            f"the cache holds {num_blocks * config.block_size} tokens, too few for two texts of "
            f"{min(config.max_context, spec.context_length)}\nhint: raise --cache-bytes or lower --max-context",
            field="cache_bytes",
        )
    return num_blocks


def _kept(config: EngineConfig, setup: KvSetup, head_setup: KvSetup) -> tuple[KvSetup, KvSetup]:
    """The setups with what keys and values are kept in: by int8 layers in float16, whose rounding is far below their own.

    A number beyond 65504 becomes infinite there, and fails its sample.
    """

    def kept(each: KvSetup, quantization: Quantization) -> KvSetup:
        shape = each.shape
        has_room = HAS_HALVES and each.can_compile and shape.block_size * shape.head_dim <= LARGEST_WIDENED
        return replace(each, shape=replace(shape, kv_dtype=torch.float16)) if quantization == "int8" and has_room else each

    return kept(setup, config.trunk_quantization), kept(head_setup, config.head_quantization)


def scoring_floor(spec: ModelSpec, config: EngineConfig) -> int:
    """Blocks of the longest text, and one."""
    return -(-min(config.max_context, spec.context_length) // config.block_size) + 1


def chosen_tap_layer(spec: ModelSpec, asked: int) -> int:
    """The layer to tap; 0 for none. By default the model's middle, if that lies inside the trunk: the best one for
    out-of-distribution scores (HH, section 5). InvalidArgument for a layer that is not inside the trunk."""
    if asked < 0:
        middle = spec.num_layers // 2
        return middle if middle < spec.split_layer else 0
    if asked >= spec.split_layer:
        reason = "whose states are kept anyway" if asked == spec.split_layer else "and the heads' layers come after it"
        raise InvalidArgument(
            f"the tap layer must lie inside the trunk, 1 to {spec.split_layer - 1}: {asked}\n"
            f"hint: the trunk ends at layer {spec.split_layer}, {reason}",
            field="tap_layer",
        )
    return asked


def cache_shape(calls: list[LayerCall], weight: Tensor, block_size: int) -> CacheShape:
    """Sizes of keys and values as the layers ask for them; dtype and device are those of `weight`.

    Raises FailedPrecondition where they differ from layer to layer, or between keys and values.
    """
    seen = {shape for call in calls for shape in ((call.num_kv_heads, call.head_dim), (call.num_kv_heads, call.value_dim))}
    if len(seen) != 1:
        raise FailedPrecondition(f"the layers differ in the number or size of their key heads, which one cache cannot hold: {sorted(seen)}")
    num_kv_heads, head_dim = seen.pop()
    return CacheShape(num_kv_heads, head_dim, block_size, weight.dtype, weight.device)
