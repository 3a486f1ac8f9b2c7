"""What the result files say about the mix with learned heads. Knows no server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyhead.client.rlhf.evidence.arms.page import Told, judged_by_heads
from polyhead.client.rlhf.evidence.intervals import bootstrap
from polyhead.client.rlhf.evidence.learned.plan import FIXED, HEADS, REFRESHED, LearnedPlan
from polyhead.client.rlhf.evidence.results import Found, Results
from polyhead.client.rlhf.evidence.wording import not_run, verdict_of, with_interval
from polyhead.client.rlhf.markdown import bullet, paragraph, table
from polyhead.client.rlhf.verdicts import MEASURES

NAMES = {HEADS: "base", FIXED: "RL: heads stay", REFRESHED: "RL: heads learn anew"}
UNITS = {HEADS: "the heads", FIXED: "RL with heads that stay", REFRESHED: "RL with heads that learn anew"}
BEST = "{}, best of {}"
KINDS = ("kept and preferred", "kept, not preferred", "broken")
CLAIMS = (  # what is asked, policy, the policy that it is compared with
    ("RL against learned heads pleases both judges more often than the base", FIXED, HEADS),
    ("RL against heads that learn anew pleases both judges more often than against heads that stay", REFRESHED, FIXED),
)
JUDGES_WEIGHT = 2.0  # of the rule where judges reward the mix; learned heads count twice


def method(plan: LearnedPlan) -> list[str]:
    """What is done."""
    replies = plan.base_samples * plan.train_questions
    fewer = ", ".join(str(each * plan.train_questions) for each in plan.fewer_samples)
    beside = f"; heads that learn from {fewer} are measured beside them" if fewer else ""
    refreshed, config = 2 * plan.refresh_samples * plan.train_questions, plan.config
    first = ", those in the first person first" if plan.conflict_first else ""
    heads = (
        f"Plan {plan.sha256[:12]}, seeds {', '.join(map(str, plan.seeds))}. Both heads learn from {replies} replies of the base "
        f"({plan.base_samples} to each question){beside}. The rule head takes at most 400 "
        f"of these{first}. reward = {plan.arm.preference_weight:g} · preference head / spread + {_rule_weight(plan):g} · p_follow, where "
        "the spread is the standard deviation of the preference head's scores of the base's replies to held-out questions."
    )
    rl = (
        f"RL takes {config.rounds} rounds of {config.prompts} prompts and {config.samples} replies. Heads that learn anew do so after "
        f"round {' and '.join(map(str, plan.refresh_after))}: they go on learning, from {refreshed} replies, half of them the present "
        "policy's and half the base's, judged by the same judges. This is the iteration that OpenAI and Anthropic describe. Until the "
        "first time the run is the same as with heads that stay; afterwards prompts and draws differ, too, and the optimiser's state is "
        "reset."
    )
    bound = math.log(plan.best_of) - (plan.best_of - 1) / plan.best_of
    rerank = (
        f"The best of {plan.best_of} replies is the one that both heads reward most (Sparrow's reranking), {plan.picks} choices for each "
        f"held-out question. Choosing so is at most {bound:.2f} nats a reply away from the policy that is chosen from: log n - (n - 1) / "
        "n, an upper bound (Beirami et al. 2024). Its KL to the base is not measured."
    )
    return [paragraph(heads), paragraph(rl), paragraph(rerank)]


def chapter(results: Results[LearnedPlan]) -> list[str]:
    """Its blocks of Markdown."""
    plan, (by_what, missing) = results.plan, _found(results)
    blocks = [*method(plan), paragraph(not_run(missing))]
    if HEADS not in by_what:
        return blocks
    told = Told("heads", _policies(by_what, plan.best_of), missing)
    return [*blocks, _data(by_what[HEADS]), _failed(by_what), _table(told), *_claims(told), *_agreement(by_what), *_corner(plan, by_what)]


def brief(results: Results[LearnedPlan], heads: str) -> list[str]:
    """Its result in a sentence; none before the first run. `heads` says which ones."""
    by_what, missing = _found(results)
    if HEADS not in by_what:
        return []
    told = Told("heads", _policies(by_what, results.plan.best_of), missing)
    shares = [f"{name} {np.nanmean(told.cells(name, 'kept_and_preferred')):.0%}" for name in told.by_arm]
    missing_too = f" {not_run(missing)}" if missing else ""
    return [f"{heads}. Replies that please both judges: {'; '.join(shares)}.{missing_too}"]


def _found(results: Results[LearnedPlan]) -> tuple[dict[str, list[Found]], dict[str, list[int]]]:
    """(what is there, the seeds that are not), by what is run."""
    by_what, missing = dict[str, list[Found]](), dict[str, list[int]]()
    for unit in results.plan.units():
        if (found := results.find(unit)) is None:
            missing.setdefault(UNITS[unit.what], []).append(unit.seed)
        else:
            by_what.setdefault(unit.what, []).append(found)
    return by_what, missing


def _policies(by_what: Mapping[str, Sequence[Found]], count: int) -> dict[str, list[Found]]:
    """Each policy's own replies, and the best of several."""
    found = {}
    for what in (each for each in NAMES if each in by_what):
        found[NAMES[what]] = list(by_what[what])
        found[BEST.format(NAMES[what], count)] = [{**each, "replies": each["reranked"]} for each in by_what[what]]
    return found


