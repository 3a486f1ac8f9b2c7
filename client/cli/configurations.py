"""`polyhead configurations`: the server's rule sets, templates, recipes and transcript formats."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from polyhead.client.cli.session import Session, connected, table
from polyhead.client.errors import InvalidArgument, NotFound
from polyhead.client.results.records import Configuration

__all__ = ["configurations_command"]


@connected
def configurations_command(
    session: Session,
    reference: Annotated[str, typer.Argument(help="Print this file: example-rules@1, or example-rules for its newest version.")] = "",
    kind: Annotated[str | None, typer.Option(help="rule_set, rule_template, recipe or transcript_format.")] = None,
) -> None:
    """List the server's configuration files, or print one."""
    kind_option: Any = kind
    found = session.client.configurations(kind_option)
    if reference:
        chosen = _chosen(found, reference)
        session.show(chosen, chosen.content.rstrip("\n"))
        return
    has_unfit = any(each.set_aside for each in found)
    rows = table("", "kind", "file", "rules", "sha256", *(["set aside: the model's tokenizer"] if has_unfit else []))
    for each in found:
        rows.add_row(each.kind, each.reference, str(len(each.rules) or ""), each.sha256[:12], *([each.set_aside] if has_unfit else []))
    session.show(found, rows, *(_rule_ids(each) for each in found if each.rules))


def _rule_ids(rule_set: Configuration) -> Table:
    """What --rule takes, broken to the terminal's width."""
    rows = table(f"\nrules of {rule_set.reference}", "")
    rows.columns[0].no_wrap = False
    rows.show_header = False
    rows.add_row(", ".join(rule.id for rule in rule_set.rules))
    return rows


def _chosen(found: list[Configuration], reference: str) -> Configuration:
    """The file of that name and version; the newest one, which the server lists last, for a name alone."""
    named = [each for each in found if reference in (each.reference, each.reference.partition("@")[0])]
    if not named:
        raise NotFound(f"no such configuration file: {reference!r}\nhint: polyhead configurations")
    if len(kinds := sorted({each.kind for each in named})) > 1:
        raise InvalidArgument(f"{reference!r} names files of several kinds: {', '.join(kinds)}\nhint: give --kind", field="kind")
    return named[-1]
