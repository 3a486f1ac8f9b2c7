"""The table of docs/reference/metrics.md, made from what a server exports. `python -m tests.deploy.metrics_table` writes it anew."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from polyhead.client import Client
from tests.deploy.conftest import DOCS, Exported, do_one_of_everything, scrape
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama

PAGE = DOCS / "reference" / "metrics.md"
BETWEEN = re.compile(r"(?<=<!-- metrics -->\n).*?(?=<!-- /metrics -->)", re.DOTALL)


def table(exported: Exported) -> str:
    """Rows by name; `_created` times left out."""
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for name, (kind, meaning) in sorted(exported.families.items()):
        if not name.endswith("_created"):
            labels = ", ".join(f"`{label}`" for label in sorted(_labels(name, exported) - {"le"}))
            rows.append(f"| `{name}` | {kind} | {labels} | {meaning} |")
    return "\n".join(rows) + "\n"


def _labels(family: str, exported: Exported) -> set[str]:
    suffixes = ("", "_total", "_bucket")
    return {label for suffix in suffixes for label in exported.labels.get(family + suffix, {})}


def shown() -> str:
    found = BETWEEN.search(PAGE.read_text(encoding="utf-8"))
    assert found, "docs/reference/metrics.md has lost its <!-- metrics --> marks"
    return found[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with serving(save_tiny_llama(folder / "model"), folder / "store") as server, Client(server.address, timeout=60) as client:
            do_one_of_everything(client)
            text = table(scrape(server))
    PAGE.write_text(BETWEEN.sub(lambda _: text, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
