"""The demonstration's results as a page: what each policy became, plots, replies, costs and memory. Plain text from plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polyhead.client.bench.plot import Line, Panel, svg
from polyhead.client.rlhf import markdown
from polyhead.client.rlhf.markdown import paragraph, quoted
from polyhead.client.rlhf.verdicts import MEASURES, panels
from polyhead.heads.training.rl.report import PARTS

Results = Mapping[str, Any]
Numbers = Mapping[str, Any]


def table(results: Results) -> str:
    """Base and arms on held-out questions, as Markdown; the learned heads' columns only where there are some."""
    shown = [name for name in MEASURES if results["base"][name] is not None]
    policies = {"base": results["base"], **{f"RL: {name}": arm["measure"] for name, arm in results["arms"].items()}}
    rows = [[policy, *(MEASURES[name][1](measure[name]) for name in shown)] for policy, measure in policies.items()]
    return markdown.table(["policy", *(MEASURES[name][0] for name in shown)], rows)


def plots(results: Results) -> str:
    """The judges' verdicts and the KL by round, a line for each arm; with learned heads what those say as well."""

    def panel(title: str, unit: str, number: Callable[[Numbers], float]) -> Panel:
        return Panel(title, "round", unit, [Line(name, _points(arm, number)) for name, arm in results["arms"].items()])

    drawn = [*panels(panel)]
    if results.get("learned") is not None:
        drawn.append(_rise("Preference head", "rise over round 1", results, "preference"))
        drawn.append(_rise("Rule head", "rise of p_follow over round 1", results, "followed"))
    return svg(drawn, columns=2)


def page(results: Results, command: str, machine: str) -> str:
    """All of it."""
    rates, shares = results["base_rates"], _shares(results)
    blocks = [
        "# The whole loop: `make rlhf`",
        paragraph(_INTRODUCTION),
        _LISTS,
        paragraph(
            f"This page was written by `{command}` ({machine}; one seed) in {results['seconds'] / 60:.0f} minutes; server and "
            f"trainer took {results['cpu_seconds'] / 60:.0f} minutes of CPU. {results.get('note', '')} Directions are reliable, second "
            "digits are not."
        ),
        "## What became of the base",
        paragraph(
            f"Before any training, {rates['replies']} replies of the base have {rates['preference']:.2f} liked words each, and "
            f"{rates['broken']:.0%} break the rule. The two correlate by {rates['correlation']:+.2f}: what one judge likes, the other "
            f"holds against a reply.{_both_kinds(results)}"
            f"{_learned(results)}"
        ),
        paragraph(f"On held-out questions, {results['held_out_replies']} replies of each policy at temperature 1:"),
        table(results),
        paragraph(f"Replies that please both judges: {shares}. {_LEGEND}"),
        "![The judges' verdicts and the KL by round, for each arm](../images/rlhf-rounds.svg)",
        paragraph("Each point is the mean over a round's replies, drawn before that round's update: round 1 is the base."),
        "## Replies",
        paragraph("To the first held-out questions, at temperature 0.7, cut after the tokens of a training reply:"),
        _replies(results),
        "## What a round costs",
        _costs(results),
        paragraph(_costs_legend(results)),
    ]
    return "\n\n".join(blocks) + "\n"


_INTRODUCTION = """
One command runs reinforcement learning from human feedback on the embedded SmolLM2-135M, with two judges in place of people. It measures
the base, trains three policies on one server, and measures them on questions that none of them was trained on. Every round ends in a swap
of policy and value head. The trainer holds the heads, never the trunk.
"""
_LISTS = """\
- The **preference** judge likes words in the first person: I, me, my, we, our and their like. At most 4 of a reply count.
- The **rule** judge holds that the assistant must not speak of itself or its own life: *I am*, *I have*, *my* and a few more break it.
- A reply is **kept and preferred** if it has two liked words and breaks no rule: "Let me see what we can do."

Both judges are plain functions in `client/rlhf/judges.py`. The three arms are rewarded for preference alone, for the rule alone, and for
both.

```console
$ make rlhf ARGS='--folder runs/rlhf'                    # the judges reward: this shows the trade-off
$ make rlhf ARGS='--folder runs/heads --reward heads'    # heads that learned from the judges reward
```"""
_LEGEND = """
"Preferred to the base" compares each reply with the base's replies to the same question; a tie counts a half. KL is the distance from the
base, from log-probs of the sampled tokens.
"""
_BY_HAND = ["by hand", "4.5 to 6.3", "2.1 to 2.8", "1.2 to 1.5", "0.5", "", "1.4", "0.13", "6e-05"]


