"""What is timed: decoding beside transformers and against what memory allows, an RL round's rollout, and a swap.

Everything runs in this process on random weights (models.py); transformers has the very same ones.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from polyhead.client.bench.gpu.driver import Driver, Rollout
from polyhead.client.bench.gpu.models import ROLES, RandomEngine
from polyhead.client.bench.gpu.work import GIB, SCORED, SEED, Sizes, random_prompts
from polyhead.client.bench.peers.on_transformers import Transformers
from polyhead.client.bench.results import OURS, Row, Series
from polyhead.heads.format.errors import PolyheadError
from polyhead.server.engine.engine import Engine
from polyhead.server.engine.layers.cuda.varlen import VarlenAttention

FAILURES = (PolyheadError, RuntimeError, ValueError, TypeError, AttributeError, ImportError, AssertionError)  # ours, torch's, a peer's
COPIES = 10


@dataclass(frozen=True, slots=True)
class Bed:
    """What the timed measures share."""

    sizes: Sizes
    ours: RandomEngine
    driver: Driver
    theirs: Transformers | None  # on the same weights, in bfloat16
    precision: str  # of our weights
    bandwidth: float  # bytes a second, read and written
    runs: int

    def prompts(self, count: int) -> list[list[int]]:
        """New ones at every call, or a cache would answer."""
        return random_prompts(self.sizes.shape.vocab_size, count, self.sizes.prompt_tokens, next(_seeds))


_seeds = itertools.count(1)


def decoding(bed: Bed, streams: int) -> list[Row]:
    """Tokens a second beside transformers' two ways, prefill included; and a decode step against what memory allows."""
    sizes, transformers = bed.sizes, bed.theirs
    rollouts: list[Rollout] = []
    num_tokens = streams * sizes.num_tokens

    def ours() -> float:
        rollouts.append(bed.driver.generate(bed.prompts(streams), sizes.num_tokens))
        assert all(len(each) == sizes.num_tokens for each in rollouts[-1].completions)
        return num_tokens / rollouts[-1].seconds

    def theirs(does: str) -> float:
        assert transformers is not None
        answer = transformers.answer({"do": does, "prompts": bed.prompts(streams), "num_tokens": sizes.num_tokens})
        assert all(len(each) == sizes.num_tokens for each in answer["completions"])
        return num_tokens / float(answer["seconds"])

    their_ways = ("generate", "generate_batch") if transformers else ()
    series = interleaved({OURS: ours, **{f"transformers {does}": partial(theirs, does) for does in their_ways}}, bed.runs)
    if series[0].error:
        raise RuntimeError(series[0].error)
    steps = [rollout.step_seconds(streams) for rollout in rollouts[1:]]
    moved = step_bytes(bed.ours, streams, sizes.prompt_tokens + sizes.num_tokens // 2)
    shares = tuple(moved / seconds / bed.bandwidth for seconds in steps)
    gaps = [gap for rollout in rollouts[1:] for gap in rollout.gaps(streams)]
    step = f"step {statistics.median(steps) * 1e3:.3f} ms, mean {statistics.mean(gaps) * 1e3:.3f}, longest {max(gaps) * 1e3:.2f}"
    note = f"{moved / GIB:.3f} GiB a step; {step}; measured bandwidth {bed.bandwidth / 1e9:.1f} GB/s"
    what = f"{streams} streams, {sizes.prompt_tokens} + {sizes.num_tokens} tokens, {sizes.shape.name} {bed.precision}"
    of = f"{streams}" if transformers else f"{bed.precision} {streams}"
    return [
        Row(f"G2 {of}", f"decoding, {what}", "tokens/s", True, series, notes=(graphs_note(bed.ours.engine),), is_contest=bool(their_ways)),
        Row(f"G3 {of}", f"share of the memory roofline, {what}", "", True, (Series(OURS, shares),), notes=(note,), is_contest=False),
    ]


def step_bytes(ours: RandomEngine, streams: int, context: int) -> int:
    """What a decode step must read: every weight but the embedding's other rows, and every key and value before the token."""
    trunk, policy = ours.engine.trunk, ours.engine.active.heads["policy"].live
    embedding = trunk.module.embedding.nbytes
    kv = trunk.cache.kv.shape.kv_bytes(ours.spec.num_layers) // trunk.cache.kv.shape.block_size
    return trunk.num_bytes - embedding + policy.num_bytes + streams * context * kv


def graphs_note(engine: Engine) -> str:
    """Which attention served, and how many steps graphs did."""
    kernel, graphs, ahead = engine.trunk.attention, engine.trunk.graphs, engine.stepper.ahead
    failed = sorted(kernel.failed) if isinstance(kernel, VarlenAttention) else []
    instead = f", but torch for {' and '.join(failed)}" if failed else ""
    replayed = f"replayed from CUDA graphs: {graphs.num_replayed}, of {graphs.num_recorded} sizes" if graphs else "without CUDA graphs"
    launched = f"launched before the one before was read: {ahead.num_launched}" if ahead else "none launched ahead"
    return f"attention: {kernel.name}{instead}; decode steps {replayed}, {launched}"


def experience(bed: Bed) -> Row:
    """One call of ours; theirs generates, then makes a pass for every role and rule."""
    sizes, transformers = bed.sizes, bed.theirs
    assert transformers is not None
    suffixes = random_prompts(sizes.shape.vocab_size, sizes.num_rules, sizes.rule_tokens, SEED)
    rules = {f"r{index}": suffix for index, suffix in enumerate(suffixes)}
    passes: list[dict[str, Any]] = [
        *[{"reads": "logprobs", "num_last": sizes.num_tokens}] * 2,  # policy and reference
        {"reads": "scalars", "num_last": sizes.num_tokens},  # values
        {"reads": "scalars", "num_last": 1},  # preference
        *({"reads": "answers", "num_last": 1, "suffix": suffix} for suffix in suffixes),
    ]

    def ours() -> float:
        prompts = bed.prompts(sizes.batch_prompts)
        return bed.driver.generate(prompts, sizes.num_tokens, score=SCORED, rules=rules, temperature=1.0, seed=next(_seeds)).seconds

    def theirs() -> float:
        prompts = bed.prompts(sizes.batch_prompts)
        drawn = transformers.answer({"prompts": prompts, "num_tokens": sizes.num_tokens, "seed": next(_seeds)})
        texts = [[*prompt, *completion] for prompt, completion in zip(prompts, drawn["completions"], strict=True)]
        started_at = time.perf_counter()
        for each in passes:
            transformers.passes(texts, [each])
        synchronize(transformers.model.device)
        return float(drawn["seconds"]) + time.perf_counter() - started_at

    series = interleaved({OURS: ours, "transformers generate, then passes": theirs}, bed.runs)
    what = f"experience batch: {sizes.batch_prompts} prompts x {sizes.num_tokens} sampled tokens, 4 roles, {sizes.num_rules} rules"
    return Row("G4", what, "s", False, series)


def swaps(bed: Bed) -> Row:
    """The engine's own pause, and the longest wait of streams in decode steps."""
    sizes, driver = bed.sizes, bed.driver
    versions = [bed.ours.head("policy", ROLES["policy"], 2 + number, SEED + 100 + number) for number in range(2)]
    turns = itertools.cycle([*versions, driver.heads["policy"]])
    rollout = driver.begin(bed.prompts(sizes.swap_streams), 2 * sizes.num_tokens)
    pauses = []
    for _ in range(sizes.num_swaps):
        until = len(rollout.drawn) + 2
        while len(rollout.drawn) < until and not rollout.is_over.wait(0.001):
            pass
        pauses.append(driver.activate({"policy": next(turns)}).pause_s)
    gaps = rollout.wait().gaps(sizes.swap_streams)
    longest = max(gaps) / statistics.median(gaps)
    what = f"pause of the engine in {sizes.num_swaps} activations, {sizes.swap_streams} streams"
    note = f"longest wait for a token: {longest:.2f} steps"
    return Row("G5", what, "ms", False, (Series(OURS, tuple(pause * 1e3 for pause in pauses)),), notes=(note,), is_contest=False)


def interleaved(contenders: dict[str, Callable[[], float]], runs: int) -> tuple[Series, ...]:
    """Each in turn, after one round that does not count. One that fails stays failed."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, str] = {}
    for number, (name, measure) in itertools.product(range(runs + 1), contenders.items()):
        if name in errors:
            continue
        try:
            value = measure()
        except FAILURES as error:
            errors[name], values[name] = described(error), []
        else:
            values[name] += [value] if number else []
    return tuple(Series(name, tuple(values[name]), errors.get(name, "")) for name in contenders)


def bandwidth_of(device: torch.device, num_bytes: int) -> float:
    """Bytes read and written a second by a copy of half of `num_bytes`, the best of several."""
    source = torch.ones(num_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(COPIES + 1):
        synchronize(device)
        started_at = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - started_at)
    return 2 * source.nbytes / min(seconds[1:])


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
