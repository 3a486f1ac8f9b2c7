"""LoRA heads in the engine: one pass for all adapters on a base, each row with its own, equal to the merged heads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.lora import LoraAdapter
from polyhead.server.engine.work.live import ActiveSet, LiveHead, ServedHead
from polyhead.server.engine.work.request import Request
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.versions.head_loader import HeadLoader, to_file
from tests.heads.adapters import merge_by_hand, random_adapter
from tests.heads.models import save_tiny
from tests.server.engine.harness import Bench, scores

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=10)
LORA = LoraAdapter(rank=3, alpha=1.5)
TARGETS = ("q_proj", "v_proj", "down_proj")


class Adapted:
    """A bench, its policy as a base, and adapters on it with the merged head of each."""

    def __init__(self, bench: Bench, base: LiveHead, seeds: tuple[int, ...], targets: tuple[str, ...] = TARGETS) -> None:
        self.bench = bench
        self.base = base
        self.targets = targets
        self.adapters = {seed: self.adapter(seed) for seed in seeds}

    def adapter(self, seed: int) -> LiveHead:
        spec = self.bench.spec
        loader = HeadLoader(spec, self.bench.trunk.embedding, torch.float32, torch.device("cpu"), self.bench.engine.heads.prepare)
        file = loader.open(bytearray(to_file(self.tensors(seed))))
        return loader.build_adapted(f"{self.base.digest}+{seed}", file, LORA, self.base)

    def tensors(self, seed: int) -> dict[str, Tensor]:
        return random_adapter(self.bench.spec, seed=seed, targets=self.targets)

    def merging(self, seed: int) -> Callable[[dict[str, Tensor]], None]:
        """What turns the base's tensors into those of a merged head."""

        def change(tensors: dict[str, Tensor]) -> None:
            tensors.update(merge_by_hand(tensors, self.tensors(seed), 0.5))

        return change

    def served(self, live: LiveHead, name: str = "policy", kind: HeadKind = HeadKind.POLICY) -> ServedHead:
        return ServedHead(name, 9, self.bench.manifest(kind, live), live)

    def request(self, live: LiveHead, num_tokens: int) -> Request:
        pinned = {"policy": self.served(live)}
        return self.bench.sampled(self.bench.prompt(num_tokens, num_tokens), params=GREEDY, pinned=pinned)


@pytest.fixture
def adapted(bench: Bench) -> Adapted:
    return Adapted(bench, bench.engine.active.heads["policy"].live, (1, 2, 3))


def head_forwards(bench: Bench, *requests: Request) -> tuple[int, int]:
    """(passes through head layers, steps) that these requests took."""
    before = bench.engine.counters.as_dict()
    bench.run(*requests)
    after = bench.engine.counters.as_dict()
    return after["head_forwards"] - before["head_forwards"], after["steps"] - before["steps"]


def logprobs(request: Request) -> list[float]:
    return request.samples[0].logprobs


def test_several_adapters_and_their_base_run_in_one_pass(adapted: Adapted) -> None:
    """Prompts of several lengths, prefill and decoding side by side; every row equals the merged head's."""
    bench, lengths = adapted.bench, (5, 16, 33, 40)
    lives = [adapted.base, *adapted.adapters.values()]
    requests = [adapted.request(live, length) for live, length in zip(lives, lengths, strict=True)]
    num_forwards, num_steps = head_forwards(bench, *requests)
    assert num_forwards <= num_steps, "one pass a step for all four heads"
    merged = [adapted.base, *(bench.policy(f"merged {seed}", adapted.merging(seed)) for seed in adapted.adapters)]
    alone = [adapted.request(live, length) for live, length in zip(merged, lengths, strict=True)]
    num_merged, _ = head_forwards(bench, *alone)
    assert num_merged > 3 * num_forwards, "the same as plain heads takes a pass for each"
    for one, other in zip(requests, alone, strict=True):
        assert one.samples[0].completion == other.samples[0].completion
        assert np.allclose(logprobs(one), logprobs(other), atol=1e-4, rtol=0)
    assert len({tuple(np.round(logprobs(request)[:3], 2)) for request in requests}) == 4, "four different heads"
    bench.assert_blocks_returned()


def test_several_requests_on_one_adapter_stand_side_by_side(adapted: Adapted) -> None:
    """They come between those of another adapter, in prefill and in decoding: each of them gets its own adapter's product."""
    seeds, lengths = (1, 2, 1, 3, 2, 1), (20, 21, 22, 23, 24, 25)
    together = [adapted.request(adapted.adapters[seed], length) for seed, length in zip(seeds, lengths, strict=True)]
    adapted.bench.run(*together)
    for request, seed, length in zip(together, seeds, lengths, strict=True):
        merged = adapted.request(adapted.bench.policy(f"merged {seed}", adapted.merging(seed)), length)
        adapted.bench.run(merged)
        assert np.allclose(logprobs(request), logprobs(merged), atol=1e-4, rtol=0)