def _points(arm: Numbers, number: Callable[[Numbers], float]) -> list[tuple[float, float]]:
    return [(float(each["number"]), float(number(each))) for each in arm["rounds"]]


def _rise(title: str, unit: str, results: Results, part: str) -> Panel:
    """Of a head's number over the first round; falls below it are drawn at 0. Arms that do not read the head have no line."""
    lines = []
    for name, arm in results["arms"].items():
        if part in arm["rounds"][0]["parts"]:
            first = arm["rounds"][0]["parts"][part]
            lines.append(Line(name, [(x, max(0.0, y - first)) for x, y in _points(arm, lambda each: each["parts"][part])]))
    return Panel(title, "round", unit, lines)


def _both_kinds(results: Results) -> str:
    """Says nothing where each question had one reply."""
    if results["options"]["base_samples"] == 1:
        return ""
    share = results["base_rates"]["prompts_with_both"]
    return f" {share:.0%} of the questions have replies that keep the rule and replies that break it."


def _shares(results: Results) -> str:
    rows = {"base": results["base"], **{name: arm["measure"] for name, arm in results["arms"].items()}}
    return ", ".join(f"{name} {measure['kept_and_preferred']:.0%}" for name, measure in rows.items())


def _learned(results: Results) -> str:
    if (found := results.get("learned")) is None:
        return ""
    return (
        f" Learned heads on held-out questions: pairs ranked right {found['pair_accuracy']:.2f} of {found['num_pairs']}; rule AUC "
        f"{found['rule_auc']:.2f}, among first-person replies {found['rule_auc_in_conflict']:.2f}, "
        f"calibration error {found['rule_ece']:.2f}."
    )


def _replies(results: Results) -> str:
    rows = {"base": results["base"], **{name: arm["measure"] for name, arm in results["arms"].items()}}
    blocks = []
    for index, question in enumerate(results["shown_questions"]):
        lines = [f"{question}", "", *(f"- {name}: *{quoted(measure['replies'][index])}*" for name, measure in rows.items())]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _costs(results: Results) -> str:
    headings = ["arm", f"{PARTS[0]}, s", *PARTS[1:], "trainer's CPU-s a reply", "largest gap to the server"]
    return markdown.table(headings, [*(_cost(name, arm) for name, arm in results["arms"].items()), _BY_HAND])


def _cost(name: str, arm: Numbers) -> list[str]:
    means = [float(np.mean([each["seconds"].get(part, np.nan) for each in arm["rounds"]])) for part in PARTS]
    cpu = float(np.mean([each["cpu_seconds"] / each["num_replies"] for each in arm["rounds"]]))
    gap = max([arm["gap"], *(each["gap"] for each in arm["rounds"])])
    return [name, *(f"{mean:.1f}" for mean in means), f"{cpu:.3f}", f"{gap:.0e}"]


def _costs_legend(results: Results) -> str:
    memory = [arm["memory"] for arm in results["arms"].values()]
    peak = max(each["peak"] for each in memory)
    replies = next(iter(results["arms"].values()))["rounds"][0]["num_replies"]
    return (
        f"Wall seconds of a round of {replies} replies, means over the rounds. The row by hand is a script over the same calls with plain "
        "torch, 48 replies of 24 tokens a round on two quiet cores; its CPU is that of the two heads' forward and backward passes alone. "
        "The gap is the largest difference of a log-prob between trainer and server: on the first minibatch of each round, right after "
        "the swap, and by `verify` at the end. The trainer's tensors (two heads, their gradients and moments, the output matrix) take "
        f"{memory[0]['trainer']:.0f} MiB, and its process took {peak:.0f} MiB at most. Trainers of whole models would hold "
        f"{memory[0]['whole_models']:.0f} MiB before any activation: policy and value with gradients and moments, and a reference, in "
        "float32."
    )
