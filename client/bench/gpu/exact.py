"""Whether our engine says what transformers says of the same weights: its greedy tokens, and the log-probs of them.

In float32 the tokens must be the same ones. In 16 bit two likely tokens change places within the rounding, and a text goes on from there:
so each of our tokens is judged by what transformers gives it after the same text, and the measure is transformers' own rounding, the
distance of its two ways to attend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyhead.client.bench.gpu.driver import Driver
from polyhead.client.bench.gpu.measures import graphs_note
from polyhead.client.bench.gpu.models import Shape
from polyhead.client.bench.results import OURS, Row, Series, at_least, at_most
from polyhead.server.engine.work.request import Sample

LENGTHS = (1, 5, 16, 17, 40)  # of prompts
MEAN_ERRORS = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.2, "fp8": 1.0}  # of a log-prob, allowed whatever transformers' own rounding is
TIMES_ROUNDING = 3.0


@dataclass(frozen=True, slots=True)
class Judged:
    """transformers' view of texts that we drew, one number a token."""

    logprobs: Tensor
    regrets: Tensor  # how much likelier the likeliest token was; 0 for a greedy choice


def exactness(driver: Driver, model: Any, shape: Shape, num_tokens: int, precision: str) -> Row:
    """One row; each check is a property that must hold. `precision` of our weights: a key of MEAN_ERRORS."""
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(5, shape.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]
    samples = driver.generate(prompts, num_tokens, score=("reference",)).samples
    ours = torch.tensor([logprob for sample in samples for logprob in sample.logprobs])
    theirs, eager = judged(model, samples, "sdpa"), judged(model, samples, "eager")
    rounding = float((theirs.logprobs - eager.logprobs).abs().mean())
    allowed = max(MEAN_ERRORS[precision], TIMES_ROUNDING * rounding)
    error = float((ours - theirs.logprobs).abs().mean())
    checks = [
        at_most(f"mean error of a log-prob: at most {allowed:.2g}", error, allowed),
        at_most(f"mean distance of our greedy tokens to the likeliest: at most {allowed:.2g}", float(theirs.regrets.mean()), allowed),
    ]
    same = share_of_equal(model, samples)
    if precision == "float32":
        checks.append(at_least("greedy tokens equal to generate's: all", same, 1.0))
    notes = (
        f"transformers' own rounding, sdpa against eager: {rounding:.2g}",
        f"greedy tokens equal to generate's: {same:.1%}",
        f"largest error of a log-prob: {float((ours - theirs.logprobs).abs().max()):.2g}",
        graphs_note(driver.engine),
    )
    what = f"log-probs against transformers, {shape.name} {precision}"
    return Row(f"G1 {precision}", what, "", False, (Series(OURS, (error,)),), tuple(checks), notes, is_contest=False)


@torch.inference_mode()
def judged(model: Any, samples: list[Sample], attention: str) -> Judged:
    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    logprobs, regrets = [], []
    for sample in samples:
        ids = torch.tensor([[*sample.prompt, *sample.completion]], device=model.device)
        rows = model(ids, use_cache=False).logits[0, len(sample.prompt) - 1 : -1].float().log_softmax(-1)
        chosen = rows.gather(1, ids[0, len(sample.prompt) :, None])[:, 0]
        logprobs.append(chosen.cpu())
        regrets.append((rows.amax(dim=1) - chosen).cpu())
    model.set_attn_implementation(before)
    return Judged(torch.cat(logprobs), torch.cat(regrets))


@torch.inference_mode()
def share_of_equal(model: Any, samples: list[Sample]) -> float:
    """Of our greedy tokens, up to a text's first different one, and then none."""
    num_equal = 0
    for sample in samples:
        ids = torch.tensor([sample.prompt], device=model.device)
        num_tokens = len(sample.completion)
        options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False, "pad_token_id": 0}
        drawn = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(sample.prompt) :].tolist()
        pairs = zip(drawn, sample.completion, strict=True)
        num_equal += next((index for index, (one, other) in enumerate(pairs) if one != other), num_tokens)
    return num_equal / sum(len(sample.completion) for sample in samples)
