"""The evidence as a page with tables and plots, from result files alone: `make rlhf-evidence-page ARGS='--folder runs/evidence'`.

Finished runs are copied to results/ beside the page, and the page is written from there: so its numbers are those of files that are kept
with it. Knows no server. What a plan names and no result file holds is said to be missing; runs that failed are listed, and count.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhead.client.rlhf.evidence import page_text
from polyhead.client.rlhf.evidence.arms import page as arms_page
from polyhead.client.rlhf.evidence.arms.page import REWARDS, Told
from polyhead.client.rlhf.evidence.arms.plan import DEFAULT, ArmsPlan
from polyhead.client.rlhf.evidence.freezing import page as freezing_page
from polyhead.client.rlhf.evidence.freezing.plan import FreezingPlan
from polyhead.client.rlhf.evidence.learned import page as learned_page
from polyhead.client.rlhf.evidence.learned.plan import LearnedPlan
from polyhead.client.rlhf.evidence.results import Results
from polyhead.client.rlhf.evidence.sharing import page as sharing_page
from polyhead.client.rlhf.evidence.sharing.plan import SharingPlan
from polyhead.client.rlhf.markdown import bullet, paragraph, table

MIX = "The mix with learned heads"
CONFLICT = "The same, and the rule head learns from first-person replies first"
LIGHTER = "The same again, with a lighter rule and more replies"


@dataclass(frozen=True)
class Plans:
    """Of all experiments on the page."""

    arms: ArmsPlan
    learned: LearnedPlan | None = None
    conflict: LearnedPlan | None = None
    lighter: LearnedPlan | None = None
    freezing: FreezingPlan | None = None
    sharing: SharingPlan | None = None

    @classmethod
    def beside(cls, path: Path = DEFAULT) -> Plans:
        """The plan of the arms, and those that lie beside it. Raises PlanError."""
        kinds: dict[str, Any] = {
            "learned": LearnedPlan,
            "conflict": LearnedPlan,
            "lighter": LearnedPlan,
            "freezing": FreezingPlan,
            "sharing": SharingPlan,
        }
        beside = {name: (path.with_name(f"{name}.json"), kind) for name, kind in kinds.items()}
        return cls(ArmsPlan.read(path), **{name: kind.read(own) for name, (own, kind) in beside.items() if own.exists()})

    def publish(self, folder: Path, out: Path) -> int:
        """Copy all finished runs of a folder to `out`/results. Returns how many."""
        return sum(Results(folder, plan).publish(plan.units(), out) for plan in self.all)

    @property
    def all(self) -> list[Any]:
        """Each has a digest and units."""
        return list(self.named.values())

    @property
    def named(self) -> dict[str, Any]:
        """Those that there are, by name."""
        return {field.name: plan for field in dataclasses.fields(self) if (plan := getattr(self, field.name)) is not None}


def page(folder: Path, plans: Plans, images: str = "../images") -> str:
    """All of it, of the results in a folder; `images` is where the page finds its plots."""
    blocks = ["# Evidence: what a frozen trunk costs, and what it buys", paragraph(page_text.QUESTION), *_brief(folder, plans)]
    blocks += ["## Method", *_method(plans.arms)]
    for reward in plans.arms.seeds:
        blocks += [f"## {REWARDS[reward]}", *arms_page.chapter(Told.of(Results(folder, plans.arms), reward), images)]
    if plans.learned is not None:
        blocks += [f"## {MIX}", *learned_page.chapter(Results(folder, plans.learned))]
    for again, title, text in ((plans.conflict, CONFLICT, page_text.CONFLICT), (plans.lighter, LIGHTER, page_text.LIGHTER)):
        if again is not None:
            blocks += [f"## {title}", paragraph(text), *learned_page.chapter(Results(folder, again))]
    if plans.freezing is not None:
        blocks += ["## What freezing costs", *freezing_page.chapter(Results(folder, plans.freezing), images)]
    if plans.sharing is not None:
        trained = [each for reward in plans.arms.seeds for each in Told.of(Results(folder, plans.arms), reward).trained]
        blocks += ["## What sharing buys", *sharing_page.chapter(Results(folder, plans.sharing), trained)]
    blocks += ["## What did not work", _bullets(page_text.DID_NOT_WORK), "## Limits", _bullets(page_text.LIMITS)]
    blocks += ["## What it takes to run, and what was cut", _bullets([_hours(folder, plans), *page_text.COST])]
    blocks += ["## Commands", page_text.COMMANDS]
    return "\n\n".join(blocks) + "\n"


def plots(folder: Path, plans: Plans) -> dict[str, str]:
    """The page's plots as SVG, by file name."""
    found = {}
    for reward in plans.arms.seeds:
        if (told := Told.of(Results(folder, plans.arms), reward)).is_trained:
            found[f"rlhf-evidence-{reward}.svg"] = arms_page.plots(told)
    if plans.freezing is not None:
        preference, rl, _ = freezing_page.found_by_variant(Results(folder, plans.freezing))
        if preference or rl:
            found[freezing_page.IMAGE] = freezing_page.plots(preference, rl)
    return found


