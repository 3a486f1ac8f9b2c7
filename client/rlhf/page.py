"""The demonstration's results as a page: a table, two plots, replies, gaps and memory. Plain text from plain numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyhead.client.bench.plot import Line, Panel, svg
from polyhead.heads.training.rl.report import PARTS

Results = Mapping[str, Any]


def table(results: Results) -> str:
    """Base and arms on held-out questions, as Markdown."""
    names = "preference, judge|wins over base|rule broken|kept and preferred|KL, nats a reply|preference, head|p_violate, head"
    rows = [
        f"| policy | {' | '.join(names.split('|'))} |",
        "|---|---|---|---|---|---|---|---|",
        _row("base", results["base"]),
        *(_row(f"RL: {name}", arm["measure"]) for name, arm in results["arms"].items()),
    ]
    return "\n".join(rows)


def plots(results: Results) -> str:
    """Reward and KL by round, a line for each arm."""
    arms = results["arms"].items()
    rewards = [Line(name, _points(arm, lambda each: each["reward"])) for name, arm in arms]
    kl = [Line(name, _points(arm, lambda each: max(0.0, each["kl"]))) for name, arm in arms]
    labels = ("round", "mean of a round's replies")
    return svg([Panel("Reward, KL left out", *labels, rewards), Panel("KL to the reference", "round", "nats a reply", kl)])


def page(results: Results, command: str, machine: str) -> str:
    """All of it."""
    rates = results["base_rates"]
    memory = [arm["memory"] for arm in results["arms"].values()]
    peak = max(each["peak"] for each in memory)
    blocks = [
        "# The whole loop: `make rlhf`",
        _paragraph(_INTRODUCTION),
        _COMMANDS,
        _paragraph(
            f"What follows was made by `{command}` ({machine}; one seed), in {results['seconds'] / 60:.0f} minutes. Directions are "
            "reliable, "
            f"second digits are not. Base rates over {rates['replies']} replies: preference {rates['preference']:.2f} of 4, rule broken "
            f"{rates['broken']:.0%}, correlation of the two {rates['correlation']:+.2f}; {rates['prompts_with_both']:.0%} of the questions "
            f"have replies of both kinds.{_learned(results)}"
        ),
        "## Held-out questions",
        table(results),
        "![Reward and KL by round, for each arm](../images/rlhf-rounds.svg)",
        _replies(results),
        "## What a round costs",
        _costs(results),
        _paragraph(
            "The gap is that of log-probs on the first minibatch of each round, right after the swap, and of `verify` at the end. The "
            f"trainer's tensors (two heads, their gradients and moments, the output matrix) take {memory[0]['trainer']:.0f} MiB, and its "
            f"process took {peak:.0f} MiB at most. Trainers of whole models would hold {memory[0]['whole_models']:.0f} MiB before any "
            "activation: policy and value with gradients and moments, and a reference, in float32."
        ),
    ]
    return "\n\n".join(blocks) + "\n"


_INTRODUCTION = """
One command runs the loop on the embedded SmolLM2-135M: two judges in place of people, base rates, then three arms of RL on one server, each
of which ends every round in a swap of its policy and value head. The judges are in `client/rlhf/judges.py`: one likes first-person words,
the other holds that the assistant must not speak of itself. They conflict, and leave a corner where both are content.
"""
_COMMANDS = """```console
$ make rlhf                          # the judges reward: this shows the trade-off
$ make rlhf ARGS='--reward heads'    # heads that learned from the judges reward: the honest one
```"""


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 150, break_long_words=False, break_on_hyphens=False)


def _row(name: str, measure: Mapping[str, Any]) -> str:
    numbers = [measure[key] for key in ("preference", "wins", "broken", "kept_and_preferred", "kl", "head_preference", "head_broken")]
    return f"| {name} | " + " | ".join("" if number is None else f"{number:.2f}" for number in numbers) + " |"


def _points(arm: Mapping[str, Any], number: Any) -> list[tuple[float, float]]:
    return [(float(each["number"]), float(number(each))) for each in arm["rounds"]]


def _learned(results: Results) -> str:
    if (found := results.get("learned")) is None:
        return ""
    return (
        f" Learned heads on held-out questions: pairs ranked right {found['pair_accuracy']:.2f} ({found['num_pairs']}); rule AUC "
        f"{found['rule_auc']:.2f}, among first-person replies {found['rule_auc_in_conflict']:.2f}, "
        f"calibration error {found['rule_ece']:.2f}."
    )


def _replies(results: Results) -> str:
    """At temperature 0.7, to the first held-out questions."""
    lines = ["Replies at temperature 0.7 to the first held-out questions:", ""]
    for name, arm in results["arms"].items():
        lines += [f"- {name}: {' / '.join(f'*{text[:50].strip()}*' for text in arm['measure']['replies'][:2])}"]
    return "\n".join(lines)


def _costs(results: Results) -> str:
    lines = [
        "| arm | rollout, s | policy | value | optimiser | push | trainer's CPU-s a reply | largest gap to the server |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_cost(name, arm) for name, arm in results["arms"].items())])


def _cost(name: str, arm: Mapping[str, Any]) -> str:
    means = [float(np.mean([each["seconds"].get(part, np.nan) for each in arm["rounds"]])) for part in PARTS]
    cpu = float(np.mean([each["cpu_seconds"] / each["num_replies"] for each in arm["rounds"]]))
    gap = max([arm["gap"], *(each["gap"] for each in arm["rounds"])])
    return f"| {name} | " + " | ".join(f"{mean:.1f}" for mean in means) + f" | {cpu:.3f} | {gap:.0e} |"
