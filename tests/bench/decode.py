"""`make bench`: decode throughput through gRPC beside transformers' `generate`, interleaved in one run. The last line is JSON.

64 greedy tokens from prompts of some 20 tokens, end-of-sequence ignored, float32, the same number of threads on both sides.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from polyhead.client import Client
from polyhead.client.local import local_server
from polyhead.heads import embedded

NUM_TOKENS = 64
STREAMS = (1, 8, 32)
NUM_RUNS = 3


def prompts(client: Client, count: int, salt: int) -> list[list[int]]:
    """Different ones each time, so that no side gains from a cached prompt."""
    text = "Story number {}: once upon a time there was a fox who lived by the sea and"
    return [client.tokenize(text.format(salt * 100 + index)) for index in range(count)]


def timed(work: Callable[[], Any]) -> float:
    started_at = time.monotonic()
    work()
    return time.monotonic() - started_at


def by_polyhead(client: Client, ids: list[list[int]]) -> float:
    """Tokens per second through the public API."""
    seconds = timed(lambda: client.generate(ids, temperature=0.0, max_new_tokens=NUM_TOKENS, ignore_eos=True))
    return len(ids) * NUM_TOKENS / seconds


@torch.inference_mode()
def by_transformers(model: Any, pad_id: int, ids: list[list[int]]) -> float:
    """Tokens per second of a static batch, padded on the left."""
    width = max(map(len, ids))
    batch = torch.tensor([[pad_id] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    options = {"min_new_tokens": NUM_TOKENS, "max_new_tokens": NUM_TOKENS, "do_sample": False, "pad_token_id": pad_id}
    return len(ids) * NUM_TOKENS / timed(lambda: model.generate(batch, attention_mask=mask, **options))


def measure(client: Client, model: Any, pad_id: int, count: int) -> dict[str, Any]:
    """Both sides in turn, several times; medians, and our spread."""
    ours, theirs = [], []
    for run in range(NUM_RUNS):
        ids = prompts(client, count, run * 10 + count)
        ours.append(by_polyhead(client, ids))
        theirs.append(by_transformers(model, pad_id, ids))
    medians = {"polyhead": statistics.median(ours), "transformers": statistics.median(theirs)}
    return {"streams": count, **medians, "spread": [min(ours), max(ours)], "ratio": medians["polyhead"] / medians["transformers"]}


def main() -> None:
    """Print a row for each number of streams, then everything as JSON."""
    folder = embedded.prepare(print)
    pad_id = AutoTokenizer.from_pretrained(folder).eos_token_id
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with (
        tempfile.TemporaryDirectory() as store,
        local_server(["--store", f"{store}/s"]) as server,
        Client(server.address, timeout=900.0) as client,
    ):
        client.wait_ready(120.0)
        by_polyhead(client, prompts(client, 2, 999))
        for count in STREAMS:
            row = measure(client, model, pad_id, count)
            rows.append(row)
            print(f"{count:>3} streams: {row['polyhead']:6.1f} tokens/s, transformers {row['transformers']:6.1f}, {row['ratio']:.2f}x")
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    print(json.dumps({**machine, "decode": rows}))


if __name__ == "__main__":
    main()
