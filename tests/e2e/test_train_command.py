"""`polyhead train` on a real server: a data file in, a pushed head with its metrics out; whatever goes wrong pushes nothing."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from typer.testing import CliRunner

from polyhead.client import AsyncClient, Client
from polyhead.client.cli.app import build_app
from polyhead.client.local import LocalServer
from polyhead.heads.training.data import RuleJudgement
from polyhead.heads.training.labels import RuleLabel
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.rule import encode_judgements, held_out_probabilities
from polyhead.heads.training.state_store import StateStore
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import choice, running
from tests.e2e.support import serving
from tests.e2e.test_configurations import RULES, TEMPLATE
from tests.e2e.test_lora import save_adapter
from tests.e2e.tiny import EOS

ANSWERS = [("good", "bad"), ("fine", "poor"), ("yes", "no")]
PAIRS = [
    {"prompt": [{"role": "user", "content": f"Question {index}?"}], "chosen": f"{chosen} {index}", "rejected": f"{rejected} {index}"}
    for index in range(8)
    for chosen, rejected in ANSWERS
]
REPLIES = [{"messages": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
LABELS = ["definitely-broken", "probably-followed", "unsure", "probably-broken", "definitely-followed", False]
JUDGEMENTS = [
    {"prompt": f"Q{index}", "completion": f"a {label}", "rule": "no-insults", "label": label, "group": "late" if index > 3 else ""}
    for index in range(8)
    for label in LABELS
]


@pytest.fixture(scope="module")
def server(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tied_model, tmp_path_factory.mktemp("train") / "store") as opened:
        yield opened


@pytest.fixture
def run(server: LocalServer, tmp_path: Path) -> Any:
    def call(task: str, rows: list[Any], *flags: str) -> Any:
        data = tmp_path / "data.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        arguments = ["train", task, "--data", str(data), "--server", server.address, "--states", str(tmp_path / "states"), *flags]
        return CliRunner().invoke(build_app(arguments), arguments)

    return call


def test_a_preference_head(run: Any, server: LocalServer) -> None:
    done = run("preference", PAIRS, "--epochs", "6", "--learning-rate", "1e-3", "--held-out-share", "0.25", "--activate", "--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["metrics"]["held_out_pairs"] == 6
    assert answer["metrics"]["held_out_accuracy"] == 1.0
    with Client(server.address) as client:
        head = client.head(answer["head"])
        assert (head.kind, head.active) == ("preference", True)
        assert head.metrics["held_out_accuracy"] == 1.0
        prompt = client.tokenize(PAIRS[0]["prompt"])
        good, bad = ([*client.tokenize(f"{word} 5", special_tokens=False), EOS] for word in ("good", "bad"))  # as drawn replies end
        first, second = client.score([(prompt, good), (prompt, bad)], heads=["preference"])
        assert first.scores["preference"].value > second.scores["preference"].value


def test_reference_replies_have_the_score_0_on_average(run: Any, server: LocalServer, tmp_path: Path) -> None:
    """A trained head took over bias and scale of the version before, which were measured on other weights."""
    (tmp_path / "references.jsonl").write_text("".join(f'{{"prompt": "Q{index}", "completion": "reply {index}"}}\n' for index in range(5)))
    with Client(server.address) as client:
        client.activate({"liked": client.copy_head("preference@1", "liked", bias=3.0, scale=2.0)})
        flags = ("--name", "liked", "--start-from", "preference@1", "--learning-rate", "1e-3")
        assert ": 2 reference replies have a score of 0 on average\n" in run("preference", PAIRS, *flags).output  # the best held-out ones
        done = run("preference", PAIRS, *flags, "--references", str(tmp_path / "references.jsonl"), "--activate")
        assert ": 5 reference replies have a score of 0 on average\n" in done.output
        head = client.head("liked")
        assert head.manifest.scale == 1.0
        pairs = [(client.tokenize(f"Q{index}"), [*client.tokenize(f"reply {index}", special_tokens=False), EOS]) for index in range(5)]
        scores = [item.scores["liked"] for item in client.score(pairs, heads=["liked"])]
    assert np.mean([score.value for score in scores]) == pytest.approx(0, abs=1e-5)
    assert np.std([score.raw for score in scores]) > 1e-3
    bad = run("preference", PAIRS, "--references", str(tmp_path / "data.jsonl"))
    assert 'line 1: a row must have "completion"' in bad.output


def test_a_choice_among_off_topic_replies(run: Any) -> None:
    """Sparrow's loss ranks the held-out pairs as well as the ranking loss does."""
    flags = ("--learning-rate", "1e-3", "--held-out-share", "0.25", "--start-from", "preference@1")
    done = run("preference", PAIRS, "--loss", "choice", "--epochs", "6", *flags, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"]["held_out_accuracy"] == 1.0


def test_choices_that_cannot_be_trained_on(run: Any) -> None:
    assert "--off-topic applies to --loss choice only" in run("preference", PAIRS, "--off-topic", "1").output
    same = [{**row, "prompt": "Q"} for row in PAIRS]
    assert "all rows have the same prompt" in run("preference", same, "--loss", "choice").output
    tied = [{"prompt": f"Q{index}", "replies": ["a", "b", "c"], "ranks": [1, 1, 2]} for index in range(10)]
    assert "every row has several best replies" in run("preference", tied, "--loss", "choice").output


def test_a_policy_head(run: Any, server: LocalServer) -> None:
    done = run("sft", REPLIES, "--epochs", "1", "--name", "imitator", "--start-from", "reference")
    assert done.exit_code == 0, done.output
    assert "nats a token" in done.output
    with Client(server.address) as client:
        assert [(head.ref, head.active) for head in client.heads() if head.name == "imitator"] == [("imitator@1", False)]


def test_a_value_head(run: Any, server: LocalServer) -> None:
    """What is served is what was trained: the bias and scale of the version before are not taken over."""
    rows = [{**row, "reward": float(index % 3)} for index, row in enumerate(REPLIES)]
    with Client(server.address) as client:
        client.activate({"worth": client.copy_head("value", "worth", bias=3.0, scale=2.0)})
        flags = ("--name", "worth", "--start-from", "worth", "--epochs", "6", "--learning-rate", "3e-3", "--held-out-share", "0.25")
        done = run("value", rows, *flags, "--activate", "--json")
        assert done.exit_code == 0, done.output
        answer = json.loads(done.stdout)
        head = client.head(answer["head"])
        assert (answer["head"], head.kind, head.active, head.manifest.bias, head.manifest.scale) == ("worth@2", "value", True, 0.0, 1.0)
        scored = client.score([(client.tokenize(row["messages"]), row["completion"]) for row in rows], heads=["worth"])
    assert 0 < np.mean([item.scores["worth"].values[-1] for item in scored]) < 2  # on its way from 0 to 1; rewards are 0, 1, 2
    assert answer["metrics"]["held_out_explained_variance"] <= 1
    equal = run("value", [{**row, "reward": 1.0} for row in REPLIES], "--name", "equal", "--epochs", "1")
    assert "explained variance none, since their rewards are all equal" in equal.output


def test_a_rule_head(run: Any) -> None:
    done = run("rule", JUDGEMENTS, "--epochs", "1", "--held-out-share", "0.5")
    assert done.exit_code == 0, done.output
    for word in ("held out, all rules: accuracy", "  no-insults: accuracy", "  group late: accuracy", "AUC", "ECE"):
        assert word in done.output


def test_a_rule_head_is_trained_on_its_own_question(run: Any, server: LocalServer, tmp_path: Path) -> None:
    """It was trained on the server's default question, whatever its head.json says, and on rules of the default set alone."""
    rows = [{**row, "rule": "be-brief"} for row in JUDGEMENTS]
    with Client(server.address) as client:
        for content in (RULES, TEMPLATE):
            client.add_configuration(content)
        client.update(
            {"asks-short": dict(client.pull_head("rule").items())}, options={"asks-short": {"kind": "rule", "template": "short@1"}}
        )
        judged = [RuleJudgement(row["prompt"], row["completion"], "be-brief", RuleLabel.DEFINITELY_BROKEN) for row in rows[:3]]
        asked = encode_judgements(client, judged, StateStore(client, tmp_path / "states"), head="asks-short")
        pairs = [(client.tokenize(row.prompt), [*client.tokenize(row.completion, special_tokens=False), EOS]) for row in judged]
        served = [each.scores["asks-short"].p_violate["be-brief"] for each in client.score(pairs, heads=["asks-short"], rule_set="ours")]
        assert held_out_probabilities(pull_module(client, "asks-short"), asked) == pytest.approx(served, abs=1e-5)
        done = run("rule", rows, "--epochs", "1", "--start-from", "asks-short", "--name", "briefly", "--activate")
        assert done.exit_code == 0, done.output
        manifest, source = (client.head(name).manifest for name in ("briefly", "asks-short"))
        answers = [(each.template, each.violated_token_id, each.followed_token_id) for each in (manifest, source)]
    assert answers[0] == answers[1]
    assert answers[0][0] == "short@1"


def test_a_preference_head_is_read_where_it_was_trained(run: Any, server: LocalServer) -> None:
    """A trained head took over the place of the version before: an appended token, or the last one that is no padding."""
    with Client(server.address) as client:
        client.activate({"appended": client.copy_head("preference@1", "appended", read="append", append_token_id=EOS)})
        assert run("preference", PAIRS, "--epochs", "1", "--name", "appended", "--activate").exit_code == 0
        manifest = client.head("appended").manifest
    assert (manifest.read, manifest.pad_token_id) == ("last", -1)


LONG = "a" * 5000  # tokens: bytes
GOOD = {"preference": PAIRS[:2], "sft": REPLIES[:2], "rule": JUDGEMENTS[:2], "value": [{**row, "reward": 1.0} for row in REPLIES[:2]]}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("preference", {"prompt": "Q", "chosen": "a"}, 'a row must have "rejected"'),
        ("preference", {"prompt": "Q", "replies": ["a", "b"], "ranks": [1]}, '"ranks" must be a list of 2 whole numbers'),
        ("preference", {"prompt": "Q", "replies": ["a", "b"], "ranks": [1, 1]}, '"ranks" are all equal'),
        ("preference", {"prompt": "", "chosen": "a", "rejected": "b"}, '"prompt" must be a text or a list of messages'),
        ("preference", [], "not a JSON object"),
        ("sft", {"prompt": [{"role": "user"}], "completion": "a"}, '"prompt[0]" must have the texts "role" and "content"'),
        ("sft", {"prompt": "Q", "completion": [{"role": "user", "content": "a"}]}, '"completion" must be the assistant\'s message'),
        ("rule", {"prompt": "Q", "completion": "a", "label": True}, '"rule" must be the id of a rule'),
        ("value", {"prompt": "Q", "completion": "a", "reward": "high"}, '"reward" must be a finite number'),
        ("sft", {"prompt": "Q \ud800", "completion": "a"}, '"prompt" is not Unicode text: it holds a lone surrogate'),
        ("value", {"messages": [{"role": "user", "content": "\ud800"}], "completion": "a"}, '"messages[0].content" is not Unicode'),
        ("preference", {"prompt": "Q", "replies": ["a", "\ud800"], "ranks": [1, 2]}, '"replies[1]" is not Unicode text'),
        ("sft", {"prompt": "Q", "completion": LONG}, "5003 tokens; the context holds 4096"),
        ("preference", {"prompt": "Q", "chosen": "a", "rejected": LONG}, "5003 tokens; the context holds 4096"),
        ("rule", {**JUDGEMENTS[0], "completion": LONG[:4090]}, "4"),  # tokens, with those of the rule's question
        ("value", {"messages": [{"role": "judge", "content": "Q"}], "completion": "a", "reward": 1.0}, "prompt[0]['role'] must be one of"),
    ],
)
def test_bad_rows_are_named_and_push_nothing(run: Any, server: LocalServer, task: str, row: Any, message: str) -> None:
    with Client(server.address) as client:
        before = [head.ref for head in client.heads()]
        done = run(task, [*GOOD[task], row])
        assert (done.exit_code, f"data.jsonl, line 3: {message}" in done.output) == (1, True), done.output
        assert [head.ref for head in client.heads()] == before


