"""A real server that has done one of everything, and what Prometheus would read from it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from polyhead.client import Client
from polyhead.client.errors import Conflict
from polyhead.client.local import LocalServer
from tests.e2e.support import PROMPT, push_pair, serving
from tests.e2e.tiny import save_tiny_llama


@dataclass(frozen=True)
class Exported:
    """Series of one scrape: names with the labels and label values that were seen. `families` are as # TYPE names them."""

    labels: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = field(default_factory=dict)
    families: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> (type, help)

    def value(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]


def read_page(text: str) -> Exported:
    page = Exported()
    for family in text_string_to_metric_families(text):
        page.families[family.name] = (family.type, family.documentation)
        for sample in family.samples:
            labels = page.labels.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
            page.values[sample.name, frozenset(sample.labels.items())] = sample.value
    return page


def scrape(server: LocalServer) -> Exported:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.ready['metrics_port']}/metrics", timeout=60) as answer:
        return read_page(answer.read().decode())


def do_one_of_everything(client: Client) -> None:
    """A rollout that is scored by every kind of head, a score call, a push, an activation that works and one that does not."""
    client.activate({"omitting": client.copy_head("preference@1", "omitting", unfinished="omit")})
    heads = ["reference", "value", "preference", "omitting", "rule"]
    client.generate([PROMPT], n=2, max_new_tokens=4, score=heads, rules=["no-insults"], ignore_eos=True)
    client.score([(PROMPT, [80, 81])], heads=["preference"])
    client.activate(push_pair(client, 1))
    with pytest.raises(Conflict):
        client.activate({"policy": 1}, expected_generation=99)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("deploy")
    with serving(save_tiny_llama(folder / "model"), folder / "store") as opened:
        with Client(opened.address, timeout=60) as client:
            do_one_of_everything(client)
        yield opened


@pytest.fixture(scope="session")
def exported(server: LocalServer) -> Exported:
    return scrape(server)


DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DOCS = DEPLOY.parent / "docs"
