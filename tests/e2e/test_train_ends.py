"""`polyhead train` ended from outside, on a real server: Ctrl-C, a full disk, a server that goes away. A sentence, and it resumes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead.client import Client
from polyhead.client.cli.app import build_app
from polyhead.client.errors import Unavailable
from polyhead.client.local import LocalServer
from polyhead.heads.training.rl import rounds
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.prompts import PromptPool
from polyhead.heads.training.rl.rewards import JudgeReward
from tests.e2e import forked
from tests.e2e.support import eventually, serving
from tests.ports import free_port

ROWS = [{"prompt": f"Question {index}?", "chosen": f"good {index}", "rejected": f"bad {index}"} for index in range(12)]
HINT = "hint: the server keeps the heads that were activated last; the same command resumes from --checkpoints\n"
JUDGE = """
import pathlib, time

def judge(prompt, reply):
    while pathlib.Path("wait").exists():
        time.sleep(0.01)
    return 1.0
"""


@pytest.fixture(scope="module")
def server(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tied_model, tmp_path_factory.mktemp("ends") / "store") as opened:
        yield opened


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=60) as opened:
        yield opened


@pytest.fixture
def preference(server: LocalServer, tmp_path: Path) -> list[str]:
    """A command that trains for a second."""
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    files = ["--data", str(tmp_path / "rows.jsonl"), "--states", str(tmp_path / "states"), "--checkpoints", str(tmp_path / "kept")]
    return ["train", "preference", "--server", server.address, *files, "--start-from", "preference@1", "--epochs", "30"]


@pytest.fixture
def rl(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command whose judge waits while there is a file of that name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "waiting_judge.py").write_text(JUDGE)
    (tmp_path / "questions.txt").write_text("What is red?\nWhat is blue?\n")
    sizes = "--rounds 2 --prompts-per-round 2 --samples 2 --max-new-tokens 4 --kl-limit 50 --start-from policy@1 --value-from value@1"
    judged = "--prompts questions.txt --reward judge --judge waiting_judge:judge --checkpoints kept"
    return ["train", "rl", "--server", server.address, *sizes.split(), *judged.split()]


def invoked(arguments: list[str]) -> Any:
    return CliRunner().invoke(build_app(arguments), arguments)


def interrupted(arguments: list[str], is_under_way: Any) -> tuple[int, str]:
    """(exit code, stderr) of the command in a process of its own, which gets Ctrl-C's signal."""
    command = [sys.executable, "-m", "polyhead.client.cli.main", *arguments]
    process = forked.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        eventually(is_under_way, what="training")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    except BaseException:
        process.kill()
        process.communicate(timeout=60)
        raise
    return process.wait(), said


def test_ctrl_c_pushes_nothing_and_the_same_command_resumes(client: Client, preference: list[str], tmp_path: Path) -> None:
    preference += ["--name", "broken-off"]
    code, said = interrupted(preference, lambda: list((tmp_path / "kept").glob("step-*")))
    assert (code, said.endswith(f"interrupted\n{HINT}")) == (130, True), said
    assert client.heads("broken-off") == []
    assert invoked(preference).exit_code == 0
    assert [head.ref for head in client.heads("broken-off")] == ["broken-off@1"]


def test_ctrl_c_in_a_round_leaves_the_last_pair(client: Client, rl: list[str], tmp_path: Path) -> None:
    rl += ["--name", "broken-off"]
    (tmp_path / "wait").touch()
    code, said = interrupted(rl, lambda: list((tmp_path / "kept/checkpoints").glob("step-*")))
    assert (code, said.endswith(f"interrupted\n{HINT}")) == (130, True), said
    assert client.head("policy-broken-off").version == 1
    (tmp_path / "wait").unlink()
    done = invoked(rl)
    assert done.exit_code == 0, done.output
    assert "active: policy-broken-off@3 and value-broken-off@3" in done.stdout


class Disk:
    """Full after so many files of a run."""

    def __init__(self, room: int) -> None:
        self.room, self._fsync = room, os.fsync

    def fsync(self, file: int) -> None:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        self._fsync(file)


def test_a_full_disk_ends_training_with_a_sentence(
    client: Client, preference: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that did not fit leaves nothing behind; the checkpoint before it is what the same command resumes from."""
    preference += ["--name", "full"]
    disk = Disk(room=2)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    done = invoked(preference)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0].startswith("epoch 1/30, step 2/60: loss ")  # no bar where nobody looks
    assert done.stderr.endswith(f"error: No space left on device\n{HINT}")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [f"step-{step:09d}.safetensors" for step in (0, 50)]
    assert client.heads("full") == []
    disk.room = 100
    assert invoked(preference).exit_code == 0
    assert [head.ref for head in client.heads("full")] == ["full@1"]


@pytest.mark.parametrize(
    ("room", "version"), [(2, 1), (3, 2), pytest.param(1, 1, marks=pytest.mark.long), pytest.param(5, 2, marks=pytest.mark.long)]
)
def test_a_full_disk_ends_rounds_with_the_last_pair_active(
    client: Client, rl: list[str], monkeypatch: pytest.MonkeyPatch, room: int, version: int
) -> None:
    """A run writes its beginning; each round its rollouts, its checkpoint, then, after the push, its log."""
    name = f"full-{room}"
    rl += ["--name", name]
    disk = Disk(room)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    done = invoked(rl)
    assert (done.exit_code, done.stderr) == (1, f"error: No space left on device\n{HINT}")
    assert [client.head(f"{kind}-{name}").version for kind in ("policy", "value")] == [version, version]
    assert not list(Path("kept").rglob(".*"))
    disk.room = 100
    done = invoked(rl)
    assert done.exit_code == 0, done.output
    assert f"active: policy-{name}@3 and value-{name}@3" in done.stdout


def test_rounds_resume_when_the_server_was_started_anew(tied_model: Path, tmp_path: Path) -> None:
    """It went away before the second push: the first pair is what the next server begins with, and the run goes on from its checkpoint."""
    port = ["--port", str(free_port())]
    config = RLConfig(rounds=3, prompts=2, samples=2, max_new_tokens=4, kl_limit=50.0)
    pool = PromptPool([("What is red?", "questions"), ("What is blue?", "questions")], 0)
    judge = JudgeReward(lambda prompt, reply: float(len(reply)), "length")
    with serving(tied_model, tmp_path / "store", *port) as server, Client(server.address, timeout=60) as client:
        run = rounds.Run(client, pool, judge, tmp_path / "run", "again")

        def stop(stage: str, number: int) -> None:
            if (stage, number) == ("checkpoint", 2):
                server.process.kill()
                server.process.wait(60)

        with pytest.raises(Unavailable):
            rounds.train(run, config, on_stage=stop)
        with serving(tied_model, tmp_path / "store", *port):
            client.wait_ready()  # gRPC pauses between attempts to connect
            assert client.head("policy-again").version == 2
            notes: list[str] = []
            rounds.train(run, config, on_note=notes.append)
            assert notes == ["going on after round 2 of 3"]
            assert [client.head(f"{kind}-again").version for kind in ("policy", "value")] == [4, 4]
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3]