def test_neighbours_on_other_adapters_change_nothing(adapted: Adapted) -> None:
    alone = adapted.request(adapted.adapters[1], 20)
    adapted.bench.run(alone)
    for others in ((2,), (2, 3), (1, 3)):
        again = adapted.request(adapted.adapters[1], 20)
        adapted.bench.run(again, *(adapted.request(adapted.adapters[seed], 10 + seed) for seed in others))
        assert again.samples[0].completion == alone.samples[0].completion
        assert np.allclose(logprobs(again), logprobs(alone), atol=1e-5, rtol=0)


def test_each_adapter_has_keys_of_its_own_over_the_shared_trunk(adapted: Adapted) -> None:
    """The same prompt through one adapter after another: no trunk token of the prompt again, no key of another adapter."""
    bench = adapted.bench
    bench.counted(adapted.request(adapted.adapters[1], 40))
    for seed in (2, 3, 1):
        request = adapted.request(adapted.adapters[seed], 40)
        assert bench.counted(request) <= GREEDY.max_new_tokens
        merged = adapted.request(bench.policy(f"merged {seed}", adapted.merging(seed)), 40)
        bench.run(merged)
        assert np.allclose(logprobs(request), logprobs(merged), atol=1e-4, rtol=0)


def test_adapters_score_one_text_in_one_pass(adapted: Adapted) -> None:
    """Policies and scalars: a preference adapter beside a policy adapter, each with its base's output."""
    bench = adapted.bench
    value = Adapted(bench, bench.engine.active.heads["value"].live, (4,))
    heads = {f"p{seed}": adapted.served(live, f"p{seed}") for seed, live in adapted.adapters.items()}
    heads |= {"v4": value.served(value.adapters[4], "v4", HeadKind.VALUE)}
    bench.engine.activate(ActiveSet(2, {**bench.engine.active.heads, **heads}))
    bench.engine._empty_inbox()
    request = bench.given(bench.prompt(12), bench.prompt(6, 1), score=(*heads, "value", "policy"))
    num_forwards, num_steps = head_forwards(bench, request)
    assert num_forwards <= 2 * num_steps, "one pass for the policies and one for the scalars"
    found = scores(request.samples[0])
    plain = bench.given(bench.prompt(12), bench.prompt(6, 1), score=("policy", "value"))
    for seed in adapted.adapters:
        bench.activate(3 + seed, policy=bench.policy(f"merged {seed}", adapted.merging(seed)), value=value.base)
        plain = bench.given(bench.prompt(12), bench.prompt(6, 1), score=("policy",))
        bench.run(plain)
        assert np.allclose(found[f"p{seed}"].result.logprobs, scores(plain.samples[0])["policy"].result.logprobs, atol=1e-4)

    def merged_value(tensors: dict[str, Tensor]) -> None:
        value.merging(4)(tensors)
        tensors["score.weight"] = bench.tensors[value.base.digest]["score.weight"].clone()

    live = bench._live("merged value", OutputKind.SCORE, merged_value)
    bench.activate(9, policy=adapted.base, value=live)
    plain = bench.given(bench.prompt(12), bench.prompt(6, 1), score=("value",))
    bench.run(plain)
    assert np.allclose(found["v4"].result.values, scores(plain.samples[0])["value"].result.values, atol=1e-4, rtol=1e-4)
    assert not np.allclose(found["v4"].result.values, found["value"].result.values, atol=1e-2)


@pytest.mark.parametrize("family", ["gemma2", "qwen3_moe", "gpt_neox", "phi3", "granite"])
def test_other_families_in_one_batch(family: str, tmp_path: Path) -> None:
    """Windows, soft-caps, experts, fused projections: adapters on every linear."""
    save_tiny(family, tmp_path)
    bench = Bench.open(tmp_path, split_layer=2, max_context=128)
    made = Adapted(bench, bench.engine.active.heads["policy"].live, (1, 2), targets=("",))
    merged = [bench.policy(f"merged {seed}", made.merging(seed)) for seed in made.adapters]
    together = [made.request(live, 20 + seed) for seed, live in made.adapters.items()]
    alone = [made.request(live, 20 + seed) for seed, live in zip(made.adapters, merged, strict=True)]
    bench.run(*together)
    bench.run(*alone)
    for one, other in zip(together, alone, strict=True):
        assert np.allclose(logprobs(one), logprobs(other), atol=1e-4, rtol=0)


def test_a_canary_beside_the_engine_disturbs_nobody(adapted: Adapted) -> None:
    """The canary runs on another thread, over the same weights, while the engine has other adapters in its rows."""
    quiet = [adapted.request(live, 24) for live in adapted.adapters.values()]
    adapted.bench.run(*quiet)
    stop, failures = threading.Event(), list[Exception]()

    def canaries() -> None:
        while not stop.is_set():
            for live in (adapted.base, *adapted.adapters.values()):
                try:
                    adapted.bench.engine.warm_up(adapted.served(live))
                except Exception as error:
                    failures.append(error)

    thread = threading.Thread(target=canaries)
    thread.start()
    try:
        for _ in range(2):
            busy = [adapted.request(live, 24) for live in adapted.adapters.values()]
            adapted.bench.run(*busy)
            for one, other in zip(busy, quiet, strict=True):
                assert np.allclose(logprobs(one), logprobs(other), atol=1e-5, rtol=0)
    finally:
        stop.set()
        thread.join(60)
    assert not failures
