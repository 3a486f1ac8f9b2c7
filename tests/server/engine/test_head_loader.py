"""Heads of one trunk differ in weights only: what else it takes to build one is made once, and the work comes in pieces."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.format.pauses import pausing
from polyhead.heads.model import family
from polyhead.server.engine.layers import layer_calls
from polyhead.server.engine.layers.fast import FastHead
from polyhead.server.versions import head_loader
from polyhead.server.versions.head_loader import HeadLoader, to_file
from tests.server.engine.harness import Bench, described


def test_the_next_head_costs_its_weights_only(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A skeleton took 50 ms with Python's lock held, and a pass through it 30: a third of a head, beside running streams."""
    made: list[str] = []

    def counted(what: str, function: object) -> object:
        return lambda *given: (made.append(what), function(*given))[1]  # type: ignore[operator]

    monkeypatch.setattr(head_loader, "head_skeleton", counted("skeleton", family.head_skeleton))
    monkeypatch.setattr(layer_calls, "layer_calls", counted("calls", layer_calls.layer_calls))
    prepare, embedding = bench.engine.heads.prepare, bench.trunk.embedding
    output = OutputKind.TIED if bench.spec.tied else OutputKind.OWN
    pauses: list[int] = []
    loader = HeadLoader(bench.spec, embedding, embedding.dtype, torch.device("cpu"), prepare)
    data = to_file(family.initial_head(bench.checkpoint, bench.spec, output))
    with pausing(pauses.append):
        lives = [loader.build(digest, loader.open(bytearray(data)), output) for digest in ("x", "y")]
    assert made == ["skeleton"], "the bench's first head has shown the calls of its layers"
    num_packed = bench.spec.num_head_layers if isinstance(lives[0].module, FastHead) else 0
    assert len(pauses) == 2 * (1 + num_packed), "a pause point after the modules, and after each layer"


@pytest.mark.parametrize(("device", "item_bytes", "has_more"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 1, False)])
def test_room_for_a_head_that_is_made_8_bits(device: str, item_bytes: int, has_more: bool, llama_folder: Path) -> None:
    """On a GPU it is there whole in bfloat16 before, and its largest matrix in float32 meanwhile: a load beyond the card's memory began."""
    spec = described(llama_folder, 2)[1]
    loader = HeadLoader(
        spec, None, torch.bfloat16, torch.device(device), lambda module: module, lambda _, shape: item_bytes * math.prod(shape)
    )
    sizes = [math.prod(shape) for shape in spec.head_schema(OutputKind.SCORE).values()]
    assert loader.num_bytes(OutputKind.SCORE) == item_bytes * sum(sizes)
    assert loader.num_loading_bytes(OutputKind.SCORE) == (2 * sum(sizes) + 9 * max(sizes) if has_more else 0)