@pytest.mark.parametrize(("task", "source"), [("sft", "preference"), ("preference", "policy"), ("rule", "preference"), ("value", "policy")])
def test_a_head_of_another_kind_cannot_be_the_start(run: Any, task: str, source: str) -> None:
    """It was trained to the end, or ended in a traceback."""
    rows = {"sft": REPLIES, "preference": PAIRS, "rule": JUDGEMENTS, "value": [{**row, "reward": 1.0} for row in REPLIES]}[task]
    done = run(task, rows, "--start-from", f"{source}@1", "--epochs", "1")
    trained = "policy" if task == "sft" else task
    assert (done.exit_code, done.stderr) == (1, f"error: '{source}@1' cannot start a {trained} head: it is a {source} head\n")


def test_an_adapter_cannot_be_the_start(run: Any, server: LocalServer, tied_model: Path, tmp_path: Path) -> None:
    """It was said to lack most of its tensors, in RL when the arm's copies of it were active already."""
    save_adapter(tied_model, tmp_path / "adapter", 0, r=2, lora_alpha=2, target_modules=["q_proj"])
    (tmp_path / "questions.txt").write_text("What is red?\n")
    with Client(server.address) as client:
        client.activate({"adapted": client.push_head("adapted", tmp_path / "adapter", base="policy@1")})
        before = client.generations(1)[0].number
        message = "adapted@1 is an adapter on policy@1, and whole heads alone can be trained\nhint: start from that head"
        with pytest.raises(ValueError, match=message):
            pull_module(client, "adapted")
        rounds = ["--prompts", str(tmp_path / "questions.txt"), "--reward", "judge", "--judge", "math:hypot", "--name", "arm"]
        arguments = ["train", "rl", "--server", server.address, *rounds, "--start-from", "adapted@1"]
        for done in (run("sft", REPLIES, "--start-from", "adapted@1"), CliRunner().invoke(build_app(arguments), arguments)):
            assert (done.exit_code, done.stderr.startswith(f"error: {message}")) == (1, True), done.output
        assert client.generations(1)[0].number == before
        assert client.heads("policy-arm") == []


