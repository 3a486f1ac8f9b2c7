"""What `polyhead bench-gpu` measures, in order: exactness, decoding, an RL round's rollout, a swap, and a large split in 8 bit.

Everything runs in this process on random weights (models.py); transformers has the very same ones.
"""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from polyhead.server.bench import report
from polyhead.server.bench.gpu.driver import Driver, Rollout
from polyhead.server.bench.gpu.exact import exactness
from polyhead.server.bench.gpu.models import (
    LLAMA_8B,
    LLAMA_70B,
    ROLES,
    TINY,
    RandomEngine,
    RandomWeights,
    Shape,
    num_served_bytes,
    random_engine,
    unsplit_model,
)
from polyhead.server.bench.peers.on_transformers import Transformers
from polyhead.server.bench.results import OURS, Check, Row, Series
from polyhead.server.engine.build import HEAD_BLOCKS_PER_BLOCK, EngineConfig, kit_for
from polyhead.server.engine.cache import CacheShape
from polyhead.server.engine.reports import QueueLimits
from polyhead.server.engine.scheduler import SchedulerLimits

GIB = 1 << 30
SEED = 1000
SPARE = 0.1  # of the memory, for activations and what libraries take
COPY_BYTES = 4 * GIB  # of the copy that measures bandwidth, less where memory is short
COPIES = 10
SCORED = ("reference", "value", "preference", "rule")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the work is."""

    shape: Shape
    large: Shape
    streams: tuple[int, ...]
    prompt_tokens: int
    num_tokens: int
    batch_prompts: int  # of the experience batch
    num_rules: int
    rule_tokens: int
    swap_streams: int
    num_swaps: int
    copy_bytes: int


PLANS = {
    "8b": Sizes(LLAMA_8B, LLAMA_70B, (1, 8, 64, 256), 128, 128, 32, 5, 23, 64, 20, COPY_BYTES),
    "tiny": Sizes(TINY, replace(TINY, name="tiny split", num_layers=6, split_layer=4), (1, 3), 8, 6, 3, 2, 4, 3, 2, 1 << 20),
}
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Bed:
    """What the timed measures share."""

    sizes: Sizes
    ours: RandomEngine
    driver: Driver
    theirs: Transformers
    bandwidth: float  # bytes a second, read and written
    runs: int

    def prompts(self, count: int) -> list[list[int]]:
        """New ones at every call, or a cache would answer."""
        return random_prompts(self.sizes.shape.vocab_size, count, self.sizes.prompt_tokens, next(_seeds))


_seeds = itertools.count(1)


def random_prompts(vocab_size: int, count: int, length: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    ids: list[list[int]] = torch.randint(5, vocab_size, (count, length), generator=generator).tolist()
    return ids


def run(sizes: Sizes, device_name: str, runs: int, file: Path | None, tell: Tell, show: Tell) -> int:
    """All of it; the exit status. Rows are shown, and written to the file, as they come."""
    device, rows = torch.device(device_name), list[Row]()
    head = {"shape": sizes.shape.name, "device": device_of(device), "runs": runs, "versions": report.versions({})}

    def add(*more: Row) -> None:
        rows.extend(more)
        for row in more:
            show(report.block(row) + "\n")
        if file is not None:
            file.write_text(report.as_json(head, rows) + "\n", encoding="utf-8")

    tell("exactness in float32")
    add(*guarded("G1 float32", lambda: [exact_row(TINY, torch.float32, device, sizes)]))
    tell(f"making a model of the shape {sizes.shape.name}, twice")
    add(*guarded("G1 bfloat16", lambda: on_one_model(sizes, device, runs, tell)))
    release(device)
    tell(f"making a split of the shape {sizes.large.name} in 8 bit")
    add(*guarded("G6", lambda: [large_split(sizes, device)]))
    show(report.markdown(rows))
    show(report.as_json(head, rows))
    is_exact = all(check.is_met is not False for row in rows if row.id.startswith("G1") for check in row.checks)
    return 0 if is_exact and not any(series.error for row in rows for series in row.series[:1]) else 1


def guarded(row_id: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """A failure is a row that says so."""
    try:
        return measure()
    except (RuntimeError, ValueError) as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return [Row(row_id, "could not be measured", "", True, (Series(OURS, (), why),), (Check("measured", None, None),))]


def exact_row(shape: Shape, dtype: torch.dtype, device: torch.device, sizes: Sizes) -> Row:
    weights = RandomWeights(SEED, shape.spread, dtype, device)
    ours = random_engine(shape, weights, config_for(shape, sizes, dtype))
    with Driver(ours.engine, ours.roles()) as driver:
        return exactness(driver, unsplit_model(shape, ours.spec.context_length, weights), shape, sizes.num_tokens)


def on_one_model(sizes: Sizes, device: torch.device, runs: int, tell: Tell) -> list[Row]:
    """Exactness in bfloat16, then everything that is timed."""
    shape, dtype = sizes.shape, torch.bfloat16
    weights = RandomWeights(SEED, shape.spread, dtype, device)
    ours = random_engine(shape, weights, config_for(shape, sizes, dtype))
    model = unsplit_model(shape, ours.spec.context_length, weights)
    with Driver(ours.engine, ours.roles()) as driver:
        rows = [exactness(driver, model, shape, sizes.num_tokens)]
        bed = Bed(sizes, ours, driver, Transformers(model), bandwidth_of(device, sizes.copy_bytes), runs)
        for streams in sizes.streams:
            tell(f"decoding, {streams} streams")
            rows += guarded(f"G2 {streams}", partial(decoding, bed, streams))
        tell("experience batch")
        rows += guarded("G4", lambda: [experience(bed)])
        tell("swaps")
        rows += guarded("G5", lambda: [swaps(bed)])
    return rows


def decoding(bed: Bed, streams: int) -> list[Row]:
    """Tokens a second beside transformers' two ways, prefill included; and a decode step against what memory allows."""
    sizes = bed.sizes
    rollouts: list[Rollout] = []
    num_tokens = streams * sizes.num_tokens

    def ours() -> float:
        rollouts.append(bed.driver.generate(bed.prompts(streams), sizes.num_tokens))
        assert all(len(each) == sizes.num_tokens for each in rollouts[-1].completions)
        return num_tokens / rollouts[-1].seconds

    def theirs(does: str) -> float:
        answer = bed.theirs.answer({"do": does, "prompts": bed.prompts(streams), "num_tokens": sizes.num_tokens})
        assert all(len(each) == sizes.num_tokens for each in answer["completions"])
        return num_tokens / float(answer["seconds"])

    series = interleaved(
        {OURS: ours, **{f"transformers {does}": partial(theirs, does) for does in ("generate", "generate_batch")}},
        bed.runs,
    )
    steps = [rollout.step_seconds(streams) for rollout in rollouts[1:]]
    moved = step_bytes(bed.ours, streams, sizes.prompt_tokens + sizes.num_tokens // 2)
    shares = tuple(moved / seconds / bed.bandwidth for seconds in steps)
    note = f"{moved / GIB:.3f} GiB a step; step {statistics.median(steps) * 1e3:.3f} ms; measured bandwidth {bed.bandwidth / 1e9:.1f} GB/s"
    what = f"{streams} streams, {sizes.prompt_tokens} + {sizes.num_tokens} tokens, {sizes.shape.name} bfloat16"
    return [
        Row(f"G2 {streams}", f"decoding, {what}", "tokens/s", True, series, notes=(graphs_note(bed.ours),)),
        Row(f"G3 {streams}", f"share of the memory roofline, {what}", "", True, (Series(OURS, shares),), notes=(note,), is_contest=False),
    ]


def step_bytes(ours: RandomEngine, streams: int, context: int) -> int:
    """What a decode step must read: every weight but the embedding's other rows, and every key and value before the token."""
    trunk, policy = ours.engine.trunk, ours.engine.active.heads["policy"].live
    embedding = trunk.module.embedding.nbytes
    kv = trunk.cache.kv.shape.kv_bytes(ours.spec.num_layers) // trunk.cache.kv.shape.block_size
    return trunk.num_bytes - embedding + policy.num_bytes + streams * context * kv


def graphs_note(ours: RandomEngine) -> str:
    varlen, graphs = ours.engine.trunk.cache.kv.shape.varlen, ours.engine.trunk.graphs
    attention = "attention.py's own" if varlen is None else "varlen_attn, " + ("paged" if varlen.is_paged else "gathered blocks")
    return f"attention: {attention}; decode steps replayed from CUDA graphs: {graphs.num_replayed if graphs else 0}"


def experience(bed: Bed) -> Row:
    """One call of ours; theirs generates, then makes a pass for every role and rule."""
    sizes = bed.sizes
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
        drawn = bed.theirs.answer({"prompts": prompts, "num_tokens": sizes.num_tokens, "seed": next(_seeds)})
        texts = [[*prompt, *completion] for prompt, completion in zip(prompts, drawn["completions"], strict=True)]
        started_at = time.perf_counter()
        for each in passes:
            bed.theirs.passes(texts, [each])
        synchronize(bed.theirs.model.device)
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
        pauses.append(driver.activate({"policy": next(turns)}).pause_s)
        time.sleep(0.01)
    gaps = rollout.wait().gaps(sizes.swap_streams)
    longest = max(gaps) / statistics.median(gaps)
    what = f"pause of the engine in {sizes.num_swaps} activations, {sizes.swap_streams} streams"
    note = f"longest wait for a token: {longest:.2f} steps"
    return Row("G5", what, "ms", False, (Series(OURS, tuple(pause * 1e3 for pause in pauses)),), notes=(note,), is_contest=False)


def large_split(sizes: Sizes, device: torch.device) -> Row:
    """Five roles that differ on one trunk in int8: what it takes, and that it generates and scores."""
    shape, dtype = sizes.large, torch.float32 if device.type == "cpu" else torch.bfloat16
    what = f"{shape.name}, {shape.split_layer}/{shape.num_layers - shape.split_layer} split, five different roles in int8: memory"
    few = replace(sizes, shape=shape, streams=(sizes.batch_prompts,))
    config = replace(config_for(shape, few, dtype), is_trunk_int8=True, is_head_int8=True)
    needed, free = large_bytes(shape, config, dtype, device), free_bytes(device)
    if needed > free:
        why = f"{needed / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free"
        return Row("G6", what, "GiB", False, (Series(shape.name, (), why), Series(OURS, (), why)), is_contest=False)
    ours = random_engine(shape, RandomWeights(SEED, shape.spread, dtype, device), config)
    with Driver(ours.engine, ours.roles()) as driver:
        rules = {"r": random_prompts(shape.vocab_size, 1, sizes.rule_tokens, SEED)[0]}
        prompts = random_prompts(shape.vocab_size, sizes.batch_prompts, sizes.prompt_tokens, SEED)
        rollout = driver.generate(prompts, sizes.num_tokens, score=SCORED, rules=rules, temperature=1.0)
        num_scored = sum(len(sample.done) for sample in rollout.samples)
        assert num_scored == len(prompts) * (len(SCORED)), f"of {len(prompts)} samples {num_scored} readings were scored"
        heads = {name: head.live.num_bytes for name, head in driver.heads.items()}
        table = {"trunk": ours.engine.trunk.num_bytes, **heads, "caches": config.cache_bytes}
        step = rollout.step_seconds(len(prompts))
    notes = [f"{name}: {size / GIB:.4f} GiB" for name, size in table.items()]
    if device.type == "cuda":
        notes.append(f"most that torch held: {torch.cuda.max_memory_reserved(device) / GIB:.1f} GiB")
    notes.append(f"{len(prompts)} streams: {sizes.num_tokens} tokens each, all scored by four roles; step {step * 1e3:.2f} ms")
    one_model = ours.engine.trunk.num_bytes + heads["policy"]
    series = (Series("all of it", (sum(table.values()) / GIB,)), Series("five whole models", (5 * one_model / GIB,)))
    return Row("G6", what, "GiB", False, series, notes=tuple(notes))


def large_bytes(shape: Shape, config: EngineConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Weights, caches and the largest tensor while it is made."""
    spec = shape.spec(config.max_context)
    cache = CacheShape(shape.num_kv_heads, shape.head_dim, config.block_size, dtype, device)
    kit = kit_for(True, config, cache)
    largest = 2 * shape.vocab_size * shape.d_model * 4
    return num_served_bytes(spec, kit, dtype, num_logit_heads=3, num_score_heads=2) + config.cache_bytes + largest


def config_for(shape: Shape, sizes: Sizes, dtype: torch.dtype) -> EngineConfig:
    """Caches for the most streams, twice as long as decoded texts: rules come behind, and swaps decode on."""
    context = 2 * (sizes.prompt_tokens + 2 * sizes.num_tokens + sizes.num_rules * sizes.rule_tokens)
    num_head_layers = shape.num_layers - shape.split_layer
    kv_bytes = 2 * shape.num_kv_heads * shape.head_dim * dtype.itemsize
    token_bytes = kv_bytes * (shape.split_layer + HEAD_BLOCKS_PER_BLOCK * num_head_layers) + 2 * shape.d_model * dtype.itemsize
    most = max(sizes.streams)
    return EngineConfig(
        cache_bytes=token_bytes * (most * (context // 2) + 4 * context + 256),
        max_context=context,
        scheduler=SchedulerLimits(max_running=max(most, 2 * sizes.batch_prompts), chunk_tokens=4096),
        queue=QueueLimits(max_tokens=1 << 30),
    )


def interleaved(contenders: dict[str, Callable[[], float]], runs: int) -> tuple[Series, ...]:
    """Each in turn, after one round that does not count. One that fails stays failed."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    errors: dict[str, str] = {}
    for number, (name, measure) in itertools.product(range(runs + 1), contenders.items()):
        if name in errors:
            continue
        try:
            value = measure()
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            errors[name], values[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", []
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


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release(device: torch.device) -> None:
    """Give back what the models before took."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * (1 - SPARE))
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def device_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
