"""The table of docs/reference/settings.md, made from server/config.py. `python -m tests.deploy.settings_table` writes it anew."""

from __future__ import annotations

import re

from pydantic.fields import FieldInfo

from polyhead.server.config import ENV_PREFIX, ServeConfig
from tests.deploy.conftest import DOCS
from tests.deploy.settings import flags

PAGE = DOCS / "reference" / "settings.md"
BETWEEN = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)
ARGUMENTS = {"model": "`MODEL`"}  # of `polyhead serve`, in place of a flag


def table() -> str:
    """Rows in the order of the configuration."""
    known = flags()
    rows = ["| name | flag | variable | default | meaning |", "|---|---|---|---|---|"]
    for name, field in ServeConfig.model_fields.items():
        assert field.description, name
        rows.append(f"| `{name}` | {_flag(name, known)} | `{ENV_PREFIX}{name.upper()}` | {_default(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def _flag(name: str, known: set[str]) -> str:
    flag = f"--{name.replace('_', '-')}"
    return f"`{flag}`" if flag in known else ARGUMENTS.get(name, "")


def _default(field: FieldInfo) -> str:
    """As an environment variable would say it; nothing where it is empty."""
    if field.default in (None, "", ()):
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def shown() -> str:
    found = BETWEEN.search(PAGE.read_text(encoding="utf-8"))
    assert found, "docs/reference/settings.md has lost its <!-- settings --> marks"
    return found[0]


def main() -> None:
    PAGE.write_text(BETWEEN.sub(lambda _: table(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
