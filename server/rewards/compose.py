"""From scored samples to rewards: reads a recipe's parts off the engine's results and applies the formulas.

Maps a recipe's heads to those of the request. Knows nothing of files and messages.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from polyhead.server.engine.schedule.scorer import PolicyResult, PreferenceResult, results
from polyhead.server.engine.work.request import Sample
from polyhead.server.rewards import formulas
from polyhead.server.rewards.formulas import Floats
from polyhead.server.rewards.recipes import ALPHA, AVERAGE, KL, KL_COEFFICIENT, Form, KlTerm, Part, Read, Recipe
from polyhead.server.text.replies import ReplyCheck

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_KIND_CHECKED = "a head's kind is checked with the request and with the lease"


@dataclass(frozen=True, slots=True)
class RewardPlan:
    """A recipe as one request uses it."""

    recipe: Recipe
    constants: Mapping[str, float]  # those of the request filled in
    heads: Mapping[str, str]  # head as the recipe names it -> as the request does
    has_idle_rules: bool = False  # the recipe's rules have the weight 0 and are left out: rules may be given, and none are asked


@dataclass(frozen=True, slots=True)
class Selection:
    """Best of n: which of a group are returned."""

    top: int
    with_median: bool

    @property
    def most(self) -> int:
        """Most samples of one group."""
        return self.top + self.with_median


@dataclass(slots=True)
class Reward:
    """What a plan makes of one sample. With an `error` there is no reward, and the parts are those that could be read."""

    parts: dict[str, float] = field(default_factory=dict)
    reward: float = math.nan
    with_kl: float = math.nan
    rank_key: float = math.nan  # orders as `reward` does, finer where that underflows
    kl: Floats = field(default_factory=lambda: np.zeros(0))  # (completion tokens,), or (0,) without a KL term
    token_rewards: Floats = field(default_factory=lambda: np.zeros(0))  # as `kl`
    error: str = ""


class _PartMissing(Exception):
    """A part cannot be read; the text is the reason."""


def compose(plan: RewardPlan, samples: Sequence[Sample], checks: Sequence[ReplyCheck]) -> list[Reward]:
    """Rewards of samples of one prompt: all of them where the recipe averages over samples, else any."""
    readers = [_Reader(plan, sample, check) for sample, check in zip(samples, checks, strict=True)]
    for reader in readers:
        reader.read()
    average = _average(plan, [reader.reward for reader in readers])
    for reader in readers:
        if not reader.reward.error:
            _finish(plan, reader.reward, average, reader.follow)
    return [reader.reward for reader in readers]


def ranking(found: Sequence[Reward]) -> list[int]:
    """Indices of a group's rewards, the best first; equal ones as they stand, then those without a reward."""
    return formulas.best_first([reward.rank_key for reward in found])


def choose(selection: Selection, found: Sequence[Reward]) -> list[int]:
    """Indices of the samples to return, the best first. The median is one of those with a reward, if any has one."""
    order = ranking(found)
    chosen = order[: selection.top]
    num_ranked = sum(not reward.error for reward in found)
    if selection.with_median and num_ranked:
        chosen.append(order[formulas.median_place(num_ranked)])
    return list(dict.fromkeys(chosen))


