"""Our side: a server process of its own, spoken to as any user does, through the public client. Knows no peer and no goal."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from polyhead.client import Client, PolyheadError
from polyhead.client.local import LocalServer, local_server
from polyhead.server.bench.plan import Plan
from polyhead.server.bench.results import OURS

TIMEOUT_S = 900.0
Weights = Mapping[str, np.ndarray]
T = TypeVar("T")


class Ours:
    """A running server, its client, and the questions that several measures ask."""

    def __init__(self, server: LocalServer, client: Client, variant: str) -> None:
        self.server = server
        self.client = client
        self.name = f"{OURS} {variant}".strip()

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Seconds until every prompt has its greedy tokens."""
        seconds, samples = timed(lambda: self.client.generate(prompts, temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True))
        drawn = [len(sample.token_ids) for sample in samples]
        if drawn != [num_tokens] * len(prompts):
            raise PolyheadError(f"{num_tokens} tokens were asked for each of {len(prompts)} prompts, and these came: {drawn}")
        return seconds

    def different_heads(self, kind: str, names: list[str], first_seed: int = 0) -> list[str]:
        """Push and activate heads with weights of their own, so that nothing is shared among them; their names."""
        source = self.first_weights(kind)
        versions = {}
        for seed, name in enumerate(names, first_seed):
            versions[name] = self.client.push_head(name, moved(source, seed), kind=kind_of(kind), timeout=TIMEOUT_S)
        self.client.activate(versions)
        return names

    def first_weights(self, kind: str) -> Weights:
        """Of the head of this name that a new store begins with."""
        return {name: np.array(tensor, dtype=np.float32) for name, tensor in self.client.pull_head(f"{kind}@1").items()}


@contextlib.contextmanager
def our_server(plan: Plan, variant: str, *more: str) -> Iterator[Ours]:
    """A server with these flags and a new store, until the block is left; ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as folder:
        arguments = [*plan.server_flags(variant), "--store", f"{folder}/store", *more]
        with local_server(arguments) as server, Client(server.address, timeout=TIMEOUT_S) as client:
            try:
                client.wait_ready(120.0)
                yield Ours(server, client, variant)
            finally:
                server.process.kill()  # how it ends gracefully is nobody's question here


def moved(weights: Weights, seed: int, distance: float = 1e-3) -> dict[str, np.ndarray]:
    """The same head a little off everywhere."""
    random = np.random.default_rng(seed)
    noise = {name: random.standard_normal(tensor.shape, dtype=np.float32) for name, tensor in weights.items()}
    return {name: tensor + np.float32(distance) * noise[name] for name, tensor in weights.items()}


def kind_of(first_name: str) -> Any:
    """The kind of the heads that a new store begins with."""
    return {"reference": "policy"}.get(first_name, first_name)


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """(seconds, what it returned)"""
    started_at = time.perf_counter()
    returned = work()
    return time.perf_counter() - started_at, returned
