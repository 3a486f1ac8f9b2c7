"""`polyhead generate` and `polyhead score`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from polyhead.client.cli_session import Session, connected
from polyhead.client.results import HeadScore, PolicyScore, PreferenceScore, Reward, RuleScores, Sample, ScoredItem, ValueScore

__all__ = ["generate_command", "score_command"]

_Rules = Annotated[list[str] | None, typer.Option("--rule", help="Rule id, for heads of kind rule; repeatable.")]
_Ood = Annotated[str, typer.Option(help="Out-of-distribution fit to score the prompt with: helpful, helpful@2.")]
_RuleSet = Annotated[str, typer.Option(help="Rule set that the ids belong to.")]
_Format = Annotated[str, typer.Option("--format", help="Transcript format: how --chat writes turns, and what a reply is checked against.")]
_ReplyRole = Annotated[str, typer.Option(help="Whose turn the reply is; default: the format's own choice.")]
_Recipe = Annotated[str, typer.Option(help="Reward recipe: sparrow, rerank, preference, kl, or one of the server's own.")]


@connected
def generate_command(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read it from standard input.")],
    head: Annotated[str, typer.Option(help="policy, or policy@7.")] = "policy",
    n: Annotated[int, typer.Option("-n", help="Samples; one is printed as it is drawn.")] = 1,
    chat: Annotated[bool, typer.Option(help="The prompt is a user's turn, rendered with the chat template or --format.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to draw.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the most probable tokens that come to this share together.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many of the most probable tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats the draw.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends a sample; repeatable.")] = None,
    score: Annotated[list[str] | None, typer.Option(help="Head to score with; repeatable.")] = None,
    rule: _Rules = None,
    rule_set: _RuleSet = "",
    transcript_format: _Format = "",
    reply_role: _ReplyRole = "",
    recipe: _Recipe = "",
    best: Annotated[int | None, typer.Option(help="With --recipe: print only the best so many of the samples, the best first.")] = None,
    ood: _Ood = "",
    on_swap: Annotated[str | None, typer.Option(help="If heads change meanwhile: pin (the default), abort or follow.")] = None,
) -> None:
    """Draw samples for a prompt, and score them."""
    text = _text(prompt)
    form: Any = [{"role": "user", "content": text}] if chat else text
    options: Any = {"head": head, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"seed": seed, "stop": stop, "score": score, "rules": rule, "rule_set": rule_set, "recipe": recipe, "ood": ood}
    options |= {"format": transcript_format, "reply_role": reply_role, "on_swap": on_swap}
    if n == 1 and best is None and not session.as_json:
        _print_stream(session, form, options)
        return
    samples = session.client.generate([form], n=n, best=best, **options)
    session.show(samples, "\n\n".join(_sample_text(s) for s in samples))


@connected
def score_command(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read it from standard input.")],
    completion: Annotated[str, typer.Argument(help="What answers it.")],
    head: Annotated[list[str] | None, typer.Option(help="Head to score with; repeatable.")] = None,
    chat: Annotated[bool, typer.Option(help="The prompt is a user's turn, rendered with the chat template or --format.")] = False,
    rule: _Rules = None,
    rule_set: _RuleSet = "",
    transcript_format: _Format = "",
    reply_role: _ReplyRole = "",
    recipe: _Recipe = "",
    ood: _Ood = "",
) -> None:
    """Score a completion with any set of heads, or with those that a recipe reads, and its prompt with an out-of-distribution fit."""
    text = _text(prompt)
    form: Any = [{"role": "user", "content": text}] if chat else text
    options: Any = {"rules": rule, "rule_set": rule_set, "format": transcript_format, "reply_role": reply_role, "recipe": recipe}
    item = session.client.score([(form, completion)], heads=head or (), ood=ood, **options)[0]
    lines = [*_item_lines(item), *([_validity(item)] if item.format else [])]
    session.show(item, "\n".join(lines) if not item.error else f"error: {item.error}")


def _print_stream(session: Session, prompt: Any, options: Any) -> None:
    pieces = session.client.stream(prompt, **options)
    for piece in pieces:
        typer.echo(piece.text, nl=False)
    typer.echo()
    typer.secho(_facts(pieces.sample), dim=True, err=True)
    for line in _item_lines(pieces.sample):
        typer.echo(line, err=True)


def _sample_text(sample: Sample) -> str:
    reward = "".join(f", {line}" for line in _reward_lines(sample.reward)[:1])
    return f"--- {sample.sample_index} {_facts(sample)}{reward}\n{sample.text}"


def _facts(sample: Sample) -> str:
    made_by = f"{sample.head}@{sample.head_version} generation {sample.generation}"
    if len(sample.spans) > 1:  # it followed a swap
        made_by += f" ({', '.join(f'tokens {span.start} to {span.end - 1} by @{span.version}' for span in sample.spans)})"
    facts = f"{made_by}, {len(sample.token_ids)} tokens, {sample.finish_reason}"
    if sample.format:
        facts += f", {_validity(sample)}"
    return f"{facts}: {sample.error}" if sample.error else facts


def _validity(reply: Sample | ScoredItem) -> str:
    return f"valid in {reply.format}" if reply.valid else f"not valid in {reply.format}: {', '.join(reply.invalid_reasons)}"


def _reward_lines(reward: Reward | None) -> list[str]:
    """The reward, then a line for each part with its constant, where it has one of its own."""
    if reward is None:
        return []
    rank = "" if reward.rank is None else f", rank {reward.rank}"
    with_kl = f", {reward.with_kl:.4f} with KL" if reward.kl_estimator else ""
    first = f"{reward.recipe}: no reward: {reward.error}" if reward.error else f"{reward.recipe}: {reward.reward:.4f}{with_kl}{rank}"
    constants = {name: f" (times {reward.constants[name]:g})" for name in reward.parts if name in reward.constants}
    return [first, *(f"  {name} {value:.4f}{constants.get(name, '')}" for name, value in reward.parts.items())]


def _item_lines(item: Sample | ScoredItem) -> list[str]:
    """A line for each head, the reward, and one for the prompt's out-of-distribution score."""
    lines = [*_score_lines(item.scores), *_reward_lines(item.reward)]
    return lines if item.ood is None else [*lines, f"{item.ood.fit}: prompt {item.ood.score:.4f} out of distribution"]


def _score_lines(scores: dict[str, HeadScore]) -> list[str]:
    return [f"{name}@{score.version}: {_score_text(score)}" for name, score in scores.items()]


def _score_text(score: HeadScore) -> str:
    if isinstance(score, PolicyScore):
        return f"log-prob {score.logprobs.sum():.3f} of {len(score.logprobs)} tokens"
    if isinstance(score, PreferenceScore):
        return f"{score.value:.4f} (raw {score.raw:.4f}, bias {score.bias:.4f})" if score.present else "left out: unfinished"
    if isinstance(score, RuleScores):
        return ", ".join(
            f"{rule} broken {p:.3f} (answer mass {score.answer_mass[rule]:.2f})" for rule, p in score.p_violate.items()
        )
    if isinstance(score, ValueScore):
        first = score.values[0] if len(score.values) else float("nan")
        return f"{first:.4f} before the first token, {score.bootstrap_value:.4f} after the last"
    return f"failed: {score.error}"


def _text(prompt: str) -> str:
    return sys.stdin.read() if prompt == "-" else prompt
