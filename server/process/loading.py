"""A model's weights into memory: devices and dtypes checked, the trunk, an engine around it, and how heads get there.

Blocks for seconds; knows neither the store nor the wire.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import HeadKind, model_output
from polyhead.heads.format.precision import Precision
from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.composition import check_composition
from polyhead.heads.model.family import TrunkModule, build_head, build_trunk, initial_head
from polyhead.heads.model.spec import ModelSpec
from polyhead.server.config import ServeConfig
from polyhead.server.engine import build
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.layers.cuda.eight_bit import has_fp8
from polyhead.server.engine.layers.linears import Quantization
from polyhead.server.engine.work.reports import QueueLimits
from polyhead.server.host.cgroups import memory_left
from polyhead.server.versions.head_loader import HeadLoader

Progress = Callable[[str], None]
DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}
QUANTIZATIONS: dict[Precision, Quantization] = {Precision.INT8: "int8", Precision.FP8: "fp8"}
DEFAULT_THREADS = torch.get_num_threads()  # torch's own choice, read at import: a worker thread would answer the 1 that it set itself
HINTS = {
    "head_device": "\nhint: leave out --head-device, and heads share the trunk's",
    "tensor_parallel": "\nhint: --tensor-parallel takes one GPU for each rank",
}
FREE_SHARE = 0.75  # of the memory left, for heads, when no budget is given


@dataclass(frozen=True, slots=True)
class Loaded:
    """A trunk in memory, and what heads need to get there."""

    trunk: TrunkModule
    engine: Engine  # with empty caches and no heads, not started
    loader: HeadLoader
    head_budget: int  # bytes for heads


def load(config: ServeConfig, checkpoint: Checkpoint, spec: ModelSpec, eos_ids: frozenset[int], progress: Progress) -> Loaded:
    """The trunk and an engine, in this process alone."""
    progress(f"loading the trunk: layers 0 to {spec.split_layer - 1} of {spec.num_layers}")
    trunk = build_trunk(checkpoint, spec, computed_in(config.trunk_dtype, config.device), loaded_to(config))
    progress("checking that trunk and head make the unsplit model")
    check_split(checkpoint, spec, trunk)
    dtype = computed_in(config.head_dtype, config.device)
    engine = build.build_engine(trunk, engine_config(config, spec), eos_ids, dtype)
    heads = engine.heads
    loader = HeadLoader(
        spec, heads.tied_embedding, dtype, heads.device, heads.prepare, heads.weight_bytes, output_dtype(config), heads.uploads
    )
    return Loaded(trunk, engine, loader, config.memory_budget or head_budget(config))


def served_context(config: ServeConfig, spec: ModelSpec) -> int:
    """Most tokens of prompt and reply together."""
    return min(config.max_context or spec.context_length, spec.context_length)


def engine_config(config: ServeConfig, spec: ModelSpec) -> build.EngineConfig:
    """The number of threads is always set: a new thread would take over the 1 that worker threads have set."""
    return build.EngineConfig(
        cache_bytes=config.cache_bytes,
        max_context=served_context(config, spec),
        is_fast=config.layers == "fast",
        trunk_quantization=QUANTIZATIONS.get(config.trunk_dtype, "none"),
        head_quantization=QUANTIZATIONS.get(config.head_dtype, "none"),
        output=_output_form(config),
        is_deterministic=config.deterministic,
        has_graphs=config.cuda_graphs,
        device=torch.device(config.device) if config.device != loaded_to(config) else None,
        head_device=torch.device(config.heads_on) if config.has_heads_apart else None,
        num_threads=config.threads or max(1, DEFAULT_THREADS // config.tensor_parallel),
        tap_layer=config.tap_layer,
        queue=QueueLimits(config.max_queue_requests, config.max_queue_tokens, config.interactive_share),
    )


def head_budget(config: ServeConfig) -> int:
    """Bytes for heads, of the memory of their device that is free when trunk and caches are there.

    A GPU's caches are taken when they are made; on the CPU their pages are taken later.
    """
    promised = 0 if config.device.startswith("cuda") else config.cache_bytes
    return int(max(0, free_memory(config.heads_on) - promised) * FREE_SHARE)


def output_dtype(config: ServeConfig) -> torch.dtype | None:
    """Dtype of output projections, if one is set. 8-bit outputs on a GPU compute in the head's dtype."""
    if config.output_dtype is None:
        return None
    is_eight_bit = config.output_dtype in QUANTIZATIONS
    return computed_in(config.head_dtype if is_eight_bit and config.device != "cpu" else config.output_dtype, config.device)


