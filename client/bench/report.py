"""Rows as text for a person, as a Markdown table for docs/benchmarks.md, and as JSON for a program. Measures nothing."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from polyhead.client.bench.results import Check, Row, Series, best

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")


def block(row: Row) -> str:
    """A measure with every system's numbers and every goal's verdict."""
    width = max([len(series.name) for series in row.series] + [24])
    lines = [f"{row.id}  {row.what} [{row.unit}]"]
    for series in row.series:
        lines.append(f"  {series.name:<{width}}  {_numbers(row, series)}".rstrip())
    lines += [f"  {note}" for note in row.notes]
    for check in row.checks:
        reached = "not measured" if check.reached is None else number(check.reached)
        lines.append(f"  goal: {check.goal}: {reached}, {check.verdict}")
    return "\n".join(lines)


def _numbers(row: Row, series: Series) -> str:
    if not series.values:
        return f"not measured: {series.error or 'no run came to an end'}"
    low, high = series.spread
    text = f"{number(series.median):>9}  [{number(low)} to {number(high)}, {len(series.values)} runs]"
    if series is row.ours or not row.is_contest:
        return text
    return f"{text}  ours is {row.times_better(series):.2f}x"


def markdown(rows: Sequence[Row]) -> str:
    """One line a goal."""
    lines = ["| # | measure | ours | best other | goal | reached | met |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        other = best(row.rivals, row.is_rate) if row.is_contest else None
        beside = f"{other.name} {number(other.median)}" if other else "-"
        mine = f"{number(row.ours.median)} {row.unit}" if row.series and row.ours.values else "-"
        for check in row.checks or [Check("-", None, None)] * row.is_contest:
            reached = "-" if check.reached is None else number(check.reached)
            lines.append(f"| {row.id} | {row.what} | {mine} | {beside} | {check.goal} | {reached} | {check.verdict} |")
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits that matter, at least."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"


def machine(num_threads: int, idle_loads: Sequence[float], stolen: float) -> dict[str, Any]:
    """What the numbers were measured on, and how quiet it was."""
    flags = _cpu_field("flags").split()
    return {
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "cpu_features": [feature for feature in CPU_FEATURES if feature in flags],
        "cores": os.cpu_count(),
        "threads": num_threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "busy_while_idle": round(statistics.median(idle_loads), 3) if idle_loads else None,
        "stolen": round(stolen, 3),
    }


def versions(workers: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of our side and of every engine that was loaded."""
    found = {}
    for package in ("polyhead", "torch", "transformers", "grpcio"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | {key: str(about.get("version", "")) for key, about in workers.items() if about.get("version")}


def as_json(head: dict[str, Any], rows: Sequence[Row]) -> str:
    """One line."""
    return json.dumps({**head, "rows": [row.as_json() for row in rows]})


def _cpu_field(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
