"""What all commands that call a server share: options of the connection, text or JSON output, errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from polyhead.client.addresses import addresses_of
from polyhead.client.cli.flags import flags_of, in_flags
from polyhead.client.client import Client
from polyhead.client.errors import InvalidArgument, PolyheadError
from polyhead.client.fleet.fleet import open_client
from polyhead.client.transport import DEFAULT_TIMEOUT_S

__all__ = ["Session", "connected", "fail", "human_bytes", "readable_errors", "reason_of", "require_torch", "table"]

_PIPE_COLUMNS = 1000  # not a terminal: nothing is cut off
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "server": (
        Annotated[str, typer.Option(envvar="POLYHEAD_SERVER", help="host:port of the server; several of a fleet with commas.")],
        "127.0.0.1:50051",
    ),
    "token": (Annotated[str | None, typer.Option(envvar="POLYHEAD_TOKEN", help="Bearer token.")], None),
    "tls_ca": (
        Annotated[
            Path | None,
            typer.Option(envvar="POLYHEAD_TLS_CA", help="Use TLS and trust the certificates in this PEM file."),
        ],
        None,
    ),
    "tls": (Annotated[bool, typer.Option("--tls", help="Use TLS and trust the system's certificates.")], False),
    "server_name": (
        Annotated[str | None, typer.Option("--server-name", help="The name in the server's certificate, if it is not the address.")],
        None,
    ),
    "timeout": (Annotated[float | None, typer.Option("--timeout", help="Seconds for a call. Default: an hour.")], None),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print JSON.")], False),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """A command's client, and how it prints."""

    client: Client  # of one server, or of the fleet whose servers were named
    as_json: bool
    servers: Mapping[str, Client] = dataclasses.field(default_factory=dict)  # each that was named, by address

    def show(self, answer: Any, *texts: Any) -> None:
        """`answer` as JSON with --json, otherwise `texts` (anything that rich prints). Only tables are fitted to a terminal."""
        if self.as_json:
            typer.echo(json.dumps(answer, default=_plain))
            return
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_COLUMNS
        console = Console(width=width, markup=False, highlight=False, emoji=False)
        for text in texts:
            console.print(text, soft_wrap=isinstance(text, (str, Text)))  # a command to copy stays on one line


def connected(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a connection and --json, and a Session in place of them as its first argument.

    A command that takes a `timeout` of its own has no other one.
    """
    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())[1:]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
        for name, (annotation, default) in _OPTIONS.items()
        if name not in signature.parameters
    ]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        given = {parameter.name: arguments.pop(parameter.name) for parameter in shared}
        options: Any = {name: given[name] for name in ("token", "tls", "server_name")}
        options["timeout"] = given.get("timeout") or DEFAULT_TIMEOUT_S
        options["root_certificates"] = _read_certificates(given["tls_ca"])
        with contextlib.ExitStack() as opened:
            client = opened.enter_context(open_client(given["server"], **options))
            servers = {address: opened.enter_context(Client(address, **options)) for address in addresses_of(given["server"])}
            command(Session(client, given["as_json"], servers), **arguments)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return readable_errors(run, flags_of(parameters))


def readable_errors(command: Callable[..., None], flags: Mapping[str, str] = MappingProxyType({})) -> Callable[..., None]:
    """Print polyhead's own errors, with flags in place of argument names, and exit with 1."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, _error_types()):
                raise
            fail(in_flags(str(error), flags))
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return run


def fail(message: str) -> NoReturn:
    """One line to stderr, a line for the hint, exit code 1."""
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(1)


def require_torch(what: str, extra: str) -> None:
    """End the command if torch or transformers is not installed. `extra` of polyhead installs them."""
    if find_spec("torch") is None or find_spec("transformers") is None:
        fail(f"{what} needs torch and transformers\nhint: pip install 'polyhead[{extra}]'")


def reason_of(error: OSError) -> str:
    """The system's message, with the file if the error names one."""
    return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror or error)


def table(title: str, *columns: str) -> Table:
    """A table for rows of str. If it is too wide for the terminal, cells wrap, but no word of a heading and nothing in the first column."""
    headings = [
        Column(name, min_width=max(map(len, name.split()), default=0), overflow="fold", no_wrap=index == 0)
        for index, name in enumerate(columns)
    ]
    return Table(*headings, title=title or None, title_justify="left", box=None, pad_edge=False)


def human_bytes(count: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _error_types() -> tuple[type[Exception], ...]:
    """The client's errors, and those of polyhead.heads where a command has imported it."""
    heads = sys.modules.get("polyhead.heads.format.errors")
    return (PolyheadError,) if heads is None else (PolyheadError, heads.PolyheadError)


def _read_certificates(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read --tls-ca: {file} ({error.strerror})", field="tls_ca") from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _or_null(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return str(value)


def _or_null(value: Any) -> Any:
    """NaN, which JSON lacks, stands for a reward that is missing."""
    return None if isinstance(value, float) and math.isnan(value) else value
