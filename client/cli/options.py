"""Options that several commands share. Each help text ends with the server's default."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "Chat",
    "Format",
    "Head",
    "MaxNewTokens",
    "MinP",
    "OnSwap",
    "Ood",
    "Recipe",
    "RepetitionPenalty",
    "ReplyRole",
    "RuleIds",
    "RuleSet",
    "Seed",
    "Stop",
    "Temperature",
    "TopK",
    "TopP",
]

Head = Annotated[str, typer.Option(help="Head that generates: policy, or policy@7.")]
MaxNewTokens = Annotated[int | None, typer.Option(help="Most tokens to draw. Default: 128.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy. Default: 1, the model's own distribution.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the fewest likeliest tokens that reach this probability. Default: 1, all.")]
TopK = Annotated[int | None, typer.Option(help="Draw from this many of the likeliest tokens. Default: 0, all.")]
MinP = Annotated[float | None, typer.Option(help="Draw from tokens at least this many times as likely as the likeliest. Default: 0, all.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: tokens of prompt and reply become less likely. Default: 1, none.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the draws. Default: a new one each time.")]
Stop = Annotated[list[str] | None, typer.Option(help="String that ends a sample; repeatable. Default: none.")]

Chat = Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's turn, rendered with the chat template or --format.")]
Format = Annotated[str, typer.Option("--format", help="Transcript format: how --chat writes turns, and what a reply is checked against.")]
ReplyRole = Annotated[str, typer.Option(help="Role of the reply. Default: the format's own.")]
RuleIds = Annotated[list[str] | None, typer.Option("--rule", help="Rule id, for heads of kind rule; repeatable.")]
RuleSet = Annotated[str, typer.Option(help="Rule set of these ids; without --rule, all of its rules.")]
Recipe = Annotated[str, typer.Option(help="Reward recipe: preference, kl, rlhf, sparrow, sparrow-kl, rerank, or one of the server's own.")]
Ood = Annotated[str, typer.Option(help="Out-of-distribution fit to score the prompt with: helpful, helpful@2.")]
OnSwap = Annotated[str | None, typer.Option(help="If heads are activated during the request: pin, abort or follow. Default: pin.")]
