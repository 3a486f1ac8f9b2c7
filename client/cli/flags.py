"""Error messages with flags: errors of client and server name Python arguments, which the command line takes as flags."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, get_args, get_origin

from typer.models import OptionInfo

__all__ = ["flags_of", "in_flags"]

_SHARED = {"root_certificates": "--tls-ca", "token": "--token or POLYHEAD_TOKEN"}
_ARGUMENT = re.compile(r"""(?<![\w.-])([a-z][a-z_]*)=(?:(["'])([^"']*)\2|\[["']([^"']*)["'][^\]]*\]|True\b)?""")
_SUBJECT = re.compile(r"\A([a-z][a-z_]*) (?=must |is out |needs |goes |has a wrong |is not )")


def flags_of(parameters: Iterable[inspect.Parameter]) -> dict[str, str]:
    """A command's flags by argument name. A repeatable option is also found by its plural, which is the argument's name."""
    flags = dict(_SHARED)
    for parameter in parameters:
        options = [part for part in get_args(parameter.annotation) if isinstance(part, OptionInfo)]
        if get_origin(parameter.annotation) is not Annotated or not options:
            continue
        flag = next(iter(options[0].param_decls or ()), f"--{parameter.name.replace('_', '-')}")
        for name in (parameter.name, f"{parameter.name}s", flag.lstrip("-")):
            flags.setdefault(name, flag)
    return flags


def in_flags(message: str, flags: Mapping[str, str]) -> str:
    """`kind="preference"` becomes `--kind preference`. Arguments that are no flag of this command stay as they are."""

    def flag(found: re.Match[str]) -> str:
        name, value = found[1], found[3] or found[4]
        if name not in flags:
            return found[0]
        return f"{flags[name]} {value}" if value else flags[name]

    message = _ARGUMENT.sub(flag, message)
    return _SUBJECT.sub(lambda found: f"{flags.get(found[1], found[1])} ", message)
