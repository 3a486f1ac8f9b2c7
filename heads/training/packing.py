"""Several texts in one flat row of boundary states, each seeing only itself: what a head trains on without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Text:
    """One text whose boundary states are known."""

    token_ids: list[int]
    states_TD: Tensor
    num_prompt: int  # tokens that are not trained on

    @property
    def num_trained(self) -> int:
        """Tokens behind the prompt."""
        return len(self.token_ids) - self.num_prompt


@dataclass(frozen=True)
class Packed:
    """Texts end to end: T tokens in all."""

    states_1TD: Tensor
    positions_1T: Tensor
    mask_11TT: Tensor  # True: sees; causal, and within one text
    next_token_rows: Tensor  # positions of T that predict a token of some reply
    next_tokens: Tensor  # those tokens
    last_rows: Tensor  # position of each text's last token


def pack(texts: Sequence[Text]) -> Packed:
    """Put texts end to end."""
    lengths = [len(text.token_ids) for text in texts]
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()
    owner = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor(lengths))
    order = torch.arange(sum(lengths))
    rows = [range(start + text.num_prompt - 1, start + length - 1) for start, text, length in zip(starts, texts, lengths, strict=True)]
    targets = [token for text in texts for token in text.token_ids[text.num_prompt :]]
    return Packed(
        states_1TD=torch.cat([text.states_TD for text in texts])[None],
        positions_1T=torch.cat([torch.arange(length) for length in lengths])[None],
        mask_11TT=((owner[:, None] == owner[None, :]) & (order[:, None] >= order[None, :]))[None, None],
        next_token_rows=torch.tensor([row for run in rows for row in run]),
        next_tokens=torch.tensor(targets),
        last_rows=torch.tensor([start + length - 1 for start, length in zip(starts, lengths, strict=True)]),
    )
