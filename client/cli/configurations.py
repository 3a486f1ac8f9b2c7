"""`polyhead configurations`: the server's rule sets, templates, recipes and transcript formats: list, add, retire.

`list` may be left out: `polyhead configurations example-rules` prints that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from polyhead.client.cli.session import Session, connected, fail, reason_of, table
from polyhead.client.errors import InvalidArgument, NotFound, PolyheadError
from polyhead.client.results.records import Configuration

__all__ = ["configurations_app"]

_LIST = "list"
_Kind = Annotated[str | None, typer.Option(help="rule_set, rule_template, recipe or transcript_format.")]


class _ListByDefault(TyperGroup):
    """A group that runs `list` unless the arguments begin with one of its commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [_LIST, *args]
        return super().parse_args(ctx, args)


configurations_app = typer.Typer(
    cls=_ListByDefault, help="Rule sets, rule templates, recipes and transcript formats. Without a command: list them, or print one."
)


@configurations_app.command("add")
@connected
def add_command(session: Session, files: Annotated[list[Path], typer.Argument(help="YAML files of any kind.")]) -> None:
    """Add files while the server runs: requests can name them at once, and they survive a restart."""
    added = []
    for path in files:
        try:
            added.append(session.client.add_configuration(path))
        except OSError as error:
            fail(reason_of(error))
        except PolyheadError as error:
            error.args = (f"{path}: {error}",)
            raise
        if not session.as_json:
            typer.echo(f"{added[-1].kind} {added[-1].reference}")
    if session.as_json:
        session.show(added)


@configurations_app.command("retire")
@connected
def retire_command(
    session: Session, reference: Annotated[str, typer.Argument(help="A version that was added: terse@2.")], kind: _Kind = None
) -> None:
    """Take an added version out of use, for good."""
    kind_option: Any = kind
    session.client.retire_configuration(reference, kind=kind_option)
    session.show({"retired": reference}, f"retired {reference}")


@configurations_app.command(_LIST)
@connected
def list_command(
    session: Session,
    reference: Annotated[str, typer.Argument(help="Print this file: example-rules@1, or example-rules for its newest version.")] = "",
    kind: _Kind = None,
) -> None:
    """List the server's configuration files, or print one."""
    kind_option: Any = kind
    found = session.client.configurations(kind_option)
    if reference:
        chosen = _chosen(found, reference)
        session.show(chosen, chosen.content.rstrip("\n"))
        return
    has_unfit = any(each.set_aside for each in found)
    rows = table("", "kind", "file", "rules", "added", "sha256", *(["set aside: the model's tokenizer"] if has_unfit else []))
    for each in found:
        facts = [each.kind, each.reference, str(len(each.rules) or ""), "yes" if each.added else "", each.sha256[:12]]
        rows.add_row(*facts, *([each.set_aside] if has_unfit else []))
    session.show(found, rows, *(_rule_ids(each) for each in found if each.rules))


def _rule_ids(rule_set: Configuration) -> Table:
    """Ids that --rule takes, wrapped at the terminal's width."""
    rows = table(f"\nrules of {rule_set.reference}", "")
    rows.columns[0].no_wrap = False
    rows.show_header = False
    rows.add_row(", ".join(rule.id for rule in rule_set.rules))
    return rows


def _chosen(found: list[Configuration], reference: str) -> Configuration:
    """The file of that name and version; for a name alone the newest version, which the server lists last."""
    named = [each for each in found if reference in (each.reference, each.reference.partition("@")[0])]
    if not named:
        raise NotFound(f"no such configuration file: {reference!r}\nhint: polyhead configurations")
    if len(kinds := sorted({each.kind for each in named})) > 1:
        raise InvalidArgument(f"{reference!r} names files of several kinds: {', '.join(kinds)}\nhint: give --kind", field="kind")
    return named[-1]
