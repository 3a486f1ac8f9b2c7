"""`polyhead chat`: a conversation in the terminal. Each turn continues from the last reply's ids, so only new tokens are computed."""

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
_NEW = "/new"
_HELP = "Type a message. /new begins a new conversation, Ctrl-C ends a reply, /quit or Ctrl-D ends the command."


@connected
def chat_command(
    session: Session,
    message: Annotated[str | None, typer.Argument(help="The first message. Default: typed at the prompt.")] = None,
    head: options.Head = "policy",
    system: Annotated[str, typer.Option(help="System message: how the model should behave.")] = "",
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
    """Hold a conversation with the model. Replies are printed as they are drawn; the model reads all turns before.

    From a pipe, each line is one turn.
    """
    longest = max_new_tokens or min(_MAX_NEW_TOKENS, session.client.trunk().context_length // 2)
    given: Any = {"head": head, "max_new_tokens": longest, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    given |= {"repetition_penalty": repetition_penalty, "seed": seed, "stop": stop, "on_swap": on_swap, "format": transcript_format}
    given |= {"score": score, "rules": rule, "rule_set": rule_set, "recipe": recipe}
    if sys.stdin.isatty() and not session.as_json:
        typer.secho(_HELP, dim=True, err=True)
    last: Sample | None = None
    for text in _messages(message):
        if text == _NEW:
            last = None
            typer.secho("a new conversation", dim=True, err=True)
            continue
        last = _turn(session, last, text, system, given)


def _turn(session: Session, last: Sample | None, text: str, system: str, given: Any) -> Sample | None:
    """Print the reply as it is drawn and return it, or `last` if the turn failed. Only an error of the first turn ends the command."""
    try:
        reply = _streamed(session, _prompt(last, text, system), given)
    except KeyboardInterrupt:
        typer.secho("\n(interrupted: this turn is left out)", dim=True, err=True)
        return last
    except PolyheadError as error:
        if last is None:
            raise
        typer.secho(f"error: {error}\n(this turn is left out; {_NEW} begins a new conversation)", fg=typer.colors.RED, err=True)
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


def _prompt(last: Sample | None, text: str, system: str) -> Prompt:
    turn = {"role": "user", "content": text}
    if last is not None:
        return continue_from(last, [turn])
    return [*([{"role": "system", "content": system}] if system else []), turn]


def _messages(first: str | None) -> Iterator[str]:
    """Lines from the terminal or a pipe. A first message from the arguments is the only one unless standard input is a terminal."""
    is_terminal = sys.stdin.isatty()
    if first is not None:
        yield first
        if not is_terminal:
            return
    while True:
        if is_terminal:
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
