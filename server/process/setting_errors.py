"""A setting that pydantic refuses, in words of ours: which flag, variable or key it was, what it may be, and what it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.validation import has_words, words_of

SECRETS = ("token_worker", "token_trainer", "token_admin", "token_replica", "follow_token")  # neither shown in an error nor given as a flag


def setting_error(error: ValidationError, flags: Collection[str], variables: Collection[str], prefix: str) -> InvalidArgument:
    """The first of its errors. `flags` and `variables` are the settings that came from the command line and the environment."""
    first: Any = error.errors(include_url=False)[0]
    if not first["loc"]:  # of several settings together: its own text names them
        return InvalidArgument(_own_text(first))
    name, *rest = (str(part) for part in first["loc"])
    field = ".".join([name, *rest])
    shown = f"{prefix}{name.upper()}" if name in variables else f"the setting {field}"
    if name in flags:
        shown = f"--{name.replace('_', '-')}"
    if not has_words(first):
        return InvalidArgument(f"{shown}: {_own_text(first)}", field=field)
    return InvalidArgument(f"{shown} {words_of(first, shows_value=name not in SECRETS)}", field=field)


def _own_text(error: Any) -> str:
    """What a validator of ours raised, without pydantic's words before it."""
    return str(error.get("ctx", {}).get("error", error["msg"]))
