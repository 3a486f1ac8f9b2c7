"""An engine whose paged attention and recorded steps are played on the CPU, and its tokens taken as on a GPU where that is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from polyhead.server.engine import build
from polyhead.server.engine.layers.cuda.graphs import StepGraphs
from polyhead.server.engine.layers.cuda.recorder import Recording
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


class Launches(TorchDispatchMode):
    """Operations that a GPU would launch, by name, without those of replayed steps; and those that would wait for it."""

    VIEWS = frozenset(
        {
            *("view", "slice", "select", "unbind", "as_strided", "unsqueeze", "expand", "t", "detach", "alias", "permute", "transpose"),
            *("reshape", "_unsafe_view", "view_as_real", "view_as_complex", "chunk", "split", "numpy_T", "unflatten", "flatten"),
        }
    )
    WAITS = frozenset({"_local_scalar_dense", "item", "nonzero", "masked_select", "equal", "is_nonzero"})
    EMPTY = frozenset({"empty", "new_empty", "empty_like", "empty_strided", "scalar_tensor", "lift_fresh"})

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.is_replaying = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **(kwargs or {}))
        is_same = name == "to" and result.dtype == args[0].dtype and result.device == args[0].device
        if not self.is_replaying and not is_same and name not in self.VIEWS | self.EMPTY:
            self.counts[name] += 1
        return result

    @property
    def num_waits(self) -> int:
        return sum(self.counts[name] for name in self.WAITS)
