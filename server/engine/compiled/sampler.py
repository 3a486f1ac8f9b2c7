"""Draws and looks up tokens as the other sampler does (../layers/sampler.py), all rows in one call of compiled code."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polyhead.server.engine.compiled.jobs import JOB, LOGITS, LOGITS_ROW
from polyhead.server.engine.compiled.logits import room_bytes
from polyhead.server.engine.compiled.region import region, scratch
from polyhead.server.engine.layers import sampler
from polyhead.server.engine.layers.sampler import DrawRow, Draws, is_plain, penalise


def draw(logits: Tensor, rows: list[DrawRow]) -> Draws:
    """A token for each row of (rows, vocab) float32 logits, drawn or looked up."""
    logits = logits.contiguous()
    width = logits.shape[1]
    table = np.zeros(len(rows), LOGITS_ROW)
    table["logits"] = table["shaped"] = logits.data_ptr() + np.arange(len(rows)) * width * 4
    table["token_id"] = [row.token_id for row in rows]
    table["number"] = [0.0 if row.token_id >= 0 else sampler.uniform(row.seed, row.position) for row in rows]
    table["is_plain"] = [is_plain(row.params) for row in rows]
    for name in ("temperature", "top_k", "top_p", "min_p"):
        table[name] = [getattr(row.params, name) for row in rows]
    penalised = {
        index: penalise(logits[index], row.params.repetition_penalty, row.seen)
        for index, row in enumerate(rows)
        if row.params.repetition_penalty != 1.0
    }
    for index, shaped in penalised.items():
        table["shaped"][index] = shaped.data_ptr()
    job = np.zeros(1, JOB)
    job["kind"], job["num_rows"], job["width"], job["x"] = LOGITS, len(rows), width, table.ctypes.data
    (job["out"],) = scratch.addresses([torch.get_num_threads() * room_bytes(width)])
    region().run(job)
    return Draws(*(table[name] for name in ("token_id", "logprob", "sampling_logprob", "largest", "log_sum")))
