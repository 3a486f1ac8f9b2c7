"""The evidence's runs on a tiny model, its intervals, and its page from the result files."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from polyhead.client import Client
from polyhead.client.errors import Unavailable
from polyhead.client.rlhf.evidence import command
from polyhead.client.rlhf.evidence import page as pages
from polyhead.client.rlhf.evidence.arms import runs
from polyhead.client.rlhf.evidence.arms.page import agreement
from polyhead.client.rlhf.evidence.arms.plan import ArmsPlan, Unit
from polyhead.client.rlhf.evidence.arms.runs import Arms
from polyhead.client.rlhf.evidence.intervals import bootstrap, table_of
from polyhead.client.rlhf.evidence.plan import PlanError
from polyhead.client.rlhf.evidence.results import Results
from polyhead.heads.training.fit import TrainingFailed
from polyhead.heads.training.rl import rounds
from tests.guards.tree import ROOT

TINY: dict[str, Any] = {
    "train_questions": 4,
    "held_out_questions": 3,
    "held_out_samples": 2,
    "base_samples": {"judge": 2, "heads": 4},
    "seeds": {"judge": [0, 1], "heads": [0]},
    "arms": {"preference": {"preference_weight": 1.0, "rule_weight": 0.0}, "mix": {"preference_weight": 1.0, "rule_weight": 2.0}},
    "rl": {"rounds": 2, "prompts": 2, "samples": 2, "max_new_tokens": 12, "kl_limit": 50.0},
}


def plan_of(folder: Path, **changes: Any) -> ArmsPlan:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps({**TINY, **changes}))
    return ArmsPlan.read(folder / "plan.json")


def test_runs_go_on_after_any_end_and_make_a_page(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that is spent ends it between two runs; a run that is cut short goes on from its checkpoint; a failed one is a result."""
    plan, said = plan_of(tmp_path), list[str]()
    evidence = Arms(client, plan, tmp_path / "runs", said.append)
    assert evidence.run(budget_minutes=0.0) == len(plan.units()) == 9
    assert not (tmp_path / "runs" / "results").exists()

    def interrupted(run: rounds.Run, config: Any, *more: Any) -> Any:
        def stop(stage: str, number: int) -> None:
            if (stage, number, run.folder.name) == ("push", 1, "judge-seed0-mix"):
                raise KeyboardInterrupt

        if run.folder.name == "judge-seed1-preference":
            rounds_train(run, type(config)(**{**vars(config), "rounds": 1}), *more)
            raise TrainingFailed("round 2: the policy left its reference")
        return rounds_train(run, config, *more, on_stage=stop)

    rounds_train = rounds.train
    monkeypatch.setattr(runs.rounds, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evidence.run()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "results").iterdir()}
    assert set(kept) == {"judge-seed0-base.json", "judge-seed0-preference.json"}
    monkeypatch.setattr(runs.rounds, "train", lambda *given: (interrupted if "seed1" in given[0].folder.name else rounds_train)(*given))
    assert Arms(client, plan, tmp_path / "runs", said.append).run() == 0
    assert "going on after round 1 of 2" in said
    assert "\nrun 3 of 9: judge-seed0-mix" in said
    results = Results(tmp_path / "runs", plan)
    assert {name: results.folder.joinpath("results", name).stat().st_mtime_ns for name in kept} == kept
    found = {unit: results.find(unit) or {} for unit in plan.units()}
    assert [unit.name for unit, each in found.items() if each.get("failed")] == ["judge-seed1-preference"]
    assert all(len(each["replies"]) == 6 for each in found.values())
    assert all(each["gap"] < 1e-4 for each in found.values() if each.get("gap") is not None)
    assert "head_broken" in found[Unit("heads", 0, "mix")]["replies"][0]
    assert not list((tmp_path / "runs" / "runs").iterdir())  # no checkpoints are left
    assert_page_is_of_the_results(results, tmp_path)


