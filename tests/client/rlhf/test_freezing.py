"""What freezing costs, measured on a tiny model: heads, adapters and whole models do the same two tasks by the same code."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from polyhead.client import Client
from polyhead.client.local import LocalServer
from polyhead.client.rlhf import judges
from polyhead.client.rlhf.arms import Arm
from polyhead.client.rlhf.evidence.freezing import page as freezing_page
from polyhead.client.rlhf.evidence.freezing import runs
from polyhead.client.rlhf.evidence.freezing.data import Data
from polyhead.client.rlhf.evidence.freezing.models import TokenStates, WholeModel, adapters_beside
from polyhead.client.rlhf.evidence.freezing.plan import RL, FreezingPlan, Unit
from polyhead.client.rlhf.evidence.freezing.runs import Freezing, UnitFailed, in_process_of_its_own
from polyhead.client.rlhf.evidence.freezing.sides import ServedSide, WholeSide
from polyhead.client.rlhf.evidence.plan import PlanError
from polyhead.client.rlhf.evidence.results import Results
from polyhead.client.rlhf.measure import ask
from polyhead.heads.training.remote import pull_module
from polyhead.heads.training.rl.config import RLConfig
from polyhead.heads.training.rl.rewards import JudgeReward
from polyhead.heads.training.tree import Run, pack_tree

TINY: dict[str, Any] = {
    "experiment": "freezing",
    "seeds": [0],
    "train_questions": 4,
    "held_out_questions": 3,
    "base_samples": 4,
    "held_out_samples": 2,
    "variants": {
        "frozen-50": {"trunk_layers": 2, "preference_rate": 1e-4, "policy_rate": 1e-3},
        "lora-4": {"trunk_layers": 2, "rank": 4, "preference_rate": 1e-3, "policy_rate": 1e-2},
        "everything": {"trunk_layers": 0, "preference_rate": 1e-4, "policy_rate": 1e-3},
    },
    "epochs": 2,
    "batch_size": 1,
    "measures": 2,
    "preference_weight": 1.0,
    "rule_weight": 2.0,
    "kl": [0.0, 1000.0],
    "rl": {"rounds": 2, "prompts": 2, "samples": 2, "max_new_tokens": 12},
}


def plan_of(folder: Path, **changes: Any) -> FreezingPlan:
    (folder / "freezing.json").write_text(json.dumps({**TINY, **changes}))
    return FreezingPlan.read(folder / "freezing.json")


def reward() -> JudgeReward:
    found = Arm("mix", 1.0, 2.0).reward("judge", 0.5)
    assert isinstance(found, JudgeReward)
    return found


def test_every_variant_does_both_tasks(server: LocalServer, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One result file a unit; a page from them, however many there are; the data is drawn once."""
    plan, asked = plan_of(tmp_path), list[int]()
    monkeypatch.setattr(runs, "reward_of", lambda plan, data: JudgeReward(lambda prompt, text: len(text) % 3, "told apart"))

    @contextlib.contextmanager
    def serve(layers: int) -> Iterator[LocalServer]:
        asked.append(layers)
        yield server

    work, results = Freezing(plan, tmp_path, model, serve, lambda text: None), Results(tmp_path, plan)
    assert work.run() == 0
    assert asked == [0, 2, 2, 2, 2]  # the data, then two tasks of two variants; everything needs no server
    found = {unit: results.find(unit) or {} for unit in plan.units()}
    rl = {unit.variant: each for unit, each in found.items() if unit.task == RL}
    preference = {unit.variant: each for unit, each in found.items() if unit.task == "preference"}
    shares = [[point["share"] for point in each["curve"]] for each in preference.values()]
    assert shares == [[0.5, 1.0]] * 3, "measured after the same data"
    assert len({len(each["pairs"]) for each in preference.values()}) == 1
    assert all(len(each["replies"]) == 6 and len(each["rounds"]) == 2 and not each["failed"] for each in rl.values())
    assert max(row["gap"] for each in rl.values() for row in each["rounds"]) < 1e-4  # trainer and what draws have the same weights
    kls = {variant: [abs(row["kl"]) for row in each["rounds"]] for variant, each in rl.items()}
    assert all(first < 1e-5 < second for first, second in kls.values()), kls  # and they changed
    assert rl["lora-4"]["swap_bytes"] < rl["frozen-50"]["swap_bytes"] < rl["everything"]["swap_bytes"]
    assert rl["frozen-50"]["server_peak"] > 0 == rl["everything"]["server_peak"]
    assert_page_tells_of_them(results)


