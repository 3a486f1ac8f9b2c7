"""RL on a real server with a tiny model: rounds that end in a swap, guards that go back, and runs that are killed and resumed."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from polyhead.client import Client
from polyhead.client.cli.app import build_app
from polyhead.client.errors import InvalidArgument
from polyhead.client.local import LocalServer
from polyhead.heads.model.family import trainable_parameters
from polyhead.heads.training.checkpoints import CheckpointMismatch
from polyhead.heads.training.data import DataError
from polyhead.heads.training.fit import TrainingFailed
from polyhead.heads.training.rl import rounds
from polyhead.heads.training.rl.config import Algorithm, RLConfig
from polyhead.heads.training.rl.learner import Learner
from polyhead.heads.training.rl.pretraining import Pretraining
from polyhead.heads.training.rl.prompts import PromptPool
from polyhead.heads.training.rl.report import RoundReport
from polyhead.heads.training.rl.rewards import (
    HeadsReward,
    JudgeReward,
    RecipeReward,
    Reward,
    RewardError,
    check_answers,
    num_scoring_tokens,
)
from polyhead.heads.training.rl.served import OtherTrainer
from polyhead.heads.training.rule import served_rules
from polyhead.heads.training.state_store import StateStore
from polyhead.heads.training.verify import verify
from tests.e2e.support import serving

PROMPTS = [([{"role": "user", "content": f"Question {index}?"}], "questions") for index in range(5)]
CONFIG = RLConfig(
    rounds=3, prompts=3, samples=3, max_new_tokens=6, learning_rate=3e-3, value_learning_rate=3e-3, micro_batch_tokens=60, kl_limit=50.0
)
_names = itertools.count()


def letters(prompt: Any, reply: str) -> float:
    """A reward that a byte-level model can learn: how many ASCII characters it wrote."""
    return float(sum(letter.isascii() for letter in reply))


JUDGE = JudgeReward(letters, "letters")


@pytest.fixture(scope="module")
def server(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tied_model, tmp_path_factory.mktemp("rl") / "store", "--keep-versions", "50") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=60) as opened:
        yield opened


@pytest.fixture
def run(client: Client, tmp_path: Path) -> rounds.Run:
    """One under a name of its own, from the server's first heads."""
    name = f"arm{next(_names)}"
    return rounds.Run(client, PromptPool(PROMPTS, 0), JUDGE, tmp_path / "run", name, "policy@1", "value@1")


def bits(learner: Learner) -> bytes:
    return b"".join(tensor.numpy().tobytes() for _, tensor in sorted(learner.tensors().items()))


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_rounds_raise_the_reward_and_each_ends_in_one_activation(client: Client, run: rounds.Run, algorithm: Algorithm) -> None:
    reports: list[RoundReport] = []
    before = client.generations(1)[0].number
    config = replace(CONFIG, rounds=5, prompts=5, samples=8, algorithm=algorithm, kl_weight=0.0, learning_rate=2e-2)
    learner = rounds.train(run, config, reports.append)
    assert [report.number for report in reports] == list(range(1, 6))
    assert reports[-1].reward > reports[0].reward + 0.7
    assert max(max(report.gap, report.value_gap) for report in reports) < 1e-4  # every swap served what was trained
    activations = [each for each in client.generations() if each.number > before]
    assert len(activations) == 1 + 5  # the start, then one of both heads a round
    names = {f"policy-{run.name}", f"value-{run.name}"}
    versions = [{name: each.heads[name] for name in names} for each in reversed(activations)]
    assert all(late[name] == early[name] + 1 for early, late in itertools.pairwise(versions) for name in names)
    items = [(client.tokenize(prompt), [80, 81, 82]) for prompt, _ in PROMPTS[:2]]
    states = StateStore(client, run.folder / "states")
    assert verify(client, learner.policy, f"policy-{run.name}", items, states) < 1e-4
    assert verify(client, learner.value, f"value-{run.name}", items, states) < 1e-4


def test_a_value_head_with_a_bias_learns_in_the_units_that_it_is_served_in(client: Client, run: rounds.Run) -> None:
    """Values were served as (output - bias) / scale and the output itself was trained: a gap of 1.5. A resumed run keeps the units."""
    client.copy_head("preference@1", "centred", bias=3.0, scale=2.0)
    reports: list[RoundReport] = []
    for config in (replace(CONFIG, rounds=2), CONFIG):
        rounds.train(replace(run, value_from="centred@1"), config, reports.append)
    assert [report.number for report in reports] == [1, 2, 3]
    assert max(report.value_gap for report in reports) < 1e-4
    manifest = client.head(f"value-{run.name}").manifest
    assert (manifest.bias, manifest.scale) == (3.0, 2.0)


