"""A split too large for most cards, five different roles in 8 bit on one trunk: what it takes, and that it generates and scores."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace

import torch

from polyhead.client.bench.gpu.driver import Driver, Rollout
from polyhead.client.bench.gpu.measures import graphs_note
from polyhead.client.bench.gpu.models import RandomWeights, Shape, num_served_bytes, random_engine
from polyhead.client.bench.gpu.work import GIB, SCORED, SEED, Sizes, config_for, random_prompts
from polyhead.client.bench.results import Row, Series
from polyhead.server.engine.blocks.cache import CacheShape
from polyhead.server.engine.build import EngineConfig, KvSetup, kit_for
from polyhead.server.engine.layers.torch.attention import TorchAttention
from polyhead.server.engine.schedule.scorer import results

SPARE = 0.05  # of the memory, for activations and what libraries take
QUANTIZING_BYTES = 10  # for each number of the matrix that is being quantised: itself, joined, in float32, in int8


def large_split(sizes: Sizes, device: torch.device, tell: Callable[[str], None] = lambda text: None) -> Row:
    """Five roles that differ on one trunk in int8: what it takes, and that it generates and scores. `tell`: each part as it is there."""
    shape, dtype = sizes.large, torch.float32 if device.type == "cpu" else torch.bfloat16
    what = f"{shape.name}, {shape.split_layer}/{shape.num_layers - shape.split_layer} split, five different roles in int8: memory"
    streams, num_tokens = sizes.large_streams, sizes.large_tokens
    few = replace(sizes, streams=(streams,), batch_prompts=streams, prompt_tokens=num_tokens, num_tokens=num_tokens)
    config = replace(config_for(shape, few, dtype), trunk_quantization="int8", head_quantization="int8")
    needed, free = large_bytes(shape, config, dtype, device), free_bytes(device)
    if needed > free:
        why = f"{needed / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free"
        return Row("G6", what, "GiB", False, notes=(f"not measured: {why}",), is_contest=False)
    tell(f"{needed / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free")
    ours = random_engine(shape, RandomWeights(SEED, shape.spread, dtype, device), config)
    tell(f"trunk: {ours.engine.trunk.num_bytes / GIB:.1f} GiB; {free_bytes(device) / GIB:.1f} GiB are free beside it and the caches")
    roles = ours.roles()
    tell(f"heads: {sum(head.live.num_bytes for head in roles.values()) / GIB:.1f} GiB; {free_bytes(device) / GIB:.1f} GiB are free")
    with Driver(ours.engine, roles) as driver:
        rules = {"r": random_prompts(shape.vocab_size, 1, sizes.rule_tokens, SEED)[0]}
        prompts = random_prompts(shape.vocab_size, streams, num_tokens, SEED)
        rollout = driver.generate(prompts, num_tokens, score=SCORED, rules=rules, temperature=1.0)
        check_scored(rollout, num_tokens)
        heads = {name: head.live.num_bytes for name, head in driver.heads.items()}
        table = {"trunk": ours.engine.trunk.num_bytes, **heads}
        step = rollout.step_seconds(streams)
    notes = [f"{name}: {size / GIB:.4f} GiB" for name, size in {**table, "caches, beside these": config.cache_bytes}.items()]
    if device.type == "cuda":
        notes.append(f"most that torch held: {torch.cuda.max_memory_reserved(device) / GIB:.1f} GiB")
    notes.append(graphs_note(ours.engine))
    notes.append(f"{streams} streams: {num_tokens} tokens each, all scored by four roles; step {step * 1e3:.2f} ms")
    one_model = table["trunk"] + heads["policy"]
    series = (Series("trunk and five heads", (sum(table.values()) / GIB,)), Series("five whole models", (5 * one_model / GIB,)))
    return Row("G6", what, "GiB", False, series, notes=tuple(notes))


def check_scored(rollout: Rollout, num_tokens: int) -> None:
    """Every sample has its tokens, and finite numbers of every role."""
    for sample in rollout.samples:
        assert len(sample.completion) == num_tokens, f"{len(sample.completion)} tokens of {num_tokens}"
        by_role = {result.head_name: result.result for result in results(sample)}
        assert all(by_role.get(name) is not None for name in SCORED), f"scores of {sorted(by_role)}"
        numbers = [number for reading in sample.done for values in reading.values for number in values.ravel().tolist()]
        assert numbers, "no reading gave a number"
        assert all(map(math.isfinite, numbers)), "a score is not finite"


def large_bytes(shape: Shape, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Weights, caches, and what the largest matrix of a layer takes while it is quantised."""
    spec = shape.spec(config.max_context)
    cache = CacheShape(shape.num_kv_heads, shape.head_dim, config.block_size, dtype, device)
    kit = kit_for(config.head_quantization, config, KvSetup(cache, TorchAttention()))
    largest = 2 * shape.d_inner * shape.d_model * QUANTIZING_BYTES
    return num_served_bytes(spec, kit, dtype, num_logit_heads=3, num_score_heads=2) + config.cache_bytes + largest


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * (1 - SPARE))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
