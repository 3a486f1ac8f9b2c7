"""The demonstration's results as a page: what each policy became, plots, replies, costs and memory. Plain text from plain numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from polyhead.client.bench.plot import Line, Panel, svg
from polyhead.heads.training.rl.report import PARTS

Results = Mapping[str, Any]
Numbers = Mapping[str, Any]

_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {  # measure -> (heading, form)
    "preference": ("liked words, 0 to 4", "{:.2f}".format),
    "wins": ("preferred to the base", "{:.0%}".format),
    "broken": ("rule broken", "{:.0%}".format),
    "kept_and_preferred": ("kept and preferred", "{:.0%}".format),
    "kl": ("KL, nats a reply", "{:.2f}".format),
    "length": ("tokens", "{:.1f}".format),
    "head_preference": ("preference head", "{:.2f}".format),
    "head_broken": ("rule head, p_violate", "{:.2f}".format),
}


def table(results: Results) -> str:
    """Base and arms on held-out questions, as Markdown; the learned heads' columns only where there are some."""
    shown = [name for name in _COLUMNS if results["base"][name] is not None]
    rows = {"base": results["base"], **{f"RL: {name}": arm["measure"] for name, arm in results["arms"].items()}}
    lines = [f"| policy | {' | '.join(_COLUMNS[name][0] for name in shown)} |", "|---" * (len(shown) + 1) + "|"]
    lines += [f"| {row} | {' | '.join(_COLUMNS[name][1](measure[name]) for name in shown)} |" for row, measure in rows.items()]
    return "\n".join(lines)


def plots(results: Results) -> str:
    """The judges' verdicts and the KL by round, a line for each arm; with learned heads what those say as well."""

    def panel(title: str, unit: str, number: Callable[[Numbers], float]) -> Panel:
        return Panel(title, "round", unit, [Line(name, _points(arm, number)) for name, arm in results["arms"].items()])

    panels = [
        panel("Preference", "liked words a reply", lambda each: each["parts"]["liked"]),
        panel("Rule broken", "share of replies", lambda each: each["parts"]["broken"]),
        panel("Kept and preferred", "share of replies", lambda each: each["parts"]["kept and liked"]),
        panel("KL to the base", "nats a reply", lambda each: max(0.0, each["kl"])),
    ]
    if results.get("learned") is not None:
        panels.append(_rise("Preference head", "rise over round 1", results, "preference"))
        panels.append(_rise("Rule head", "rise of p_follow over round 1", results, "followed"))
    return svg(panels, columns=2)


def page(results: Results, command: str, machine: str) -> str:
    """All of it."""
    rates, shares = results["base_rates"], _shares(results)
    blocks = [
        "# The whole loop: `make rlhf`",
        _paragraph(_INTRODUCTION),
        _LISTS,
        _paragraph(
            f"This page was written by `{command}` ({machine}; one seed) in {results['seconds'] / 60:.0f} minutes; server and "
            f"trainer took {results['cpu_seconds'] / 60:.0f} minutes of CPU. {results.get('note', '')} Directions are reliable, second "
            "digits are not."
        ),
        "## What became of the base",
        _paragraph(
            f"Before any training, {rates['replies']} replies of the base have {rates['preference']:.2f} liked words each, and "
            f"{rates['broken']:.0%} break the rule. The two correlate by {rates['correlation']:+.2f}: what one judge likes, the other "
            f"holds against a reply.{_both_kinds(results)}"
            f"{_learned(results)}"
        ),
        _paragraph(f"On held-out questions, {results['held_out_replies']} replies of each policy at temperature 1:"),
        table(results),
        _paragraph(f"Replies that please both judges: {shares}. {_LEGEND}"),
        "![The judges' verdicts and the KL by round, for each arm](../images/rlhf-rounds.svg)",
        _paragraph("Each point is the mean over a round's replies, drawn before that round's update: round 1 is the base."),
        "## Replies",
        _paragraph("To the first held-out questions, at temperature 0.7, cut after the tokens of a training reply:"),
        _replies(results),
        "## What a round costs",
        _costs(results),
        _paragraph(_costs_legend(results)),
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
_BY_HAND = "| by hand | 4.5 to 6.3 | 2.1 to 2.8 | 1.2 to 1.5 | 0.5 | 1.4 | 0.13 | 6e-05 |"


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 150, break_long_words=False, break_on_hyphens=False)


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
        lines = [f"{question}", "", *(f"- {name}: *{_plain(measure['replies'][index])}*" for name, measure in rows.items())]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _plain(reply: str) -> str:
    """One line without Markdown's own marks, short enough for a line of the page."""
    line = "".join(each for each in " ".join(reply.split()) if each not in "*_`|<>[]\\")
    return f"{line[:120].strip()} ..." if len(line) > 120 else line.strip() or "(nothing)"


def _costs(results: Results) -> str:
    return "\n".join(
        [
            "| arm | rollout, s | policy | value | optimiser | push | trainer's CPU-s a reply | largest gap to the server |",
            "|---|---|---|---|---|---|---|---|",
            *(_cost(name, arm) for name, arm in results["arms"].items()),
            _BY_HAND,
        ]
    )


def _cost(name: str, arm: Numbers) -> str:
    means = [float(np.mean([each["seconds"].get(part, np.nan) for each in arm["rounds"]])) for part in PARTS]
    cpu = float(np.mean([each["cpu_seconds"] / each["num_replies"] for each in arm["rounds"]]))
    gap = max([arm["gap"], *(each["gap"] for each in arm["rounds"])])
    return f"| {name} | " + " | ".join(f"{mean:.1f}" for mean in means) + f" | {cpu:.3f} | {gap:.0e} |"


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