def _data(grounds: Sequence[Found]) -> str:
    """How good the heads are by the number of replies that they learned from."""
    rows = []
    for index, first in enumerate(grounds[0]["learned"]):
        own = [each["learned"][index] for each in grounds]
        numbers = [_mean([each[name] for each in own]) for name in ("pair_accuracy", "rule_auc", "rule_auc_in_conflict", "rule_ece")]
        rows.append([str(first["replies"]), str(len(own)), *numbers])
    headings = ["replies learned from", "seeds", "pairs ranked right", "rule AUC", "rule AUC, first person", "calibration error"]
    text = (
        "The heads by the number of the base's replies that they learned from (the rule head from at most 400 of them), on held-out ones:"
    )
    return f"{text}\n\n{table(headings, rows)}"


def _failed(by_what: Mapping[str, Sequence[Found]]) -> str:
    runs = [each for what in (FIXED, REFRESHED) for each in by_what.get(what, [])]
    failed = [f"{NAMES[each['what']]}, seed {each['seed']}: {each['failed'].splitlines()[0]}" for each in runs if each["failed"]]
    minutes = sum(each["seconds"] for own in by_what.values() for each in own) / 60
    ended = f"Failed, and counted as they ended: {'; '.join(failed)}." if failed else "No run failed."
    return paragraph(f"{ended} {minutes:.0f} minutes in all.")


def _table(told: Told) -> str:
    rows = []
    for policy in told.by_arm:
        cells = [_cell(told, policy, name) for name in told.measures]
        rows.append([policy, str(len(told.by_arm[policy])), *cells])
    return table(["policy", "seeds", *(MEASURES[name][0] for name in told.measures)], rows)


def _cell(told: Told, policy: str, measure: str) -> str:
    """Empty for the KL of chosen replies: their log-probs are those of the policy that drew them, not of choosing."""
    if measure == "kl" and ", best of " in policy:
        return ""
    return with_interval(bootstrap(told.cells(policy, measure)), MEASURES[measure][1])


def _claims(told: Told) -> list[str]:
    """RL against choosing, and new heads against old ones, by the share of replies that please both judges."""
    names = list(told.by_arm)
    best = {name: next((other for other in names if other.startswith(f"{name}, ")), "") for name in names}
    asked = [(claim, NAMES[policy], NAMES[other]) for claim, policy, other in CLAIMS]
    asked.append(("choosing among the base's replies pleases both more often than RL", best.get(NAMES[HEADS], ""), NAMES[FIXED]))
    asked.append(("RL and choosing please both more often than choosing alone", best.get(NAMES[FIXED], ""), best.get(NAMES[HEADS], "")))
    anew = "RL against heads that learn anew{} more often than the base (asked later)"
    asked.append((anew.format(" pleases both judges"), NAMES[REFRESHED], NAMES[HEADS]))
    asked.append((anew.format(" and choosing please both"), best.get(NAMES[REFRESHED], ""), NAMES[HEADS]))
    lines = []
    for claim, policy, other in asked:
        if (interval := told.difference(policy, other, "kept_and_preferred")) is not None:
            lines.append(bullet(f"{claim}: {with_interval(interval, '{:+.0%}'.format)}, {verdict_of(interval)}"))
    return ["Kept and preferred, differences over the same seeds and questions:\n\n" + "\n".join(lines)] if lines else []


