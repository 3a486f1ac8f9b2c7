"""`polyhead annotate export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyhead.client.annotate.exports.options import options_of
from polyhead.client.annotate.exports.writing import check_format, export
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.terminal import DEFAULT_DB, Db, readable


@readable
def export_command(
    out: Annotated[Path, typer.Argument(help="The file to write: JSON lines.")],
    format_name: Annotated[
        str, typer.Option("--format", help="trl-preference, polyhead-pairs, ...; a wrong one lists all.")
    ] = "polyhead-pairs",
    project: Annotated[str, typer.Option(help="The project's slug.")] = "helpful",
    db: Db = DEFAULT_DB,
    round_number: Annotated[int, typer.Option("--round", help="One round alone. Default: all.")] = 0,
    since: Annotated[str, typer.Option(help="Answers of this time or later: 2026-11-29, or 2026-11-29T14:00, in UTC. Default: all.")] = "",
    until_seq: Annotated[int, typer.Option(help="The log up to this event: the same number gives the same file. Default: all.")] = 0,
    exclude: Annotated[str, typer.Option(help="What to leave out: leak, late, gold.")] = "leak,gold",
    min_agreement: Annotated[
        float,
        typer.Option(
            help="0 to 1. Only things about which at least this share of pairs of people say the same; what one person alone has judged"
            " is left out, too. 0: everything."
        ),
    ] = 0.0,
    adjudicated: Annotated[
        bool, typer.Option("--adjudicated", help="Where an adjudicator has decided, that decision in place of people's answers.")
    ] = False,
    ties: Annotated[
        str,
        typer.Option(
            help="drop: two equally good replies make no row. margin0 (trl-preference): a row with margin 0, and every other row has a"
            " margin, 1 where no scale was asked."
        ),
    ] = "drop",
    keep_unsure: Annotated[
        bool, typer.Option("--keep-unsure", help="rules: verdicts 'unsure' are rows, too. `polyhead train rule` passes over them.")
    ] = False,
    ids: Annotated[
        bool,
        typer.Option(
            "--ids",
            help="polyhead-pairs, polyhead-ranks: token ids of prompt and replies as they were sampled, beside the texts. Replies"
            " that were imported have none, and are left out.",
        ),
    ] = False,
) -> None:
    """Write judgements for a trainer, with a file that says where each row comes from and a card that counts what was left out."""
    check_format(format_name)
    options = options_of(
        format_name=format_name, round_number=round_number, until_seq=until_seq, since=since, min_agreement=min_agreement,
        exclude=[each for each in exclude.split(",") if each], adjudicated=adjudicated, ties=ties, keep_unsure=keep_unsure, ids=ids,
    )  # fmt: skip
    written = export(Database.open(db), project, format_name, out, options, "command line")
    typer.echo(f"{written.num_rows} rows of {written.num_answers} answers in {out}, log up to {written.until_seq}")
    for reason, count in written.left_out.items():
        typer.echo(f"left out, {reason}: {count}")
