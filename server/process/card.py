"""What a server prints when it has started: a card for people, one JSON line for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from polyhead.server.process.services import Services


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens; ports are the bound ones."""

    host: str
    port: int
    metrics_port: int  # -1: none


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of weights: what this server takes, and what its roles would take as unsplit models."""

    trunk: int
    heads: int  # in memory now, shared files once
    peak: int  # trunk and heads while every name is swapped at once
    unsplit: int  # one whole model for each active name

    @classmethod
    def of(cls, services: Services) -> Memory:
        registry = services.registry
        heads = registry.residency.num_bytes
        swapped = sum(registry.num_head_bytes(head.manifest.output) for head in registry.active.heads.values())
        num_names = len(registry.active.heads)
        return cls(services.trunk_bytes, heads, services.trunk_bytes + heads + swapped, num_names * services.model_bytes)


def card(services: Services, addresses: Addresses) -> str:
    """Lines for a terminal."""
    spec, config, active = services.spec, services.config, services.registry.active
    memory = Memory.of(services)
    heads = ", ".join(head.reference for _, head in sorted(active.heads.items())) or "none"
    rows = {
        "model": f"{services.model_name}: {spec.num_layers} layers, split at {spec.split_layer}, {spec.vocab_size} tokens",
        "trunk": f"{services.trunk_id[:16]}…  {config.trunk_dtype} on {config.device}, {_mib(memory.trunk)}",
        "heads": f"{heads}  (generation {active.generation}, {config.head_dtype} on {config.heads_on}, {_mib(memory.heads)})",
        **_ranks(services),
        "outputs": f"to the vocabulary in {services.output_precision}",
        "attention": services.attention,
        "memory": f"{_mib(memory.trunk + memory.heads)} of weights, {_mib(memory.peak)} if all names are swapped at once; "
        f"as unsplit models {_mib(memory.unsplit)}",
        "budget": f"{_mib(services.registry.residency.budget)} for heads, {_caches(services)} for caches",
        "store": str(services.store.path),
        "listening": f"{addresses.host}:{addresses.port}{' (TLS)' if config.tls_cert else ''}"
        + (f", metrics http://{config.metrics_host}:{addresses.metrics_port}/metrics" if addresses.metrics_port >= 0 else ""),
    }
    if damage := services.registry.damage:
        rows["DAMAGED"] = damage.replace("\n", "\n            ")
    return "\n".join(f"  {name:<9} {value}" for name, value in rows.items())


def ready_line(services: Services, addresses: Addresses) -> str:
    """One JSON object: printed when the server is SERVING, or cannot serve because its active set is damaged."""
    memory = Memory.of(services)
    active, config = services.registry.active, services.config
    return json.dumps(
        {
            "event": "damaged" if services.registry.damage else "ready",
            "host": addresses.host,
            "port": addresses.port,
            "metrics_port": addresses.metrics_port,
            "model": services.model_name,
            "split_layer": services.spec.split_layer,
            "trunk_id": services.trunk_id,
            "precision": services.precision,
            "head_precision": config.head_dtype,
            "output_precision": services.output_precision,
            "attention": services.attention,
            "device": config.device,
            "head_device": config.heads_on,
            "tensor_parallel": config.tensor_parallel,
            "generation": active.generation,
            "heads": {name: head.version for name, head in sorted(active.heads.items())},
            "trunk_bytes": memory.trunk,
            "head_bytes": memory.heads,
            "peak_bytes": memory.peak,
            "unsplit_bytes": memory.unsplit,
        }
    )


def _ranks(services: Services) -> dict[str, str]:
    """What each of several ranks holds; the other sizes are those of rank 0's share."""
    ranks = services.engine.snapshot().ranks
    held = ", ".join(f"{_mib(rank.num_bytes)} on {rank.device}" for rank in ranks)
    return {"ranks": f"{len(ranks)}: {held}; sizes here are of rank 0's share"} if ranks else {}


def _caches(services: Services) -> str:
    """With the devices, if there are two."""
    if not services.config.has_heads_apart:
        return _mib(services.config.cache_bytes)
    return " and ".join(f"{_mib(num_bytes)} on {device}" for device, num_bytes in services.cache_bytes.items())


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.0f} MiB"
