"""`python -m tests.docs.reference` writes the generated pages of docs/reference anew; with names only some: `... limits errors`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.deploy import metrics_table, settings_table
from tests.docs import client_page, command_line_page, errors_page, limits_page
from tests.docs.paths import DOCS

PAGES: dict[str, Callable[[], str]] = {
    "client": client_page.page,
    "command-line": command_line_page.page,
    "errors": errors_page.page,
    "limits": limits_page.page,
}
TABLES = {"settings": settings_table.main, "metrics": metrics_table.main}  # the last one starts a server on a tiny model


def path_of(name: str) -> Path:
    return DOCS / "reference" / f"{name}.md"


def main(names: list[str]) -> None:
    """Write the named pages, or all."""
    unknown = set(names) - PAGES.keys() - TABLES.keys()
    if unknown:
        raise SystemExit(f"no such page: {', '.join(sorted(unknown))}\nhint: one of {', '.join([*PAGES, *TABLES])}")
    for name, page in PAGES.items():
        if not names or name in names:
            path_of(name).write_text(page(), encoding="utf-8")
    for name, write in TABLES.items():
        if not names or name in names:
            write()


if __name__ == "__main__":
    main(sys.argv[1:])