class _Reader:
    """Reads one sample's parts into `reward`, as far as they are there."""

    def __init__(self, plan: RewardPlan, sample: Sample, check: ReplyCheck) -> None:
        self.reward = Reward()
        self.follow: Mapping[str, float] = {}  # f_i by rule id, of the rules read last
        self._plan, self._sample, self._check = plan, sample, check
        self._by_head = {result.head_name: result for result in results(sample)} if sample.is_whole else {}

    def read(self) -> None:
        if not self._sample.is_whole:
            self.reward.error = self._sample.error or "the sample was not finished"
            return
        for part in self._plan.recipe.parts:
            with self._recording_errors():
                self.reward.parts[part.name] = self._part(part)
        if self._plan.recipe.kl is not None:
            with self._recording_errors():
                self.reward.kl = self._kl(self._plan.recipe.kl)
                self.reward.parts[KL] = math.fsum(self.reward.kl)

    @contextlib.contextmanager
    def _recording_errors(self) -> Iterator[None]:
        try:
            yield
        except _PartMissing as reason:
            self.reward.error = self.reward.error or str(reason)

    def _part(self, part: Part) -> float:
        match part.read:
            case Read.TOKENS:
                return float(len(self._sample.completion))
            case Read.NEWLINES:
                return float(self._check.num_newlines)
            case Read.INVALID:
                return float(not self._check.valid)
            case Read.MEAN_LOGPROB:
                return float(self._logprobs(part.head).mean())
            case Read.PREFERENCE:
                return self._preference(part.head)
            case Read.RULES:
                return self._rules(part)

    def _preference(self, head: str) -> float:
        preference = self._result(head)
        assert isinstance(preference, PreferenceResult), _KIND_CHECKED
        if not preference.is_present:
            raise _PartMissing(f"{self._plan.heads[head]} leaves out samples that did not end by themselves")
        return preference.value

    def _rules(self, part: Part) -> float:
        rules = self._result(part.head)
        assert isinstance(rules, tuple), _KIND_CHECKED
        self.follow = {rule.rule_id: 1.0 - rule.p_violate for rule in rules}
        weights = {rule_id: self._plan.constants[f"{part.name}.{rule_id}"] for rule_id in part.rule_ids}
        return formulas.aggregate(part.aggregate, self.follow, weights)

    def _kl(self, term: KlTerm) -> Floats:
        own = self._logprobs(term.policy) if self._sample.is_given else np.array(self._sample.logprobs)
        kl = formulas.kl_per_token(term.estimator, own, self._logprobs(term.reference))
        if not (np.abs(kl) <= _FLOAT32_MAX).all():
            raise _PartMissing("the KL estimate of a token is too large for a float")
        return kl

    def _logprobs(self, head: str) -> Floats:
        policy = self._result(head)
        assert isinstance(policy, PolicyResult), _KIND_CHECKED
        return policy.logprobs.astype(np.float64)

    def _result(self, head: str) -> object:
        found = self._by_head[self._plan.heads[head]]
        if found.error:
            raise _PartMissing(found.error)
        return found.result


def _average(plan: RewardPlan, found: Sequence[Reward]) -> float:
    """What the rerank form subtracts: its constant, or the mean over the samples that have a preference."""
    if not plan.recipe.averages_samples:
        return plan.constants.get(AVERAGE, 0.0)
    values = [reward.parts[plan.recipe.preference] for reward in found if plan.recipe.preference in reward.parts]
    return math.fsum(values) / len(values) if values else 0.0


def _finish(plan: RewardPlan, reward: Reward, average: float, follow: Mapping[str, float]) -> None:
    """All parts are there: the reward, and what the KL term makes of it."""
    constants = plan.constants
    if plan.recipe.form is Form.SUM:
        reward.reward = reward.rank_key = formulas.linear(reward.parts, {part.name: constants[part.name] for part in plan.recipe.parts})
    else:
        reward.rank_key = formulas.log_rerank(reward.parts[plan.recipe.preference], average, follow, constants[ALPHA])
        reward.reward = math.exp(reward.rank_key)
        reward.parts[AVERAGE] = average
    reward.with_kl = reward.reward
    if plan.recipe.kl:
        reward.with_kl -= constants[KL_COEFFICIENT] * reward.parts[KL]
        reward.token_rewards = formulas.token_rewards(reward.reward, constants[KL_COEFFICIENT], reward.kl)
    if not max(abs(reward.reward), abs(reward.with_kl)) <= _FLOAT32_MAX:
        reward.reward = reward.with_kl = reward.rank_key = math.nan
        reward.token_rewards = np.zeros(0)
        reward.error = "the reward is too large for a float"
