"""What was asked of one run of the benchmark, and how large the work is. Plain data, checked when made."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

MEASURES = ("P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "P11", "P12")
EXTRAS = ("deterministic", "quality", "growth", "fleet", "soak")  # only when asked for
PEERS = ("transformers", "vllm", "llamacpp", "openvino")


class BadPlan(Exception):
    """Something was asked that there is not."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Shapes of the work: those of the goals."""

    num_tokens: int = 64  # drawn by each stream
    prompt_tokens: int = 18
    streams: dict[str, int] = field(default_factory=lambda: {"P1": 32, "P2": 8, "P3": 1})
    batch_prompts: int = 32  # of the experience batch, and of what P5 and P11 score
    num_rules: int = 5
    rule_tokens: int = 23  # of one question
    dialogue_tokens: int = 500  # P6
    dialogue_rules: int = 23
    dialogue_rule_tokens: int = 40
    swap_streams: int = 16  # P9
    num_swaps: int = 20
    num_swap_versions: int = 3
    swap_gap_s: float = 0.5  # of calm around each swap and push
    long_prompt_tokens: int = 1000
    text_tokens: int = 128  # P11: of each scored text
    overload_tokens: int = 32  # P12: of one reply
    overload_deadline_s: float = 2.0
    overload_s: float = 10.0  # that one load lasts
    agreement_prompts: int = 20  # quality: whose replies are compared
    growth_heads: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    growth_context: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096)
    growth_streams: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    growth_rules: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)


QUICK = Sizes(
    num_tokens=4,
    prompt_tokens=6,
    streams={"P1": 3, "P2": 2, "P3": 1},
    batch_prompts=2,
    num_rules=2,
    rule_tokens=40,
    dialogue_tokens=40,
    dialogue_rules=2,
    dialogue_rule_tokens=60,
    swap_streams=2,
    num_swaps=2,
    num_swap_versions=2,
    swap_gap_s=0.05,
    long_prompt_tokens=64,
    text_tokens=8,
    overload_tokens=4,
    overload_s=0.4,
    agreement_prompts=2,
    growth_heads=(1, 2),
    growth_context=(16, 32),
    growth_streams=(1, 2),
    growth_rules=(1, 2),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    measures: tuple[str, ...]
    peers: tuple[str, ...]
    runs: int = 5
    is_quick: bool = False
    model: str = ""  # a folder; empty: the embedded model
    servers: tuple[str, ...] = ("",)  # flags of `polyhead serve`, one text a variant of ours; the first is the main one
    environments: Path = Path()
    num_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    soak_minutes: float = 0.0
    plots: Path | None = None

    @property
    def sizes(self) -> Sizes:
        return QUICK if self.is_quick else Sizes()

    def server_flags(self, variant: str) -> list[str]:
        """Everything but the store and the ports."""
        return [*([self.model] if self.model else []), "--threads", str(self.num_threads), *shlex.split(variant)]


def chosen(asked: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The names of a list with commas, in the order that we know them. BadPlan names one that there is not."""
    names = [name.strip() for name in asked.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise BadPlan(f"no such {what}: {unknown[0]}\nhint: choose of {', '.join(known)}")
    return tuple(name for name in known if name in names)


def flags_of(arguments: list[str]) -> dict[str, str]:
    """`--trunk-dtype int8 --insecure` as settings by name, for a server without a command line."""
    flags: dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].replace("-", "_").partition("=")
            flags[name] = value or "true"
        elif name:
            flags[name], name = argument, ""
        else:
            flags["model"] = argument
    return flags