def test_rows_are_read_without_torch() -> None:
    """A bad row is named at once: importing torch and transformers takes ten seconds of CPU."""
    code = "import sys, polyhead.heads.training.data; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


UNUSABLE = {
    "sft": {**REPLIES[0], "completion": LONG},
    "preference": {**PAIRS[0], "chosen": LONG},
    "rule": {**JUDGEMENTS[0], "rule": "no-such-rule"},
    "value": {**REPLIES[0], "reward": 1.0, "completion": LONG},
}


@pytest.mark.parametrize(("task", "option"), [*((task, "--held-out") for task in UNUSABLE), ("preference", "--references")])
def test_held_out_rows_are_looked_at_before_training(run: Any, tmp_path: Path, task: str, option: str) -> None:
    """A rule that the server does not know, or a text longer than the context: it was found when the head was trained, which was lost."""
    row = UNUSABLE["sft" if option == "--references" else task]
    (tmp_path / "unseen.jsonl").write_text(json.dumps(row))
    done = run(task, GOOD[task], option, str(tmp_path / "unseen.jsonl"), "--epochs", "1")
    assert done.exit_code == 1
    assert ("no rule set of the server has" if task == "rule" else "the context holds 4096") in done.stderr
    assert "epoch" not in done.stderr


@pytest.mark.parametrize("weight", ["-1", "0", "nan", "inf"])
def test_a_weight_of_broken_rows_is_above_0(run: Any, weight: str) -> None:
    """With -1 a run made the loss of broken rows large, and pushed that."""
    done = run("rule", JUDGEMENTS, "--broken-weight", weight)
    assert (done.exit_code, done.stderr) == (1, f"error: broken_weight must be a finite number above 0: {float(weight)}\n")


