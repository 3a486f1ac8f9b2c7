"""The evidence as a page with tables and plots, from result files alone: `make rlhf-evidence-page ARGS='--folder runs/evidence'`.

Knows no server. What a plan names and no result file holds is said to be missing; runs that failed are listed, and count.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.client.bench.plot import Line, Panel, svg
from polyhead.client.rlhf.evidence.intervals import Interval, bootstrap, table_of
from polyhead.client.rlhf.evidence.plan import DEFAULT, GROUND, Plan, Unit
from polyhead.client.rlhf.evidence.results import Results

Found = Mapping[str, Any]

MEASURES: dict[str, tuple[str, Callable[[float], str]]] = {  # of a reply -> (heading, form)
    "preference": ("liked words, 0 to 4", "{:.2f}".format),
    "wins": ("preferred to the base", "{:.0%}".format),
    "broken": ("rule broken", "{:.0%}".format),
    "kept_and_preferred": ("kept and preferred", "{:.0%}".format),
    "kl": ("KL, nats a reply", "{:.2f}".format),
    "head_preference": ("preference head", "{:.2f}".format),
    "head_broken": ("rule head, p_violate", "{:.2f}".format),
}
REWARDS = {"judge": "The judges reward", "heads": "Learned heads reward"}


@dataclass(frozen=True)
class Told:
    """What the result files of one kind of reward say: by arm, the seeds' results."""

    reward: str
    by_arm: Mapping[str, Sequence[Found]]  # the base first
    missing: Sequence[str]

    @classmethod
    def of(cls, results: Results, reward: str) -> Told:
        plan, by_arm, missing = results.plan, dict[str, list[Found]](), []
        for name in (GROUND, *plan.arms):
            for unit in (Unit(reward, seed, name) for seed in plan.seeds[reward]):
                if (found := results.find(unit)) is None:
                    missing.append(unit.name)
                else:
                    by_arm.setdefault(name, []).append(found)
        return cls(reward, by_arm, missing)

    @property
    def measures(self) -> list[str]:
        """Those that every reply has."""
        replies = [reply for found in self.by_arm.values() for each in found for reply in each["replies"]]
        return [name for name in MEASURES if all(name in reply for reply in replies)]

    def cells(self, arm: str, measure: str) -> Any:
        """(seeds, questions)."""
        return table_of([each["replies"] for each in self.by_arm[arm]], measure)


def page(results: Results, images: str = "../images") -> str:
    """All of it; plots are named rlhf-evidence-judge.svg and rlhf-evidence-heads.svg, in `images`."""
    plan = results.plan
    blocks = ["# Evidence: preference, rule, and both", _paragraph(_QUESTION), "## Method", _method(plan)]
    for reward in plan.seeds:
        told = Told.of(results, reward)
        blocks += [f"## {REWARDS[reward]}", *_chapter(told, images)]
    blocks += ["## Commands", _COMMANDS]
    return "\n\n".join(blocks) + "\n"


def plots(told: Told) -> str:
    """Means over the seeds by round: the judges' verdicts and the KL, a line for each arm."""

    def panel(title: str, unit: str, number: Callable[[Found], float]) -> Panel:
        return Panel(title, "round", unit, [Line(arm, _means(found, number)) for arm, found in _trained(told).items()])

    panels = [
        panel("Preference", "liked words a reply", lambda each: each["parts"]["liked"]),
        panel("Rule broken", "share of replies", lambda each: each["parts"]["broken"]),
        panel("Kept and preferred", "share of replies", lambda each: each["parts"]["kept and liked"]),
        panel("KL to the base", "nats a reply", lambda each: max(0.0, each["kl"])),
    ]
    return svg(panels, columns=2)


def _chapter(told: Told, images: str) -> list[str]:
    if not told.by_arm:
        return ["No run is finished yet."]
    image = f"![Means over the seeds, by round]({images}/rlhf-evidence-{told.reward}.svg)"
    plot = [image] if _trained(told) else []
    return [_ran(told), _table(told), _paragraph(_LEGEND), *_differences(told), *plot, *_learned(told), _shown(told)]


def _ran(told: Told) -> str:
    counts = ", ".join(f"{arm} {len(found)}" for arm, found in told.by_arm.items())
    trained = [each for found in _trained(told).values() for each in found]
    failed = [f"{each['arm']} seed {each['seed']}: {each['failed'].splitlines()[0]}" for each in trained if each["failed"]]
    seconds = sum(each["seconds"] for found in told.by_arm.values() for each in found)
    lines = [f"Seeds: {counts}. {seconds / 60:.0f} minutes in all."]
    lines.append(f"Failed, and counted as they ended: {'; '.join(failed)}." if failed else "No run failed.")
    if told.missing:
        lines.append(f"Not run yet: {', '.join(told.missing)}.")
    return _paragraph(" ".join(lines))


