"""TRL on a polyhead server: rewards from served heads, and rollouts of the weights that are being trained.

    from polyhead.client.integrations.trl import Reward, Rollout, column, freeze_trunk

    freeze_trunk(model, ADDRESS)
    trainer = GRPOTrainer(
        model, reward_funcs=[column("preference"), column("kl", -0.05)], rollout_func=Rollout(ADDRESS, score=["preference"]), ...)

ADDRESS is "host:port"; of a fleet several, with commas. `Reward(ADDRESS, "preference")` alone is a reward function for GRPO, RLOO and
OnlineDPO, whose own generation goes on. `Rollout` is for GRPOTrainer: it pushes the head when `global_step` has moved, draws and scores in
one call, and hands scores on as columns of the rows.
Knows TRL 1.16's calling conventions, and imports neither TRL nor torch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from polyhead.client.client import Client
from polyhead.client.fleet.fleet import open_client
from polyhead.client.results.results import HeadScore, PolicyScore, PreferenceScore, RuleScores, Sample, ScoredItem, ValueScore
from polyhead.client.wire.options import Rule

__all__ = ["Reward", "Rollout", "client_of", "column", "freeze_trunk"]

PREFIX = "polyhead_"  # of columns: an extra key takes the place of a data set's column of the same name


@functools.cache
def client_of(target: str, token: str | None = None) -> Client:
    """One client for each server or fleet; a reward function holds only the addresses, so that it can be pickled."""
    return open_client(target, token=token)


class Reward:
    """A reward function: what a served head says about each completion, times `weight`.

    A preference head's centred value, or the mean probability that `rules` are followed. None, which TRL leaves out of the sum, for a
    completion that the server could not score.
    """

    def __init__(
        self, target: str, head: str = "preference", *, rules: Sequence[str | Rule] = (), weight: float = 1.0, token: str | None = None
    ) -> None:
        self.target, self.head, self.rules, self.weight, self.token = target, head, tuple(rules), weight, token
        self.__name__ = f"{PREFIX}{head}"  # the metric's name

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **given: Any) -> list[float | None]:
        ids = given.get("completion_ids") or [None] * len(completions)
        pairs = [(prompt, list(own) if own else _text(text)) for prompt, text, own in zip(prompts, completions, ids, strict=True)]
        options: Any = {"rules": list(self.rules)} if self.rules else {}
        scored = client_of(self.target, self.token).score(pairs, heads=[self.head], **options)
        if callable(log := given.get("log_metric")) and (whole := [item for item in scored if not item.error]):
            log(f"{PREFIX}{self.head}_version", float(whole[0].scores[self.head].version))
        return [self._reward(item) for item in scored]

    def _reward(self, item: ScoredItem) -> float | None:
        number = None if item.error else number_of(item.scores[self.head])
        return None if number is None else self.weight * number


class Rollout:
    """GRPOTrainer's `rollout_func`. The served `head` is exactly the model being trained: it is pushed and activated when a step was taken.

    Columns that reach the reward functions, see `column`: one for each head of `score`, `kl` (summed log-prob minus the reference's), and
    `version`. Freeze the trunk first: a trunk parameter that is trained is refused, since it would not be served.
    """

    def __init__(
        self,
        target: str,
        *,
        head: str = "policy",
        reference: str = "reference",  # "": no KL column
        score: Sequence[str] = (),
        rules: Sequence[str | Rule] = (),
        seed: int = 0,
        token: str | None = None,
    ) -> None:
        self.target, self.head, self.reference, self.score = target, head, reference, tuple(score)
        self.rules, self.seed, self.token = tuple(rules), seed, token
        self.version = 0
        self._pushed_step = -1
        self._calls = itertools.count()

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        if trainer.state.global_step != self._pushed_step:
            self.version = self._push(trainer)
            self._pushed_step = trainer.state.global_step
        samples = self._draw(prompts, trainer)
        if failed := next((sample.error for sample in samples if sample.error), ""):
            raise RuntimeError(f"the server could not finish a sample: {failed}")
        return {
            "prompt_ids": [list(sample.prompt_token_ids) for sample in samples],
            "completion_ids": [list(sample.token_ids) for sample in samples],
            "logprobs": [sample.sampling_logprobs.tolist() for sample in samples],
            **self._columns(samples),
        }

    def _push(self, trainer: Any) -> int:
        """Push and activate on the main process; the others wait and learn the version."""
        accelerator, version = trainer.accelerator, [0]
        if accelerator.is_main_process:
            client = client_of(self.target, self.token)
            weights = head_weights(accelerator.unwrap_model(trainer.model), client)
            note = f"TRL, step {trainer.state.global_step}"
            version = [client.update({self.head: weights}, options={self.head: {"kind": "policy"}}, note=note).heads[self.head]]
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(version, from_process=0)
        return version[0]

    def _draw(self, prompts: list[Any], trainer: Any) -> list[Sample]:
        """A sample for each prompt, in order. TRL repeats a prompt for each of its samples: neighbours that are equal are one prompt."""
        runs = [(prompt, len(list(equal))) for prompt, equal in itertools.groupby(prompts)]
        place = next(self._calls) * trainer.accelerator.num_processes + trainer.accelerator.process_index  # no two calls draw alike
        drawn: list[list[Sample]] = [[] for _ in runs]
        for count in sorted({count for _, count in runs}):
            chosen = [index for index, (_, each) in enumerate(runs) if each == count]
            options = {**sampling_of(trainer.args), "seed": (self.seed * 1_000_003 + place) % (1 << 62), "n": count}
            for sample in self._generate([runs[index][0] for index in chosen], options):
                drawn[chosen[sample.prompt_index]].append(sample)
        return [sample for group in drawn for sample in group]

    def _generate(self, prompts: list[Any], options: dict[str, Any]) -> list[Sample]:
        heads = [name for name in (self.reference, *self.score) if name]
        if self.rules:
            options["rules"] = list(self.rules)
        return client_of(self.target, self.token).generate(prompts, head=f"{self.head}@{self.version}", score=heads, **options)

    def _columns(self, samples: list[Sample]) -> dict[str, list[Any]]:
        """Plain lists: TRL hands them on row by row, and anything else whole."""
        columns: dict[str, list[Any]] = {f"{PREFIX}version": [sample.head_version for sample in samples]}
        for name in self.score:
            columns[f"{PREFIX}{name}"] = [number_of(sample.scores[name]) for sample in samples]
        if self.reference:
            columns[f"{PREFIX}kl"] = [_kl(sample, sample.scores[self.reference]) for sample in samples]
        return columns


def column(name: str, weight: float = 1.0) -> Callable[..., list[float | None]]:
    """A reward function of a column that `Rollout` made: column("kl", -0.05) is the KL penalty."""

    def reward(**given: Any) -> list[float | None]:
        if f"{PREFIX}{name}" not in given:
            known = sorted(key.removeprefix(PREFIX) for key in given if key.startswith(PREFIX))
            raise ValueError(f"the rollouts have no column {name!r}: {', '.join(known) or 'none'}\nhint: Rollout(score=[{name!r}])")
        return [None if value is None else weight * value for value in given[f"{PREFIX}{name}"]]

    reward.__name__ = f"{PREFIX}{name}"
    return reward


def freeze_trunk(model: Any, target: str, token: str | None = None) -> list[str]:
    """Let nothing of the trunk require gradients; returns the names that still do.

    Raises ValueError for a model whose tensors have other names than the trunk's, such as one that PEFT has wrapped.
    """
    for tensor in _trunk_of(model, client_of(target, token)).values():
        tensor.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def head_weights(model: Any, client: Client) -> dict[str, Any]:
    """The model's parameters that a head has. Raises ValueError for a trunk parameter that is being trained, or that is not found."""
    trunk = _trunk_of(model, client)
    if trained := next((name for name, tensor in trunk.items() if tensor.requires_grad), ""):
        raise ValueError(f"the trunk is frozen, but this parameter is trained: {trained}\nhint: call freeze_trunk(model, target) first")
    shared = set(map(id, trunk.values()))
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in shared}


