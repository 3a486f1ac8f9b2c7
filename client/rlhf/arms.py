"""The three arms of the demonstration, and how each is rewarded: by the judges themselves, or by heads that learned from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyhead.client import Client, Sample
from polyhead.client.rlhf import judges
from polyhead.client.rlhf.measure import ask
from polyhead.client.wire.options import PushOptions
from polyhead.heads.training.data import Comparison, Prompt, RuleJudgement
from polyhead.heads.training.fit import FitConfig, Step
from polyhead.heads.training.labels import RuleLabel
from polyhead.heads.training.metrics import pair_accuracy, rule_metrics
from polyhead.heads.training.preference import FEW_PAIRS, encode_ranked, held_out_margins, train_preference
from polyhead.heads.training.remote import weights_of
from polyhead.heads.training.rl.rewards import HeadsReward, JudgeReward, Reward
from polyhead.heads.training.rule import FEW_JUDGEMENTS, encode_judgements, held_out_probabilities, train_rule
from polyhead.heads.training.state_store import StateStore

PREFERENCE, RULE = "preference-judged", "rule-judged"
CONFLICT = "in the first person"
MOST_OF_A_SIDE = 200  # broken, and kept: a rule head learned from 270 judgements in all (AUC 0.99); each is as long as five replies


@dataclass(frozen=True)
class Arm:
    """One way to weigh the two judges."""

    name: str
    preference_weight: float  # a standard deviation of the base's preference
    rule_weight: float  # of "the rule is kept"; learned heads need about twice the judges' weight

    def reward(self, source: str, spread: float, heads: Sequence[str] = ()) -> Reward:
        """`source` is "judge" or "heads"; `heads` names other versions of the preference and the rule head than the active ones."""
        if source == "heads":
            liked, rule = heads or (PREFERENCE, RULE)
            liked, rule = liked if self.preference_weight else "", rule if self.rule_weight else ""
            return WatchedHeads(liked, rule, (judges.RULE,), self.preference_weight, 2 * self.rule_weight)

        def judge(prompt: Prompt, text: str) -> float:
            return self.preference_weight * judges.preference(text) / spread + self.rule_weight * (not judges.is_broken(text))

        return WatchedJudge(judge, f"{self.name}, spread {spread:.6f}")


class WatchedHeads(HeadsReward):
    """Learned heads reward, and the judges look on: what the policy does to those shows where it goes beyond what the heads know."""

    def parts(self, prompt: Prompt, sample: Sample) -> dict[str, float]:
        return super().parts(prompt, sample) | judges.verdicts(sample.text)


class WatchedJudge(JudgeReward):
    """The judges reward; each of their verdicts is kept beside the sum."""

    def parts(self, prompt: Prompt, sample: Sample) -> dict[str, float]:
        return super().parts(prompt, sample) | judges.verdicts(sample.text)


ARMS = (Arm("preference", 1.0, 0.0), Arm("rule", 0.0, 2.0), Arm("mix", 1.0, 2.0))


@dataclass(frozen=True)
class Learned:
    """How good the two learned heads are on questions that they were not trained on."""

    pair_accuracy: float
    num_pairs: int
    rule_auc: float
    rule_auc_in_conflict: float  # among replies in the first person: what the overall figure hides
    rule_ece: float


def train_judged_heads(
    client: Client,
    questions: Sequence[str],
    drawn: Sequence[Sample],
    held_out: Sequence[str],
    held_drawn: Sequence[Sample],
    folder: Path,
    seed: int = 0,
    on_note: Callable[[str], None] = print,
    start_from: tuple[str, str] = ("preference", "rule"),
    conflict_first: bool = False,
) -> Learned:
    """A preference and a rule head from the judges' verdicts on replies, pushed and activated under names of their own.

    `start_from` are the heads that go on learning: those of the server, or earlier ones of these. `conflict_first`: the rule head learns
    from replies in the first person before all others, as far as there are any; where replies are drawn from all, those that keep the
    rule are too few to be learned from.
    `on_note` gets a line before each part of the work, which may take minutes, and after each epoch.
    """
    states = StateStore(client, folder / "states")
    rows, unseen = _comparisons(questions, drawn), _comparisons(held_out, held_drawn)
    on_note(f"preference head: the trunk reads the replies to {len(rows)} questions; then the head is trained")
    few_pairs = dataclasses.replace(FEW_PAIRS, epochs=2, seed=seed)
    liked = train_preference(client, rows, states, start_from[0], few_pairs, on_step=_told("preference head", few_pairs, on_note))
    accuracy = pair_accuracy([margin for each in held_out_margins(liked, encode_ranked(client, unseen, states)) for margin in each])
    judged, unseen_judged = _balanced(_judgements(questions, drawn), seed, conflict_first), _judgements(held_out, held_drawn)
    on_note(f"rule head: the trunk reads {len(judged)} replies, each with the rule's question; then the head is trained")
    few_judgements = dataclasses.replace(FEW_JUDGEMENTS, seed=seed)
    on_step = _told("rule head", few_judgements, on_note)
    ruled = train_rule(client, judged, states, start_from[1], few_judgements, rules=[judges.RULE], on_step=on_step)
    on_note(f"rule head: {len(unseen_judged)} replies to held-out questions")
    found = held_out_probabilities(ruled, encode_judgements(client, unseen_judged, states, [judges.RULE]))
    targets = [row.label.target or 0.0 for row in unseen_judged]
    conflict = [index for index, row in enumerate(unseen_judged) if row.group == CONFLICT]
    overall = rule_metrics(found, targets)
    within = rule_metrics([found[index] for index in conflict], [targets[index] for index in conflict])
    weights = {PREFERENCE: weights_of(liked), RULE: weights_of(ruled)}
    kinds: dict[str, PushOptions] = {PREFERENCE: {"kind": "preference"}, RULE: {"kind": "rule"}}
    client.update(weights, options=kinds, note="rlhf: heads that learned from the judges")
    return Learned(accuracy.share, accuracy.count, overall.auc, within.auc, overall.ece)


def _told(what: str, config: FitConfig, on_note: Callable[[str], None]) -> Callable[[Step], None]:
    """A line at the end of each epoch."""

    def on_step(step: Step) -> None:
        if step.ends_epoch:
            on_note(f"{what}: epoch {step.epoch + 1} of {config.epochs}, loss of the last step {step.loss:.3f}")

    return on_step


def _comparisons(questions: Sequence[str], drawn: Sequence[Sample]) -> list[Comparison]:
    """A row for each question whose replies are not all liked equally. Replies are the ids that were drawn, most of them cut short: so
    the heads read in training what they will read during RL."""
    rows = []
    for index, question in enumerate(questions):
        replies = [each for each in drawn if each.prompt_index == index and each.text]
        scores = [judges.preference(each.text) for each in replies]
        if len(set(scores)) > 1:
            order = sorted(set(scores), reverse=True)
            ids = tuple(tuple(each.token_ids) for each in replies)
            rows.append(Comparison(ask(question), ids, tuple(order.index(each) + 1 for each in scores)))
    return rows


def _judgements(questions: Sequence[str], drawn: Sequence[Sample]) -> list[RuleJudgement]:
    """A row for each reply; one in the first person is of the group that both judges look at."""
    labels = {True: RuleLabel.DEFINITELY_BROKEN, False: RuleLabel.DEFINITELY_FOLLOWED}
    rows = []
    for each in (each for each in drawn if each.text):
        label, group = labels[judges.is_broken(each.text)], CONFLICT if judges.preference(each.text) > 0 else ""
        rows.append(RuleJudgement(ask(questions[each.prompt_index]), tuple(each.token_ids), judges.RULE.id, label, group))
    return rows


def _balanced(rows: Sequence[RuleJudgement], seed: int, conflict_first: bool) -> list[RuleJudgement]:
    """As many broken as kept: all of the fewer kind, at most 200. It shifts p_violate: the calibration error says by how much."""
    sides = [[row for row in rows if row.label.target == target] for target in (1.0, 0.0)]
    count, generator = min(MOST_OF_A_SIDE, *map(len, sides)), np.random.default_rng(seed)
    found = []
    for side in sides:
        order = [int(index) for index in generator.permutation(len(side))]
        if conflict_first:
            order.sort(key=lambda index: side[index].group != CONFLICT)  # stable: at random within each kind
        found += [side[index] for index in sorted(order[:count])]
    return found
