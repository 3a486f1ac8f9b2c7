"""How large the work of a run is, the prompts of it, and the engine that can hold it. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from polyhead.client.bench.gpu.models import LLAMA_8B, LLAMA_70B, TINY, Shape
from polyhead.server.engine.build import HEAD_BLOCKS_PER_BLOCK, EngineConfig
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.reports import QueueLimits

GIB = 1 << 30
SEED = 1000  # of the weights
SCORED = ("reference", "value", "preference", "rule")
SLACK_TOKENS = 32  # of each stream: its last block, and its score's


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the work is."""

    shape: Shape
    large: Shape
    streams: tuple[int, ...]
    prompt_tokens: int
    num_tokens: int
    batch_prompts: int  # of the experience batch
    num_rules: int
    rule_tokens: int
    swap_streams: int
    num_swaps: int
    copy_bytes: int  # read and written by the copy that measures bandwidth
    large_streams: int = 8
    large_tokens: int = 32  # of prompt, and of completion


PLANS = {
    "8b": Sizes(LLAMA_8B, LLAMA_70B, (1, 8, 64, 256), 128, 128, 32, 5, 23, 64, 20, 4 * GIB),
    "tiny": Sizes(TINY, replace(TINY, name="tiny split", num_layers=6, split_layer=4), (1, 3), 8, 6, 3, 2, 4, 3, 2, 1 << 20, 2, 4),
}


def random_prompts(vocab_size: int, count: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[list[int]] = torch.randint(5, vocab_size, (count, length), generator=generator).tolist()
    return ids


def config_for(shape: Shape, sizes: Sizes, dtype: torch.dtype) -> EngineConfig:
    """Caches for the most streams, and for four texts of the longest kind: rules come behind, and swaps decode on."""
    context = 2 * (sizes.prompt_tokens + 2 * sizes.num_tokens + sizes.num_rules * sizes.rule_tokens)
    num_head_layers = shape.num_layers - shape.split_layer
    kv_bytes = 2 * shape.num_kv_heads * shape.head_dim * dtype.itemsize
    token_bytes = kv_bytes * (shape.split_layer + HEAD_BLOCKS_PER_BLOCK * num_head_layers) + 2 * shape.d_model * dtype.itemsize
    most = max(sizes.streams)
    return EngineConfig(
        cache_bytes=token_bytes * (most * (sizes.prompt_tokens + sizes.num_tokens + SLACK_TOKENS) + 4 * context + 256),
        max_context=context,
        scheduler=SchedulerLimits(max_running=max(most, 2 * sizes.batch_prompts), chunk_tokens=4096),
        queue=QueueLimits(max_tokens=1 << 30),
    )
