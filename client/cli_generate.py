"""`polyhead generate` and `polyhead score`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from polyhead.client.cli_session import Session, connected
from polyhead.client.results import HeadScore, PolicyScore, PreferenceScore, RuleScores, Sample, ValueScore

__all__ = ["generate_command", "score_command"]

_Rules = Annotated[list[str] | None, typer.Option("--rule", help="Rule id, for heads of kind rule; repeatable.")]
_RuleSet = Annotated[str, typer.Option(help="Rule set that the ids belong to.")]


@connected
def generate_command(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read it from standard input.")],
    head: Annotated[str, typer.Option(help="policy, or policy@7.")] = "policy",
    n: Annotated[int, typer.Option("-n", help="Samples; one is printed as it is drawn.")] = 1,
    chat: Annotated[bool, typer.Option(help="The prompt is a user's turn, rendered with the chat template.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to draw.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats the draw.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="String that ends a sample; repeatable.")] = None,
    score: Annotated[list[str] | None, typer.Option(help="Head to score with; repeatable.")] = None,
    rule: _Rules = None,
    rule_set: _RuleSet = "",
    on_swap: Annotated[str | None, typer.Option(help="If heads change meanwhile: pin (the default), abort or follow.")] = None,
) -> None:
    """Draw samples for a prompt, and score them."""
    text = _text(prompt)
    form: Any = [{"role": "user", "content": text}] if chat else text
    options: Any = {"head": head, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    options |= {"seed": seed, "stop": stop, "score": score, "rules": rule, "rule_set": rule_set, "on_swap": on_swap}
    if n == 1 and not session.as_json:
        _print_stream(session, form, options)
        return
    samples = session.client.generate([form], n=n, **options)
    session.show(samples, "\n\n".join(f"--- {s.sample_index} {_facts(s)}\n{s.text}" for s in samples))


@connected
def score_command(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read it from standard input.")],
    completion: Annotated[str, typer.Argument(help="What answers it.")],
    head: Annotated[list[str], typer.Option(help="Head to score with; repeatable.")],
    chat: Annotated[bool, typer.Option(help="The prompt is a user's turn, rendered with the chat template.")] = False,
    rule: _Rules = None,
    rule_set: _RuleSet = "",
) -> None:
    """Score a completion with any set of heads."""
    text = _text(prompt)
    form: Any = [{"role": "user", "content": text}] if chat else text
    item = session.client.score([(form, completion)], heads=head, rules=rule, rule_set=rule_set)[0]
    session.show(item, "\n".join(_score_lines(item.scores)) if not item.error else f"error: {item.error}")


def _print_stream(session: Session, prompt: Any, options: Any) -> None:
    pieces = session.client.stream(prompt, **options)
    for piece in pieces:
        typer.echo(piece.text, nl=False)
    typer.echo()
    typer.secho(_facts(pieces.sample), dim=True, err=True)
    for line in _score_lines(pieces.sample.scores):
        typer.echo(line, err=True)


def _facts(sample: Sample) -> str:
    made_by = f"{sample.head}@{sample.head_version} generation {sample.generation}"
    if len(sample.spans) > 1:  # it followed a swap
        made_by += f" ({', '.join(f'tokens {span.start} to {span.end - 1} by @{span.version}' for span in sample.spans)})"
    facts = f"{made_by}, {len(sample.token_ids)} tokens, {sample.finish_reason}"
    return f"{facts}: {sample.error}" if sample.error else facts


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
