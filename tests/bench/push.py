"""`python -m tests.bench.push`: what it takes to push and activate a head over loopback, and what it does to running requests.

A push of the whole policy head (21 M parameters, float32, 85 MB) and one in which a single layer's norm changed, on an idle server; then
whole pushes while 8 streams decode: the longest time between two steps, as those who read the streams see it, over the ordinary one.
With `--beside ADDRESS` another server (of an older version, say) is measured in turn. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from polyhead.client import AsyncClient, Client
from polyhead.client.local import local_server

NUM_STREAMS = 8
NUM_RUNS = 3
LOAD_S = 28.0
SAME_STEP_S = 0.004  # tokens of one step arrive within this


def weights(client: Client, seed: int) -> dict[str, np.ndarray]:
    """The first policy (kept as the reference), every tensor moved a little."""
    pulled = {name: np.asarray(tensor) for name, tensor in client.pull_head("reference@1").items()}
    return {name: tensor * np.float32(1 + 1e-4 * (seed + 1)) for name, tensor in pulled.items()}


def push(client: Client, tensors: dict[str, np.ndarray], **options: Any) -> dict[str, float]:
    """Push and activate; when it began, seconds of both, and bytes sent."""
    started_at = time.monotonic()
    report = client.push("policy", tensors, **options)
    pushed_at = time.monotonic()
    client.activate({"policy": report.version})
    ended_at = time.monotonic()
    return {"at": started_at, "push": pushed_at - started_at, "both": ended_at - started_at, "bytes": report.num_bytes_sent}


def idle(client: Client, run: int) -> dict[str, dict[str, float]]:
    """A whole push, then one against it in which one norm differs."""
    whole = weights(client, run)
    first = push(client, whole)
    norm = "model.layers.24.input_layernorm.weight"
    changed = {**whole, norm: whole[norm] * np.float32(1.5)}
    return {"whole": first, "delta": push(client, changed, base=client.head("policy").ref)}


async def read_streams(address: str, seconds: float) -> list[float]:
    """When tokens arrived, of streams that are begun anew until the time is over."""
    arrivals: list[float] = []
    end_at = time.monotonic() + seconds

    async def read(client: AsyncClient, index: int) -> None:
        while time.monotonic() < end_at:
            text = f"Story {index} of {time.monotonic()}: once upon a time there was a fox who lived by the sea and"
            stream = client.stream(text, max_new_tokens=256, ignore_eos=True, temperature=1.0)
            async with stream:
                async for _ in stream:
                    arrivals.append(time.monotonic())
                    if arrivals[-1] > end_at:
                        break

    async with AsyncClient(address, timeout=600.0) as client:
        await asyncio.gather(*(read(client, index) for index in range(NUM_STREAMS)))
    return arrivals


def steps_of(arrivals: list[float]) -> list[tuple[float, float]]:
    """(end, seconds since the one before) of each step."""
    ends = [at for at, after in zip(arrivals, [*arrivals[1:], float("inf")], strict=True) if after - at > SAME_STEP_S]
    return [(end, end - before) for before, end in itertools.pairwise(ends)]


def under_load(address: str, client: Client, run: int) -> list[dict[str, float]]:
    """Three pushes beside the streams: step times within each, over the median of those outside all."""
    heads = [weights(client, 100 + 10 * run + index) for index in range(3)]
    command = [sys.executable, "-m", "tests.bench.push", "--read", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        time.sleep(6.0)  # it starts, and the prompts are read
        pushes = []
        for tensors in heads:
            time.sleep(2.5)
            pushes.append(push(client, tensors))
        assert reader.stdout is not None
        steps = steps_of(json.loads(reader.stdout.read()))
    spans = [(each["at"], each["at"] + each["both"]) for each in pushes]
    within = [[gap for end, gap in steps if start < end and end - gap < stop] for start, stop in spans]
    quiet = [gap for end, gap in steps if not any(start - 0.5 < end and end - gap < stop + 0.5 for start, stop in spans)]
    ordinary = statistics.median(quiet[len(quiet) // 8 :])
    return [
        {"both": each["both"], "step": ordinary, "median": statistics.median(gaps) / ordinary, "longest": max(gaps) / ordinary}
        for each, gaps in zip(pushes, within, strict=True)
    ]


def measure(addresses: dict[str, str]) -> dict[str, Any]:
    """Every server in turn, several times."""
    found: dict[str, Any] = {name: {"idle": [], "load": []} for name in addresses}
    for run in range(NUM_RUNS):
        for name, address in addresses.items():
            with Client(address, timeout=600.0) as client:
                client.wait_ready(120.0)
                found[name]["idle"].append(idle(client, run))
                found[name]["load"] += under_load(address, client, run)
    return {name: _summary(rows) for name, rows in found.items()}


def _summary(rows: dict[str, Any]) -> dict[str, Any]:
    def middle(values: list[float]) -> list[float]:
        return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]

    return {
        "whole_s": middle([row["whole"]["both"] for row in rows["idle"]]),
        "delta_s": middle([row["delta"]["both"] for row in rows["idle"]]),
        "bytes": [rows["idle"][0][form]["bytes"] for form in ("whole", "delta")],
        "loaded_s": middle([row["both"] for row in rows["load"]]),
        "step_ratio": middle([row["median"] for row in rows["load"]]),
        "longest_step_ratio": middle([row["longest"] for row in rows["load"]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--beside", metavar="ADDRESS", help="another server that is measured in turn")
    parser.add_argument("--read", metavar="ADDRESS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(asyncio.run(read_streams(arguments.read, LOAD_S))))
        return
    with tempfile.TemporaryDirectory() as store, local_server(["--store", f"{store}/s"]) as server:
        beside = {"beside": arguments.beside} if arguments.beside else {}
        found = measure({"polyhead": server.address, **beside})
    for name, row in found.items():
        print(f"{name}: median, least, most")
        for key, value in row.items():
            print(f"  {key:20} {value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
