"""A primary and its followers as real processes: the rows of the failure table."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from polyhead.client import Client, Fleet, Replica
from polyhead.client.cli.app import build_app
from polyhead.client.errors import FailedPrecondition, PolyheadError, Unavailable
from polyhead.heads.store.store import HeadStore
from tests.certificates import write_pair
from tests.e2e.fleets import follower_of, primary_on, ready
from tests.e2e.forked import COMMAND, finished
from tests.e2e.support import PROMPT, constant_policy, eventually, fingerprint, serving
from tests.e2e.tiny import save_tiny_llama
from tests.openssl import make_pair, needs_openssl
from tests.ports import free_port

TOKENS = {role: f"{role}-token-of-the-tests" for role in ("worker", "admin", "replica")}
RECIPE = "id: terse\nversion: {version}\nform: sum\nparts:\n  tokens: {{read: tokens, coefficient: -0.5}}\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet") / "model"
    save_tiny_llama(folder)
    return folder


@pytest.fixture
def port() -> int:
    return free_port()


def scaled(client: Client, factor: float) -> dict[str, Any]:
    weights = {name: np.array(tensor) for name, tensor in client.pull_head("policy@1").items()}
    return {name: tensor * factor if name == "model.norm.weight" else tensor for name, tensor in weights.items()}


def state_of(client: Client) -> str:
    """Of the only follower."""
    followers = [each for each in client.replicas() if not each.primary]
    return followers[0].state if followers else "none"


def follower_row(client: Client) -> Replica:
    return next(each for each in client.replicas() if not each.primary)


def is_ready(client: Client) -> bool:
    with contextlib.suppress(PolyheadError):
        client.wait_ready(0.5)
        return True
    return False


def printed(*words: str) -> str:
    """By the command line, which ends well."""
    done = CliRunner().invoke(build_app(words), words)
    assert done.exit_code == 0, done.output
    return done.output


def records_of(store: Path) -> dict[str, bytes]:
    """What a store holds, byte for byte, by relative path."""
    found = {}
    for path in (path for folder in ("versions", "blobs", "generations", "ood", "configurations") for path in (store / folder).rglob("*")):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # a server may delete it meanwhile
            found[str(path.relative_to(store))] = path.read_bytes()
    return found


def test_a_late_follower_takes_the_active_set_and_every_later_one(model: Path, tmp_path: Path, port: int) -> None:
    """Its records are the primary's, byte for byte; changes are the primary's to make."""
    with primary_on(port, model, tmp_path / "a") as first, Client(first.address) as primary:
        primary.update({"policy": scaled(primary, 2.0)})
        with follower_of(port, model, tmp_path / "b") as second, ready(second) as follower:
            assert follower.status().active == primary.status().active
            assert fingerprint(follower) == fingerprint(primary)
            done = primary.update({"policy": scaled(primary, 3.0)})
            assert done.number == 3
            assert done.behind == ()
            assert follower.status().generation == 3
            assert follower.status().history_id == done.history_id
            assert fingerprint(follower) == fingerprint(primary)
            assert [each.state for each in primary.replicas()] == ["serving", "serving"]
            with pytest.raises(FailedPrecondition, match=r"ask the primary: 127\.0\.0\.1") as refused:
                follower.activate({"policy": 1})
            assert refused.value.reason == "NOT_PRIMARY"
            with pytest.raises(FailedPrecondition, match="follows another one"):
                follower.replicas()
            primary.label("policy@2", "best")
            primary.copy_head("policy@2", "snapshot")
            primary.delete_head("snapshot@1")
            eventually(lambda: records_of(tmp_path / "a") == records_of(tmp_path / "b"), what="equal stores")


@contextlib.contextmanager
def protected(model: Path, folder: Path, port: int) -> Iterator[tuple[Fleet, tuple[str, ...]]]:
    """An admin's client of a primary with TLS and tokens, and that server's flags for both."""
    certificate, key = write_pair(folder)
    (folder / "tokens.toml").write_text("".join(f'{role} = "{token}"\n' for role, token in TOKENS.items()))
    (folder / "tokens.toml").chmod(0o600)
    flags = ("--tls-cert", str(certificate), "--tls-key", str(key), "--tokens", str(folder / "tokens.toml"))
    trusted = certificate.read_bytes()
    with (
        serving(model, folder / "a", "--port", str(port), *flags) as server,
        Fleet(server.address, token=TOKENS["admin"], root_certificates=trusted) as primary,
    ):
        primary.wait_ready()
        yield primary, flags


def test_a_follower_reaches_its_primary_by_tls_and_shows_its_token(model: Path, tmp_path: Path, port: int) -> None:
    """Beyond loopback it is the only way without --insecure."""
    with protected(model, tmp_path, port) as (primary, flags):
        follow = ("--follow", f"127.0.0.1:{port}", "--follow-ca", flags[1])
        with serving(model, tmp_path / "b", *flags, *follow, follow_token=TOKENS["replica"]) as second:
            credentials: Any = {"token": TOKENS["admin"], "root_certificates": Path(flags[1]).read_bytes()}
            with Client(second.address, **credentials) as follower:
                follower.wait_ready()
                assert primary.update({"policy": scaled(primary, 2.0)}).behind == ()
                assert follower.status().generation == 2


@needs_openssl
@pytest.mark.long
def test_a_follower_that_trusts_another_authority_or_shows_another_token_says_so(model: Path, tmp_path: Path, port: int) -> None:
    strangers, _ = make_pair(tmp_path / "strangers")
    with protected(model, tmp_path, port) as (_, flags):
        refusals = ((flags[1], "a-token-that-nobody-knows", "UNAUTHENTICATED"), (strangers, TOKENS["replica"], "certificate"))
        for ca, token, problem in refusals:
            follow = ("--follow", f"127.0.0.1:{port}", "--follow-ca", str(ca))
            with serving(model, tmp_path / token, *follow, follow_token=token) as server, Client(server.address) as follower:
                eventually(lambda follower=follower, problem=problem: problem in follower.status().follow_problem, what=problem)  # type: ignore[misc]
                assert not is_ready(follower)


def test_a_trainer_that_dies_between_push_and_activation_has_changed_nothing(model: Path, tmp_path: Path, port: int) -> None:
    """What it pushed is stored, everywhere, and active nowhere; another trainer activates it."""
    with contextlib.ExitStack() as servers:
        primary = servers.enter_context(Client(servers.enter_context(primary_on(port, model, tmp_path / "a")).address))
        follower = servers.enter_context(ready(servers.enter_context(follower_of(port, model, tmp_path / "b"))))
        save_file(scaled(primary, 2.0), tmp_path / "weights.safetensors")
        trainer = [sys.executable, "-m", "tests.e2e.dying_trainer", f"127.0.0.1:{port}", str(tmp_path / "weights.safetensors")]
        assert finished(trainer).returncode == -signal.SIGKILL
        for client in (primary, follower):
            eventually(lambda client=client: client.heads("policy")[0].version == 2, what="a stored version")  # type: ignore[misc]
            assert (client.heads("policy")[0].active, client.status().generation) == (False, 1)
        assert primary.activate({"policy": 2}).behind == ()
        assert follower.status().generation == 2


def adapter(seed: int) -> dict[str, Any]:
    """A LoRA adapter of the last layer, as PEFT names its tensors."""
    random, module = np.random.default_rng(seed), "base_model.model.model.layers.3.self_attn.q_proj"
    shapes = {"lora_A": (2, 32), "lora_B": (32, 2)}
    return {f"{module}.{part}.weight": random.normal(size=shape).astype(np.float32) for part, shape in shapes.items()}


def test_everything_that_a_primary_stores_is_copied_and_used(model: Path, tmp_path: Path, port: int) -> None:
    """LoRA heads, fits, configurations, labels, and what --keep-versions removes: before the follower came, and while it is there."""
    with primary_on(port, model, tmp_path / "a", keep_versions=2) as first, Client(first.address) as primary:

        def change(round_: int) -> None:
            primary.add_configuration(RECIPE.format(version=round_))
            primary.fit_ood("helpful", [[5 + seed % 40, 6 + seed, 7 + seed * seed % 90] for seed in range(40)])
            config = {"r": 2, "lora_alpha": 4.0, "target_modules": ["q_proj"], "layers_to_transform": [3]}
            primary.update({"adapted": adapter(round_)}, options={"adapted": {"kind": "policy", "lora": config, "base": "policy@1"}})
            for factor in (2.0, 3.0, 4.0):
                primary.push_head("policy", scaled(primary, factor + round_))  # keep_versions lets the oldest go
            primary.label(f"policy@{primary.heads('policy')[0].version}", "best")

        change(1)
        primary.retire_configuration("terse@1")
        with follower_of(port, model, tmp_path / "b") as second, ready(second) as follower:
            change(2)
            eventually(lambda: records_of(tmp_path / "a") == records_of(tmp_path / "b"), what="equal stores")
            for client in (primary, follower):
                [sample] = client.generate([PROMPT], head="adapted", max_new_tokens=3, seed=5, recipe="terse", ood="helpful")
                assert sample.reward is not None
                assert (sample.reward.recipe, sample.ood.fit if sample.ood else "") == ("terse@2", "helpful@2")
            answers = [client.generate([PROMPT], head="adapted", max_new_tokens=3, seed=5)[0] for client in (primary, follower)]
            assert answers[0].token_ids == answers[1].token_ids
            assert answers[0].digest == answers[1].digest
            shown = finished([sys.executable, "-m", COMMAND, "fleet", "--server", first.address]).stdout
            assert shown.count("serving") == 2
            assert second.address in shown
            status = finished([sys.executable, "-m", COMMAND, "status", "--server", second.address]).stdout
            assert f"127.0.0.1:{port}" in status


def test_a_head_that_one_replica_cannot_load_is_activated_nowhere(model: Path, tmp_path: Path, port: int) -> None:
    """With require=primary it is, and that replica does not serve until it can."""
    with primary_on(port, model, tmp_path / "a") as first, Client(first.address) as primary:
        version = primary.push_head("policy", scaled(primary, 2.0))
        heads = sum(head.num_bytes for head in primary.status().resident_heads)
        with follower_of(port, model, tmp_path / "b", "--memory-budget", str(heads - 1)) as second, ready(second) as follower:
            with pytest.raises(FailedPrecondition, match="nothing was changed: a replica cannot load it"):
                primary.activate({"policy": version})
            assert (primary.status().generation, follower.status().generation) == (1, 1)
            done = primary.activate({"policy": version}, require="primary")
            assert done.behind == (follower_row(primary).name,)
            eventually(lambda: not is_ready(follower), what="a follower that does not serve")
            assert state_of(primary) == "behind"
            assert "memory" in follower_row(primary).error
            primary.rollback()
            eventually(lambda: is_ready(follower), what="a follower that serves again")
            assert follower.status().generation == 3


def test_a_stopped_follower_refuses_an_activation_in_bounded_time_and_catches_up(model: Path, tmp_path: Path, port: int) -> None:
    with contextlib.ExitStack() as servers:
        primary = servers.enter_context(Client(servers.enter_context(primary_on(port, model, tmp_path / "a")).address))
        second = servers.enter_context(follower_of(port, model, tmp_path / "b"))
        with ready(second) as follower:
            os.kill(second.process.pid, signal.SIGSTOP)
            try:
                version = primary.push_head("policy", scaled(primary, 2.0))
                rounds = primary.status().counters["swaps"]
                with pytest.raises(Unavailable, match="nothing was changed") as refused:
                    primary.activate({"policy": version}, prepare_timeout=0.3)
                assert refused.value.reason == "REPLICA_MISSING", "which gRPC does not try again by itself: four rounds took 21 s"
                assert primary.status().counters["swaps"] == rounds
                assert primary.status().generation == 1
                done = primary.activate({"policy": 2}, require="primary")
                assert done.behind == (follower_row(primary).name,)
            finally:
                os.kill(second.process.pid, signal.SIGCONT)
            eventually(lambda: follower.status().generation == 2, what="a follower that has caught up")
            assert primary.update({"policy": scaled(primary, 3.0)}).behind == ()


def test_a_primary_that_is_away_is_missed_by_changes_alone(model: Path, tmp_path: Path, port: int) -> None:
    """A follower that never caught up since its start does not serve; all go on after the primary's restart."""
    with contextlib.ExitStack() as followers:
        with primary_on(port, model, tmp_path / "a") as first, Client(first.address) as primary:
            primary.update({"policy": scaled(primary, 2.0)})
            second = followers.enter_context(follower_of(port, model, tmp_path / "b"))
            follower = followers.enter_context(ready(second))
            first.process.kill()
            first.process.wait()
        third = followers.enter_context(follower_of(port, model, tmp_path / "c"))
        late = followers.enter_context(Client(third.address))
        assert follower.generate([PROMPT], max_new_tokens=2)[0].generation == 2
        assert not is_ready(late)
        servers = f"{second.address},{third.address},127.0.0.1:{port}"
        fleet = followers.enter_context(Fleet(servers))
        with fleet.pinned() as pinned:
            assert pinned.generate([PROMPT], max_new_tokens=2)[0].generation == 2, "the generation that those who serve have"
        with pytest.raises(Unavailable):
            fleet.activate({"policy": 1})
        assert "generation 2" in printed("generate", "ab", "--max-new-tokens", "2", "--server", servers)
        assert f"127.0.0.1:{port}" in printed("status", "--server", servers), "a follower answers, and says whom it follows"
        assert "cannot be followed now" in late.status().follow_problem
        with primary_on(port, model, tmp_path / "a") as again, Client(again.address) as primary:
            late.wait_ready()
            eventually(lambda: [each.state for each in primary.replicas()] == ["serving"] * 3, what="a whole fleet")
            assert fleet.update({"policy": scaled(fleet, 3.0)}).behind == (), "it finds the primary among the addresses"
            assert {follower.status().generation, late.status().generation} == {3}
            assert printed("fleet", "--server", servers).count("serving") == 3
            assert printed("health", "--server", servers) == "SERVING\n"


