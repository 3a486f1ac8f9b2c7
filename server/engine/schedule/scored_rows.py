"""What a head's output rows say to the readings that asked for them: log-probs, scalars, answers to rules.

All readings of one pass are taken together, since whoever reads a number waits for the device: once for all scalars, and once for
SLICE_ROWS rows of logits. A row's numbers do not depend on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polyhead.server.engine.layers.sampler import Draw, DrawRow, Draws
from polyhead.server.engine.work.request import Output, Reading
from polyhead.server.engine.work.sampling import SamplingParams

RAW = SamplingParams()  # temperature 1, nothing left out
SLICE_ROWS = 64  # rows of (rows, vocab) log-probs at once: a pass must not need the log-probs of all its rows a second time


@dataclass(frozen=True, slots=True)
class Part:
    """Some output rows of one reading: `num` from row `at` on, which are of positions from `first` on."""

    reading: Reading
    at: int
    num: int
    first: int


def take_rows(parts: Sequence[Part], rows: Tensor, draw: Draw) -> None:
    """Record a head's output rows: (rows, vocab) logits or (rows,) scalars. `draw` looks tokens up."""
    _take_scalars([part for part in parts if part.reading.output is Output.SCALARS], rows)
    _take_answers([part for part in parts if part.reading.output is Output.ANSWERS], rows, draw)
    for group in _slices([part for part in parts if part.reading.output is Output.LOGPROBS]):
        _take_logprobs(group, rows, draw)
    for reading in (part.reading for part in parts):
        if not np.isfinite(reading.values[-1]).all():
            reading.error = f"{reading.head.reference} gave a number that is not finite"


def _take_scalars(parts: Sequence[Part], rows: Tensor) -> None:
    if parts:
        numbers = rows.numpy(force=True).astype(np.float32, copy=True)
        for part in parts:
            part.reading.values.append(numbers[part.at : part.at + part.num])


def _take_answers(parts: Sequence[Part], rows: Tensor, draw: Draw) -> None:
    """Log-probs of "violated" and "followed" at the last row of each reading."""
    for start in range(0, len(parts), SLICE_ROWS // 2):
        group = parts[start : start + SLICE_ROWS // 2]
        manifests = [part.reading.head.manifest for part in group]
        asked = [DrawRow(RAW, token_id=token_id) for each in manifests for token_id in (each.violated_token_id, each.followed_token_id)]
        last = [part.at + part.num - 1 for part in group]
        logprobs = draw(rows[[row for row in last for _ in range(2)]], asked).logprobs
        for part, pair in zip(group, logprobs.reshape(-1, 2), strict=True):
            part.reading.values.append(pair)


def _slices(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The same rows in groups of at most SLICE_ROWS, a long reading in several of them."""
    group, room = list[Part](), SLICE_ROWS
    for part in parts:
        taken = 0
        while taken < part.num:
            num = min(room, part.num - taken)
            group.append(Part(part.reading, part.at + taken, num, part.first + taken))
            taken, room = taken + num, room - num
            if not room:
                yield group
                group, room = [], SLICE_ROWS
    if group:
        yield group


def _take_logprobs(group: Sequence[Part], rows: Tensor, draw: Draw) -> None:
    """Raw log-probs of the tokens that follow each row, and what else the requests ask for."""
    logits = _rows_of(group, rows)
    looked_up = draw(logits, [row for part in group for row in _asked(part)])
    at = 0
    for part in group:
        own = slice(at, at + part.num)
        _keep(part.reading, looked_up, logits, own)
        at = own.stop


def _rows_of(group: Sequence[Part], rows: Tensor) -> Tensor:
    """A view where the parts lie one behind the other, else a copy."""
    start, num = group[0].at, sum(part.num for part in group)
    if group[-1].at + group[-1].num - start == num:
        return rows[start : start + num]
    return torch.cat([rows[part.at : part.at + part.num] for part in group])


def _asked(part: Part) -> list[DrawRow]:
    """The tokens that follow the part's rows, by the parameters of its request."""
    tokens, params = part.reading.sequence.tokens, part.reading.sample.request.score_sampling or RAW
    is_penalised = params.repetition_penalty != 1.0
    following = range(part.first + 1, part.first + 1 + part.num)
    return [DrawRow(params, seen=tokens[:at] if is_penalised else (), token_id=tokens[at]) for at in following]


def _keep(reading: Reading, looked_up: Draws, logits: Tensor, own: slice) -> None:
    """A reading's own rows of a slice."""
    request = reading.sample.request
    reading.values.append(looked_up.logprobs[own])
    if request.score_sampling is not None:
        reading.sampling_values.append(looked_up.sampling_logprobs[own])
    if request.with_entropy or request.num_top:
        largest, log_sums = (torch.from_numpy(each[own])[:, None].to(logits.device) for each in (looked_up.largest, looked_up.log_sums))
        raw = (logits[own] - largest).sub_(log_sums)
        if request.with_entropy:
            reading.entropies.append(_entropy(raw).numpy(force=True))
        top = raw.topk(request.num_top, dim=-1)
        reading.top.append((top.indices.numpy(force=True), top.values.numpy(force=True)))


def _entropy(raw: Tensor) -> Tensor:
    """(rows,) in nats, from (rows, vocab) log-probs. A token of probability 0 has log-prob -inf and adds nothing."""
    return -(raw.exp() * raw.clamp(min=torch.finfo(raw.dtype).min)).sum(dim=-1)