def test_an_unknown_rule_and_label(run: Any) -> None:
    maybe = run("rule", [JUDGEMENTS[0], {**JUDGEMENTS[1], "label": "maybe"}])
    assert 'line 2: "label" must be true (broken), false, or one of' in maybe.output
    unknown = run("rule", [{**row, "rule": "no-such-rule"} for row in JUDGEMENTS]).output
    assert "no rule set of the server has a rule of this id: 'no-such-rule'\nhint: `polyhead configurations` lists the rule sets" in unknown


def test_a_run_goes_on_from_its_checkpoints(run: Any, tmp_path: Path) -> None:
    """A finished run's folder holds its last step: the same command trains no more, and other settings are refused."""
    flags = ("--checkpoints", str(tmp_path / "checkpoints"), "--json")
    first, second = (json.loads(run("preference", PAIRS, *flags, "--start-from", "preference@1").stdout) for _ in range(2))
    assert second["metrics"] == first["metrics"]
    refused = run("preference", PAIRS, *flags, "--start-from", "preference@1", "--epochs", "5")
    assert (refused.exit_code, "checkpoint of another run: epochs differ" in refused.output) == (1, True)


GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "annotate.md"
PROJECT = """
slug: helpful
kind: choose
arms: {fixed: [{head: policy, n: 2}, {head: reference, n: 2}]}
sampling: {max_new_tokens: 8}
hidden: {heads: [preference]}
"""


