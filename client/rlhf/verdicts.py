"""What is told of a policy's replies on every page: headings and forms of the measures, and plots of the judges' verdicts by round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polyhead.client.bench.plot import Panel

Round = Mapping[str, Any]  # a line of rounds.jsonl, as `polyhead.heads.training.rl.report` writes it
Form = Callable[[float], str]

MEASURES: dict[str, tuple[str, Form]] = {  # of a reply -> (heading, form)
    "preference": ("liked words, 0 to 4", "{:.2f}".format),
    "wins": ("preferred to the base", "{:.0%}".format),
    "broken": ("rule broken", "{:.0%}".format),
    "kept_and_preferred": ("kept and preferred", "{:.0%}".format),
    "kl": ("KL, nats a reply", "{:.2f}".format),
    "length": ("tokens", "{:.1f}".format),
    "head_preference": ("preference head", "{:.2f}".format),
    "head_broken": ("rule head, p_violate", "{:.2f}".format),
}


def panels(panel: Callable[[str, str, Callable[[Round], float]], Panel]) -> Sequence[Panel]:
    """Four plots, each made by `panel` of its title, its unit and the number that it takes of a round."""
    return [
        panel("Preference", "liked words a reply", lambda each: each["parts"]["liked"]),
        panel("Rule broken", "share of replies", lambda each: each["parts"]["broken"]),
        panel("Kept and preferred", "share of replies", lambda each: each["parts"]["kept and liked"]),
        panel("KL to the base", "nats a reply", lambda each: max(0.0, each["kl"])),
    ]
