"""Recipes and selections, from protobuf to the plan of one request; rewards, back to protobuf. Every error names the field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument, NotFound
from polyhead.heads.format.kinds import HeadKind
from polyhead.heads.format.manifest import parse_reference
from polyhead.server.engine.work.questions import RuleQuestions
from polyhead.server.engine.work.request import Sample
from polyhead.server.rewards.compose import Reward, RewardPlan, Selection, ranking
from polyhead.server.rewards.recipes import Form, Part, Read, Recipe, check_constant
from polyhead.server.rpc.request_context import RequestContext
from polyhead.v1 import generation_pb2, types_pb2


def plan_reward(spec: types_pb2.ScoringSpec, context: RequestContext, *, is_given: bool) -> RewardPlan | None:
    """The plan of a request, None without a recipe. `is_given`: completions bring no log-probs of their own.

    A head that the recipe names is the entry of `heads` with that very name, or else the one entry that pins a version of it
    ("preference@3" serves a recipe that reads "preference"); a head that `heads` does not name at all is added, unless all that is read
    of it has the weight 0.
    """
    if not spec.recipe:
        if spec.recipe_constants:
            raise InvalidArgument("constants are given, but no recipe", field="score.recipe_constants")
        return None
    stored = context.recipes.find(spec.recipe, "score.recipe")
    names = [parse_reference(reference, f"score.heads[{index}]")[0] for index, reference in enumerate(spec.heads)]
    constants = _constants(stored, spec.recipe_constants)
    recipe = _with_weight(stored, constants, [*names, *spec.heads])
    heads: dict[str, str] = {}
    for head, kind in _reads(recipe, is_given):
        heads[head] = _reference_of(head, names, list(spec.heads))
        _check_kind(recipe, heads[head], kind, list(spec.heads), context)
    return RewardPlan(recipe, constants, heads, has_idle_rules=_has_rules(stored) and not _has_rules(recipe))


def _with_weight(recipe: Recipe, constants: Mapping[str, float], asked: Sequence[str]) -> Recipe:
    """The recipe without parts that would run a head for nothing: their weight is 0, and the request does not name the head."""

    def is_read(part: Part) -> bool:
        return part.read.kind is None or constants[part.name] != 0 or part.head in asked

    if recipe.form is not Form.SUM or all(is_read(part) for part in recipe.parts):
        return recipe
    return dataclasses.replace(recipe, parts=tuple(part for part in recipe.parts if is_read(part)))


def _has_rules(recipe: Recipe) -> bool:
    return any(part.read is Read.RULES for part in recipe.parts)


def all_heads(spec: types_pb2.ScoringSpec, plan: RewardPlan | None) -> list[str]:
    """The caller's heads, then those that the recipe reads besides."""
    return [*spec.heads, *dict.fromkeys(head for head in (plan.heads.values() if plan else ()) if head not in spec.heads)]


def check_weights(plan: RewardPlan, rules: RuleQuestions | None) -> None:
    """Rules with a weight of their own are asked, and no others: a missing one would change the reward in silence."""
    asked = {question.rule_id for questions in (rules.by_template.values() if rules else ()) for question in questions}
    for part in plan.recipe.parts:
        if part.rule_ids and asked != set(part.rule_ids):
            differs = min(asked ^ set(part.rule_ids))
            what = "has no weight for the rule" if differs in asked else "weighs a rule that is not asked:"
            raise InvalidArgument(f"{plan.recipe.reference} {what} {differs!r}", field="score.rules")


def selection(message: generation_pb2.GenerateRequest, num_samples: int) -> Selection | None:
    """What is returned of each prompt's `num_samples`; None: everything."""
    if not message.HasField("select"):
        return None
    if not message.score.recipe:
        raise InvalidArgument("samples are selected by a recipe: name one in score.recipe", field="select")
    if not 1 <= message.select.top <= num_samples:
        raise InvalidArgument(f"top must lie between 1 and the {num_samples} samples of a prompt: {message.select.top}", field="select.top")
    if message.delivery not in (generation_pb2.DELIVERY_UNSPECIFIED, generation_pb2.DELIVERY_GROUPS):
        raise InvalidArgument("selected samples are delivered by groups", field="delivery")
    return Selection(message.select.top, message.select.median)


def reward_of(plan: RewardPlan | None, reward: Reward | None, rank: int | None) -> types_pb2.Reward | None:
    """None without a recipe. `rank` is None if the group is not known."""
    if plan is None or reward is None:
        return None
    message = types_pb2.Reward(
        recipe=plan.recipe.reference,
        parts=reward.parts,
        constants=plan.constants,
        kl_estimator=plan.recipe.kl.estimator.value if plan.recipe.kl else "",
        kl=reward.kl,
        token_rewards=reward.token_rewards,
        error=reward.error,
    )
    if not reward.error:
        message.reward, message.reward_with_kl = reward.reward, reward.with_kl
    if rank is not None:
        message.rank = rank
    return message


def ranked_samples(samples: Sequence[Sample], rewards: Sequence[Reward]) -> Iterator[generation_pb2.RankedSample]:
    """A whole group, the best first."""
    for index in ranking(rewards):  # none without a recipe
        sample, reward = samples[index], rewards[index]
        message = generation_pb2.RankedSample(arm_index=sample.arm_index, sample_index=sample.sample_index)
        if not reward.error:
            message.reward = reward.reward
        yield message


def _reads(recipe: Recipe, is_given: bool) -> Iterator[tuple[str, HeadKind]]:
    """Heads that the recipe reads, and the kind that each must have."""
    for part in recipe.parts:
        if part.read.kind is not None:
            yield part.head, part.read.kind
    if recipe.kl is not None:
        yield recipe.kl.reference, HeadKind.POLICY
        if is_given:
            yield recipe.kl.policy, HeadKind.POLICY


def _reference_of(head: str, names: list[str], given: list[str]) -> str:
    if head in given:
        return head
    pinned = [reference for name, reference in zip(names, given, strict=True) if name == head]
    if len(pinned) > 1:
        raise InvalidArgument(
            f"the recipe reads {head}, and several versions are named: {', '.join(pinned)}\nhint: name one of them, or {head}",
            field="score.heads",
        )
    return pinned[0] if pinned else head


def _check_kind(recipe: Recipe, reference: str, kind: HeadKind, given: list[str], context: RequestContext) -> None:
    is_ours = reference not in given
    try:
        head = context.resolve(reference, "score.recipe" if is_ours else f"score.heads[{given.index(reference)}]")
    except NotFound as error:
        if not is_ours:
            raise
        what = f"{recipe.reference} reads a head that is not there: {error.message}"
        hint = "activate one, or name a stored version of it in score.heads"
        raise FailedPrecondition(f"{what}\nhint: {hint}", field="score.recipe") from None
    if head.manifest.kind is not kind:
        what = f"{recipe.reference} reads {reference} as a {kind.value} head; it is a {head.manifest.kind.value} head"
        if is_ours:
            raise FailedPrecondition(what, field="score.recipe")
        raise InvalidArgument(what, field=f"score.heads[{given.index(reference)}]")


def _constants(recipe: Recipe, given: Mapping[str, float]) -> dict[str, float]:
    for name, value in given.items():
        field = f"score.recipe_constants[{name[:64]}]"
        if name not in recipe.constants:
            known = ", ".join(recipe.constants)
            raise InvalidArgument(f"{recipe.reference} has no constant {name[:64]!r}; it has {known}", field=field)
        check_constant(name, value, field)
    return {**recipe.constants, **given}
