"""Draws next tokens for many rows at once, and looks up what given ones would have had. One arithmetic for sampling and scoring.

A row's draw depends on its logits, its seed and its position alone, never on its neighbours. Here by torch's calls, on any device;
compiled/sampler.py does the same on the CPU in one call, cuda/sampler.py on a GPU without a wait in between. Filters in the order of
transformers' `generate`: repetition penalty, temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from polyhead.server.engine.work.sampling import SamplingParams

EXCLUDED = float("-inf")
GROUP = 256  # tokens

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class DrawRow:
    """What one row's draw depends on, besides its logits."""

    params: SamplingParams
    seed: int = 0  # the sample's own
    position: int = 0  # index of the token within the sample
    seen: Sequence[int] = ()  # prompt and sample so far, for the repetition penalty
    token_id: int = -1  # a token that was drawn before, and is only looked up; -1: none


@dataclass(frozen=True, slots=True)
class Draws:
    """A token for each row; all are (rows,). Where log-probs are NaN, the row's logits were not finite and its token means nothing."""

    token_ids: np.ndarray  # int64
    logprobs: np.ndarray  # float32, raw: of the distribution at temperature 1, (logit - largest) - log_sum
    sampling_logprobs: np.ndarray  # float32: of the distribution drawn from
    largest: np.ndarray  # float32, the largest logit
    log_sums: np.ndarray  # float32, of exp(logit - largest)

    @property
    def is_finite(self) -> list[bool]:
        return (~np.isnan(self.log_sums)).tolist()  # type: ignore[no-any-return]


class Draw(Protocol):
    """(rows, vocab) float32 logits to a token for each."""

    def __call__(self, logits: Tensor, rows: list[DrawRow], /) -> Draws: ...


def sample_seed(seed: int, prompt_index: int, arm_index: int, sample_index: int) -> int:
    """A sample's own 64-bit seed: a hash of the request's seed and the sample's place, not of the prompt's content."""
    text = f"{seed}/{prompt_index}/{arm_index}/{sample_index}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) for one draw: splitmix64 (Steele et al., 2014) of seed and position, top 53 bits."""
    x = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def draw(logits: Tensor, rows: list[DrawRow]) -> Draws:
    """A token for each row of (rows, vocab) float32 logits, drawn or looked up."""
    largest = logits.amax(dim=-1, keepdim=True)
    log_sums = (logits - largest).exp_().sum(dim=-1, keepdim=True).log_()
    ids, num_tokens = [row.token_id for row in rows], logits.shape[1]
    if max(ids, default=-1) >= num_tokens:  # beyond the vocabulary: the row is treated as one that is not finite
        log_sums[[token >= num_tokens for token in ids]] = math.nan
        ids = [min(token, num_tokens - 1) for token in ids]
    is_finite = ~log_sums.isnan()  # one NaN or +inf among a row's logits, and all of its log-probs are
    usable = logits if bool(is_finite.all()) else logits.where(is_finite, 0.0)
    raw = (usable - largest).sub_(log_sums)
    given = torch.tensor(ids, device=logits.device)
    if all(is_plainly_greedy(row.params) for row in rows):
        likely = most_likely(usable)
        token_ids = likely.where(given < 0, given)
        sampling_logprobs = torch.zeros_like(largest[:, 0]).masked_fill_(token_ids != likely, EXCLUDED)
    else:
        drawn_from = _shape_logprobs(usable, raw if usable is logits else raw.where(is_finite, 0.0), rows)
        token_ids = _picked(drawn_from, rows).where(given < 0, given)
        sampling_logprobs = drawn_from.gather(1, token_ids[:, None])[:, 0]
    sampling_logprobs = sampling_logprobs.where(is_finite[:, 0], math.nan)
    logprobs = raw.gather(1, token_ids[:, None])[:, 0]
    tensors = (token_ids, logprobs, sampling_logprobs, largest[:, 0], log_sums[:, 0])
    return Draws(*(tensor.numpy(force=True) for tensor in tensors))


def _shape_logprobs(logits: Tensor, raw: Tensor, rows: list[DrawRow]) -> Tensor:
    """Log-probs of the distribution that each row's parameters define, (rows, vocab). Greedy rows put all on the likeliest token."""
    shaped = [index for index, row in enumerate(rows) if not is_plain(row.params)]
    if not shaped:
        return raw
    at = torch.tensor(shaped, device=logits.device)
    logprobs = _shape_rows(logits[at], [rows[index] for index in shaped])
    return logprobs if len(shaped) == len(rows) else raw.index_copy(0, at, logprobs)


def is_plain(params: SamplingParams) -> bool:
    """Whether these draw from the raw distribution."""
    return params.temperature == 1.0 and params.repetition_penalty == 1.0 and not params.truncates