def test_a_primary_that_lost_its_store_is_not_followed_and_a_follower_takes_its_place(model: Path, tmp_path: Path, port: int) -> None:
    with primary_on(port, model, tmp_path / "a") as first, Client(first.address) as primary:
        primary.update({"policy": scaled(primary, 2.0)})
        old = primary.status().history_id
        with follower_of(port, model, tmp_path / "b") as second, ready(second) as follower:
            primary.copy_head("policy@2", "snapshot")
            primary.delete_head("snapshot@1")  # perhaps before the follower was told of it
            # it serves as soon as it has the active set; what came before follows
            eventually(lambda: records_of(tmp_path / "a") == records_of(tmp_path / "b"), what="equal stores")
            first.process.kill()
            first.process.wait()
            with primary_on(port, model, tmp_path / "empty"):
                eventually(lambda: not is_ready(follower), what="a follower of nobody's history")
                assert "generation 2 is not in the primary's history" in follower.status().follow_problem
    with primary_on(port, model, tmp_path / "b") as promoted, Client(promoted.address) as primary:
        assert primary.status().history_id == old
        assert primary.copy_head("policy@2", "snapshot") == 2, "a number is never used again"
        assert primary.update({"policy": scaled(primary, 3.0)}).number == 3
        assert primary.rollback(1).heads["policy"] == 1


