"""What the result files of the three arms say: tables with intervals, plots by round, sample replies. Knows no server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.client.bench.plot import Line, Panel, svg
from polyhead.client.rlhf.evidence.arms.plan import GROUND, ArmsPlan, Unit
from polyhead.client.rlhf.evidence.intervals import Interval, bootstrap, table_of
from polyhead.client.rlhf.evidence.results import Found, Results
from polyhead.client.rlhf.evidence.wording import SHOWN, not_run, verdict_of, with_interval
from polyhead.client.rlhf.markdown import paragraph, quoted, table
from polyhead.client.rlhf.verdicts import MEASURES, Form, panels
from polyhead.heads.training.metrics import auc, pair_accuracy

CLAIMS = (  # what is expected: claim, policy, the policy that it is compared with, measure, sign of the difference
    ("preference alone raises preference", "preference", GROUND, "preference", 1),
    ("preference alone raises violations", "preference", GROUND, "broken", 1),
    ("the rule alone lowers violations", "rule", GROUND, "broken", -1),
    ("the rule alone lowers preference", "rule", GROUND, "preference", -1),
    ("the mix breaks the rule less often than preference alone", "mix", "preference", "broken", -1),
    ("the mix pleases both judges more often than preference alone", "mix", "preference", "kept_and_preferred", 1),
    ("the mix pleases both judges more often than the rule alone", "mix", "rule", "kept_and_preferred", 1),
    ("the mix pleases both judges more often than the base", "mix", GROUND, "kept_and_preferred", 1),
)
ASKED_LATER = (  # when the runs had been read: no effect was expected
    ("the mix breaks the rule less often than the base (asked later)", "mix", GROUND, "broken", -1),
    ("the mix is liked more than the base (asked later)", "mix", GROUND, "preference", 1),
)
REWARDS = {"judge": "The judges reward", "heads": "Learned heads reward"}
Claim = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Told:
    """What the result files of one kind of reward say: by arm, the seeds' results."""

    reward: str
    by_arm: Mapping[str, Sequence[Found]]  # the base first
    missing: Mapping[str, Sequence[int]]  # seeds, by arm

    @classmethod
    def of(cls, results: Results[ArmsPlan], reward: str) -> Told:
        plan, by_arm, missing = results.plan, dict[str, list[Found]](), dict[str, list[int]]()
        for name in (GROUND, *plan.arms):
            for unit in (Unit(reward, seed, name) for seed in plan.seeds[reward]):
                if (found := results.find(unit)) is None:
                    missing.setdefault(name, []).append(unit.seed)
                else:
                    by_arm.setdefault(name, []).append(found)
        return cls(reward, by_arm, missing)

    @property
    def is_trained(self) -> bool:
        """Whether any arm has been run."""
        return bool(self.trained)

    @property
    def trained(self) -> list[Found]:
        """All finished runs of arms."""
        return [each for found in _trained(self).values() for each in found]

    @property
    def measures(self) -> list[str]:
        """Those that every reply has."""
        replies = [reply for found in self.by_arm.values() for each in found for reply in each["replies"]]
        return [name for name in MEASURES if all(name in reply for reply in replies)]

    def cells(self, arm: str, measure: str) -> Any:
        """(seeds, questions)."""
        return table_of([each["replies"] for each in self.by_arm[arm]], measure)

    def difference(self, arm: str, other: str, measure: str) -> Interval | None:
        """Of two policies over the seeds that both have; None: there is no such seed."""
        both = [{each["seed"]: each["replies"] for each in self.by_arm.get(name, [])} for name in (arm, other)]
        if not (seeds := self.seeds_of_both(arm, other)):
            return None
        cells = [table_of([own[seed] for seed in seeds], measure) for own in both]
        return bootstrap(cells[0] - cells[1])

    def seeds_of_both(self, arm: str, other: str) -> list[int]:
        """Those that are finished."""
        own, others = ({each["seed"] for each in self.by_arm.get(name, [])} for name in (arm, other))
        return sorted(own & others)


def plots(told: Told) -> str:
    """Means over the seeds by round: the judges' verdicts and the KL, a line for each arm."""

    def panel(title: str, unit: str, number: Callable[[Found], float]) -> Panel:
        return Panel(title, "round", unit, [Line(arm, _means(found, number)) for arm, found in _trained(told).items()])

    drawn = [*panels(panel)]
    if told.reward == "heads":
        drawn += [_of_part(told, "Preference head", "score", "preference"), _of_part(told, "Rule head", "p_follow", "followed")]
    return svg(drawn, columns=2)


