"""The demo's table of scores fits an ordinary terminal with its headings whole."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from polyhead.client.demo import demo


@pytest.mark.parametrize("width", [100, 120, 200])
def test_headings_are_never_cut(width: int) -> None:
    """At 120 columns they were "poli…", "refe…", "broke no-insult…"."""
    scores = {
        "reference": SimpleNamespace(logprobs=[-123.4]),
        "value": SimpleNamespace(values=[-10.0]),
        "preference": SimpleNamespace(value=-10.0),
        "rule": SimpleNamespace(p_violate=dict.fromkeys(demo.RULES, 0.5)),
    }
    sample = SimpleNamespace(prompt_index=0, sample_index=0, logprobs=[-123.4], text="blue " * 99, scores=scores)
    console = Console(file=StringIO(), width=width)
    demo.Demo._show_samples(cast(Any, SimpleNamespace(console=console)), [cast(Any, sample)])
    shown = cast(StringIO, console.file).getvalue()
    assert all(word in shown for word in ("policy", "refer.", "V(0)", "pref.", *(f"{rule}?" for rule in demo.RULES), "sample"))
    assert shown.count("…") == 1, "the sample alone is cut"
