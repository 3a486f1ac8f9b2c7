"""transformers: `generate` over a static padded batch, continuous batching, and whole forward passes that score texts.

One model stands in for every role; each role is a pass of its own, because real roles have weights of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

PADDING = 0  # any id: it is masked
PAGE_TOKENS = 256  # of continuous batching, by default
MOST_BATCH_TOKENS = 1024
BATCH_TEXTS = 32  # of one forward pass


class Transformers:
    """The unsplit model."""

    def __init__(self, model: Any) -> None:
        transformers.utils.logging.set_verbosity_error()
        self.model = model.eval()
        self.model.generation_config.eos_token_id = None  # never ends: what ignoring EOS means here
        self.score = nn.Linear(model.config.hidden_size, 1, bias=False).to(model.device, model.dtype)
        precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[model.dtype]
        self.about = {"engine": "transformers", "version": transformers.__version__, "precision": precision}

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        does: dict[str, Callable[..., Any]] = {"generate": self.generate, "generate_batch": self.generate_batch, "passes": self.passes}
        arguments = {key: value for key, value in question.items() if key != "do"}
        started_at = time.perf_counter()
        completions = does[question.get("do", "generate")](**arguments)
        return {"seconds": time.perf_counter() - started_at, "completions": completions}

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], num_tokens: int, seed: int | None = None) -> list[list[int]]:
        """A static batch, padded on the left. With a seed it is sampled, the plain distribution."""
        ids, mask = self.padded(prompts)
        options: dict[str, Any] = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens, "pad_token_id": PADDING}
        if seed is None:
            options["do_sample"] = False
        else:
            torch.manual_seed(seed)
            options |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        drawn: list[list[int]] = self.model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()
        return drawn

    def generate_batch(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Continuous batching, on a thread of its own: it fails within somebody else's inference mode.

        The size of its cache is said, or it takes most of the machine's free memory.
        """
        config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, eos_token_id=-1, pad_token_id=PADDING)
        pages = -(-(max(map(len, prompts)) + num_tokens) // PAGE_TOKENS) * len(prompts)
        batching = ContinuousBatchingConfig(num_blocks=pages + 1, max_batch_tokens=MOST_BATCH_TOKENS, allow_block_sharing=False)
        results = self.model.generate_batch(
            inputs=prompts, generation_config=config, continuous_batching_config=batching, progress_bar=False
        )
        if failed := next((result.error for result in results.values() if result.error), None):
            raise RuntimeError(failed)
        by_number = sorted(results.values(), key=lambda result: int(result.request_id.rsplit("_", 1)[-1]))
        return [list(result.generated_tokens) for result in by_number]

    @torch.inference_mode()
    def passes(self, texts: list[list[int]], passes: list[dict[str, Any]]) -> list[list[int]]:
        """A whole forward pass over all texts for each entry: what is read of it, and a suffix behind every text."""
        for each in passes:
            suffix = each.get("suffix", [])
            for start in range(0, len(texts), BATCH_TEXTS):
                self.one_pass([[*text, *suffix] for text in texts[start : start + BATCH_TEXTS]], each["reads"], each["num_last"])
        return []

    def one_pass(self, texts: list[list[int]], reads: str, num_last: int) -> Tensor:
        """Log-probs of each text's last tokens, scalars before them, or the distribution behind it."""
        ids, mask = self.padded(texts)
        inputs = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0), "use_cache": False}
        rows: Tensor
        if reads == "scalars":
            rows = self.score(self.model.model(ids, **inputs).last_hidden_state[:, -num_last - 1 : -1]).squeeze(-1)  # (texts, num_last)
        elif reads == "answers":
            rows = self.model(ids, **inputs, logits_to_keep=1).logits[:, 0].log_softmax(-1)  # (texts, vocab)
        else:
            assert reads == "logprobs", reads
            logits = self.model(ids, **inputs, logits_to_keep=num_last + 1).logits[:, :-1]
            rows = logits.gather(2, ids[:, -num_last:, None]).squeeze(-1) - logits.logsumexp(-1)  # (texts, num_last)
        return rows

    def padded(self, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        ids, mask = padded(texts)
        return ids.to(self.model.device), mask.to(self.model.device)


def padded(texts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask), padded on the left."""
    width = max(map(len, texts))
    ids = torch.tensor([[PADDING] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
    return ids, mask


def load(settings: dict[str, Any]) -> Transformers:
    torch.set_num_threads(settings["num_threads"])
    return Transformers(AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32))