def test_the_policy_learns_the_same_whatever_level_the_value_head_starts_from(client: Client, run: rounds.Run) -> None:
    """A head that knew the mean reward raised the first tokens of every reply and lowered the last ones, whatever the reward."""
    client.copy_head("value@1", "raised", bias=-5.0)
    config, learned = replace(CONFIG, rounds=1), []
    for name, value in (("level", "value@1"), ("raised-level", "raised@1")):
        own = replace(run, folder=run.folder / name, name=f"{run.name}-{name}", value_from=value)
        learned.append(rounds.train(own, config).policy.state_dict())
    for (name, tensor), other in zip(learned[0].items(), learned[1].values(), strict=True):
        torch.testing.assert_close(tensor, other, atol=1e-5, rtol=0, msg=name)


class Killed(BaseException):
    """Ends a run as a signal would: nothing of it is caught."""


KILLS = [("rollout", 1), ("update", 1), ("checkpoint", 1), ("push", 2), ("rollout", 3)]


def test_a_killed_run_goes_on_with_the_same_bits(client: Client, run: rounds.Run, tmp_path: Path) -> None:
    """Killed at every stage of a round; the server serves the last activated pair, and from stored rollouts the rest is equal.

    The unbroken run's rollouts are laid into the killed one's folder: draws of a busy server may differ in their last bits.
    """
    kept = replace(run, folder=tmp_path / "unbroken", name=f"{run.name}u")
    whole = rounds.train(kept, CONFIG, on_stage=lambda at, number: keep_rollouts(kept.folder, tmp_path / "all"))
    for killed_at in KILLS:
        shutil.copytree(tmp_path / "all", run.folder / "rollouts", dirs_exist_ok=True)
        active: dict[str, int] = {}

        def kill(stage: str, number: int, killed_at: tuple[str, int] = killed_at, active: dict[str, int] = active) -> None:
            if (stage, number) == killed_at:
                active.update(client.generations(1)[0].heads)
                raise Killed

        with pytest.raises(Killed):
            rounds.train(run, CONFIG, on_stage=kill)
        assert client.generations(1)[0].heads == active
    shutil.copytree(tmp_path / "all", run.folder / "rollouts", dirs_exist_ok=True)
    assert bits(rounds.train(run, CONFIG)) == bits(whole)
    pair = [client.head(f"{kind}-{run.name}") for kind in ("policy", "value")]
    assert [head.file_sha256 for head in pair] == [client.head(f"{kind}-{kept.name}").file_sha256 for kind in ("policy", "value")]
    lines = (run.folder / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1, CONFIG.rounds + 1))


def keep_rollouts(folder: Path, to: Path) -> None:
    shutil.copytree(folder / "rollouts", to, dirs_exist_ok=True)


def test_a_policy_that_leaves_its_reference_goes_back(client: Client, run: rounds.Run) -> None:
    """A learning rate far too high: the last good pair is active again, without an upload, and the run ends after its rollbacks."""
    config = replace(CONFIG, rounds=6, learning_rate=3e-2, kl_limit=0.05, most_rollbacks=1)
    notes: list[str] = []
    with pytest.raises(TrainingFailed, match=r"KL to the reference is .* nats a token, above 0.05; back to the heads after round"):
        rounds.train(run, config, on_note=notes.append)
    assert len(notes) == 1
    reference = client.score([([1, 70, 71], [80, 81, 82])], heads=[f"policy-{run.name}", "policy@1"])[0].scores
    gap = np.abs(reference[f"policy-{run.name}"].logprobs - reference["policy@1"].logprobs).max()
    assert gap < 1.0  # what is served is the good one, not the one that the guard saw


