"""`polyhead train` in two processes on a real server: what is pushed is what one process makes of the same steps, once, and both resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from polyhead.client import Client
from polyhead.client.cli.app import build_app
from polyhead.client.local import LocalServer
from polyhead.heads.training.processes import Processes
from polyhead.heads.training.rl import rounds
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.pretraining import Pretraining
from polyhead.heads.training.rl.prompts import PromptPool, read_questions
from polyhead.heads.training.rl.rewards import load_judge
from tests.e2e import forked
from tests.e2e.support import eventually, serving
from tests.ports import free_port

ROWS = [
    {"prompt": f"Question {index}?", "completion": "so " * (1 + index % 4), "rule": "no-insults", "label": index % 3 == 0}
    | {"reward": index % 5, "chosen": f"good {index}", "rejected": f"bad, very bad {index}"}
    for index in range(12)
]
LONGEST_S = 120.0  # that a run of a few steps may take
JUDGE = "def letters(prompt, reply):\n    return float(sum(letter.isascii() for letter in reply))\n"


@pytest.fixture(scope="module")
def server(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tied_model, tmp_path_factory.mktemp("processes") / "store", "--keep-versions", "50") as opened:
        yield opened


@pytest.fixture
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=60) as opened:
        yield opened


def started(count: int, arguments: Sequence[str]) -> list[Any]:
    """The command in `count` processes, with the environment that torchrun gives them."""
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    command = [sys.executable, "-m", "polyhead.client.cli.main", *arguments]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [forked.start(command, **options, env={**os.environ, **launched, "RANK": str(rank)}) for rank in range(count)]


def ended(processes: Sequence[Any]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    try:
        said = [process.communicate(timeout=LONGEST_S) for process in processes]
        return [(process.wait(timeout=LONGEST_S), *texts) for process, texts in zip(processes, said, strict=True)]
    finally:
        for process in processes:
            process.kill()


def largest_gap(client: Client, one: str, other: str) -> float:
    ours, theirs = (dict(client.pull_head(name).items()) for name in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float(np.abs(np.array(ours[name]) - np.array(theirs[name])).max()) for name in ours)


@pytest.mark.parametrize(
    "task", ["sft", *(pytest.param(each, marks=pytest.mark.long) for each in ("preference", "rule", "value"))]
)
def test_two_processes_push_what_one_makes(server: LocalServer, client: Client, tmp_path: Path, task: str) -> None:
    """Batches of three rows are two and one, the last one is one and none. Replies differ in length: a step is one mean over tokens."""
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    kind = "policy" if task == "sft" else task
    files = ["--data", str(tmp_path / "rows.jsonl"), "--states", str(tmp_path / "states"), "--start-from", f"{kind}@1"]
    common = ["train", task, "--server", server.address, *files, "--batch-size", "3", "--epochs", "2", "--json"]
    alone = CliRunner().invoke(build_app(common), [*common, "--name", f"{task}-one"])
    assert alone.exit_code == 0, alone.output
    for version in (1, 2):  # the second time it goes on after the last step, and pushes the same
        done = ended(started(2, [*common, "--name", f"{task}-two", "--checkpoints", str(tmp_path / "kept")]))
        assert [code for code, _, _ in done] == [0, 0], done
        assert done[1][1] == ""
        answer = json.loads(done[0][1])
        assert answer["head"] == f"{task}-two@{version}"  # one push
        assert answer["metrics"] == pytest.approx(json.loads(alone.stdout)["metrics"], abs=1e-4)
    digests = {head.digest for head in client.heads(f"{task}-two")}
    assert len(digests) == 1
    assert largest_gap(client, f"{task}-one@1", f"{task}-two@1") < 1e-5


@pytest.mark.long
def test_rounds_in_two_processes(server: LocalServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same stored rollouts: after each round the same pair within 1e-5, one activation a round, figures of all replies once.

    The run in two processes ends after a round and is started again. Texts are mixed in, whose share each process has, too.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("letters_judge.py").write_text(JUDGE)
    Path("questions.txt").write_text("".join(f"Question {index}?\n" for index in range(5)))
    Path("texts.txt").write_text("Some text.\nSome more of it.\n")
    config = RLConfig(rounds=3, prompts=5, samples=2, max_new_tokens=6, epochs=2, minibatches=2, kl_limit=50.0)
    pool = PromptPool(read_questions(Path("questions.txt")), 0)
    mixed = Pretraining(["Some text.", "Some more of it."])
    alone = rounds.Run(client, pool, load_judge("letters_judge:letters"), tmp_path / "one", "one", "policy@1", "value@1", pretraining=mixed)
    rounds.train(alone, config, on_stage=lambda at, number: keep_rollouts(tmp_path / "one", tmp_path / "two"))
    before = client.generations(1)[0].number
    sizes = "--prompts-per-round 5 --samples 2 --max-new-tokens 6 --epochs 2 --minibatches 2 --kl-limit 50 --pretraining texts.txt"
    heads = "--name two --start-from policy@1 --value-from value@1 --checkpoints two --reward judge --judge letters_judge:letters --json"
    arguments = ["train", "rl", "--server", server.address, "--prompts", "questions.txt", *sizes.split(), *heads.split()]
    for until in (1, 3):
        done = ended(started(2, [*arguments, "--rounds", str(until)]))
        assert [code for code, _, _ in done] == [0, 0], done
        assert done[1][1] == done[1][2] == ""
    assert [each["number"] for each in json.loads(done[0][1])["rounds"]] == [2, 3]
    assert client.generations(1)[0].number == before + 1 + config.rounds
    for version in range(2, 2 + config.rounds):
        for kind in ("policy", "value"):
            assert largest_gap(client, f"{kind}-one@{version}", f"{kind}-two@{version}") < 1e-5
    ours, theirs = (read_log(tmp_path / name) for name in ("one", "two"))
    for one, two in zip(ours, theirs, strict=True):
        measured = ("reward", "kl", "length", "num_replies", "explained_variance", "value_loss", "policy_loss", "pretraining_loss")
        assert {name: two[name] for name in measured} == pytest.approx({name: one[name] for name in measured}, rel=1e-3, abs=1e-5)
        assert 0 <= two["gap"] < 1e-4


def keep_rollouts(folder: Path, to: Path) -> None:
    shutil.copytree(folder / "rollouts", to / "rollouts", dirs_exist_ok=True)


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_an_error_is_said_once_and_ends_both(server: LocalServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge fails in the process that draws: that one speaks."""
    monkeypatch.chdir(tmp_path)
    Path("bad_judge.py").write_text("def bad(prompt, reply):\n    raise KeyError('colour')\n")
    done = ended(started(2, [*rl_arguments(server), "--name", "bad", "--judge", "bad_judge:bad"]))
    assert [code for code, _, _ in done] == [1, 1]
    assert done[0][2].startswith("error: the judge bad_judge:bad failed on")
    assert done[1][1:] == ("", "")
    assert [head.version for head in client.heads("policy-bad")] == [1]


@pytest.mark.long
def test_a_killed_process_ends_the_other_with_a_sentence(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slow = "import time\ndef slow(prompt, reply):\n    open('drawing', 'w').close()\n    time.sleep(60)\n"
    Path("slow_judge.py").write_text(slow)
    first, second = started(2, [*rl_arguments(server), "--name", "lost", "--judge", "slow_judge:slow"])
    eventually(lambda: Path("drawing").exists(), what="the judge's first call")
    first.send_signal(signal.SIGKILL)
    [(code, _, said)] = ended([second])
    assert code == 1
    assert said.startswith("error: another process of the run has ended")
    assert "the server keeps the heads that were activated last" in said
    ended([first])


def rl_arguments(server: LocalServer) -> list[str]:
    Path("questions.txt").write_text("What is red?\n")
    return ["train", "rl", "--server", server.address, "--prompts", "questions.txt", "--reward", "judge", "--max-new-tokens", "3"]


def test_half_a_launcher_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but RANK is not set\nhint: start the processes with torchrun"):
        Processes.launched()
