"""Parts of the first run on a GPU (first_run.py), each in a process of its own. Knows no time limit.

usage: python -m polyhead.client.bench.gpu.parts NAME [DEVICE] [SHAPE]
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from polyhead.client.bench import report
from polyhead.client.bench.gpu import without_numba  # before what imports it
from polyhead.client.bench.gpu.driver import Driver
from polyhead.client.bench.gpu.large import large_split
from polyhead.client.bench.gpu.measures import bandwidth_of, graphs_note, synchronize
from polyhead.client.bench.gpu.models import LLAMA_8B, ROLES, TINY, RandomEngine, RandomWeights, random_engine
from polyhead.client.bench.gpu.run import EIGHT_BIT, eight_bit_decoding, exact_row, held_in
from polyhead.client.bench.gpu.work import GIB, PLANS, SEED, Sizes, config_for, random_prompts
from polyhead.server.engine.blocks.cache import CacheShape
from polyhead.server.engine.layers.cuda.eight_bit import format_for, has_fp8
from polyhead.server.engine.layers.cuda.fused_probe import fused_for
from polyhead.server.engine.layers.cuda.threads import use_device
from polyhead.server.engine.layers.cuda.varlen import candidates
from polyhead.server.engine.layers.cuda.varlen_probe import QueryHeads, working_varlen
from polyhead.server.engine.layers.linears import Quantization

FEW = {"8b": (1, 64), "tiny": (1, 3)}  # streams that are profiled

_STARTED_AT = time.monotonic()


_failed: list[str] = []  # names of what was attempted


def say(*words: object) -> None:
    print(f"[{time.monotonic() - _STARTED_AT:6.1f}]", *words, flush=True)


def attempt(name: str, work: Callable[..., Any], *inputs: Any) -> Any:
    """A failure is a traceback, and the next item."""
    say("--", name)
    try:
        return work(*inputs)
    except Exception:
        say("FAILED", name)
        _failed.append(name)
        traceback.print_exc(file=sys.stdout)
        return None


def facts(device: torch.device, sizes: Sizes) -> None:
    """The card, what attends and which kernels serve: with the log lines of those that do not."""
    if device.type == "cuda":
        say(torch.cuda.get_device_properties(device), torch.cuda.mem_get_info(device))
    say(f"copy: {bandwidth_of(device, sizes.copy_bytes) / 1e12:.2f} TB/s")
    for dtype in (torch.bfloat16, torch.float16):
        say("attention may be by", [kernel.name for kernel in candidates(device, dtype, 128)])
        for queries in (QueryHeads(4), QueryHeads(4, 50.0)):
            shape = CacheShape(8, 128, 16, dtype, device)
            chosen = attempt(f"attention in {dtype}, soft-cap {queries.softcap}", working_varlen, shape, queries)
            say("serves:", chosen.name if chosen else "torch's own calls")
        fused = attempt(f"small kernels in {dtype}", fused_for, device, dtype)
        say("small kernels that are not used:", (sorted(fused.failed) or "none") if fused else "all")
    form = attempt("fp8", format_for, "fp8", device, torch.bfloat16)
    say("fp8 products apply their scales:", form is not None and form.row_wise is not None)
    small = torch.zeros(64, device=device)
    begin = time.perf_counter()
    for _ in range(1000):
        small.add_(1.0)
    say(f"a launch on the host: {(time.perf_counter() - begin) * 1e3:.2f} us")
    synchronize(device)


def exact(device: torch.device, sizes: Sizes) -> None:
    """Log-probs and greedy tokens against transformers, on the small shape, in every precision."""
    given: list[tuple[torch.dtype, Quantization]] = [(torch.float32, "none"), (torch.bfloat16, "none")]
    given += [(torch.bfloat16, held) for held in EIGHT_BIT if held != "fp8" or device.type == "cpu" or has_fp8(device)]
    for dtype, held in given:
        for row in attempt(f"exactness, {dtype}, {held}", exact_row, TINY, device, PLANS["tiny"], dtype, held) or []:
            say(report.block(row))
            say("EXACT" if all(check.is_met for check in row.checks) else "NOT EXACT", dtype, held)


def decode(device: torch.device, sizes: Sizes, held: Quantization = "none") -> None:
    """A step's time at each number of streams, against the memory's roofline. Each is printed as it comes."""
    for row in eight_bit_decoding(sizes, device, 1, held):
        say(report.block(row))
    if device.type == "cuda":
        say(f"most that torch held: {torch.cuda.max_memory_reserved(device) / GIB:.1f} GiB")


def profile(device: torch.device, sizes: Sizes) -> None:
    """Kernels and calls of a few decode steps by their time."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    ours = engine_of(sizes, device)
    with Driver(ours.engine, {"policy": ours.head("policy", ROLES["policy"], 1, SEED)}) as driver:
        for streams in FEW["tiny" if sizes.shape is TINY else "8b"]:
            prompts = random_prompts(sizes.shape.vocab_size, streams, 16, streams)
            driver.generate(prompts, 16, temperature=1.0)
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
            with profiled(activities=kinds, experimental_config=_ExperimentalConfig(profile_all_threads=True)) as found:
                driver.generate(prompts, 16, temperature=1.0)
                synchronize(device)
            order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
            say(f"{streams} streams, 16 steps; {graphs_note(ours.engine)}")
            print(found.key_averages().table(sort_by=order, row_limit=24, max_name_column_width=60), flush=True)