def write(plans: Plans, out: Path) -> None:
    """`out`/index.md from `out`/results, and the plots in `out`/../images. Raises OSError."""
    images = out.parent / "images"
    for folder in (out, images):
        folder.mkdir(parents=True, exist_ok=True)
    for name, drawn in plots(out, plans).items():
        (images / name).write_text(drawn, encoding="utf-8")
    (out / "index.md").write_text(page(out, plans), encoding="utf-8")


def _brief(folder: Path, plans: Plans) -> list[str]:
    """Each experiment's result in a sentence or two, of what has been run."""
    points = [point for reward in plans.arms.seeds for point in arms_page.brief(Told.of(Results(folder, plans.arms), reward))]
    for plan, heads in ((plans.learned, MIX), (plans.conflict, CONFLICT), (plans.lighter, LIGHTER)):
        points += learned_page.brief(Results(folder, plan), heads) if plan is not None else []
    points += freezing_page.brief(Results(folder, plans.freezing)) if plans.freezing is not None else []
    points += sharing_page.brief(Results(folder, plans.sharing)) if plans.sharing is not None else []
    return ["## In brief", _bullets(points)] if points else []


def _method(plan: ArmsPlan) -> list[str]:
    seeds = "; ".join(f"{reward}: {', '.join(map(str, each))}" for reward, each in plan.seeds.items())
    arms = "; ".join(f"{arm.name}: {arm.preference_weight:g} and {arm.rule_weight:g}" for arm in plan.arms.values())
    config, questions = plan.config, plan.train_questions
    runs = (
        f"Seeds ({seeds}), arms and the hyper-parameters below were fixed in `client/rlhf/evidence/plan.json` before the runs (plan "
        f"{plan.sha256[:12]}; the digest covers the judges and the questions, too, and stands in every result file). Other settings are "
        f"the code's defaults, which the digest does not cover. Each policy answers {plan.held_out_questions} held-out questions "
        f"{plan.held_out_samples} times at temperature 1."
    )
    rewards = (
        f"reward = weight of the preference · preference / spread + weight of the rule · [rule kept]. Weights: {arms}. With judges the "
        f"preference is the number of liked words, and the spread its standard deviation over the base's replies to the {questions} "
        "training questions. With learned heads the preference head's score and the rule head's p_follow stand in their places, the rule "
        "counts twice, and the spread is that of the scores in the first round of RL."
    )
    learned = ""
    if heads := plan.base_samples.get("heads", 0):
        learned = (
            f"Learned heads are trained on {heads * questions} replies of the base, {heads} to each training question: the preference head "
            "on their order, the rule head on at most 200 that break the rule and as many that keep it. They see no held-out question, and "
            "with this plan no reply of a trained policy."
        )
    settings = [
        ("rounds", f"{config.rounds} of {config.prompts} prompts, {config.samples} replies each"),
        ("reply", f"at most {config.max_new_tokens} tokens, temperature {config.temperature:g}"),
        ("algorithm", f"PPO, clip {config.clip:g}, lambda {config.lam:g}, discount {config.discount:g}"),
        ("optimiser", f"AdamW, betas {config.betas[0]:g} and {config.betas[1]:g}, gradients cut at norm {config.max_grad_norm:g}"),
        ("steps", f"{config.epochs} epoch of {config.minibatches} minibatches a round"),
        (
            "learning rate",
            f"{config.learning_rate:g} policy, {config.value_learning_rate:g} value head, {config.value_output_rate:g} its output",
        ),
        ("KL", f"penalty {config.kl_weight:g} per token; a round above {config.kl_limit:g} nats per token is taken back"),
    ]
    return [paragraph(page_text.JUDGES), paragraph(runs), table(["setting", "value"], settings), paragraph(rewards), paragraph(learned)]


def _hours(folder: Path, plans: Plans) -> str:
    """What all finished runs took."""
    minutes = []
    for name, plan in plans.named.items():
        found = [result for unit in plan.units() if (result := Results(folder, plan).find(unit)) is not None]
        minutes.append((name, sum(each.get("seconds", 0.0) for each in found) / 60))
    each = ", ".join(f"{name} {number:.0f}" for name, number in minutes if number)
    return f"The result files add up to {sum(number for _, number in minutes) / 60:.1f} hours of two cores. Minutes by plan: {each}."


def _bullets(points: Sequence[str]) -> str:
    return "\n".join(bullet(each) for each in points)


def main(arguments: Sequence[str] | None = None) -> int:
    """Copy the finished runs, and write the page."""
    parser = argparse.ArgumentParser(prog="make rlhf-evidence-page ARGS=...", description="A page with tables and plots from result files.")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="that the runs were made in")
    parser.add_argument("--plan", type=Path, default=DEFAULT, help="of the arms; the other plans lie beside it")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"), help="of the page, and of results/ that it is written from")
    options = parser.parse_args(arguments)
    try:
        plans = Plans.beside(options.plan)
        count = plans.publish(options.folder, options.out)
        write(plans, options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} finished runs copied from {options.folder}; wrote {options.out / 'index.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
