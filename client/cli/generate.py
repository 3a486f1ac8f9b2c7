"""`polyhead generate` and `polyhead score`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from polyhead.client import jsonl
from polyhead.client.cli import options
from polyhead.client.cli.samples import facts, item_lines, item_text, sample_text
from polyhead.client.cli.session import Session, connected
from polyhead.client.errors import InvalidArgument, PolyheadError

__all__ = ["generate_command", "score_command"]

_RAW_NOTE = "(the prompt was continued as plain text: use `polyhead chat` for a conversation, --chat for one question)"


@connected
def generate_command(
    session: Session,
    prompt: Annotated[str, typer.Argument(help="The prompt, or - to read it from standard input.")],
    head: options.Head = "policy",
    n: Annotated[int, typer.Option("-n", help="Number of samples. A single one is printed as it is drawn.")] = 1,
    chat: options.Chat = False,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    score: Annotated[list[str] | None, typer.Option(help="Head to score with; repeatable.")] = None,
    rule: options.RuleIds = None,
    rule_set: options.RuleSet = "",
    transcript_format: options.Format = "",
    reply_role: options.ReplyRole = "",
    recipe: options.Recipe = "",
    best: Annotated[int | None, typer.Option(help="With --recipe: print only this many of the samples, the best first.")] = None,
    ood: options.Ood = "",
    on_swap: options.OnSwap = None,
) -> None:
    """Draw samples for a prompt, and score them. The prompt is continued as plain text; use `polyhead chat` for a conversation."""
    text = _text(prompt)
    form: Any = [{"role": "user", "content": text}] if chat else text
    given: Any = {"head": head, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
    given |= {"min_p": min_p, "repetition_penalty": repetition_penalty, "seed": seed, "stop": stop, "on_swap": on_swap}
    given |= {"score": score, "rules": rule, "rule_set": rule_set, "recipe": recipe, "ood": ood}
    given |= {"format": transcript_format, "reply_role": reply_role}
    if n == 1 and best is None and not session.as_json:
        _print_stream(session, form, given)
    else:
        samples = session.client.generate([form], n=n, best=best, **given)
        session.show(samples, "\n\n".join(sample_text(sample) for sample in samples))
    if not (chat or transcript_format or session.as_json) and _has_chat_template(session):
        typer.secho(_RAW_NOTE, dim=True, err=True)


@connected
def score_command(
    session: Session,
    prompt: Annotated[str | None, typer.Argument(help="The prompt, or - to read it from standard input.")] = None,
    completion: Annotated[str | None, typer.Argument(help="The completion to score.")] = None,
    data: Annotated[Path | None, typer.Option(help='JSON lines instead: {"prompt" or "messages": ..., "completion": "..."}.')] = None,
    head: Annotated[list[str] | None, typer.Option(help="Head to score with; repeatable.")] = None,
    chat: options.Chat = False,
    rule: options.RuleIds = None,
    rule_set: options.RuleSet = "",
    transcript_format: options.Format = "",
    reply_role: options.ReplyRole = "",
    recipe: options.Recipe = "",
    ood: options.Ood = "",
) -> None:
    """Score a completion with any set of heads, or with those that a recipe reads, and its prompt with an out-of-distribution fit.

    With --data, every line of a file is scored.
    """
    given: Any = {"rules": rule, "rule_set": rule_set, "format": transcript_format, "reply_role": reply_role, "recipe": recipe}
    given |= {"heads": head or (), "ood": ood}
    if data is not None:
        _score_file(session, data, given, has_other_input=prompt is not None or completion is not None or chat)
        return
    if prompt is None or completion is None:
        raise InvalidArgument("give a prompt and a completion, or --data with a file of them", field="completion")
    text = _text(prompt)
    form: Any = [{"role": "user", "content": text}] if chat else text
    item = session.client.score([(form, completion)], **given)[0]
    session.show(item, item_text(item))


def _score_file(session: Session, data: Path, given: Any, *, has_other_input: bool) -> None:
    """Score in batches: an answer repeats every token id, and a message's size is limited."""
    if has_other_input:
        raise InvalidArgument("--data cannot be combined with a prompt, a completion or --chat", field="data")
    file, scored = jsonl.read_references(data), []
    for start in range(0, len(file.items), jsonl.BATCH_ITEMS):
        with file.naming_lines(start):
            scored += session.client.score(file.items[start : start + jsonl.BATCH_ITEMS], **given)
    texts = [f"--- line {line}\n{item_text(item)}" for line, item in zip(file.lines, scored, strict=True)]
    session.show(scored, "\n".join(texts))


def _print_stream(session: Session, prompt: Any, given: Any) -> None:
    pieces = session.client.stream(prompt, **given)
    for piece in pieces:
        typer.echo(piece.text, nl=False)
    typer.echo()
    typer.secho(facts(pieces.sample), dim=True, err=True)
    for line in item_lines(pieces.sample):
        typer.echo(line, err=True)


def _has_chat_template(session: Session) -> bool:
    """Whether the server can render a conversation."""
    try:
        session.client.tokenize([{"role": "user", "content": "Hi"}])
    except PolyheadError:
        return False
    return True


def _text(prompt: str) -> str:
    return sys.stdin.read() if prompt == "-" else prompt
