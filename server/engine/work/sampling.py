"""How a sample's tokens are drawn, how they become text, and why drawing ended. Parameters are checked before they get here."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol


class FinishReason(enum.Enum):
    """Why a sample ended."""

    EOS = "eos"
    STOP_ID = "stop_id"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    ABORTED = "aborted"
    FAILED = "failed"
    GIVEN = "given"  # the completion came with the request

    @property
    def is_terminated(self) -> bool:
        """Whether the sample ended by itself: nothing follows it, and its bootstrap value is 0."""
        return self in (FinishReason.EOS, FinishReason.STOP_ID, FinishReason.STOP_STRING)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn, every default filled in."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    seed: int = 0

    @property
    def truncates(self) -> bool:
        """Whether some tokens get probability zero."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0

    @property
    def draws_all(self) -> bool:
        """Whether nothing ends the reply before max_new_tokens."""
        return self.ignore_eos and not self.stop and not self.stop_token_ids


class TextStream(Protocol):
    """Turns a sample's ids into text as they are drawn, and looks for stop strings. The engine has no tokenizer of its own."""

    text: str  # all text so far; cut at the stop string once one has matched
    matched_stop: str  # "" until one matches

    def push(self, token_id: int) -> str:
        """Take one more id and return the new text that no later id can change."""

    def finish(self) -> str:
        """Return the text that was held back."""


@dataclass(frozen=True, slots=True)
class Draws:
    """So many samples, each drawn like this."""

    num_samples: int
    params: SamplingParams
    num_to_first: int = 0  # tokens of the shortest of them, if no reader can have anything before; 0: it may end earlier, or is streamed