def _agreement(by_what: Mapping[str, Sequence[Found]]) -> list[str]:
    """What the heads know of the replies that they reward."""
    blocks = ["How often the heads agree with the judges about each policy's own replies:"]
    blocks.append(judged_by_heads({NAMES[what]: own for what, own in by_what.items()}))
    stages: dict[str, list[dict[str, Any]]] = {}
    for each in by_what.get(REFRESHED, []):
        for number, refresh in enumerate(each["refreshes"], 1):
            for when, name in (("before", "the old heads"), ("after", "the new ones")):
                stages.setdefault(f"refresh {number}, {name}", []).append({"replies": refresh[when]})
    if stages:
        blocks += ["About the policy's replies of that moment, before and after the heads learned from it:", judged_by_heads(stages)]
    return blocks


def _corner(plan: LearnedPlan, by_what: Mapping[str, Sequence[Found]]) -> list[str]:
    """What the heads that reward make of each kind of reply: whether they pay for the corner."""
    spreads = {each["seed"]: each["heads"]["spread"] for each in by_what[HEADS]}
    rows = []
    for what, own in by_what.items():
        kinds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for each in own:
            spread = each["refreshes"][-1]["heads"]["spread"] if each.get("refreshes") else spreads[each["seed"]]
            for reply in each["replies"]:
                kinds[_kind_of(reply)].append((reply["head_preference"] / spread, reply["head_broken"]))
        rows += [[NAMES[what], kind, str(len(said)), *_rewarded(plan, said)] for kind, said in kinds.items() if said]
    text = (
        "What the heads that reward say of each policy's own replies to held-out questions. RL is pushed towards the corner where its "
        "reward is above that of kept replies that are not preferred. Rows of fewer than 20 replies say little."
    )
    headings = ["policy", "what the judges say", "replies", "preference head / spread", "rule head, p_violate", "reward"]
    for other in _other_weights(plan):
        headings.append(f"reward with the rule at {other:g}")
        text += (
            f" The last column is computed from the same scores with the judges' own weight of the rule, {other:g} instead of "
            f"{_rule_weight(plan):g}; no policy was trained with it here."
        )
    return [paragraph(text), table(headings, rows)]


def _kind_of(reply: Mapping[str, float]) -> str:
    corner, kept, broken = KINDS
    return corner if reply["kept_and_preferred"] else broken if reply["broken"] else kept


def _rewarded(plan: LearnedPlan, said: Sequence[tuple[float, float]]) -> list[str]:
    """Means of both heads, of the reward that the plan makes of them, and of one with the judges' weight."""
    liked, violates = (float(np.mean(numbers)) for numbers in zip(*said, strict=True))
    weights = [_rule_weight(plan), *_other_weights(plan)]
    rewards = [plan.arm.preference_weight * liked + weight * (1 - violates) for weight in weights]
    return [f"{number:.2f}" for number in (liked, violates, *rewards)]


def _rule_weight(plan: LearnedPlan) -> float:
    """Of p_follow in the reward: a learned rule head counts twice."""
    return 2 * plan.arm.rule_weight


def _other_weights(plan: LearnedPlan) -> list[float]:
    """The judges' weight, where the plan has another."""
    return [JUDGES_WEIGHT] if _rule_weight(plan) != JUDGES_WEIGHT else []


def _mean(numbers: Sequence[float]) -> str:
    return f"{np.mean(numbers):.2f}"