def _table(told: Told) -> str:
    shown = told.measures
    lines = [f"| policy | {' | '.join(MEASURES[name][0] for name in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for arm in told.by_arm:
        cells = [_with_interval(bootstrap(told.cells(arm, name)), MEASURES[name][1]) for name in shown]
        lines.append(f"| {arm if arm == GROUND else f'RL: {arm}'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _differences(told: Told) -> list[str]:
    """Of each arm to the base, question by question, over the seeds that have both."""
    lines = []
    for arm, found in _trained(told).items():
        seeds = [each["seed"] for each in found]
        base = [each for each in told.by_arm.get(GROUND, []) if each["seed"] in seeds]
        for measure in ("wins", "broken", "kept_and_preferred"):
            change = table_of([each["replies"] for each in found], measure) - table_of([each["replies"] for each in base], measure)
            interval = bootstrap(change)
            heading, verdict = MEASURES[measure][0], "" if interval.low <= 0 <= interval.high else ", not 0"
            lines.append(f"- {arm}, {heading}: {_with_interval(interval, '{:+.0%}'.format)}{verdict}")
    return ["Differences to the base:\n\n" + "\n".join(lines)] if lines else []


def _learned(told: Told) -> list[str]:
    rows = [each["learned"] for each in told.by_arm.get(GROUND, []) if each["learned"] is not None]
    if not rows:
        return []
    lines = ["| seed | pairs ranked right | of | rule AUC | among first-person replies | calibration error |", "|---" * 6 + "|"]
    for each in told.by_arm[GROUND]:
        found = each["learned"]
        numbers = [found[name] for name in ("rule_auc", "rule_auc_in_conflict", "rule_ece")]
        cells = [f"{found['pair_accuracy']:.2f}", str(found["num_pairs"]), *(f"{number:.2f}" for number in numbers)]
        lines.append(f"| {each['seed']} | {' | '.join(cells)} |")
    return ["The learned heads, on held-out questions:\n\n" + "\n".join(lines)]


def _shown(told: Told) -> str:
    """The first seed's replies to the first questions."""
    firsts = {arm: found[0]["shown"] for arm, found in told.by_arm.items()}
    blocks = ["Replies at temperature 0.7, of the first seed:"]
    for question in next(iter(firsts.values())):
        lines = [f"- {arm}: *{_plain(shown[question])}*" for arm, shown in firsts.items()]
        blocks.append("\n".join([question, "", *lines]))
    return "\n\n".join(blocks)


def _method(plan: Plan) -> str:
    seeds = "; ".join(f"{reward}: {', '.join(map(str, each))}" for reward, each in plan.seeds.items())
    arms = "; ".join(f"{arm.name}: {arm.preference_weight:g} and {arm.rule_weight:g}" for arm in plan.arms.values())
    config = plan.config
    return _paragraph(
        f"Seeds ({seeds}), arms and hyper-parameters were fixed in a file before the runs (plan {plan.sha256[:12]}). Weights of "
        f"preference and rule: {arms}; learned rule heads count twice. Each run: {config.rounds} rounds of {config.prompts} prompts and "
        f"{config.samples} replies of at most {config.max_new_tokens} tokens, learning rate {config.learning_rate:g}, KL "
        f"{config.kl_weight:g} a token. Each policy answers {plan.held_out_questions} held-out questions {plan.held_out_samples} times at "
        "temperature 1."
    )


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


def _with_interval(interval: Interval, form: Callable[[float], str]) -> str:
    return f"{form(interval.mean)} ({form(interval.low)} to {form(interval.high)})"


def _plain(reply: str) -> str:
    """One line without Markdown's own marks."""
    line = "".join(each for each in " ".join(reply.split()) if each not in "*_`|<>[]\\")
    return f"{line[:110].strip()} ..." if len(line) > 110 else line.strip() or "(nothing)"


def _paragraph(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 150, break_long_words=False, break_on_hyphens=False))


_QUESTION = (
    "Does reinforcement learning on a served trunk show what the papers say: preference alone raises violations of a rule, the rule alone "
    "lowers preference, and the mix is best? Two plain functions stand in for people (`client/rlhf/judges.py`), so that every number can "
    "be computed again. Every number on this page comes from the result files, by a script."
)
_LEGEND = (
    "In brackets: where the mean lies in 95 % of 4000 bootstrap draws of seeds and of questions. With one seed they are of questions alone."
)
_COMMANDS = """```console
$ make rlhf-evidence ARGS='--budget 120'                       # goes on where it ended; finished runs are kept
$ make rlhf-evidence-page ARGS='--folder runs/evidence'        # this page, from the result files
```"""


def write(results: Results, out: Path) -> None:
    """`out`/index.md and the plots in `out`/../images. Raises OSError."""
    images = out.parent / "images"
    for folder in (out, images):
        folder.mkdir(parents=True, exist_ok=True)
    for reward in results.plan.seeds:
        if _trained(told := Told.of(results, reward)):
            (images / f"rlhf-evidence-{reward}.svg").write_text(plots(told), encoding="utf-8")
    (out / "index.md").write_text(page(results), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="make rlhf-evidence-page ARGS=...", description="A page with tables and plots from result files.")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="that the runs were made in")
    parser.add_argument("--plan", type=Path, default=DEFAULT, help="that they were made with")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"), help="folder of the page")
    options = parser.parse_args(arguments)
    try:
        write(Results(options.folder, Plan.read(options.plan)), options.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.out / 'index.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