def _output_form(config: ServeConfig) -> build.OutputForm | None:
    dtype = output_dtype(config)
    if config.output_dtype is None or dtype is None:
        return None
    return build.OutputForm(QUANTIZATIONS.get(config.output_dtype, "none"), dtype)


def computed_in(precision: Precision, device: str) -> torch.dtype:
    """What layers compute in, with weights held at this precision: beside 8 bits, float32 on the CPU and bfloat16 on a GPU."""
    return DTYPES.get(precision, torch.float32 if device == "cpu" else torch.bfloat16)


def loaded_to(config: ServeConfig) -> str:
    """Device of the trunk's weights until layers are packed: a trunk that becomes 8 bits on a GPU must not be there whole in 16."""
    return "cpu" if config.trunk_dtype in QUANTIZATIONS and config.layers == "fast" else config.device


def free_memory(device: str) -> int:
    """Bytes that can be had now: of the GPU, or of the machine within the limits of its control groups."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what torch keeps of the trunk's 16-bit layers once they are 8 bits
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    return min([free, *memory_left()])


def check_devices(config: ServeConfig) -> None:
    """FailedPrecondition names the one that is not there."""
    for field, name in (("device", config.device), ("head_device", config.heads_on)):
        _check_device(field, name)
    if config.tensor_parallel > 1 and config.device != "cpu":
        _check_device("tensor_parallel", f"cuda:{config.tensor_parallel - 1}")


def _check_device(field: str, name: str) -> None:
    device = torch.device(name)
    if device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise FailedPrecondition(f"torch {torch.__version__} finds no CUDA device that it can use\nhint: --device cpu", field=field)
    if (device.index or 0) >= torch.cuda.device_count():
        hint = HINTS.get(field, "")
        raise FailedPrecondition(f"no such device: {name} (torch finds {torch.cuda.device_count()} GPUs){hint}", field=field)


def check_dtypes(config: ServeConfig, spec: ModelSpec) -> None:
    """FailedPrecondition names the setting that this machine or this model cannot serve."""
    heads_on = config.heads_on
    named = (
        ("trunk_dtype", config.trunk_dtype, config.device),
        ("head_dtype", config.head_dtype, heads_on),
        ("output_dtype", config.output_dtype, heads_on),
    )
    for field, precision, device in named:
        if precision is Precision.FP8 and not has_fp8(torch.device(device)):
            raise FailedPrecondition(f"{field} fp8 needs a GPU of compute capability 8.9 or later\nhint: use int8", field=field)
    if spec.tied and computed_in(config.head_dtype, config.device) != computed_in(config.trunk_dtype, config.device):
        raise FailedPrecondition(
            f"heads of this model share the trunk's embedding and its dtype: {config.head_dtype} is not {config.trunk_dtype}\n"
            "hint: give --head-dtype the value of --trunk-dtype"
        )


def check_split(checkpoint: Checkpoint, spec: ModelSpec, trunk: TrunkModule) -> None:
    """FailedPrecondition unless trunk and head make the unsplit model."""
    output = model_output(HeadKind.POLICY, tied=spec.tied)
    embedding = trunk.embedding if spec.tied else None
    tensors = initial_head(checkpoint, spec, output)
    check_composition(trunk, build_head(spec, tensors, output, embedding, trunk.embedding.dtype, trunk.embedding.device))
