"""Draws next tokens for many rows at once. A row's draw depends on its logits, its seed and its position alone, never on its neighbours.

Filters in the order of transformers' `generate`: repetition penalty, temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from polyhead.server.engine.sequence import SamplingParams

EXCLUDED = float("-inf")
GROUP = 256  # tokens

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class DrawRow:
    """What one row's draw depends on, besides its logits."""

    params: SamplingParams
    seed: int  # the sample's own
    position: int  # index of the token within the sample
    seen: list[int]  # prompt and sample so far, for the repetition penalty


@dataclass(frozen=True, slots=True)
class Draws:
    """A token for each row; all lists are (rows,)."""

    token_ids: list[int]
    logprobs: list[float]  # raw distribution at temperature 1
    sampling_logprobs: list[float]  # the distribution drawn from
    is_finite: list[bool]  # False: the row's logits were not finite and its token means nothing


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
    """Draw one token for each row of (rows, vocab) float32 logits."""
    raw = logits.log_softmax(dim=-1)
    is_finite = ~raw[:, 0].isnan()  # one NaN or +inf among a row's logits makes all of its log-probs NaN
    if not bool(is_finite.all()):
        logits = torch.where(is_finite[:, None], logits, torch.zeros_like(logits))
        raw = logits.log_softmax(dim=-1)
    if all(_is_plainly_greedy(row.params) for row in rows):
        token_ids = _likeliest(logits)
        sampling_logprobs = [0.0] * len(rows)
    else:
        drawn_from = shape_logprobs(logits, raw, [row.params for row in rows], [row.seen for row in rows])
        token_ids = _pick(drawn_from, rows)
        sampling_logprobs = drawn_from.gather(1, token_ids[:, None])[:, 0].tolist()
    logprobs = raw.gather(1, token_ids[:, None])[:, 0].tolist()
    return Draws(token_ids.tolist(), logprobs, sampling_logprobs, is_finite.tolist())


def shape_logprobs(logits: Tensor, raw: Tensor, params: list[SamplingParams], seen: list[list[int]]) -> Tensor:
    """Log-probs of the distribution that each row's parameters define, (rows, vocab). Greedy rows put all on the likeliest token."""
    shaped = [index for index, param in enumerate(params) if not _is_plain(param)]
    if not shaped:
        return raw
    at = torch.tensor(shaped, device=logits.device)
    rows = _shape_rows(logits[at], [params[index] for index in shaped], [seen[index] for index in shaped])
    return rows if len(shaped) == len(params) else raw.index_copy(0, at, rows)


def _is_plain(params: SamplingParams) -> bool:
    return params.temperature == 1.0 and params.repetition_penalty == 1.0 and not params.truncates


def _is_plainly_greedy(params: SamplingParams) -> bool:
    return params.temperature == 0.0 and params.repetition_penalty == 1.0


def _shape_rows(logits: Tensor, params: list[SamplingParams], seen: list[list[int]]) -> Tensor:
    """Logits, which are overwritten, to log-probs."""
    for row, (param, tokens) in enumerate(zip(params, seen, strict=True)):
        if param.repetition_penalty != 1.0:
            logits[row] = _penalise(logits[row], param.repetition_penalty, tokens)
    likeliest = _likeliest(logits)
    temperatures = torch.tensor([param.temperature or 1.0 for param in params], device=logits.device)[:, None]
    logits -= logits.gather(1, likeliest[:, None])
    logits /= temperatures  # a tiny temperature overflows to -inf, never to inf
    for row, param in enumerate(params):
        if param.truncates and param.temperature:
            _truncate(logits[row], param)
    shaped = logits.log_softmax(dim=-1)
    for row, param in enumerate(params):
        if not param.temperature:
            shaped[row] = EXCLUDED
            shaped[row, likeliest[row]] = 0.0
    return shaped


def _penalise(logits: Tensor, penalty: float, seen: list[int]) -> Tensor:
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
    """Ids of the fewest likeliest tokens that reach top_p.

    Those below (1 - top_p) / vocab have less than 1 - top_p together, and so none of them is needed: hardly any are left to sort.
    """
    needed = (probs >= (1.0 - top_p) / len(probs)).nonzero()[:, 0]
    ordered, order = probs[needed].sort(descending=True, stable=True)
    keep = ordered.cumsum(dim=-1) - ordered < top_p
    keep[0] = True
    return needed[order[keep]]


def _pick(logprobs: Tensor, rows: list[DrawRow]) -> Tensor:
    """Invert the cumulative distribution at each row's own uniform number. Greedy rows hold one token, which is what comes out.

    Sums of GROUP tokens find the group, and a second look the token in it; one that cannot come is never found.
    """
    if all(row.params.temperature == 0.0 for row in rows):
        return _likeliest(logprobs)
    weights = _in_groups(logprobs.exp(), 0.0)
    sums = weights.sum(dim=-1).double()
    cumulative = sums.cumsum(dim=-1)
    numbers = torch.tensor([uniform(row.seed, row.position) for row in rows], dtype=torch.float64, device=logprobs.device)
    targets = numbers[:, None] * cumulative[:, -1:]
    group = torch.searchsorted(cumulative, targets, right=True).clamp_(max=sums.shape[1] - 1)
    within = weights[torch.arange(len(rows), device=weights.device), group[:, 0]].double().cumsum(dim=-1)
    last = torch.nextafter(within[:, -1:], torch.zeros_like(targets))  # rounding must not lead out of the group
    left = (targets - (cumulative - sums).gather(1, group)).clamp_(min=0.0).minimum(last)
    return (group * GROUP + torch.searchsorted(within, left, right=True))[:, 0]


def _likeliest(logits: Tensor) -> Tensor:
    """(rows,), the first one if several are. First the group, then the token in it: torch takes six times as long over a whole row."""
    groups = _in_groups(logits, EXCLUDED)
    group = groups.amax(dim=-1).argmax(dim=-1)
    return group * GROUP + groups[torch.arange(len(groups), device=groups.device), group].argmax(dim=-1)


def _in_groups(rows: Tensor, filler: float) -> Tensor:
    """(rows, groups, GROUP)."""
    num_missing = -rows.shape[-1] % GROUP
    rows = pad(rows, (0, num_missing), value=filler) if num_missing else rows
    return rows.reshape(len(rows), -1, GROUP)
