"""vLLM built for the CPU, compiled (enforce_eager off), prefix caching off. Greedy decoding, and sampling for the experience batch."""

from __future__ import annotations

import time
from typing import Any

import vllm

MAX_STREAMS = 256


class Vllm:
    """One engine for all numbers of streams."""

    def __init__(self, model: str, max_context: int) -> None:
        self.engine = vllm.LLM(
            model=model,
            dtype="float32",
            max_model_len=max_context,
            max_num_seqs=MAX_STREAMS,
            enforce_eager=False,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        self.about = {"engine": "vLLM", "version": vllm.__version__, "precision": "f32"}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        sampled = {"temperature": 1.0, "seed": question["seed"]} if "seed" in question else {"temperature": 0.0}
        num_tokens = question["num_tokens"]
        options = vllm.SamplingParams(ignore_eos=True, max_tokens=num_tokens, min_tokens=num_tokens, detokenize=False, **sampled)
        prompts = [{"prompt_token_ids": prompt} for prompt in question["prompts"]]
        started_at = time.perf_counter()
        results = self.engine.generate(prompts, options, use_tqdm=False)
        seconds = time.perf_counter() - started_at
        return {"seconds": seconds, "completions": [list(result.outputs[0].token_ids) for result in results]}


def load(settings: dict[str, Any]) -> Vllm:
    return Vllm(settings["model"], settings["max_context"])
