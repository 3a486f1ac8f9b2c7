"""An engine whose paged attention and recorded steps are played on the CPU, and its tokens taken as on a GPU where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from polyhead.server.engine import build
from polyhead.server.engine.layers.cuda.graphs import Recording, StepGraphs
from polyhead.server.engine.layers.cuda.sampler import draw, launch
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention
from tests.server.engine.harness import Bench
from tests.server.engine.layers.varlen_reference import varlen_reference

PAGED = VarlenAttention(varlen_reference, is_paged=True, reads_past_ends=False)


class Again:
    """What a graph does, as slowly as it was: the same computation on the same inputs into the same output."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self.output = compute().clone()

    def replay(self) -> None:
        self.output.copy_(self._compute())


def opened(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: Callable[[Callable[[], Tensor]], Recording] = Again,
    *,
    is_ahead: bool = False,
    eos_ids: frozenset[int] = frozenset(),
    **config: Any,
) -> Bench:
    """With `is_ahead`, draws as on a GPU, and steps launched before the one before them is read."""
    monkeypatch.setattr(build, "working_varlen", lambda *_: PAGED)
    monkeypatch.setattr(build, "step_graphs", lambda cache, attention, max_tokens: StepGraphs(cache, attention, max_tokens, record))
    monkeypatch.setattr(build, "launch_for", lambda setup: launch if is_ahead else None)
    if is_ahead:
        monkeypatch.setattr(build, "draw_for", lambda *_: draw)
    return Bench.open(folder, 2, eos_ids, **{"max_context": 128, **config})


def graphs_of(bench: Bench) -> tuple[StepGraphs, StepGraphs]:
    trunk, heads = bench.engine.trunk.graphs, bench.engine.heads.graphs
    assert trunk is not None
    assert heads is not None
    return trunk, heads


