"""The embedded model as transformers runs it, unsplit, in float32. Knows nothing of servers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

PADDING = 0  # any id: it is masked


@dataclass(frozen=True)
class WholeModel:
    """A reference that is slow and plain."""

    model: PreTrainedModel
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> WholeModel:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        model.generation_config.eos_token_id = None  # never ends: what ignore_eos asks of the server
        return cls(model, AutoTokenizer.from_pretrained(folder))

    def ids_of(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    @torch.inference_mode()
    def greedy(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """What `generate` appends to each; prompts of like length share a batch, padded on the left."""
        width = max(map(len, prompts))
        ids = torch.tensor([[PADDING] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = self.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=num_tokens, pad_token_id=PADDING)
        return out[:, width:].tolist()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> torch.Tensor:
        """(tokens, vocab)"""
        return self.model(torch.tensor([ids]), use_cache=False).logits[0]

    def logprobs(self, prompt: list[int], completion: list[int]) -> NDArray[np.float32]:
        """(completion tokens,): log-probs of the completion in one forward pass."""
        rows = self.logits([*prompt, *completion])[len(prompt) - 1 : -1].log_softmax(-1)
        return rows.gather(1, torch.tensor(completion)[:, None])[:, 0].numpy()

    def top_gap(self, ids: list[int]) -> float:
        """Distance between the two largest logits after `ids`."""
        best = self.logits(ids)[-1].topk(2).values
        return float(best[0] - best[1])
