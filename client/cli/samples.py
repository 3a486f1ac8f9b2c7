"""Text for a sample or a scored completion: what made it, its reward, and a line for each score."""

from __future__ import annotations

from polyhead.client.results.results import HeadScore, PolicyScore, PreferenceScore, Reward, RuleScores, Sample, ScoredItem, ValueScore

__all__ = ["facts", "item_lines", "item_text", "sample_text"]


def sample_text(sample: Sample) -> str:
    """One of several samples: a heading with its reward, the text, and its scores."""
    reward = "" if sample.reward is None else f", {_reward_line(sample.reward)}"
    return "\n".join([f"--- {sample.sample_index} {facts(sample)}{reward}", sample.text, *item_lines(sample, in_heading=True)])


def item_text(item: ScoredItem) -> str:
    """A scored completion."""
    if item.error:
        return f"error: {item.error}"
    return "\n".join([*item_lines(item), *([_validity(item)] if item.format else [])])


def facts(sample: Sample) -> str:
    """What made a sample, how long it is, and why it ended."""
    made_by = f"{sample.head}@{sample.head_version} generation {sample.generation}"
    if len(sample.spans) > 1:  # it followed a swap
        made_by += f" ({', '.join(f'tokens {span.start} to {span.end - 1} by @{span.version}' for span in sample.spans)})"
    text = f"{made_by}, {len(sample.token_ids)} tokens, {sample.finish_reason}"
    if sample.format:
        text += f", {_validity(sample)}"
    return f"{text}: {sample.error}" if sample.error else text


def item_lines(item: Sample | ScoredItem, *, in_heading: bool = False) -> list[str]:
    """A line for each head, the reward with its parts (or the parts alone), and one for the prompt's out-of-distribution score."""
    lines = [_score_line(name, score) for name, score in item.scores.items()]
    if item.reward is not None:
        lines += ([] if in_heading else [_reward_line(item.reward)]) + _part_lines(item.reward)
    if item.ood is not None:
        lines.append(f"{item.ood.fit}: out-of-distribution score of the prompt {item.ood.score:.4f}")
    return lines


def _validity(reply: Sample | ScoredItem) -> str:
    return f"valid in {reply.format}" if reply.valid else f"not valid in {reply.format}: {', '.join(reply.invalid_reasons)}"


def _reward_line(reward: Reward) -> str:
    """Named "reward (recipe ...)", since a recipe and a head may have the same name."""
    name = f"reward (recipe {reward.recipe})"
    if reward.error:
        return f"{name}: none, {reward.error}"
    with_kl = f", {reward.with_kl:.4f} with KL" if reward.kl_estimator else ""
    rank = "" if reward.rank is None else f", rank {reward.rank}"
    return f"{name}: {reward.reward:.4f}{with_kl}{rank}"


def _part_lines(reward: Reward) -> list[str]:
    """A line for each part, with the constant that it is multiplied with."""
    constants = {name: f" (times {reward.constants[name]:g})" for name in reward.parts if name in reward.constants}
    if "kl_coefficient" in reward.constants:
        constants["kl"] = f" (times {-reward.constants['kl_coefficient']:g}, in the reward with KL alone)"
    return [f"  {name} {value:.4f}{constants.get(name, '')}" for name, value in reward.parts.items()]


def _score_line(name: str, score: HeadScore) -> str:
    return f"{name.partition('@')[0]}@{score.version} (head): {_score_text(score)}"


def _score_text(score: HeadScore) -> str:
    if isinstance(score, PolicyScore):
        return f"log-prob {score.logprobs.sum():.3f} of {len(score.logprobs)} tokens"
    if isinstance(score, PreferenceScore):
        scale = f", scale {score.scale:.4f}" if score.scale != 1 else ""
        return f"{score.value:.4f} (raw {score.raw:.4f}, bias {score.bias:.4f}{scale})" if score.present else "left out: unfinished"
    if isinstance(score, RuleScores):
        return ", ".join(f"{rule} broken {p:.3f} (answer mass {score.answer_mass[rule]:.2f})" for rule, p in score.p_violate.items())
    if isinstance(score, ValueScore):
        first = score.values[0] if len(score.values) else float("nan")
        return f"{first:.4f} before the first token, {score.bootstrap_value:.4f} after the last"
    return f"failed: {score.error}"
