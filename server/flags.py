"""The flags of `polyhead serve`, made from the settings: one for each but the secrets, whose text is the setting's own."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from polyhead.server.config import ServeConfig
from polyhead.server.process.setting_errors import SECRETS

ARGUMENT = "model"  # the one that has no dashes


def parameters() -> list[inspect.Parameter]:
    """As of a function that typer reads: None where nothing was given, so that other sources decide."""
    return [_parameter(name, field) for name, field in ServeConfig.model_fields.items() if name not in SECRETS]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """What typer made of the command line, as `load_config` takes it: an option that may be repeated comes as a list."""
    return {name: (tuple(value) or None) if isinstance(value, list) else value for name, value in values.items()}


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    declared = f"{flag}/--no-{flag[2:]}" if field.default is True else flag  # one that is off needs no way to say so
    info = typer.Argument(None, help=_help(field)) if name == ARGUMENT else typer.Option(None, declared, help=_help(field))
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=_type(field.annotation))


def _help(field: FieldInfo) -> str:
    has_default = field.default not in (None, "", ()) and not isinstance(field.default, bool)
    return f"{field.description}.{f' Default: {field.default}.' if has_default else ''}"


def _type(annotation: Any) -> Any:
    """What typer converts to; pydantic checks the rest, and names the flag."""
    if annotation in (int, float, bool, Path):
        return annotation
    if get_origin(annotation) is tuple:
        return list[Path]
    return Path if Path in get_args(annotation) else str