def is_plainly_greedy(params: SamplingParams) -> bool:
    return params.temperature == 0.0 and params.repetition_penalty == 1.0


def _shape_rows(logits: Tensor, rows: list[DrawRow]) -> Tensor:
    """Logits, which are overwritten, to log-probs."""
    params = [row.params for row in rows]
    for row, param in enumerate(params):
        if param.repetition_penalty != 1.0:
            logits[row] = penalise(logits[row], param.repetition_penalty, rows[row].seen)
    likely = most_likely(logits)
    temperatures = torch.tensor([param.temperature or 1.0 for param in params], device=logits.device)[:, None]
    logits -= logits.gather(1, likely[:, None])
    logits /= temperatures  # a tiny temperature overflows to -inf, never to inf
    for row, param in enumerate(params):
        if param.truncates and param.temperature:
            _truncate(logits[row], param)
    shaped = logits.log_softmax(dim=-1)
    for row, param in enumerate(params):
        if not param.temperature:
            shaped[row] = EXCLUDED
            shaped[row, likely[row]] = 0.0
    return shaped


def penalise(logits: Tensor, penalty: float, seen: Sequence[int]) -> Tensor:
    """CTRL's repetition penalty (Keskar et al., 2019), as transformers applies it."""
    ids = torch.tensor(sorted(set(seen)), dtype=torch.long, device=logits.device)
    chosen = logits[ids]
    return logits.index_copy(0, ids, torch.where(chosen < 0, chosen * penalty, chosen / penalty))


def _truncate(logits: Tensor, params: SamplingParams) -> None:
    """Exclude tokens, in place. Ties at a threshold are kept for top_k; the likeliest token always stays."""
    if 0 < params.top_k < logits.shape[-1]:
        logits.masked_fill_(logits < logits.topk(params.top_k).values[-1], EXCLUDED)
    if params.top_p < 1.0:
        keep = _nucleus(logits.softmax(dim=-1), params.top_p)
        kept = logits[keep]
        logits.fill_(EXCLUDED).index_copy_(0, keep, kept)
    if params.min_p > 0.0:
        probs = logits.softmax(dim=-1)
        logits.masked_fill_(probs < params.min_p * probs.max(), EXCLUDED)


def _nucleus(probs: Tensor, top_p: float) -> Tensor:
    """Ids of the fewest most_likely tokens that reach top_p.

    Those below (1 - top_p) / vocab have less than 1 - top_p together, and so none of them is needed: hardly any are left to sort.
    """
    needed = (probs >= (1.0 - top_p) / len(probs)).nonzero()[:, 0]
    ordered, order = probs[needed].sort(descending=True, stable=True)
    keep = ordered.cumsum(dim=-1) - ordered < top_p
    keep[0] = True
    return needed[order[keep]]


def _picked(logprobs: Tensor, rows: list[DrawRow]) -> Tensor:
    if all(row.params.temperature == 0.0 for row in rows):
        return most_likely(logprobs)
    numbers = [uniform(row.seed, row.position) for row in rows]
    return pick(logprobs, torch.tensor(numbers, dtype=torch.float64, device=logprobs.device))


def pick(logprobs: Tensor, numbers: Tensor) -> Tensor:
    """Invert the cumulative distribution at each row's own uniform number, (rows,). Greedy rows hold one token, which is what comes out.

    Sums of GROUP tokens find the group, then the token in it; a token of probability 0 is never found.
    """
    weights = _in_groups(logprobs.exp(), 0.0)
    sums = weights.sum(dim=-1).double()
    cumulative = sums.cumsum(dim=-1)
    targets = numbers[:, None] * cumulative[:, -1:]
    group = torch.searchsorted(cumulative, targets, right=True).clamp_(max=sums.shape[1] - 1)
    within = weights[torch.arange(len(weights), device=weights.device), group[:, 0]].double().cumsum(dim=-1)
    last = torch.nextafter(within[:, -1:], torch.zeros_like(targets))  # rounding must not lead out of the group
    left = (targets - (cumulative - sums).gather(1, group)).clamp_(min=0.0).minimum(last)
    return (group * GROUP + torch.searchsorted(within, left, right=True))[:, 0]


def most_likely(logits: Tensor) -> Tensor:
    """(rows,), the first one if several are. First the group, then the token in it: torch takes six times as long over a whole row."""
    groups = _in_groups(logits, EXCLUDED)
    group = groups.amax(dim=-1).argmax(dim=-1)
    return group * GROUP + groups[torch.arange(len(groups), device=groups.device), group].argmax(dim=-1)


def _in_groups(rows: Tensor, filler: float) -> Tensor:
    """(rows, groups, GROUP)."""
    num_missing = -rows.shape[-1] % GROUP
    rows = pad(rows, (0, num_missing), value=filler) if num_missing else rows
    return rows.reshape(len(rows), -1, GROUP)