async def judged(address: str, num_turns: int) -> set[int]:
    """What a person does on the pages, with the replies of this server. Versions of the preference head that have scored them."""
    async with AsyncClient(address, timeout=60) as client:
        model = cast(FakeModel, SimpleNamespace(client=client))
        async with running(Path("annotate.db"), model) as site, site.person() as person:
            for number in range(num_turns):
                assignment = (await person.claim())["state"]["assignment"]["id"]
                turn = await person.say(assignment, f"Question {number}?")
                view = (await person.state())["turns"][0]["view"]
                longest = max(range(len(view["candidates"])), key=lambda index: len(view["candidates"][index]["text"]))
                await person.answer(assignment, turn, choice(view, longest))
                await person.post(f"/api/assignments/{assignment}/finish", {})
            new = site.db.all("SELECT scores_json FROM candidates ORDER BY rowid DESC LIMIT ?", 4 * num_turns)
            return {row.json("scores")["preference"]["version"] for row in new}


def test_collect_train_swap_collect_again(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's commands, with a person's answers between them: the next replies are scored by the head that these answers trained."""
    monkeypatch.chdir(tmp_path)
    Path("project.yaml").write_text(PROJECT, encoding="utf-8")
    block = re.search(r"## Collect, train, swap, collect again.*?```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    _, init, serve, export, train = (line.partition(" #")[0].split() for line in block[1].splitlines())
    assert serve == ["polyhead", "annotate", "serve"]

    def call(words: list[str], *more: str) -> str:
        arguments = [*words[1:], *more]
        done = CliRunner().invoke(build_app(arguments), arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert "invite link" in call(init, "--project", "project.yaml")
    with Client(server.address) as client:
        [before] = asyncio.run(judged(server.address, 3)) & {client.head("preference").version}
        call(export)
        call(train, "--server", server.address, "--states", "states", "--epochs", "1")
        after = client.head("preference").version
    assert asyncio.run(judged(server.address, 1)) == {after}
    assert after > before
