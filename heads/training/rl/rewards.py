"""Where a reply's reward comes from: served heads, one of the server's recipes, or a Python function. KL is no part of it.

The KL penalty is the trainer's own, token by token (returns.token_rewards): a recipe's reward is taken without its KL term.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.client import Client, HeadKind, Rule, Sample
from polyhead.heads.training.data import Prompt
from polyhead.heads.training.returns import deviation

Judge = Callable[[Prompt, str], float]  # (prompt, reply) -> reward


class RewardError(ValueError):
    """A reply has no reward: the judge failed, or the server could not compute one."""


@dataclass(frozen=True)
class HeadsReward:
    """preference_weight * preference / spread + rule_weight * mean p_follow; the spread is the preference's over the first round."""

    preference: str = "preference"  # "" leaves it out
    rule: str = "rule"  # likewise
    rules: tuple[str | Rule, ...] = ()
    preference_weight: float = 1.0
    rule_weight: float = 1.0

    def __post_init__(self) -> None:
        if not (self.preference or self.rule):
            raise ValueError("a reward of heads needs a preference head, a rule head, or both")
        if self.rule and not self.rules:
            raise ValueError(f"the rule head {self.rule!r} has no rule to judge by\nhint: name rules of the server, or leave the head out")
        for name in ("preference_weight", "rule_weight"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number: {getattr(self, name)}")

    @property
    def asks(self) -> dict[str, Any]:
        """What to ask of Generate."""
        heads = [name for name in (self.preference, self.rule) if name]
        return {"score": heads, **({"rules": list(self.rules)} if self.rule else {})}

    def parts(self, prompt: Prompt, sample: Sample) -> dict[str, float]:
        """What is stored of a sample's scores."""
        found = {}
        if self.preference:
            score = sample.scores[self.preference]
            if not score.present:
                raise RewardError(f"{self.preference} leaves unfinished replies out, and this one is: {sample.finish_reason.value}")
            found["preference"] = float(score.value)
        if self.rule:
            found["followed"] = float(np.mean(list(sample.scores[self.rule].p_follow.values())))
        return found

    def reward(self, parts: Mapping[str, float], spread: float) -> float:
        """The reply's reward."""
        return self.preference_weight * parts.get("preference", 0.0) / spread + self.rule_weight * parts.get("followed", 0.0)

    @property
    def identity(self) -> dict[str, Any]:
        """What has to be the same for a run to be resumed."""
        rules = [rule if isinstance(rule, str) else [rule.id, rule.text] for rule in self.rules]
        weights = [self.preference_weight, self.rule_weight]
        return {"reward": "heads", "preference": self.preference, "rule": self.rule, "rules": rules, "weights": weights}


@dataclass(frozen=True)
class RecipeReward:
    """What one of the server's recipes says, without its KL term."""

    recipe: str = "sparrow"
    rules: tuple[str | Rule, ...] = ()

    @property
    def asks(self) -> dict[str, Any]:
        return {"score": [], "recipe": self.recipe, **({"rules": list(self.rules)} if self.rules else {})}

    def parts(self, prompt: Prompt, sample: Sample) -> dict[str, float]:
        assert sample.reward is not None, "a recipe was asked for"
        if sample.reward.error:
            raise RewardError(f"the recipe {self.recipe} gave no reward: {sample.reward.error}")
        return {"recipe": sample.reward.reward, **sample.reward.parts}

    def reward(self, parts: Mapping[str, float], spread: float) -> float:
        return parts["recipe"]

    @property
    def identity(self) -> dict[str, Any]:
        rules = [rule if isinstance(rule, str) else [rule.id, rule.text] for rule in self.rules]
        return {"reward": "recipe", "recipe": self.recipe, "rules": rules}


@dataclass(frozen=True)
class JudgeReward:
    """A Python function of prompt and reply."""

    judge: Judge
    name: str  # "my_judges:polite"

    @property
    def asks(self) -> dict[str, Any]:
        return {"score": []}

    def parts(self, prompt: Prompt, sample: Sample) -> dict[str, float]:
        try:
            reward = float(self.judge(prompt, sample.text))
        except Exception as error:
            raise RewardError(f"the judge {self.name} failed on {sample.text[:60]!r}: {type(error).__name__}: {error}") from error
        if not math.isfinite(reward):
            raise RewardError(f"the judge {self.name} must answer a finite number: {reward} for {sample.text[:60]!r}")
        return {"judge": reward}

    def reward(self, parts: Mapping[str, float], spread: float) -> float:
        return parts["judge"]

    @property
    def identity(self) -> dict[str, Any]:
        return {"reward": "judge", "judge": self.name}


Reward = HeadsReward | RecipeReward | JudgeReward


def spread_of(parts: Iterable[Mapping[str, float]]) -> float:
    """Standard deviation of the preference over replies; 1 if there is none, or if all are equal."""
    found = [each["preference"] for each in parts if "preference" in each]
    return deviation(found) or 1.0 if found else 1.0


def load_judge(reference: str) -> JudgeReward:
    """The function that "module:function" names, modules of the current folder included. Raises ValueError saying what is missing."""
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise ValueError(f"a judge is given as module:function: {reference!r}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        judge = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ValueError(f"cannot import the judge {reference!r}: {error}") from None
    except AttributeError:
        raise ValueError(f"the module {module_name!r} has no judge of that name: {name!r}") from None
    if not callable(judge):
        raise ValueError(f"the judge {reference!r} is no function: {type(judge).__name__}")
    return JudgeReward(judge, reference)


def check_heads(reward: Reward, reference: str, kind_of: Callable[[str], HeadKind]) -> None:
    """Raise ValueError if a head that the reward or the KL reads is of another kind. `kind_of` raises NotFound for an unknown one."""
    read = [(reference, HeadKind.POLICY)]
    if isinstance(reward, HeadsReward):
        read += [(reward.preference, HeadKind.PREFERENCE), (reward.rule, HeadKind.RULE)]
    for name, kind in read:
        if name and (found := kind_of(name)) is not kind:
            raise ValueError(f"{name!r} must be a {kind.value} head: it is a {found.value} head")


def num_scoring_tokens(reward: Reward, client: Client) -> int:
    """Most tokens that scoring puts behind a reply: the longest question about a rule, else one."""
    if not (rules := reward.asks.get("rules")):
        return 1
    template = client.head(reward.rule).manifest.template if isinstance(reward, HeadsReward) else ""
    return max(map(len, client.tokenize_rules(rules, template=template).token_ids.values()))


def check_answers(reward: Reward, client: Client) -> None:
    """Ask for one tiny score as replies will be scored: the server says now what it would say of the first round's.

    Raises the client's errors: for a recipe, a rule or a head that is not there, and for a rule head without rules.
    """
    asks = dict(reward.asks)
    heads = asks.pop("score")
    if heads or asks:
        client.score([("a", "b")], heads=heads, **asks)
