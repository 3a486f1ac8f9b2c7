"""What the commands share: options, tokens, errors in one line and a hint."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from polyhead.client import PolyheadError
from polyhead.client.annotate.problems import Problem
from polyhead.client.annotate.projects.yaml_reader import ConfigError
from polyhead.client.annotate.storage.database import DatabaseError

DEFAULT_DB = Path("annotate.db")
Db = Annotated[Path, typer.Option("--db", help="The database file.")]
ServerAddress = Annotated[
    str, typer.Option("--server", envvar="POLYHEAD_SERVER", help="host:port of the model server; several of a fleet with commas.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the model server's token, role annotator; for its owner alone.")
]
TlsCa = Annotated[Path | None, typer.Option("--tls-ca", help="Trust the certificates in this PEM file for the model server.")]


def readable(command: Callable[..., None]) -> Callable[..., None]:
    """What can go wrong, in one line and a hint."""

    @functools.wraps(command)
    def run(*args: object, **kwargs: object) -> None:
        try:
            command(*args, **kwargs)
        except (DatabaseError, ConfigError, Problem, PolyheadError) as error:
            fail(str(error))
        except OSError as error:
            fail(f"{error.strerror}: {error.filename}")

    return run


def token_of(path: Path | None) -> str | None:
    """Of the file, or of POLYHEAD_TOKEN."""
    return read_token(path) if path else os.environ.get("POLYHEAD_TOKEN")


def read_token(path: Path) -> str:
    """A token from a file that nobody but its owner, and its group, may read."""
    if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP):
        fail(f"the token file is open to other users: {path}\nhint: chmod 600 {path}")
    return path.read_text(encoding="utf-8").strip()


def fail(message: str) -> NoReturn:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    raise typer.Exit(1)
