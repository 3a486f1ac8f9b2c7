"""Draws on a GPU: layers/sampler.py's arithmetic for all rows at once, with one copy to the device and one back.

The host launches and goes on: it reads nothing in between, and may launch more before it reads at all. A step's rows go through every
filter that one of them asks for; a row that does not ask for a filter keeps what it had.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polyhead.server.engine.layers.cuda.staging import ReadBack
from polyhead.server.engine.layers.cuda.upload import upload, upload_numbers
from polyhead.server.engine.layers.sampler import EXCLUDED, DrawRow, Draws, is_plain, is_plainly_greedy, most_likely, pick, uniform
from polyhead.server.engine.work.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class DrawsAhead:
    """Draws that are launched: their tokens are on the device, and on their way to the host with the rest."""

    token_ids: Tensor  # (rows,), int64, each within the vocabulary
    numbers: ReadBack

    def read(self) -> Draws:
        words = self.numbers.read()  # 32 bits each: two of every id, then four columns of floats
        num_rows = len(self.token_ids)
        floats = words[2 * num_rows :].reshape(4, num_rows)
        return Draws(words[: 2 * num_rows].view(np.int64), *floats)


def draw(logits: Tensor, rows: list[DrawRow]) -> Draws:
    """A token for each row of (rows, vocab) float32 logits, drawn or looked up."""
    return launch(logits, rows).read()


def launch(logits: Tensor, rows: list[DrawRow]) -> DrawsAhead:
    """The same, not waited for."""
    params = [row.params for row in rows]
    facts = _facts(rows, logits.device)
    given = facts[0].long()
    largest = logits.amax(dim=-1, keepdim=True)
    log_sums = (logits - largest).exp_().sum(dim=-1, keepdim=True).log_()
    log_sums.masked_fill_((given >= logits.shape[1])[:, None], math.nan)  # beyond the vocabulary: as a row that is not finite
    given = given.clamp(max=logits.shape[1] - 1)
    is_finite = ~log_sums.isnan()
    usable = logits.where(is_finite, 0.0)
    raw = (usable - largest).sub_(log_sums)
    if all(map(is_plainly_greedy, params)):
        likely = most_likely(usable)
        token_ids = likely.where(given < 0, given)
        sampling_logprobs = torch.zeros_like(largest[:, 0]).masked_fill_(token_ids != likely, EXCLUDED)
    else:
        drawn_from = raw.where(is_finite, 0.0)
        if not all(map(is_plain, params)):
            temperatures, _, top_p, min_p, penalties = facts[2:].float()
            top_k = facts[3].long()
            penalised = _penalise(usable, rows, penalties)
            shaped = _shape(penalised, params, temperatures, top_k, top_p, min_p)
            is_shaped = (temperatures != 1.0) | (penalties != 1.0) | (top_k > 0) | (top_p < 1.0) | (min_p > 0.0)
            drawn_from = shaped.where(is_shaped[:, None], drawn_from)
        token_ids = pick(drawn_from, facts[1]).where(given < 0, given)
        sampling_logprobs = drawn_from.gather(1, token_ids[:, None])[:, 0]
    sampling_logprobs = sampling_logprobs.where(is_finite[:, 0], math.nan)
    logprobs = raw.gather(1, token_ids[:, None])[:, 0]
    columns = (token_ids.view(torch.float32), logprobs, sampling_logprobs, largest[:, 0], log_sums[:, 0])  # ids as their bits
    return DrawsAhead(token_ids, ReadBack(torch.cat(columns)))


def _facts(rows: list[DrawRow], device: torch.device) -> Tensor:
    """(7, rows) float64: token to look up or -1, uniform number, temperature, top_k, top_p, min_p, penalty."""
    table = [
        (row.token_id, uniform(row.seed, row.position), each.temperature, each.top_k, each.top_p, each.min_p, each.repetition_penalty)
        for row in rows
        for each in (row.params,)
    ]
    return upload_numbers(np.array(table, dtype=np.float64).T, device)


def _penalise(logits: Tensor, rows: Sequence[DrawRow], penalties: Tensor) -> Tensor:
    """CTRL's repetition penalty (Keskar et al., 2019), as transformers applies it. A copy of the logits."""
    seen = [(index, token) for index, row in enumerate(rows) if row.params.repetition_penalty != 1.0 for token in sorted(set(row.seen))]
    logits = logits.clone()
    if seen:
        row_ids, token_ids = upload(([index for index, _ in seen], [token for _, token in seen]), logits.device)
        chosen, penalty = logits[row_ids, token_ids], penalties[row_ids]
        logits[row_ids, token_ids] = torch.where(chosen < 0, chosen * penalty, chosen / penalty)
    return logits


def _shape(
    logits: Tensor, params: Sequence[SamplingParams], temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor
) -> Tensor:
    """Logits, which are overwritten, to log-probs of the distribution that each row's parameters define."""
    num_tokens, is_greedy = logits.shape[1], (temperatures == 0.0)[:, None]
    likely = most_likely(logits)[:, None]
    logits -= logits.gather(1, likely)
    logits /= temperatures.where(temperatures != 0.0, 1.0)[:, None]  # a tiny temperature overflows to -inf, never to inf
    most = max((each.top_k for each in params if each.top_k < num_tokens), default=0)
    if most:
        largest = logits.topk(most).values
        bound = largest.gather(1, (top_k - 1).clamp(0, most - 1)[:, None])
        logits.masked_fill_(((top_k > 0) & (top_k < num_tokens))[:, None] & (logits < bound), EXCLUDED)
    if any(each.top_p < 1.0 for each in params):
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        is_kept = ordered.cumsum(dim=-1) - ordered < top_p[:, None]
        is_kept[:, 0] = True
        is_kept = torch.zeros_like(is_kept).scatter_(1, order, is_kept) | (top_p >= 1.0)[:, None]
        logits.masked_fill_(~is_kept, EXCLUDED)
    if any(each.min_p > 0.0 for each in params):
        probs = logits.softmax(dim=-1)
        logits.masked_fill_(probs < min_p[:, None] * probs.amax(dim=-1, keepdim=True), EXCLUDED)
    greedy = torch.full_like(logits, EXCLUDED).scatter_(1, likely, 0.0)
    return greedy.where(is_greedy, logits.log_softmax(dim=-1))
