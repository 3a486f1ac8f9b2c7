"""The flags of `serve` are the settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from polyhead.server import main
from polyhead.server.config import ServeConfig
from polyhead.server.process.setting_errors import SECRETS


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """What was handed to `load_config`; nothing starts."""
    found: list[Mapping[str, Any]] = []

    def load(flags: Mapping[str, Any], config: Path | None) -> None:
        found.append({name: value for name, value in flags.items() if value is not None} | ({"config": config} if config else {}))
        raise typer.Exit(0)

    monkeypatch.setattr(main, "load_config", load)
    return found


def run(*arguments: str) -> None:
    app = typer.Typer(add_completion=False)
    main.register(app)
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output


def test_every_setting_but_a_secret_is_a_flag() -> None:
    app = typer.Typer(add_completion=False)
    main.register(app)
    command = typer.main.get_command(app)
    assert {each.name for each in command.params} - {"config", "json_ready"} == set(ServeConfig.model_fields) - set(SECRETS)


def test_nothing_given_is_nothing_said(loaded: list[Mapping[str, Any]]) -> None:
    """A default of the command line would overrule the environment and the file."""
    run()
    assert loaded == [{}]


def test_what_is_given_arrives_with_its_type(loaded: list[Mapping[str, Any]]) -> None:
    values = ["folder", "--port", "7", "--rules", "a", "--rules", "b", "--trunk-dtype", "int8", "--config", "c"]
    run(*values, "--deterministic", "--no-cuda-graphs")
    [given] = loaded
    assert given == {
        "model": "folder",
        "port": 7,
        "rules": (Path("a"), Path("b")),
        "deterministic": True,
        "cuda_graphs": False,
        "trunk_dtype": "int8",
        "config": Path("c"),
    }