def test_a_run_that_goes_back_again_and_again_ends_in_a_sentence(run: rounds.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps back from round 6 lead before the oldest checkpoint that is kept: it was an assertion that failed."""
    asked = itertools.count(1)
    monkeypatch.setattr(rounds, "why_back", lambda *measured: "it is bad" if next(asked) >= 6 else "")
    notes: list[str] = []
    with pytest.raises(TrainingFailed, match="round 4: it is bad; back to the heads after round 3"):
        rounds.train(run, replace(CONFIG, rounds=6), on_note=notes.append)
    assert [note.partition(":")[0] for note in notes] == ["round 6", "round 5", "round 4"]


def test_a_loss_that_is_not_finite_goes_back(run: rounds.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Learner.targets, itertools.count()

    def broken(self: Learner, *arguments: Any) -> Any:
        found = original(self, *arguments)
        if next(calls) == 1:
            found[0].advantages_T[0] = np.nan
        return found

    monkeypatch.setattr(Learner, "targets", broken)
    notes: list[str] = []
    learner = rounds.train(run, replace(CONFIG, rounds=2), on_note=notes.append)
    assert [note for note in notes if note.startswith("round 2: a loss or its gradient is not finite")] == notes != []
    assert all(torch.isfinite(each).all() for each in trainable_parameters(learner.policy).values())


def test_another_trainer_of_the_same_name_is_noticed(client: Client, run: rounds.Run) -> None:
    def meddle(stage: str, number: int) -> None:
        if (stage, number) == ("push", 1):
            client.activate({f"policy-{run.name}": 1})

    with pytest.raises(OtherTrainer, match="somebody else activated"):
        rounds.train(run, CONFIG, on_stage=meddle)
    with pytest.raises(CheckpointMismatch, match="clip differ"):
        rounds.train(run, replace(CONFIG, clip=0.3))


def test_rewards_of_heads_and_of_a_recipe(run: rounds.Run) -> None:
    reports: list[RoundReport] = []
    rounds.train(replace(run, reward=HeadsReward(rules=("no-insults", "stay-on-topic"))), replace(CONFIG, rounds=1), reports.append)
    assert 0 < reports[0].parts["followed"] < 1
    recipe = replace(run, reward=RecipeReward("sparrow", ("no-insults",)), folder=run.folder / "recipe")
    rounds.train(recipe, replace(CONFIG, rounds=1), reports.append)
    assert {"recipe", "rules", "tokens"} <= reports[1].parts.keys()


def test_a_judge_that_fails_is_named_and_pushes_nothing(client: Client, run: rounds.Run) -> None:
    def judge(prompt: Any, reply: str) -> float:
        raise KeyError("colour")

    with pytest.raises(RewardError, match=r"the judge mine:judge failed on .*KeyError: 'colour'"):
        rounds.train(replace(run, reward=JudgeReward(judge, "mine:judge")), CONFIG)
    assert [head.version for head in client.heads(f"policy-{run.name}")] == [1]


JUDGES = [{"role": "judge", "content": "red"}]


@pytest.mark.parametrize(("prompt", "why"), [("red " * 1100, "has 4401 tokens; at most 40"), (JUDGES, "cannot be asked: .*must be one")])
def test_a_prompt_that_cannot_be_asked_is_named_at_the_start(client: Client, run: rounds.Run, prompt: Any, why: str) -> None:
    """It ended the run in whichever round drew it, by a sentence that did not say which prompt it was."""
    before = client.generations(1)[0].number
    pool = PromptPool([*PROMPTS, (prompt, "questions")], 0)
    with pytest.raises(DataError, match=rf"the prompt .*red.* \(questions\) {why}"):
        rounds.train(replace(run, pool=pool), CONFIG)
    assert client.generations(1)[0].number == before


@pytest.mark.parametrize("reward", [JUDGE, HeadsReward(rules=("no-insults", "stay-on-topic"))])
def test_the_longest_prompt_that_is_allowed_can_be_asked(client: Client, run: rounds.Run, reward: Reward) -> None:
    """What is refused at the start is what the server would refuse in a round, and nothing else."""
    most = 4096 - CONFIG.max_new_tokens - num_scoring_tokens(reward, client)
    prompt = "a" * (most - 1)  # and the first token
    longest = replace(run, reward=reward, pool=PromptPool([(prompt, "questions")], 0))
    config = replace(CONFIG, rounds=1, prompts=1, samples=1)
    rounds.train(longest, config)
    with pytest.raises(DataError, match=f"has {most + 1} tokens; at most {most} leave room"):
        rounds.train(replace(longest, pool=PromptPool([(prompt + "a", "questions")], 0)), config)
    asks = {**reward.asks, "score": ["reference", *reward.asks["score"]]}
    with pytest.raises(InvalidArgument, match="the context holds 4096"):
        client.generate([prompt + "a"], max_new_tokens=CONFIG.max_new_tokens, **asks)


def test_pretraining_texts_keep_their_place(client: Client, run: rounds.Run) -> None:
    """A reward that never differs pulls nowhere, so that what moves the policy is the texts: it learns them."""
    mixed = Pretraining(["abc abc abc", "xyz " * 200, "a"], weight=2.0, count=2)  # one is too long, one has no second token
    flat = replace(run, reward=JudgeReward(lambda prompt, reply: 1.0, "flat"), pretraining=mixed)
    reports: list[RoundReport] = []
    rounds.train(flat, replace(CONFIG, kl_weight=0.0), reports.append)
    losses = [report.pretraining_loss or 0.0 for report in reports]
    assert losses[0] > losses[1] > losses[2] > 0
    assert f"text {losses[0]:.3f}" in reports[0].line(3)
    with pytest.raises(CheckpointMismatch, match="pretraining_weight"):
        rounds.train(replace(flat, pretraining=replace(mixed, weight=1.0)), replace(CONFIG, kl_weight=0.0))


def test_the_command(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in, rounds out, the arm's heads active; the same command goes on where it ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("my_judges.py").write_text("def letters(prompt, reply):\n    return float(len(reply))\n")
    Path("questions.txt").write_text("What is red?\n\nWhat is blue?\n")
    Path("talks.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}\n')
    flags = "--reward judge --judge my_judges:letters --dialogues talks.jsonl --rule no-insults --adversarial 2 --algo a2c --name told"
    sizes = "--prompts-per-round 4 --samples 2 --max-new-tokens 5 --average 0.9 --checkpoints kept --kl-limit 50"
    Path("texts.txt").write_text("Some text.\n\nSome more.\n")
    heads = "--start-from policy@1 --value-from value@1 --kl-estimator k3 --bf16 --pretraining texts.txt --pretraining-weight 0.5"
    options = f"--prompts questions.txt {flags} {sizes} {heads} --json"
    arguments = ["train", "rl", "--server", server.address, *options.split()]

    def run(*more: str) -> Any:
        return CliRunner().invoke(build_app([*arguments, *more]), [*arguments, *more])

    done = run("--rounds", "1")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["policy"], answer["value"], answer["average"]) == ("policy-told@2", "value-told@2", "policy-told-average@1")
    assert set(answer["rounds"][0]["sources"]) <= {"questions", "dialogues", "adversarial"}
    assert answer["rounds"][0]["pretraining_loss"] > 0
    assert set(answer["rounds"][0]["seconds"]) == {"rollout", "policy", "value", "optimiser", "checkpoint", "push"}
    more = run("--rounds", "2")
    assert [each["number"] for each in json.loads(more.stdout)["rounds"]] == [2]
    assert "going on after round 1 of 2" in more.stderr
    assert "checkpoint of another run: seed differ" in run("--seed", "5").output


def test_rules_of_an_added_set_can_reward(client: Client) -> None:
    """Rules were looked for in the default set alone; an id that two sets have is the default set's."""
    client.add_configuration("id: added\nversion: 1\nrules:\n  - {id: be-brief, text: Be brief.}\n  - {id: no-insults, text: Another.}\n")
    asked = served_rules(client, ["be-brief", "no-insults"])
    assert [each if isinstance(each, str) else each.text for each in asked] == ["Be brief.", "no-insults"]
    assert served_rules(client, ["no-insults"]) == ["no-insults"]
    check_answers(HeadsReward("", "rule", tuple(asked)), client)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--reward judge", "--reward judge needs a function\nhint: --judge module:function"),
        ("--reward judge --judge nowhere:f", "cannot import the judge 'nowhere:f'"),
        ("--reward heads --preference policy", "'policy' must be a preference head: it is a policy head"),
        ("--reward heads --adversarial 2", "--adversarial needs at least one rule"),
        ("--reward heads --pretraining nowhere.txt", "cannot read nowhere.txt: No such file or directory"),
        ("--reward recipe --recipe nothing --rule no-insults", "no such recipe: 'nothing'"),
        ("--reward recipe", "a head of kind rule needs rules to ask about"),
        ("--reward heads --rule nope", "no rule set of the server has a rule of this id: 'nope'"),
        ("--reward heads --kl-weight -1", "kl_weight must be at least 0: -1"),
        ("--reward heads --value-from policy", "'policy' cannot start a value head: it is a policy head"),
        ("--reward judge --judge math:hypot --reference value", "'value' must be a policy head: it is a value head"),
    ],
)
def test_bad_settings_are_said_before_any_work(server: LocalServer, client: Client, tmp_path: Path, flags: str, message: str) -> None:
    (tmp_path / "questions.txt").write_text("What is red?\n")
    before = client.generations(1)[0].number
    arguments = ["train", "rl", "--server", server.address, "--prompts", str(tmp_path / "questions.txt"), "--name", "bad", *flags.split()]
    done = CliRunner().invoke(build_app(arguments), arguments)
    assert (done.exit_code, message in done.output) == (1, True), done.output
    assert client.generations(1)[0].number == before
