"""The tap layer: states inside the trunk, kept beside the boundary states and equal to the unsplit model's at that layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.pooling import Pooling, PromptPooling
from polyhead.server.engine.work.request import Request
from polyhead.server.engine.work.sampling import SamplingParams
from tests.heads.models import FAMILIES, save_tiny
from tests.server.engine.harness import Bench

SMALL_CHUNKS = SchedulerLimits(chunk_tokens=7, min_chunk_tokens=1)
SIX = SamplingParams(max_new_tokens=6)
TAP, SPLIT = 2, 3


@pytest.fixture
def tapped(llama_folder: Path) -> Bench:
    return Bench.open(llama_folder, SPLIT, tap_layer=TAP, max_context=128, scheduler=SMALL_CHUNKS)


@torch.no_grad()
def unsplit_states(bench: Bench, tokens: list[int], layer: int) -> Tensor:
    """(tokens, d_model): what transformers calls hidden_states[layer]."""
    return bench.model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer][0]


def encoded(bench: Bench, tokens: list[int], layer: int = TAP) -> Tensor:
    """(tokens, d_model) through the engine."""
    request = bench.given(tokens, [], return_states=True, states_layer=layer)
    bench.run(request)
    states = request.samples[0].states
    assert states is not None
    return states


def assert_same(found: Tensor | None, wanted: Tensor) -> None:
    """Within 1e-5 of the largest number: float32 rounding, in another order of rows."""
    assert found is not None
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def assert_tapped(bench: Bench, tokens: list[int], layer: int = TAP) -> None:
    assert_same(encoded(bench, tokens, layer), unsplit_states(bench, tokens, layer))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_familys_tap_is_its_hidden_state(family: str, tmp_path: Path) -> None:
    """Prefilled in chunks of 7, past the windows of 8."""
    save_tiny(family, tmp_path)
    bench = Bench.open(tmp_path, SPLIT, tap_layer=1, max_context=128, scheduler=SMALL_CHUNKS)
    assert_tapped(bench, bench.prompt(40), layer=1)


def test_chunks_decoding_and_the_boundary_beside_it(tapped: Bench) -> None:
    """A sample's own tokens are tapped as they are drawn; the boundary states are what they were."""
    prompt = tapped.prompt(23)
    request = tapped.sampled(prompt, params=SIX, return_states=True, states_layer=TAP)
    tapped.run(request)
    sample = request.samples[0]
    assert_same(sample.states, unsplit_states(tapped, [*prompt, *sample.completion], TAP))
    for layer in (0, SPLIT):
        assert_same(encoded(tapped, prompt, layer), unsplit_states(tapped, prompt, SPLIT))


def test_cached_and_diverging_prompts_carry_their_taps(tapped: Bench) -> None:
    """A full hit, one that ends inside a block, and one that leaves the cached text inside a block: no token is computed again."""
    prompt = tapped.prompt(45)
    assert_tapped(tapped, prompt)
    before = tapped.engine.counters.trunk_tokens
    assert_tapped(tapped, prompt)
    assert tapped.engine.counters.trunk_tokens == before
    assert_tapped(tapped, [*prompt, 9, 8, 7])
    assert tapped.engine.counters.trunk_tokens == before + 3
    assert_tapped(tapped, [*prompt[:21], 7, *prompt[22:]])
    assert tapped.engine.counters.trunk_tokens == before + 3 + 45 - 21
    tapped.assert_blocks_returned()


MAKE: dict[str, Callable[[Bench, list[int], PromptPooling], Request]] = {
    "encoded": lambda bench, prompt, pool: bench.given(prompt, [], pooling=pool),
    "scored without heads": lambda bench, prompt, pool: bench.given(prompt, [5, 6], pooling=pool),
    "scored by a head": lambda bench, prompt, pool: bench.given(prompt, [5, 6], pooling=pool, score=("reference",)),
    "sampled": lambda bench, prompt, pool: bench.sampled(prompt, n=2, params=SIX, pooling=pool),
}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("layer", [TAP, SPLIT])
def test_a_prompts_row_is_the_mean_or_the_last_of_its_own_tokens(tapped: Bench, kind: str, layer: int) -> None:
    """The completion never counts."""
    prompt = tapped.prompt(19)
    states = unsplit_states(tapped, prompt, layer).double().numpy()
    for pooling, wanted in ((Pooling.MEAN, states.mean(axis=0)), (Pooling.LAST, states[-1])):
        request = MAKE[kind](tapped, prompt, PromptPooling(layer, pooling))
        tapped.run(request)
        for sample in request.samples:
            assert sample.pooled is not None
            assert sample.pooled.dtype == np.float64
            assert_same(torch.from_numpy(sample.pooled), torch.from_numpy(wanted))


def test_a_row_needs_the_prompts_tokens_alone(tapped: Bench) -> None:
    request = tapped.given(tapped.prompt(30), tapped.prompt(20, 1), pooling=PromptPooling(TAP, Pooling.MEAN))
    assert tapped.counted(request) == 30


def test_rows_are_made_only_if_asked_for(tapped: Bench) -> None:
    request = tapped.sampled(tapped.prompt(9), params=SIX)
    tapped.run(request)
    assert request.samples[0].pooled is None
    assert request.samples[0].states is None


def test_by_default_the_middle_layer_is_tapped_if_the_trunk_holds_it(llama_folder: Path) -> None:
    assert Bench.open(llama_folder, split_layer=3).engine.trunk.tap_layer == 2
    assert Bench.open(llama_folder, split_layer=2).engine.trunk.tap_layer == 0
    assert Bench.open(llama_folder, split_layer=3, tap_layer=0).engine.trunk.cache.taps is None


@pytest.mark.parametrize("layer", [3, 4, 99])
def test_a_tap_outside_the_trunk_is_refused(llama_folder: Path, layer: int) -> None:
    with pytest.raises(InvalidArgument, match=f"inside the trunk, 1 to 2: {layer}") as caught:
        Bench.open(llama_folder, split_layer=3, tap_layer=layer)
    assert caught.value.field == "tap_layer"


def test_taps_are_paid_for_out_of_the_cache(llama_folder: Path) -> None:
    """Blocks shrink in number by what one more state a token takes, and by no more."""
    plain, tapped = (Bench.open(llama_folder, SPLIT, tap_layer=layer) for layer in (0, TAP))
    block_bytes = 16 * 4 * (3 * 2 * 2 * 8 + 32 + 3 * 1 * 2 * 2 * 8)  # floats: keys and values of 3 layers, a state, three head blocks of 1
    assert plain.engine.tree.num_slots == (64 << 20) // block_bytes
    assert tapped.engine.tree.num_slots == (64 << 20) // (block_bytes + 16 * 4 * 32)