def _of_part(told: Told, title: str, unit: str, part: str) -> Panel:
    """Of the arms whose reward has this part."""
    has = {arm: all(part in each["parts"] for one in found for each in one["rounds"]) for arm, found in _trained(told).items()}
    lines = [Line(arm, _means(found, lambda each: each["parts"][part]) if has[arm] else []) for arm, found in _trained(told).items()]
    return Panel(title, "round", unit, lines)


def chapter(told: Told, images: str) -> list[str]:
    """Its blocks of Markdown; the plot is rlhf-evidence-judge.svg or rlhf-evidence-heads.svg, in `images`."""
    if not told.by_arm:
        return [not_run(told.missing)]
    image = f"![Means over the seeds, by round]({images}/rlhf-evidence-{told.reward}.svg)"
    plot = [image] if _trained(told) else []
    return [_ran(told), _table(told), paragraph(_LEGEND), *_claims(told), paragraph(_READING), *plot, *_learned(told), _shown(told)]


def brief(told: Told) -> list[str]:
    """Its result in a sentence or two; none before the first run."""
    if not told.is_trained:
        return []
    verdicts = [verdict_of(interval, sign) for *_, sign, interval in _asked(told, CLAIMS) if interval is not None]
    pleasing, broken = (
        ", ".join(f"{arm} {np.nanmean(told.cells(arm, measure)):.0%}" for arm in told.by_arm)
        for measure in ("kept_and_preferred", "broken")
    )
    return [
        f"{REWARDS[told.reward]}: {verdicts.count(SHOWN)} of {len(CLAIMS)} expected effects are shown. Replies that please both judges: "
        f"{pleasing}. Replies that break the rule: {broken}."
    ]


def _ran(told: Told) -> str:
    counts = ", ".join(f"{arm} {len(found)}" for arm, found in told.by_arm.items())
    failed = [f"{each['arm']} seed {each['seed']}: {each['failed'].splitlines()[0]}" for each in told.trained if each["failed"]]
    seconds = sum(each["seconds"] for found in told.by_arm.values() for each in found)
    lines = [f"Seeds: {counts}. {seconds / 60:.0f} minutes in all."]
    lines.append(f"Failed, and counted as they ended: {'; '.join(failed)}." if failed else "No run failed.")
    return paragraph(" ".join([*lines, not_run(told.missing)]))


def _table(told: Told) -> str:
    shown, rows = told.measures, []
    for arm in told.by_arm:
        cells = [with_interval(bootstrap(told.cells(arm, name)), MEASURES[name][1]) for name in shown]
        rows.append([arm if arm == GROUND else f"RL: {arm}", *cells])
    return table(["policy", *(MEASURES[name][0] for name in shown)], rows)


def _asked(told: Told, claims: Sequence[Claim]) -> Iterator[tuple[str, str, str, str, int, Interval | None]]:
    """Each as a difference of two policies, question by question, over the seeds that have both."""
    for claim, arm, other, measure, sign in claims:
        yield claim, arm, other, measure, sign, told.difference(arm, other, measure)


def _claims(told: Told) -> list[str]:
    rows = []
    for claim, arm, other, measure, sign, interval in _asked(told, (*CLAIMS, *ASKED_LATER)):
        if interval is None:
            rows.append([claim, "", "not run yet"])
            continue
        form: Form = "{:+.0%}".format if measure != "preference" else "{:+.2f}".format
        seeds = len(told.seeds_of_both(arm, other))
        difference = f"{MEASURES[measure][0]}, {arm} minus {other}: {with_interval(interval, form)}"
        rows.append([claim, difference, f"{verdict_of(interval, sign)}, {seeds} seed{'s' * (seeds > 1)}"])
    return [table(["expected", "difference", "shown here"], rows)]


def _learned(told: Told) -> list[str]:
    """How good the heads are that rewarded, on the base's replies and on those of the policies that learned from them."""
    grounds = [each for each in told.by_arm.get(GROUND, []) if each["learned"] is not None]
    if not grounds:
        return []
    rows = []
    for each in grounds:
        found, (num_replies, pairs) = each["learned"], (each["base_rates"]["replies"], each["learned"]["num_pairs"])
        numbers = [found[name] for name in ("rule_auc", "rule_auc_in_conflict", "rule_ece")]
        shares = [f"{found['pair_accuracy']:.2f}", str(pairs), *(f"{number:.2f}" for number in numbers)]
        rows.append([str(each["seed"]), str(num_replies), *shares])
    headings = ["seed", "replies learned from", "pairs ranked right", "number of pairs", "rule AUC", "rule AUC, first person"]
    blocks = [paragraph(_HEADS), table([*headings, "calibration error"], rows)]
    blocks += ["The same on each policy's own replies, means over the seeds:", judged_by_heads(told.by_arm)]
    return [*blocks, paragraph(_scarcity(grounds))]


