"""What the files of deploy/ may say to a server: its variables with values that it takes, its flags, and how long it needs to end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer

from polyhead.server import main
from polyhead.server.config import OTHER_VARIABLES, ServeConfig, load_config
from polyhead.server.process.lifecycle import END_S
from tests.certificates import write_pair

NUM_ENDS = 4  # engine stop, handlers' answers, cancelled handlers, and one for the store


def load(variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> ServeConfig:
    """The configuration that the server makes of these variables; InvalidArgument for an unknown one or a bad value."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load_config({})


def own(variables: Mapping[str, object]) -> dict[str, str]:
    """The settings among them, as texts: neither other programs' variables nor those of our own client."""
    return {name: str(value) for name, value in variables.items() if name.startswith("POLYHEAD_") and name not in OTHER_VARIABLES}


def flags() -> set[str]:
    """Of `polyhead serve`."""
    app = typer.Typer()
    main.register(app)
    command = typer.main.get_command(app)
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


def longest_end_s(config: ServeConfig) -> int:
    """Seconds from SIGTERM to the end of the process, at most."""
    return math.ceil(config.drain_delay_s + config.drain_grace + NUM_ENDS * END_S)


def with_files(variables: dict[str, str], folder: Path) -> dict[str, str]:
    """The same with private files of ours in place of those that an operator will put there."""
    cert, key = write_pair(folder)
    tokens = folder / "tokens.toml"
    tokens.write_text('worker = "a-token-of-some-length"\n', encoding="utf-8")
    tokens.chmod(0o600)
    ours = {"POLYHEAD_TOKENS": tokens, "POLYHEAD_TLS_CERT": cert, "POLYHEAD_TLS_KEY": key}
    return {name: str(ours.get(name, value)) for name, value in variables.items()}
