"""How queries pass their values."""

from __future__ import annotations

import re

from tests.guards.tree import ROOT


def test_no_placeholder_is_numbered() -> None:
    """Python 3.14 refuses `?1` with a sequence of values, and 3.12 warns of it."""
    sources = [*(ROOT / "client/annotate").rglob("*.py"), *(ROOT / "client/annotate").rglob("*.sql")]
    assert len(sources) > 50
    assert [path.name for path in sources if re.search(r"\?\d", path.read_text(encoding="utf-8"))] == []