def race(device: torch.device, sizes: Sizes) -> None:
    """Heads made, tried and activated beside decoding: the longest wait, and that greedy tokens stay what they were."""
    shape = sizes.shape if sizes.shape is TINY else replace(LLAMA_8B, name="8b, 8 layers", num_layers=8, split_layer=6)
    num_tokens, streams = (200, 8) if shape is not TINY else (12, 2)
    ours = engine_of(replace(sizes, shape=shape, streams=(streams,), num_tokens=num_tokens), device)
    with Driver(ours.engine, {"policy": ours.head("policy", ROLES["policy"], 1, SEED)}) as driver:
        prompts = random_prompts(shape.vocab_size, streams, 16, 5)
        driver.generate(prompts, num_tokens)
        quiet = driver.generate(prompts, num_tokens)  # like the next, it finds its prompts in the cache

        def load() -> None:
            use_device(device)
            for number in range(4):
                with ours.engine.heads.uploads.beside():
                    head = ours.head("policy", ROLES["policy"], 2 + number, SEED)
                driver.engine.warm_up(head)
                driver.activate({"policy": head})

        rollout = driver.begin(prompts, num_tokens)
        thread = threading.Thread(target=attempt, args=("four heads", load))
        thread.start()
        rollout.wait()
        thread.join()
        for name, each in (("quiet", quiet), ("loading", rollout)):
            gaps = each.gaps(streams)
            say(f"{name}: step {statistics.median(gaps) * 1e3:.2f} ms, longest {max(gaps) * 1e3:.2f} ms")
        say("same tokens:", quiet.completions == rollout.completions, graphs_note(ours.engine))


def large(device: torch.device, sizes: Sizes) -> None:
    """A 70B-shaped split with five roles in int8: what it takes."""
    say(report.block(large_split(sizes, device, say)))


def engine_of(sizes: Sizes, device: torch.device) -> RandomEngine:
    config = held_in("none", config_for(sizes.shape, sizes, torch.bfloat16))
    return random_engine(sizes.shape, RandomWeights(SEED, sizes.shape.spread, torch.bfloat16, device), config)


PARTS: dict[str, Callable[[torch.device, Sizes], None]] = {
    "facts": facts,
    "exact": exact,
    "bf16": decode,
    "large": large,
    "int8": lambda device, sizes: decode(device, sizes, "int8"),
    "fp8": lambda device, sizes: decode(device, sizes, "fp8"),
    "race": race,
    "profile": profile,
}


def main(name: str, device_name: str = "cuda", shape: str = "8b") -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
    device = torch.device(device_name)
    if without_numba.REASON:
        say("numba is replaced by nothing:", without_numba.REASON)
    use_device(device)
    attempt(name, PARTS[name], device, PLANS[shape])
    say("end of", name)
    sys.stdout.flush()
    os._exit(1 if _failed else 0)  # an engine's thread that hangs must not keep the card


if __name__ == "__main__":
    main(*sys.argv[1:])
