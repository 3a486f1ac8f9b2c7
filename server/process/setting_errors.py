"""A setting that pydantic refuses, in words of ours: which flag, variable or key it was, what it may be, and what it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from polyhead.heads.format.errors import InvalidArgument

_WORDS = {
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "literal_error": "must be {expected}",
    "string_type": "must be a text",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
}
SECRETS = ("token_worker", "token_trainer", "token_admin")  # neither shown in an error nor given as a flag


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
    if first["type"] == "extra_forbidden":
        return InvalidArgument(f"{shown} is unknown", field=field)
    words = _WORDS.get(first["type"])
    if words is None:
        return InvalidArgument(f"{shown}: {_own_text(first)}", field=field)
    given = "" if name in SECRETS else f": {repr(first['input'])[:80]}"
    return InvalidArgument(f"{shown} {words.format(**first.get('ctx', {}))}{given}", field=field)


def _own_text(error: Any) -> str:
    """What a validator of ours raised, without pydantic's words before it."""
    return str(error.get("ctx", {}).get("error", error["msg"]))