def assert_page_tells_of_them(results: Results[FreezingPlan]) -> None:
    text = "\n\n".join(freezing_page.chapter(results, "images"))
    assert "All that the plan has is here." in text
    assert sum(line.startswith("| everything |") for line in text.splitlines()) == 5  # what it is, the tables of both tasks, what it takes
    assert "| no round near it |" in text  # a KL of 1000
    preference, rl, _ = freezing_page.found_by_variant(results)
    assert freezing_page.plots(preference, rl).count("<g ") == 3
    for unit in results.plan.units():
        if unit.task == RL:
            results.path(unit).unlink()
    text = "\n\n".join(freezing_page.chapter(results, "images"))
    assert "rl lora-4, rl everything (seed 0)." in " ".join(text.split())
    assert "### RL task" not in text


def test_a_whole_model_is_called_as_a_head_is(model: Path) -> None:
    """Prompt and replies as a tree of ids give the logits of each text by itself, and the embedding gets a gradient."""
    whole, plain = WholeModel.load(model), AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    prompt, replies = [1, 70, 71, 72], [[73, 74], [75, 76, 77]]
    states = TokenStates().states([prompt, *replies])
    tree = pack_tree([Run(prompt, states[0]), *(Run(ids, own, 0) for ids, own in zip(replies, states[1:], strict=True))])
    for index, reply in enumerate(replies, 1):
        rows = torch.tensor(tree.predicting_rows(index))
        found = whole(tree.states_1TD, tree.positions_1T, rows, attention_mask=tree.mask_11TT)
        torch.testing.assert_close(found, plain(torch.tensor([prompt + reply])).logits[0, 3:-1], atol=1e-5, rtol=0)
    trainee = whole.trainee()
    torch.autograd.backward(whole(tree.states_1TD, tree.positions_1T, rows, attention_mask=tree.mask_11TT).sum())
    assert all(parameter.grad is not None for parameter in trainee.parameters.values())
    assert trainee.num_trained == sum(parameter.numel() for parameter in plain.parameters())
    assert trainee.training_bytes == 4 * trainee.swap_bytes


def test_whole_models_draw_what_a_server_scores(client: Client, model: Path) -> None:
    """The same prompt ids, ends and log-probs: so the two sides of the comparison do the same task."""
    config = RLConfig(prompts=2, samples=3, max_new_tokens=12)
    side = WholeSide(model, reward(), config)
    rollout = side.draw([(ask("Why?"), "questions"), (ask("What is a long question?"), "questions")], config, seed=1)
    for group in rollout.groups:
        assert group.prompt_ids == client.tokenize(group.prompt)
        scored = client.score([(group.prompt_ids, reply.token_ids) for reply in group.replies], heads=["reference"])
        for reply, item in zip(group.replies, scored, strict=True):
            np.testing.assert_allclose(reply.logprobs_T, item.scores["reference"].logprobs, atol=1e-4)
            assert 2 not in reply.token_ids[:-1]
    again = side.draw([(ask("Why?"), "questions")], config, seed=1)
    assert len({reply.text for reply in again.groups[0].replies}) > 1


def test_adapters_train_and_are_served(client: Client) -> None:
    """After a step the server draws with the adapter: its log-probs are the trainer's own."""
    base = adapters_beside(pull_module(client, "reference"), rank=4, seed=0)
    assert all(not parameter.requires_grad for name, parameter in base.model.named_parameters() if "lora" not in name)
    variant = FreezingPlan.read().variants["lora-4"]
    config = RLConfig(prompts=1, samples=3, max_new_tokens=12, learning_rate=1e-2)
    side = ServedSide(client, variant, reward(), config)
    for number in (1, 2):
        rollout = side.draw([(ask("Why?"), "questions")], config, seed=number)
        targets = side.learner.targets(rollout.replies, [float(index) for index in range(len(rollout.replies))])
        update = side.learner.update(rollout.groups, targets, seed=number, share=1.0)
        side.hand_on(number)
        assert update.gap < 1e-4
    assert client.head("policy-freezing").manifest.lora is not None


