"""`polyhead bench-gpu` from the first measure to the last line. A measure that fails is a row that says so."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from polyhead.client.bench import report
from polyhead.client.bench.gpu.driver import Driver
from polyhead.client.bench.gpu.exact import exactness
from polyhead.client.bench.gpu.large import large_split
from polyhead.client.bench.gpu.measures import FAILURES, Bed, bandwidth_of, decoding, described, experience, swaps
from polyhead.client.bench.gpu.models import ROLES, TINY, RandomWeights, Shape, random_engine, unsplit_model
from polyhead.client.bench.gpu.work import SEED, Sizes, config_for
from polyhead.client.bench.peers.on_transformers import Transformers
from polyhead.client.bench.results import OURS, Check, Row, Series
from polyhead.server.engine.build import EngineConfig
from polyhead.server.engine.layers.cuda.eight_bit import has_fp8
from polyhead.server.engine.layers.cuda.threads import use_device
from polyhead.server.engine.layers.linears import Quantization

Tell = Callable[[str], None]
EIGHT_BIT: tuple[Quantization, ...] = ("int8", "fp8")


def run(sizes: Sizes, device_name: str, runs: int, file: Path | None, tell: Tell, show: Tell) -> int:
    """All of it; the exit status. Rows are shown, and written to the file, as they come."""
    device, rows = torch.device(device_name), list[Row]()
    use_device(device)
    head = {"shape": sizes.shape.name, "device": device_of(device), "runs": runs, "versions": report.versions({})}

    def add(*more: Row) -> None:
        rows.extend(more)
        for row in more:
            show(report.block(row) + "\n")
        if file is not None:
            file.write_text(report.as_json(head, rows) + "\n", encoding="utf-8")

    tell("exactness in float32")
    add(*guarded("G1 float32", partial(exact_row, TINY, device, sizes, torch.float32)))
    held = [each for each in EIGHT_BIT if each != "fp8" or device.type == "cpu" or has_fp8(device)]
    for quantization in held:
        tell(f"exactness in {quantization}")
        add(*guarded(f"G1 {quantization}", partial(exact_row, TINY, device, sizes, torch.bfloat16, quantization)))
    tell(f"making a model of the shape {sizes.shape.name}, twice")
    add(*guarded("G1 bfloat16", lambda: on_one_model(sizes, device, runs, tell, add)))
    for quantization in EIGHT_BIT:
        release(device)
        if quantization in held:
            tell(f"making a model of the shape {sizes.shape.name} in {quantization}")
            add(*guarded(f"G2 {quantization}", partial(one_by_one, eight_bit_decoding(sizes, device, runs, quantization), add)))
        else:
            add(Row(f"G2 {quantization}", "decoding", "", True, notes=("not measured: this GPU does not know fp8",), is_contest=False))
    release(device)
    tell(f"making a split of the shape {sizes.large.name} in 8 bit")
    add(*guarded("G6", lambda: [large_split(sizes, device)]))
    show(report.markdown(rows))
    show(report.as_json(head, rows))
    is_exact = all(check.is_met for row in rows if row.id.startswith("G1") for check in row.checks)
    return 0 if is_exact and not any(series.error for row in rows for series in row.series[:1]) else 1


def guarded(row_id: str, measure: Callable[[], list[Row]]) -> list[Row]:
    """A failure is a row that says so."""
    try:
        return measure()
    except FAILURES as error:
        traceback.print_exc()
        why = described(error)
        return [Row(row_id, "could not be measured", "", True, (Series(OURS, (), why),), (Check("measured", None, None),))]


def exact_row(shape: Shape, device: torch.device, sizes: Sizes, dtype: torch.dtype, quantization: Quantization = "none") -> list[Row]:
    """On a small model; in float32 rounding hides nothing."""
    weights = RandomWeights(SEED, shape.spread, dtype, device)
    ours = random_engine(shape, weights, held_in(quantization, config_for(shape, sizes, dtype)))
    precision = str(dtype).removeprefix("torch.") if quantization == "none" else quantization
    with Driver(ours.engine, ours.roles()) as driver:
        return [exactness(driver, unsplit_model(shape, ours.spec.context_length, weights), shape, sizes.num_tokens, precision)]


def on_one_model(sizes: Sizes, device: torch.device, runs: int, tell: Tell, add: Callable[..., None]) -> list[Row]:
    """Exactness in bfloat16, then everything that is timed. The last row is returned, those before it are added as they come."""
    shape, dtype = sizes.shape, torch.bfloat16
    weights = RandomWeights(SEED, shape.spread, dtype, device)
    ours = random_engine(shape, weights, config_for(shape, sizes, dtype))
    model = unsplit_model(shape, ours.spec.context_length, weights)
    with Driver(ours.engine, ours.roles()) as driver:
        add(exactness(driver, model, shape, sizes.num_tokens, "bfloat16"))
        bed = Bed(sizes, ours, driver, Transformers(model), "bfloat16", bandwidth_of(device, sizes.copy_bytes), runs)
        for streams in sizes.streams:
            tell(f"decoding, {streams} streams")
            add(*guarded(f"G2 {streams}", partial(decoding, bed, streams)))
        tell("experience batch")
        add(*guarded("G4", lambda: [experience(bed)]))
        tell("swaps")
        return guarded("G5", lambda: [swaps(bed)])


def one_by_one(rows: Iterator[Row], add: Callable[..., None]) -> list[Row]:
    """Each added as it comes: what comes after it may fail. None is left."""
    for row in rows:
        add(row)
    return []


def eight_bit_decoding(sizes: Sizes, device: torch.device, runs: int, quantization: Quantization) -> Iterator[Row]:
    """What weights in 8 bits make of it, beside nobody: transformers holds none of these. A number of streams that fails is a row, too."""
    shape, dtype = sizes.shape, torch.bfloat16
    config = held_in(quantization, config_for(shape, sizes, dtype))
    ours = random_engine(shape, RandomWeights(SEED, shape.spread, dtype, device), config)
    policy = {"policy": ours.head("policy", ROLES["policy"], 1, SEED)}
    with Driver(ours.engine, policy) as driver:
        bed = Bed(sizes, ours, driver, None, quantization, bandwidth_of(device, sizes.copy_bytes), runs)
        for streams in sizes.streams:
            yield from guarded(f"G2 {quantization} {streams}", partial(decoding, bed, streams))


def held_in(quantization: Quantization, config: EngineConfig) -> EngineConfig:
    return replace(config, trunk_quantization=quantization, head_quantization=quantization)


def release(device: torch.device) -> None:
    """Give back what the models before took."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def device_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