def assert_page_is_of_the_results(results: Results, folder: Path) -> None:
    """By the command, from files alone."""
    files = ["--folder", str(results.folder), "--plan", str(folder / "plan.json"), "--out", str(folder / "docs" / "evidence")]
    assert pages.main(files) == 0
    text = (folder / "docs" / "evidence" / "index.md").read_text()
    assert (folder / "docs" / "images" / "rlhf-evidence-judge.svg").read_text().count("<g ") == 4
    assert "Failed, and counted as they ended: preference seed 1: round 2: the policy left its reference." in text
    replies = [(results.find(Unit("judge", seed, "mix")) or {})["replies"] for seed in (0, 1)]
    mean = np.mean([reply["kl"] for each in replies for reply in each])
    [row] = [line for line in text.splitlines() if line.startswith("| RL: mix |")][:1]
    assert f"| {mean:.2f} (" in row
    assert max(map(len, text.splitlines())) <= 160 or "|" in max(text.splitlines(), key=len)
    assert "| the mix breaks the rule less often than preference alone | rule broken, mix minus preference: " in text
    published = folder / "docs" / "evidence" / "results" / "judge-seed1-mix.json"
    assert published.stat().st_size < results.path(Unit("judge", 1, "mix")).stat().st_size
    for path in (published, results.path(Unit("judge", 1, "mix"))):
        path.unlink()
    pages.main(files)
    assert "Not run yet: mix (seed 1)." in (folder / "docs" / "evidence" / "index.md").read_text()


