"""Rank 0's start: the other ranks are begun first, so that all shares are loaded side by side."""

from __future__ import annotations

import torch

from polyhead.heads.model.checkpoint import Checkpoint
from polyhead.heads.model.family import build_trunk
from polyhead.heads.model.spec import ModelSpec
from polyhead.server.config import ServeConfig
from polyhead.server.parallel.group import Group
from polyhead.server.parallel.lead import lead
from polyhead.server.parallel.loader import SharingLoader
from polyhead.server.parallel.ranks import Ranks, Ready
from polyhead.server.parallel.shares import Share, ShareOfCheckpoint, spec_of_share
from polyhead.server.process.loading import (
    FREE_SHARE,
    Loaded,
    Progress,
    check_split,
    computed_in,
    engine_config,
    free_memory,
    output_dtype,
)


def load(config: ServeConfig, checkpoint: Checkpoint, spec: ModelSpec, eos_ids: frozenset[int], progress: Progress) -> Loaded:
    """As process/loading.py, over `tensor_parallel` ranks. Nothing of the others is left if it fails."""
    ranks = Ranks(config.tensor_parallel, _settings(config, checkpoint, spec), config.rank_timeout_s)
    progress(f"starting {ranks.size - 1} more ranks, each a process")
    ranks.start()
    try:
        return _load(config, checkpoint, spec, eos_ids, progress, ranks)
    except BaseException:
        ranks.close()
        raise


def _load(
    config: ServeConfig, checkpoint: Checkpoint, spec: ModelSpec, eos_ids: frozenset[int], progress: Progress, ranks: Ranks
) -> Loaded:
    device, size = torch.device(config.device), ranks.size
    if device.type == "cuda":
        device = torch.device("cuda:0")
    share = spec_of_share(spec, size)
    own = ShareOfCheckpoint.of_whole(checkpoint, Share(0, size))
    progress(f"loading a share of the trunk on each: layers 0 to {spec.split_layer - 1} of {spec.num_layers}")
    trunk = build_trunk(own, share, computed_in(config.trunk_dtype, config.device), device)
    progress("checking that trunk and head make the unsplit model")
    check_split(own, share, trunk)
    group, head_dtype = Group(size), computed_in(config.head_dtype, config.device)
    engine = lead(trunk, engine_config(config, share), eos_ids, head_dtype, ranks, group)
    progress("waiting for the other ranks")
    ready = ranks.wait()
    group.join(ranks.meeting, 0, device, config.rank_timeout_s)
    ranks.met()
    loader = SharingLoader(spec, share, engine.heads, ranks, head_dtype, output_dtype(config))
    return Loaded(trunk, engine, loader, config.memory_budget or _head_budget(config, ready))


def _head_budget(config: ServeConfig, ready: list[Ready]) -> int:
    """Bytes for a rank's share of heads: of the GPU that has the least free, or of this machine's memory that all ranks share."""
    if config.device != "cpu":
        return int(min([free_memory("cuda:0"), *(each.free_bytes for each in ready)]) * FREE_SHARE)
    size = config.tensor_parallel
    return int(max(0, free_memory("cpu") - size * config.cache_bytes) * FREE_SHARE / size)


def _settings(config: ServeConfig, checkpoint: Checkpoint, spec: ModelSpec) -> dict[str, object]:
    """What another rank has to know."""
    sizes = engine_config(config, spec)
    return {
        "size": config.tensor_parallel,
        "model": str(checkpoint.folder.absolute()),
        "split_layer": spec.split_layer,
        "device": config.device.partition(":")[0],
        "trunk_dtype": str(computed_in(config.trunk_dtype, config.device)),
        "head_dtype": str(computed_in(config.head_dtype, config.device)),
        "cache_bytes": sizes.cache_bytes,
        "max_context": sizes.max_context,
        "tap_layer": sizes.tap_layer,
        "num_threads": sizes.num_threads,
        "commit_caches": config.commit_caches,
        "timeout_s": config.rank_timeout_s,
        "log_format": config.log_format,
        "log_level": config.log_level,
    }
