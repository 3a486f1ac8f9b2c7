"""docs/reference/command-line.md: every command with its arguments and options, from the command line's own definitions."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from polyhead.client.cli.app import build_app
from tests.docs.markdown import code, plain, prose, table

INTRODUCTION = """# Command line

`polyhead COMMAND --help` prints the same in a terminal. This page is made from the code by `python -m tests.docs.reference`.
"""

CONNECTION = """## Connection options

Every command that talks to a server takes these.
"""
HEADINGS = ("option", "type", "meaning")


def page() -> str:
    commands = dict(_commands("polyhead", typer.main.get_command(build_app([]))))
    overview = table(("command", "what it does"), [(code(name), plain(_first_sentence(command))) for name, command in commands.items()])
    shared = _connection_options([commands["polyhead status"], commands["polyhead generate"], commands["polyhead heads list"]])
    sections = [_section(name, command, shared) for name, command in commands.items()]
    return "\n".join([INTRODUCTION, overview, CONNECTION, table(HEADINGS, list(shared.values())), *sections])


def _connection_options(commands: list[Any]) -> dict[str, tuple[str, str, str]]:
    """By name: the options that all of these commands have."""
    rows = [{each.name or "": _option(each, _hints(command)) for each in _options(command)} for command in commands]
    return {name: row for name, row in rows[0].items() if all(other.get(name) == row for other in rows)}


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Those that do something, each with all its words."""
    if isinstance(command, TyperGroup):
        for word, each in command.commands.items():
            yield from _commands(f"{name} {word}", each)
    elif not command.hidden:
        yield name, command


def _first_sentence(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split())


def _options(command: Any) -> list[TyperOption]:
    return [each for each in command.params if isinstance(each, TyperOption) and not each.hidden and each.name != "help"]


def _hints(command: Any) -> dict[str, Any]:
    return typing.get_type_hints(getattr(command.callback, "__wrapped__", command.callback))


def _section(name: str, command: Any, shared: dict[str, tuple[str, str, str]]) -> str:
    arguments = [each for each in command.params if isinstance(each, TyperArgument)]
    options = _options(command)
    rows = [(each.name or "", _option(each, _hints(command))) for each in options]
    own = [row for name, row in rows if shared.get(name) != row]
    words = [each.name.upper() if each.required else f"[{each.name.upper()}]" for each in arguments if each.name]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *words])
    parts = [f"## {name}\n", f"```text\n{usage}\n```\n", prose(plain(command.help or "")) + "\n"]
    if arguments:
        parts.append(table(("argument", "meaning"), [(code((each.name or "").upper()), plain(each.help or "")) for each in arguments]))
    if own:
        parts.append(table(HEADINGS, own))
    if len(own) < len(rows):
        parts.append("And the [connection options](#connection-options).\n")
    return "\n".join(parts)


def _option(option: TyperOption, hints: dict[str, Any]) -> tuple[str, str, str]:
    """Flags, type, and what the help says; a default is added where the help does not name one."""
    flags = ", ".join(code(flag) for flag in [*option.opts, *option.secondary_opts])
    text = option.help or ""
    is_switch = isinstance(option.default, bool)
    if isinstance(option.default, (int, float, str)) and not is_switch and option.default != "" and "efault" not in text:
        text += f" Default: {option.default}."
    if option.envvar:
        text += f" Variable: {code(str(option.envvar))}."
    return flags, _type(hints.get(option.name or "", bool)), plain(text)


def _type(hint: Any) -> str:
    """`int` of `int | None`; `Path, several` of `list[Path]`; nothing of a switch."""
    inner = [each for each in typing.get_args(hint) if each is not type(None)]
    if typing.get_origin(hint) in (list, tuple):
        return f"{inner[0].__name__}, several"
    if typing.get_origin(hint) is not None and inner:
        return _type(inner[0])
    return "" if hint is bool else str(getattr(hint, "__name__", hint))
