"""Our side: a server process of its own, spoken to as any user does, through the public client. Knows no peer and no goal."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from polyhead.client import Client, PolyheadError, Rule
from polyhead.client.bench.plan import Plan
from polyhead.client.bench.results import OURS
from polyhead.client.bench.work import Work
from polyhead.client.local import LocalServer, local_server
from polyhead.heads.format.kinds import FIRST_HEADS

TIMEOUT_S = 900.0
TEMPLATE = "bench@1"
_RULES = """\
id: bench
version: 1
template: "{dialogue}\\n{rule} Broken?"
answers: {violated: " Yes", followed: " No"}
"""  # next to no fixed text, so that a question is as long as the rule makes it
MOST_RULE_CHARACTERS = 250
ROLES = tuple(FIRST_HEADS)  # what a new store begins with, two files for five heads
Weights = Mapping[str, np.ndarray]
T = TypeVar("T")


class Ours:
    """A running server, its client, and the questions that several measures ask."""

    def __init__(self, server: LocalServer, client: Client, name: str) -> None:
        self.server = server
        self.client = client
        self.name = name

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Seconds until every prompt has its greedy tokens."""
        seconds, samples = timed(lambda: self.client.generate(prompts, temperature=0.0, max_new_tokens=num_tokens, ignore_eos=True))
        drawn = [len(sample.token_ids) for sample in samples]
        if drawn != [num_tokens] * len(prompts):
            raise PolyheadError(f"{num_tokens} tokens were asked for each of {len(prompts)} prompts, and these came: {drawn}")
        return seconds

    def make_roles_differ(self) -> None:
        """Five heads with weights of their own, as after a first round of training, and a short question for the rule head."""
        self.activate_different({name: name for name in ROLES})

    def activate_different(self, sources: Mapping[str, str], first_seed: int = 100) -> None:
        """Heads with weights of their own, active as one change. `sources`: name -> the one whose first version it is made from."""
        kinds = {head.name: head.kind for head in self.client.heads() if head.version == 1}
        versions = {}
        for seed, (name, source) in enumerate(sources.items(), first_seed):
            kind: Any = kinds[source].value
            template = TEMPLATE if kind == "rule" else None
            versions[name] = self.client.push_head(name, moved(self.first_weights(source), seed), kind=kind, template=template)
        self.client.activate(versions)

    def questions(self, work: Work, count: int, length: int) -> dict[str, tuple[str, list[int]]]:
        """Rules by id whose questions are exactly so many tokens: (text, ids that follow a dialogue)."""
        found: dict[str, tuple[str, list[int]]] = {}
        for start in range(0, len(work.text) - MOST_RULE_CHARACTERS, MOST_RULE_CHARACTERS // 8):
            text = work.text[start:].lstrip()
            texts = {str(end): text[:end] for end in range(4, MOST_RULE_CHARACTERS)}
            rules = [Rule(key, text) for key, text in texts.items() if text.rstrip() == text]
            asked = self.client.tokenize_rules(rules, template=TEMPLATE).token_ids
            fitting = [(texts[key], ids) for key, ids in asked.items() if len(ids) == length]
            if fitting:
                found[f"r{len(found)}"] = fitting[0]
            if len(found) == count:
                return found
        raise PolyheadError(f"no {count} rules of {length} tokens in the prose")

    def first_weights(self, kind: str) -> dict[str, np.ndarray]:
        """Of the head of this name that a new store begins with."""
        return weights_of(self.client, f"{kind}@1")


@contextlib.contextmanager
def our_server(plan: Plan, variant: str, *more: str) -> Iterator[Ours]:
    """A server with these flags and a new store, until the block is left; ended whatever happens."""
    with tempfile.TemporaryDirectory(prefix="polyhead-bench-") as folder:
        Path(folder, "rules.yaml").write_text(_RULES, encoding="utf-8")
        own = ["--store", f"{folder}/store", "--rules", f"{folder}/rules.yaml"]
        arguments = [*plan.server_flags(variant), *own, *more]
        with local_server(arguments) as server, Client(server.address, timeout=TIMEOUT_S) as client:
            try:
                client.wait_ready(120.0)
                yield Ours(server, client, f"{OURS} {client.trunk().precision} {variant}".strip())
            finally:
                server.process.kill()  # how it ends gracefully is nobody's question here


def weights_of(client: Client, reference: str) -> dict[str, np.ndarray]:
    """Of "policy@1", or of the version of "policy" that is active."""
    return {name: np.array(tensor, dtype=np.float32) for name, tensor in client.pull_head(reference).items()}


def moved(weights: Weights, seed: int, distance: float = 1e-3) -> dict[str, np.ndarray]:
    """The same head a little off everywhere."""
    random = np.random.default_rng(seed)
    noise = {name: random.standard_normal(tensor.shape, dtype=np.float32) for name, tensor in weights.items()}
    return {name: tensor + np.float32(distance) * noise[name] for name, tensor in weights.items()}


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """(seconds, what it returned)"""
    started_at = time.perf_counter()
    returned = work()
    return time.perf_counter() - started_at, returned
