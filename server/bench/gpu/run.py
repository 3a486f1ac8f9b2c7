"""`polyhead bench-gpu` from the first measure to the last line. A measure that fails is a row that says so."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from polyhead.server.bench import report
from polyhead.server.bench.gpu.driver import Driver
from polyhead.server.bench.gpu.exact import exactness
from polyhead.server.bench.gpu.large import large_split
from polyhead.server.bench.gpu.measures import FAILURES, Bed, bandwidth_of, decoding, described, experience, swaps
from polyhead.server.bench.gpu.models import TINY, RandomWeights, Shape, random_engine, unsplit_model
from polyhead.server.bench.gpu.work import SEED, Sizes, config_for
from polyhead.server.bench.peers.on_transformers import Transformers
from polyhead.server.bench.results import OURS, Check, Row, Series

Tell = Callable[[str], None]


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
    add(*guarded("G1 float32", lambda: [exact_row(TINY, device, sizes)]))
    tell(f"making a model of the shape {sizes.shape.name}, twice")
    add(*guarded("G1 bfloat16", lambda: on_one_model(sizes, device, runs, tell, add)))
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
        why = described(error)
        return [Row(row_id, "could not be measured", "", True, (Series(OURS, (), why),), (Check("measured", None, None),))]


def exact_row(shape: Shape, device: torch.device, sizes: Sizes) -> Row:
    """In float32, where rounding hides nothing."""
    dtype = torch.float32
    weights = RandomWeights(SEED, shape.spread, dtype, device)
    ours = random_engine(shape, weights, config_for(shape, sizes, dtype))
    with Driver(ours.engine, ours.roles()) as driver:
        return exactness(driver, unsplit_model(shape, ours.spec.context_length, weights), shape, sizes.num_tokens)


def on_one_model(sizes: Sizes, device: torch.device, runs: int, tell: Tell, add: Callable[..., None]) -> list[Row]:
    """Exactness in bfloat16, then everything that is timed. The last row is returned, those before it are added as they come."""
    shape, dtype = sizes.shape, torch.bfloat16
    weights = RandomWeights(SEED, shape.spread, dtype, device)
    ours = random_engine(shape, weights, config_for(shape, sizes, dtype))
    model = unsplit_model(shape, ours.spec.context_length, weights)
    with Driver(ours.engine, ours.roles()) as driver:
        add(exactness(driver, model, shape, sizes.num_tokens))
        bed = Bed(sizes, ours, driver, Transformers(model), bandwidth_of(device, sizes.copy_bytes), runs)
        for streams in sizes.streams:
            tell(f"decoding, {streams} streams")
            add(*guarded(f"G2 {streams}", partial(decoding, bed, streams)))
        tell("experience batch")
        add(*guarded("G4", lambda: [experience(bed)]))
        tell("swaps")
        return guarded("G5", lambda: [swaps(bed)])


def release(device: torch.device) -> None:
    """Give back what the models before took."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def device_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
