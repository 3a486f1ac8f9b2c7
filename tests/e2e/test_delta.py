"""Pushes of what changed, against a real server: few bytes cross the wire, the version is the whole one, a crash leaves nothing."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from polyhead.client import AsyncClient, Client
from polyhead.client.cli import app
from polyhead.client.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from polyhead.client.local import LocalServer
from tests.e2e.support import fingerprint, serving

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tiny_model, tmp_path_factory.mktemp("delta") / "store") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=60) as opened:
        yield opened


def weights(client: Client, ref: str = "policy@1") -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in client.pull_head(ref).items()}


def received(server: LocalServer) -> dict[str, int]:
    """Bytes of pushes by form, from the metrics page."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.ready['metrics_port']}/metrics", timeout=60).read().decode()
    found = re.findall(r'^polyhead_push_received_bytes_total\{form="(\w+)"\} ([\d.e+]+)$', page, re.MULTILINE)
    return {form: int(float(value)) for form, value in found}


def test_one_changed_tensor_moves_its_own_bytes(server: LocalServer, client: Client) -> None:
    changed = weights(client)
    changed[NORM] = changed[NORM] + 0.25
    before = received(server)
    report = client.push("policy", changed, base="policy@1")
    between = received(server)
    whole = client.push("policy", changed)
    after = received(server)
    assert report.head.digest == whole.head.digest
    assert between["delta"] - before["delta"] == report.num_bytes_sent < changed[NORM].nbytes + 200
    assert between["whole"] == before["whole"]
    assert after["whole"] - between["whole"] == whole.num_bytes_sent
    assert after["delta"] == between["delta"]
    assert whole.num_bytes_sent > 100 * report.num_bytes_sent
    assert report.sent == [NORM]


def test_it_serves_what_the_whole_push_serves_also_without_its_base(client: Client) -> None:
    first = weights(client)
    base = client.push_head("policy", {name: tensor * 1.5 for name, tensor in first.items()})
    last = {name: tensor * 1.5 for name, tensor in first.items()} | {NORM: first[NORM] * 0.5}
    made, whole = client.push_head("policy", last, base=f"policy@{base}"), client.push_head("policy", last)
    client.delete_head(f"policy@{base}")
    client.activate({"policy": whole})
    expected = fingerprint(client)
    client.activate({"policy": 1})
    assert fingerprint(client) != expected
    client.activate({"policy": made})
    assert fingerprint(client) == expected
    client.activate({"policy": 1})


def test_a_trainer_that_holds_only_what_it_trains(client: Client) -> None:
    """The rest is the base's, and so is the kind; a name that the base lacks is refused, naming it."""
    output = np.zeros_like(weights(client)["lm_head.weight"])
    version = client.push_head("mine", {"lm_head.weight": output}, base="policy@1")
    found = weights(client, f"mine@{version}")
    assert not found.pop("lm_head.weight").any()
    assert all(np.array_equal(found[name], tensor) for name, tensor in weights(client).items() if name != "lm_head.weight")
    assert client.head(f"mine@{version}").manifest.base == "policy@1"
    with pytest.raises(NotFound):
        client.push("mine", {"lm_head.weight": output}, base="policy@99")
    with pytest.raises(FailedPrecondition, match="not a tensor of the base"):
        client.push("mine", {"lm_head.weight": output}, base="value@1", kind="policy")
    with pytest.raises(InvalidArgument, match="name a version"):
        client.push("mine", {"lm_head.weight": output}, base="policy")


async def test_the_async_client_and_update_send_only_what_changed(server: LocalServer, client: Client) -> None:
    policy, value = weights(client), weights(client, "value@1")
    policy[NORM], value["score.weight"] = policy[NORM] + 1, value["score.weight"] + 1
    before = received(server)
    async with AsyncClient(server.address, timeout=60) as aio:
        report = await aio.push("policy", policy, base="policy@1")
        options = {"policy": {"base": "policy@1"}, "value": {"base": "value@1"}}
        done = await aio.update({"policy": policy, "value": value}, options=options)  # type: ignore[arg-type]
    assert report.sent == [NORM]
    assert received(server)["whole"] == before["whole"]
    assert not np.any(weights(client, f"value@{done.heads['value']}")["score.weight"] - value["score.weight"])
    client.rollback()


def test_the_command_line_says_what_was_sent(server: LocalServer, client: Client, tmp_path: Path) -> None:
    client.pull_head("policy@1", tmp_path)
    arguments = ["heads", "push", "policy", str(tmp_path), "--base", "policy@1", "--server", server.address]
    done = CliRunner().invoke(app.build_app(arguments), arguments)
    assert done.exit_code == 0, done.output
    assert "1 tensors sent" in done.output
    assert "as in the base" in done.output


@pytest.mark.parametrize("failpoint", ["after_rebuild_begin", "mid_rebuild", "after_rebuild"])
def test_a_kill_while_the_file_is_rebuilt_leaves_nothing(tiny_model: Path, tmp_path: Path, failpoint: str) -> None:
    store = tmp_path / "store"
    with serving(tiny_model, store, fp=f"{failpoint}:kill") as server, Client(server.address, timeout=60) as client:
        changed = weights(client)
        changed[NORM] = changed[NORM] + 1
        with pytest.raises(Unavailable):
            client.push("policy", changed, base="policy@1", request_id="lost")
        assert server.process.wait(30) == -signal.SIGKILL
    with serving(tiny_model, store) as server, Client(server.address, timeout=60) as client:
        assert [head.version for head in client.heads("policy")] == [1]
        assert not list((store / "staging").iterdir())
        again = client.push("policy", changed, base="policy@1", request_id="lost")
        assert (again.version, again.sent) == (2, [NORM])
        assert np.array_equal(weights(client, "policy@2")[NORM], changed[NORM])