def test_replies_that_are_all_liked_equally_are_refused(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any variant is trained on nothing."""
    monkeypatch.setattr(judges, "preference", lambda text: 0.0)
    with pytest.raises(PlanError, match="the judge likes the replies to each training question equally: there is nothing to order\nhint: "):
        Data.drawn(client, plan_of(tmp_path), seed=0)


def test_a_unit_in_a_process_of_its_own() -> None:
    work = in_process_of_its_own([sys.executable, "-c", "import sys; sys.exit(sys.argv[1] != 'freezing-seed0-data')"])
    work(Unit("data", 0))
    with pytest.raises(UnitFailed, match="the process of freezing-seed1-data ended with status 1"):
        work(Unit("data", 1))
    before, code = signal.getsignal(signal.SIGTERM), "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    ending = in_process_of_its_own([sys.executable, "-c", code])
    with pytest.raises(SystemExit) as ended:  # and the process is ended, too
        ending(Unit("data", 0))
    assert (ended.value.code, signal.getsignal(signal.SIGTERM)) == (143, before)


def test_numbers_at_the_same_time_and_at_the_same_kl() -> None:
    curve = [{"seconds": 10.0, "accuracy": 0.5}, {"seconds": 20.0, "accuracy": 0.7}]
    assert [freezing_page.at(curve, seconds, "accuracy") for seconds in (15, 20)] == [0.5, 0.7]
    assert math.isnan(freezing_page.at(curve, 5, "accuracy"))
    rounds = [{"kl": kl, "reward": 1 + 2 * math.sqrt(max(kl, 0))} for kl in (-0.1, 1.5, 4.0)]
    assert freezing_page.at_kl(rounds, 2.25) == pytest.approx(4.0)
    for kl in (5.0, 1.0, 3.5):  # none above it; none below it but the first, which is far; none below it that is near
        assert math.isnan(freezing_page.at_kl(rounds, kl))
    assert math.isnan(freezing_page.at_kl(rounds[:1], 0.0))


def test_the_brief_compares_what_both_have() -> None:
    """Differences are over the seeds of both; a seed in which the slower one had not been measured by then is left out of both numbers."""

    def one(seed: int, seconds: float, curve: list[tuple[float, float]], right: float) -> dict[str, Any]:
        points = [{"seconds": at, "accuracy": accuracy} for at, accuracy in curve]
        return {"seed": seed, "seconds": seconds, "curve": points, "pairs": [{"question": 0.0, "right": right}]}

    quick = [one(0, 10.0, [(10.0, 0.7)], 0.7), one(1, 10.0, [(10.0, 0.9)], 0.9), one(2, 10.0, [(10.0, 0.1)], 0.1)]
    slow = [one(0, 40.0, [(9.0, 0.5), (40.0, 0.8)], 0.8), one(1, 40.0, [(12.0, 0.4), (40.0, 1.0)], 1.0)]
    assert freezing_page._same_time(quick, slow) == "after 10 s 0.700 against 0.500 of all held-out pairs (seeds 0)."
    assert freezing_page._same_time(quick, slow[1:]) == "after 10 s the slower one had not been measured."
    compared = freezing_page._compared(quick, slow, "pairs", "right", "{:.2f}")
    assert compared == "0.80 against 0.90, difference -0.10 (-0.10 to -0.10)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "at least one seed and one variant"),
        ({"variants": {"lora": {"trunk_layers": 0, "rank": 4, "preference_rate": 1, "policy_rate": 1}}}, "adapters stand above a trunk"),
        ({"variants": {"x": {"layers": 1}}}, "unexpected keyword argument 'layers'"),
    ],
)
def test_a_plan_is_checked_before_any_run(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=f"freezing.json: .*{message}"):
        plan_of(tmp_path, **changes)


def test_the_plan_in_the_repository() -> None:
    """Three seeds; 50, 80 and 90 % of SmolLM2's 30 layers, two ranks, and everything."""
    variants = FreezingPlan.read().variants
    assert [each.trunk_layers for each in variants.values()] == [27, 24, 15, 24, 24, 0]
    assert [each.rank for each in variants.values()] == [0, 0, 0, 4, 32, 0]