def _trunk_of(model: Any, client: Client) -> dict[str, Any]:
    """The model's own tensors of the trunk, by name."""
    own = model.state_dict(keep_vars=True)  # a tied output is here under both of its names
    trunk = client.trunk().tensors
    if missing := [name for name in trunk if name not in own]:
        hint = "hint: give the plain model as transformers loads it, not one that is wrapped or that has an adapter"
        raise ValueError(f"the model lacks {len(missing)} of the {len(trunk)} tensors of the trunk: {missing[0]}\n{hint}")
    return {name: own[name] for name in trunk}


def sampling_of(args: Any) -> dict[str, Any]:
    """The trainer's sampling parameters in the client's words."""
    given = {
        "temperature": args.temperature,
        "top_p": args.top_p,
        "top_k": args.top_k or 0,
        "min_p": args.min_p,
        "repetition_penalty": args.repetition_penalty,
        "max_new_tokens": args.max_completion_length,
    }
    return {name: value for name, value in given.items() if value is not None}


def number_of(score: HeadScore) -> float | None:
    """One number for a sample: a preference, the mean probability that rules are followed, a first value, or a summed log-prob."""
    if score.error:
        return None
    if isinstance(score, PreferenceScore):
        return float(score.value) if score.present else None
    if isinstance(score, RuleScores):
        return float(np.mean(list(score.p_follow.values())))
    if isinstance(score, ValueScore):
        return float(score.values[0])
    assert isinstance(score, PolicyScore)
    return float(score.logprobs.sum())


def _kl(sample: Sample, reference: HeadScore) -> float | None:
    """Summed over the tokens; None if the reference's log-probs could not be computed."""
    if reference.error:
        return None
    assert isinstance(reference, PolicyScore)
    return float((sample.logprobs - reference.logprobs).sum())


def _text(completion: str | Sequence[Mapping[str, str]]) -> str:
    """A completion's text; conversational ones are a list with one assistant message."""
    return completion if isinstance(completion, str) else "".join(_contents(completion))


def _contents(messages: Sequence[Mapping[str, str]]) -> Iterator[str]:
    for message in messages:
        yield message["content"]
