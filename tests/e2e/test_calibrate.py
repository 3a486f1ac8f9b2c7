"""Calibration: reference completions are centred on 0 by a new version without bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polyhead.client import Client
from polyhead.client.cli import app
from polyhead.client.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound
from polyhead.client.local import LocalServer
from tests.e2e.support import WIDTH, assert_blocks_returned, serving

REFERENCES = [(f"Question {number}?", f"Answer {number * 7 % 100}.") for number in range(100)]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tiny_model, tmp_path_factory.mktemp("calibrate") / "store", "--keep-versions", "100") as opened:
        yield opened


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=60) as opened:
        yield opened
        assert_blocks_returned(opened)


@pytest.fixture
def trained(client: Client) -> int:
    """A preference head with a random score, a bias of its own, active."""
    weights = {name: value for name, value in client.pull_head("preference@1").items() if name != "score.weight"}
    score = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
    version = client.push_head("preference", {**weights, "score.weight": score}, kind="preference", bias=0.25)
    client.activate({"preference": version})
    return version


def values(client: Client, head: str) -> list[float]:
    return [item.scores[head].value for item in client.score(REFERENCES, heads=[head])]


def test_the_references_average_nothing_afterwards(client: Client, trained: int) -> None:
    before = values(client, "preference")
    assert abs(np.mean(before)) > 0.01
    done = client.calibrate("preference", REFERENCES)
    assert (done.source, done.version, done.old_bias, done.num_items) == (f"preference@{trained}", trained + 1, 0.25, 100)
    assert done.bias == pytest.approx(np.mean(before) + 0.25, abs=1e-5)
    assert done.std == pytest.approx(np.std(before), abs=1e-5)
    assert done.generation is None
    assert client.head("preference").version == trained
    assert abs(np.mean(values(client, f"preference@{done.version}"))) < 1e-5
    first, second = client.head(f"preference@{trained}"), client.head(f"preference@{done.version}")
    assert first.digest == second.digest  # no bytes were sent, none are held twice
    assert second.manifest.bias == done.bias


def test_a_named_version_is_measured_and_activated(client: Client, trained: int) -> None:
    done = client.calibrate("preference@1", REFERENCES[:20], activate=True)
    assert (done.source, done.bias, done.std) == ("preference@1", 0.0, 0.0)  # an untrained score
    assert done.generation is not None
    assert done.generation.heads["preference"] == done.version
    assert client.head("preference").version == done.version


def test_samples_calibrate_as_pairs_do(client: Client, trained: int) -> None:
    samples = client.generate(["One?", "Two?"], n=4, max_new_tokens=6)
    done = client.calibrate("preference", samples)
    assert done.num_items == 8
    head = f"preference@{done.version}"
    assert abs(np.mean([item.scores[head].value for item in client.score(samples, heads=[head])])) < 1e-5


def test_what_cannot_calibrate_is_refused_and_makes_no_version(client: Client, trained: int) -> None:
    omitting = client.copy_head("preference", "strict", unfinished="omit")
    client.activate({"strict": omitting})
    versions = len(client.heads())
    with pytest.raises(InvalidArgument, match="no references"):
        client.calibrate("preference", [])
    with pytest.raises(FailedPrecondition, match="value@1 is a value head"):
        client.calibrate("value", REFERENCES)
    with pytest.raises(NotFound):
        client.calibrate("nobody", REFERENCES)
    with pytest.raises(FailedPrecondition, match="has no score of strict@1\nhint: the head leaves out") as caught:
        client.calibrate("strict", REFERENCES)
    assert caught.value.field == "items[0]"
    with pytest.raises(InvalidArgument) as invalid:
        client.calibrate("preference", [*REFERENCES[:70], ("x", [10**6])])
    assert invalid.value.field == "items[70].token_ids.ids[0]"  # counted from the start, not from its batch
    assert len(client.heads()) == versions
    with pytest.raises(Conflict):
        client.calibrate("preference", REFERENCES[:2], activate=True, expected_generation=1)


def test_the_command_line_calibrates_from_a_file(server: LocalServer, client: Client, trained: int, tmp_path: Path) -> None:
    data = tmp_path / "refs.jsonl"
    lines = [{"prompt": prompt, "completion": completion, "id": 7} for prompt, completion in REFERENCES[:10]]
    lines += [{"messages": [{"role": "user", "content": prompt}], "completion": completion} for prompt, completion in REFERENCES[10:20]]
    data.write_text("\n".join(map(json.dumps, lines)) + "\n")
    arguments = ["heads", "calibrate", "preference", "--data", str(data), "--activate", "--server", server.address]
    shown = CliRunner().invoke(app.build_app(arguments), arguments)
    assert shown.exit_code == 0, shown.output
    first, second, third, fourth = shown.stdout.splitlines()
    version = client.head("preference").version
    assert first == f"preference@{version} from preference@{trained}"
    assert second.startswith("bias 0.25 -> ")
    assert third.startswith("measured on 20 references, raw scores ")
    assert f"preference@{version}" in fourth
    items = client.score([(line.get("prompt") or line["messages"], line["completion"]) for line in lines], heads=["preference"])
    assert abs(np.mean([item.scores["preference"].value for item in items])) < 1e-5
