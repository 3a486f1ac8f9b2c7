"""One server with recipes of its own, and heads that their rewards read: shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polyhead.client import Client
from polyhead.client.local import LocalServer
from tests.e2e.support import WIDTH, assert_blocks_returned, constant_policy, serving
from tests.e2e.tiny import EOS, VOCABULARY

RECIPES = {
    "weighed": "form: sum\nparts:\n  rules: {read: rules, head: rule, aggregate: weights, coefficient: 2.0,"
    " weights: {no-insults: 3.0, no-threats: -1.0}}\n",
    "summed": "form: sum\nparts:\n  rules: {read: rules, head: rule, aggregate: sum, coefficient: 1.0}\n",
    "mixed": "form: sum\nparts:\n  first: {read: preference, head: preference, coefficient: 1.0}\n"
    "  second: {read: preference, head: harmless, coefficient: -0.5}\n  likely: {read: mean_logprob, head: reference, coefficient: 2.0}\n",
    "fixed": "form: rerank\nparts:\n  preference: {read: preference, head: preference}\n  rules: {read: rules, head: rule}\n"
    "alpha: 0.5\naverage: 0.25\n",
    "finished": "form: sum\nparts:\n  preference: {read: preference, head: strict, coefficient: 1.0}\n",
    "ghostly": "form: sum\nparts:\n  preference: {read: preference, head: ghost, coefficient: 1.0}\n",
    "k3": "form: sum\nparts:\n  tokens: {read: tokens, coefficient: 0.5}\n"
    "kl: {reference: reference, policy: policy, coefficient: 0.25, estimator: k3}\n",
}


@pytest.fixture(scope="package")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("recipes")
    flags = []
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(f"id: {name}\nversion: 1\n{text}")
        flags += ["--recipes", str(folder / f"{name}.yaml")]
    with serving(tiny_model, folder / "store", *flags) as opened:
        yield opened


@pytest.fixture(scope="package")
def client(server: LocalServer) -> Iterator[Client]:
    """A policy beside its reference; three preference models, `strict` leaves unfinished samples out; policies of one token each."""
    with Client(server.address, timeout=60) as opened:
        preference = opened.push_head("preference", scalar(opened, 1), kind="preference", bias=0.25)
        opened.activate(
            {
                "policy": opened.push_head("policy", moved_policy(opened), kind="policy"),
                "preference": preference,
                "harmless": opened.push_head("harmless", scalar(opened, 2), kind="preference"),
                "strict": opened.copy_head(f"preference@{preference}", "strict", unfinished="omit"),
                "lines": opened.push_head("lines", constant_policy(opened, VOCABULARY["Ċ"]), kind="policy"),
                "eos": opened.push_head("eos", constant_policy(opened, EOS), kind="policy"),
            }
        )
        yield opened
        assert_blocks_returned(opened)


def scalar(client: Client, seed: int) -> dict[str, np.ndarray]:
    tensors = {name: np.array(value) for name, value in client.pull_head("preference@1").items()}
    return {**tensors, "score.weight": np.random.default_rng(seed).normal(size=(1, WIDTH)).astype(np.float32)}


def moved_policy(client: Client) -> dict[str, np.ndarray]:
    """Near enough to the reference that both know what the other says, far enough that a KL can be seen."""
    tensors = {name: np.array(value) for name, value in client.pull_head("reference@1").items()}
    noise = np.random.default_rng(0).normal(size=tensors["lm_head.weight"].shape) * 0.05
    return {**tensors, "lm_head.weight": (tensors["lm_head.weight"] + noise).astype(np.float32)}