@pytest.mark.parametrize(
    "failpoint",
    [
        pytest.param("before_version_rename:kill", marks=pytest.mark.long),
        pytest.param("after_generation_rename:kill", marks=pytest.mark.long),
        "before_flip:kill@2",
    ],
)
def test_a_follower_killed_at_any_step_comes_back_with_the_primarys_set(model: Path, tmp_path: Path, port: int, failpoint: str) -> None:
    """Its disk holds some past generation of the primary. All failpoints: tests/heads/store/test_adoption.py."""
    with primary_on(port, model, tmp_path / "a") as first, Client(first.address) as primary:
        with follower_of(port, model, tmp_path / "b") as second, ready(second):
            pass
        with follower_of(port, model, tmp_path / "b", fp=failpoint) as second:
            eventually(lambda: state_of(primary) == "serving", what="a follower")
            version = primary.push_head("policy", constant_policy(primary, 100), kind="policy")
            with contextlib.suppress(PolyheadError):
                primary.activate({"policy": version}, prepare_timeout=2.0)
            primary.activate({"policy": version}, require="primary")
            assert second.process.wait(30) == -signal.SIGKILL
        trunk_id = primary.trunk().trunk_id
        with HeadStore.open(tmp_path / "b", trunk_id) as store:
            assert store.current is not None
            past = (tmp_path / "a" / "generations" / f"{store.current.number}.json").read_bytes()
            assert (tmp_path / "b" / "generations" / f"{store.current.number}.json").read_bytes() == past
            assert store.verify_active() is None
        with follower_of(port, model, tmp_path / "b") as second, ready(second) as follower:
            assert follower.status().active == primary.status().active
            assert follower.generate([PROMPT], max_new_tokens=2)[0].token_ids == [100, 100]