def test_the_command_says_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No server is needed to see it: what the runs do is stood in for."""
    monkeypatch.setattr(command.embedded, "prepare", lambda say: None)
    monkeypatch.setattr(command, "local_server", lambda flags: contextlib.nullcontext(SimpleNamespace(address="127.0.0.1:1")))
    monkeypatch.setattr(Client, "wait_ready", lambda self, seconds: None)
    arguments = ["--folder", str(tmp_path / "runs"), "--budget", "5"]

    def ended(run: Any) -> tuple[int, str]:
        monkeypatch.setattr(Arms, "run", lambda self, budget: run(budget))
        code, said = command.main(arguments), capsys.readouterr()
        return code, said.out + said.err

    def raising(error: BaseException) -> Any:
        def run(budget: float) -> int:
            raise error

        return run

    goes_on = "hint: the same command goes on"
    assert ended(lambda budget: int(budget))[1].startswith(f"the budget is spent, 5 runs are left\n{goes_on}")
    assert ended(lambda budget: 0) == (0, f"all runs are finished: {tmp_path / 'runs' / 'results'}\n")
    for error, code in ((KeyboardInterrupt(), 130), (Unavailable("gone"), 1), (OSError(28, "No space left on device"), 1)):
        assert (ended(raising(error))[0], goes_on in ended(raising(error))[1]) == (code, True)
    assert ended(raising(PlanError("another plan"))) == (1, "error: another plan\n")


def test_results_of_another_plan_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Results(tmp_path, plan_of(tmp_path)).keep(Unit("judge", 0, "base"), {"replies": []})
    other = plan_of(tmp_path, held_out_samples=3)
    with pytest.raises(PlanError, match="is a result of another plan, of other judges or of other questions\nhint: give another --folder"):
        Results(tmp_path, other).find(Unit("judge", 0, "base"))
    assert pages.main(["--folder", str(tmp_path), "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "docs")]) == 1
    assert "is a result of another plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": 1}, "keys that are missing, or that no plan has: colour"),
        ({"rl": {"rounds": 0}}, "rounds must be at least 1: 0"),
        ({"rl": {"round": 1}}, "unexpected keyword argument 'round'"),
        ({"seeds": {"people": [1]}}, '"judge", "heads" or both'),
        ({"arms": {"base": {"preference_weight": 1.0, "rule_weight": 0.0}}}, "no arm can have this name: 'base'"),
    ],
)
def test_a_plan_is_checked_before_any_run(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=f"plan.json: .*{message}"):
        plan_of(tmp_path, **changes)
    with pytest.raises(PlanError, match="cannot read"):
        ArmsPlan.read(tmp_path / "none.json")


def test_the_plan_in_the_repository() -> None:
    """What issue and guide promise: at least five seeds with judges and three with heads, three arms."""
    plan = ArmsPlan.read()
    assert (len(plan.seeds["judge"]), len(plan.seeds["heads"]), list(plan.arms)) == (5, 3, ["preference", "rule", "mix"])
    assert len({unit.name for unit in plan.units()}) == (5 + 3) * 4


def test_the_page_in_the_repository_says_what_its_result_files_say() -> None:
    """Whoever edits a number, a result file, a plan or the script by itself is told."""
    out, plans = ROOT / "docs" / "evidence", pages.Plans.beside()
    assert (out / "index.md").read_text() == pages.page(out, plans), "hint: make rlhf-evidence-page"
    for name, drawn in pages.plots(out, plans).items():
        assert (out.parent / "images" / name).read_text() == drawn, name
    known = {unit.name for plan in plans.all for unit in plan.units()}
    assert {path.stem for path in (out / "results").glob("*.json")} <= known


def test_files_keep_their_numbers_when_they_are_published(tmp_path: Path) -> None:
    """Rows become columns, wherever they stand, and rows again; six digits are kept."""
    plan, unit = plan_of(tmp_path), Unit("judge", 0, "base")
    rows = [{"question": 0.0, "kl": 1.23456789}, {"question": 1.0, "kl": -2.0}]
    other = {"shown": {"Why?": "Since."}, "none": None, "empty": []}
    found = {"replies": rows, "refreshes": [{"before": rows, "heads": {"spread": 0.5}}], **other}
    Results(tmp_path, plan).keep(unit, found)
    assert Results(tmp_path, plan).publish(plan.units(), tmp_path / "out") == 1
    again = Results(tmp_path / "out", plan).find(unit) or {}
    assert again["replies"] == again["refreshes"][0]["before"] == [{"question": 0, "kl": 1.23457}, {"question": 1, "kl": -2}]
    assert {name: again[name] for name in (*other, "seed")} == {**other, "seed": 0}
    assert again["refreshes"][0]["heads"] == {"spread": 0.5}


def test_agreement_of_heads_and_judges() -> None:
    """Pairs are those of one question; the rule head that only reads "I" knows nothing within the first person."""

    def reply(question: float, preference: float, head: float, broken: float, violated: float) -> dict[str, float]:
        return {"question": question, "preference": preference, "head_preference": head, "broken": broken, "head_broken": violated}

    replies = [reply(0, 2, 0.5, 1, 0.9), reply(0, 1, 0.7, 0, 0.9), reply(1, 0, 0.0, 0, 0.1), reply(1, 3, 0.9, 0, 0.9)]
    assert agreement(replies) == (0.5, pytest.approx(2 / 3), 0.5)
    assert np.isnan(agreement(replies[:1])).all()


def test_intervals() -> None:
    """Equal cells have no width; the spread of seeds shows, and so does that of questions; the mean is that of all cells."""
    flat = bootstrap(np.full((3, 4), 0.5))
    assert (flat.mean, flat.low, flat.high) == (0.5, 0.5, 0.5)
    between_seeds = bootstrap(np.repeat([[0.0], [1.0]], 50, axis=1))
    assert (between_seeds.low, between_seeds.mean, between_seeds.high) == (0.0, 0.5, 1.0)
    cells = np.random.default_rng(1).normal(size=(1, 400))
    one = bootstrap(cells)
    assert one.high - one.low == pytest.approx(2 * 1.96 / 20, rel=0.1)  # of a mean of 400 standard normal numbers
    replies = [{"question": 1, "kl": 3.0}, {"question": 0, "kl": 1.0}, {"question": 1, "kl": 5.0}]
    np.testing.assert_array_equal(table_of([replies, replies], "kl"), [[1.0, 4.0], [1.0, 4.0]])
    some = table_of([replies[:1], replies[1:]], "kl")  # one question each
    np.testing.assert_array_equal(some, [[np.nan, 3.0], [1.0, 5.0]])
    assert (bootstrap(some[1:]).mean, bootstrap(some).mean) == (3.0, 3.0)
    with pytest.raises(ValueError, match=r"\(seeds, questions\)"):
        bootstrap(np.zeros((0, 3)))
