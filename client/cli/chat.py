"""`polyhead chat`: a conversation in the terminal. A turn goes on from the last reply's own ids, so only what is new is computed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated, Any

import typer

from polyhead.client.cli import options
from polyhead.client.cli.samples import facts, item_lines
from polyhead.client.cli.session import Session, connected
from polyhead.client.errors import PolyheadError
from polyhead.client.results.results import FinishReason, Sample
from polyhead.client.wire.prompts import Prompt, continue_from

__all__ = ["chat_command"]

_TEMPERATURE = 0.7
_MAX_NEW_TOKENS = 512
_END = ("/quit", "/exit")
_ANEW = "/new"
_HELP = "Type a message; /new begins another conversation, /quit or Ctrl-D ends, Ctrl-C ends a reply."


@connected
def chat_command(
    session: Session,
    message: Annotated[str | None, typer.Argument(help="The first message. Default: it is asked for.")] = None,
    head: options.Head = "policy",
    system: Annotated[str, typer.Option(help="What the conversation begins with: how the model should behave.")] = "",
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of a reply. Default: 512, or half of a shorter context.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = _TEMPERATURE,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    score: Annotated[list[str] | None, typer.Option(help="Head to score each reply with; repeatable.")] = None,
    rule: options.RuleIds = None,
    rule_set: options.RuleSet = "",
    recipe: options.Recipe = "",
    transcript_format: Annotated[str, typer.Option("--format", help="Transcript format, in place of the chat template.")] = "",
    on_swap: options.OnSwap = None,
) -> None:
    """Talk with the model: replies come as they are drawn, and each turn goes on with the ones before.

    From a pipe every line is a turn.
    """
    most = max_new_tokens or min(_MAX_NEW_TOKENS, session.client.trunk().context_length // 2)
    given: Any = {"head": head, "max_new_tokens": most, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    given |= {"repetition_penalty": repetition_penalty, "seed": seed, "stop": stop, "on_swap": on_swap, "format": transcript_format}
    given |= {"score": score, "rules": rule, "rule_set": rule_set, "recipe": recipe}
    if sys.stdin.isatty() and not session.as_json:
        typer.secho(_HELP, dim=True, err=True)
    last: Sample | None = None
    for said in _messages(message):
        if said == _ANEW:
            last = None
            typer.secho("a new conversation", dim=True, err=True)
            continue
        last = _turn(session, last, said, system, given)


def _turn(session: Session, last: Sample | None, said: str, system: str, given: Any) -> Sample | None:
    """The reply, printed as it comes; the one before where there is none. Only the first turn's error ends the command."""
    try:
        reply = _streamed(session, _prompt(last, said, system), given)
    except KeyboardInterrupt:
        typer.secho("\n(the reply was ended: this turn is forgotten)", dim=True, err=True)
        return last
    except PolyheadError as error:
        if last is None:
            raise
        typer.secho(f"error: {error}\n(this turn is forgotten; {_ANEW} begins another conversation)", fg=typer.colors.RED, err=True)
        return last
    if reply.finish_reason in (FinishReason.ABORTED, FinishReason.FAILED) or not reply.token_ids:
        return last
    return reply


def _streamed(session: Session, prompt: Prompt, given: Any) -> Sample:
    with closing(session.client.stream(prompt, **given)) as pieces:
        for piece in pieces:
            if not session.as_json:
                typer.echo(piece.text, nl=False)
        reply = pieces.sample
    session.show(reply, "")
    if not session.as_json:
        cached = f", {reply.num_cached_tokens} of {len(reply.prompt_token_ids)} prompt tokens cached"
        cut = "; cut off: --max-new-tokens allows more" if reply.finish_reason is FinishReason.LENGTH else ""
        typer.secho(f"({facts(reply)}{cached}{cut})", dim=True, err=True)
        for line in item_lines(reply):
            typer.echo(line, err=True)
    return reply


def _prompt(last: Sample | None, said: str, system: str) -> Prompt:
    turn = {"role": "user", "content": said}
    if last is not None:
        return continue_from(last, [turn])
    return [*([{"role": "system", "content": system}] if system else []), turn]


def _messages(first: str | None) -> Iterator[str]:
    """What a person types, or the lines of a pipe. A first message from the arguments is alone where nobody can type another one."""
    is_asked = sys.stdin.isatty()
    if first is not None:
        yield first
        if not is_asked:
            return
    while True:
        if is_asked:
            typer.secho("> ", bold=True, nl=False, err=True)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            typer.echo(err=True)
            return
        if not line or line.strip() in _END:
            return
        if line.strip():
            yield line.strip()