def _scarcity(grounds: Sequence[Found]) -> str:
    """How few replies of the corner the heads could learn from."""
    replies = [reply for each in grounds for reply in each["replies"]]

    def share(number: Callable[[Mapping[str, float]], float], chosen: Callable[[Mapping[str, float]], bool]) -> str:
        found = [number(reply) for reply in replies if chosen(reply)]
        return f"{np.mean(found):.0%}" if found else "none"

    pleasing = share(lambda reply: reply["kept_and_preferred"], lambda reply: True)
    first = share(lambda reply: 1 - reply["broken"], lambda reply: reply["preference"] >= 1)
    liked = share(lambda reply: 1 - reply["broken"], lambda reply: reply["preference"] >= 2)
    return (
        f"Of the base's replies to held-out questions {pleasing} please both judges. Of those in the first person {first} keep the rule, "
        f"of those with two or more liked words {liked}. So a rule head that learns from the base's replies sees few that are liked and "
        "keep the rule."
    )


def judged_by_heads(by_policy: Mapping[str, Sequence[Found]], replies: str = "replies") -> str:
    """A table of how often two learned heads agree with the judges about each policy's replies, means over the seeds."""
    rows = []
    for policy, found in by_policy.items():
        numbers = np.array([agreement(each[replies]) for each in found])
        rows.append([policy, *(_mean(numbers[:, column]) for column in range(numbers.shape[1]))])
    return table(["policy", "pairs ranked right", "rule AUC", "rule AUC, first person"], rows)


def agreement(replies: Sequence[Mapping[str, float]]) -> tuple[float, float, float]:
    """(share of a question's pairs that the preference head ranks as its judge does, AUC of the rule head, AUC among replies in the first
    person), NaN where there is nothing to tell apart."""
    margins = []
    for index, reply in enumerate(replies):
        for other in replies[index + 1 :]:
            if reply["question"] == other["question"] and reply["preference"] != other["preference"]:
                sign = np.sign(reply["preference"] - other["preference"])
                margins.append(sign * (reply["head_preference"] - other["head_preference"]))
    found = [pair_accuracy(margins).share]
    for chosen in (replies, [reply for reply in replies if reply["preference"] > 0]):
        found.append(auc([reply["head_broken"] for reply in chosen], [reply["broken"] for reply in chosen]))
    return found[0], found[1], found[2]


def _mean(numbers: NDArray[np.float64]) -> str:
    """Over the seeds that have one."""
    known = numbers[~np.isnan(numbers)]
    return f"{known.mean():.2f}" if len(known) else "none"


def _shown(told: Told) -> str:
    """The first seed's replies to the first questions."""
    firsts = {arm: found[0]["shown"] for arm, found in told.by_arm.items()}
    blocks = ["Replies at temperature 0.7, of the first seed:"]
    for question in next(iter(firsts.values())):
        lines = [f"- {arm}: *{quoted(shown[question])}*" for arm, shown in firsts.items()]
        blocks.append("\n".join([question, "", *lines]))
    return "\n\n".join(blocks)


def _trained(told: Told) -> dict[str, Sequence[Found]]:
    return {arm: found for arm, found in told.by_arm.items() if arm != GROUND}


def _means(found: Sequence[Found], number: Callable[[Found], float]) -> list[tuple[float, float]]:
    """By round, over the seeds that came so far."""
    last = max(each["number"] for one in found for each in one["rounds"]) if any(one["rounds"] for one in found) else 0
    points = []
    for at in range(1, last + 1):
        numbers = [number(each) for one in found for each in one["rounds"] if each["number"] == at]
        points.append((float(at), float(np.mean(numbers))))
    return points


_LEGEND = (
    "In brackets: 95 % bootstrap intervals of the mean; seeds and questions are drawn again with replacement, 4000 times. With 2 to 5 "
    "seeds such intervals tend to be too narrow, and they are not corrected for the number of comparisons. The first columns always give "
    "the judges' verdicts, even where learned heads gave the reward."
)
_READING = (
    "Shown: the interval excludes 0. The two judges share words and were made to conflict, so the first four rows only show that the loop "
    "optimises what it is given. Rows five to eight ask whether it finds replies that please both. The last two rows were added when the "
    "runs had been read."
)
_HEADS = (
    "The learned heads, on the base's replies to held-out questions. Pairs ranked right: the share of pairs of replies to one question "
    "that the preference head orders as the judge does. Rule AUC: how often the rule head gives a reply that breaks the rule a higher "
    "p_violate than one that keeps it; the next column among replies in the first person alone, where the judges conflict. Calibration "
    "error: the "
    "mean distance between p_violate and the share of replies that break the rule. The preference head learns from all replies named, the "
    "rule head from at most 400 of them."
)
