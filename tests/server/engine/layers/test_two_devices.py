"""Heads on another device than the trunk. Both are the CPU here, by the names "cpu:0" and "cpu:1": where memory is, is noted at
each operation, and one that would read both devices, as no GPU could, fails.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polyhead.server.engine import build
from polyhead.server.engine.blocks import cache
from polyhead.server.engine.layers.cuda import threads
from polyhead.server.engine.work.request import OnSwap
from polyhead.server.engine.work.sampling import SamplingParams
from tests.heads.models import save_tiny
from tests.server.engine import harness
from tests.server.engine.harness import Bench, scores

FIRST, SECOND = torch.device("cpu", 0), torch.device("cpu", 1)
COPIES = frozenset({"to", "_to_copy", "copy_"})


class TwoDevices(TorchDispatchMode):
    """Which memory is on which device, and how often numbers cross. What was made on neither goes with everything."""

    def __init__(self) -> None:
        super().__init__()
        self.num_crossings = 0
        self._places: dict[int, tuple[torch.device, Any]] = {}  # by storage, which is held so that no other gets its identity

    def place(self, tensor: Tensor) -> torch.device | None:
        return self._places.get(tensor.untyped_storage()._cdata, (None, None))[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name.removeprefix("aten::"), kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor) and each.dim()]
        found = {self.place(each) for each in given} - {None}
        assert len(found) < 2 or name in COPIES, f"{name} reads tensors of two devices"
        asked = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.device) and each.index is not None]
        target = asked[0] if asked else next(iter(found), None)
        if name in COPIES:
            source, target = (args[1], self.place(args[0])) if name == "copy_" else (args[0], target)
            before = self.place(source)
            target = target or before
            self.num_crossings += before not in (None, target)
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and target is not None:
                storage = made.untyped_storage()
                self._places[storage._cdata] = (target, storage)
        return result


@pytest.fixture(autouse=True)
def _named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of both devices say "cpu": what takes a device from a tensor is told."""
    make, shape, trunk = torch.tensor, build.cache_shape, harness.build_trunk

    def tensor(numbers: Any, *, device: Any = None, **options: Any) -> Tensor:
        """torch makes it on the CPU and does not say where it goes."""
        return make(numbers, **options) if device is None else make(numbers, **options).to(device)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(cache, "_lazy_zeros", lambda size, dtype, device: torch.zeros(size, dtype=dtype, device=device))
    monkeypatch.setattr(build, "cache_shape", lambda *given: replace(shape(*given), device=FIRST))
    monkeypatch.setattr(harness, "build_trunk", lambda *given: trunk(*given, FIRST))




@pytest.mark.parametrize(("is_fast", "is_tied"), [(True, True), (False, False)], ids=["fast, tied", "plain, own output"])
def test_the_same_answers_from_two_devices(is_fast: bool, is_tied: bool, tmp_path: Path) -> None:
    """Replies, scores, states, and a swap that is followed, whose new head reads old states: to the last bit."""
    save_tiny("llama", tmp_path, tie_word_embeddings=is_tied, max_position_embeddings=512)
    answers = []
    for head_device in (None, SECOND):
        places = TwoDevices()
        with places if head_device is not None else contextlib.nullcontext():  # noting takes time
            bench = Bench.open(tmp_path, 2, dtype=torch.bfloat16, is_fast=is_fast, head_device=head_device)  # compiled layers are the CPU's
            answers.append(answered(bench, places))
        bench.assert_blocks_returned()
    assert answers[1] == answers[0]
    trunk, heads = bench.engine.trunk, bench.engine.heads
    assert {places.place(each) for each in (trunk.cache.states, *heads.cache.layers)} == {SECOND}
    assert {places.place(each) for each in (trunk.module.embedding, *trunk.cache.kv.layers)} == {FIRST}
    assert (None if heads.tied_embedding is None else places.place(heads.tied_embedding)) == (SECOND if is_tied else None)


def answered(bench: Bench, places: TwoDevices) -> list[Any]:
    """Boundary states are copied once in each step that the trunk works in, for all its texts, and nothing else is."""
    engine = bench.engine
    params = SamplingParams(max_new_tokens=6)
    requests = [
        bench.sampled(bench.prompt(9 + 5 * seed, seed), 1, params, score=("value", "reference"), on_swap=OnSwap.FOLLOW, return_states=True)
        for seed in range(2)
    ]
    head = bench.policy("c", lambda tensors: tensors["model.norm.weight"].mul_(1.5))
    bench.start(*requests, steps=3)
    bench.activate(2, policy=head, value=engine.active.heads["value"].live)
    found = []
    for _ in range(10):
        crossings, trunk_tokens = places.num_crossings, engine.counters.trunk_tokens
        engine.step()
        assert places.num_crossings - crossings == (engine.heads.device == SECOND and engine.counters.trunk_tokens > trunk_tokens)
    assert all(request.is_ended for request in requests)
    for sample in (sample for request in requests for sample in request.samples):
        assert sample.states is not None
        found.append((sample.completion, sample.logprobs, [span.head.version for span in sample.spans], sample.states.tolist()))
        found.append(scores(sample)["value"].result.values.tolist())
    assert {tuple(each[2]) for each in found[::2]} == {(1, 2)}
    return found


def test_a_thread_launches_where_heads_are() -> None:
    """Triton launches on the thread's device, wherever its tensors are."""
    from tests.server.engine.layers.test_cuda_threads import FakeCuda

    cuda = FakeCuda()
    with threads.on_device(torch.device("cuda:1"), cuda):
        cuda.log.append("launched")
    with threads.on_device(torch.device("cpu"), cuda):
        cuda.log.append("on the CPU")
    assert cuda.log == ["on cuda:1", "launched", "back", "on the CPU"]
