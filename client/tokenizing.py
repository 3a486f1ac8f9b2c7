"""Many prompts to ids, a call's worth at a time. Makes no calls: both clients drive it.

plan = TokenizePlan(prompts, special_tokens, form)
for request in plan.requests():
    with plan.counting():
        plan.take(call(request))
plan.ids
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from polyhead.client.errors import counted_from
from polyhead.client.wire.prompts import Prompt, prompt_message
from polyhead.v1 import trunk_pb2, types_pb2

__all__ = ["TokenizePlan"]

MAX_PROMPTS, MAX_BYTES = 1024, 1 << 20  # of one call, as the server has them


class TokenizePlan:
    """Prompts in order, and the ids that came back so far."""

    def __init__(self, prompts: Sequence[Prompt], special_tokens: bool, form: Mapping[str, Any]) -> None:
        """TypeError names the prompt that is none."""
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
            raise TypeError(f"prompts must be a list: {type(prompts).__name__}\nhint: tokenize() takes a single prompt")
        self.ids: list[list[int]] = []
        self._special_tokens = special_tokens
        self._messages = [prompt_message(prompt, f"prompts[{index}]", **form) for index, prompt in enumerate(prompts)]

    def requests(self) -> Iterator[trunk_pb2.TokenizeRequest]:
        """As many prompts a call as the server takes; one that is too large by itself goes alone, and is refused there."""
        waiting: list[types_pb2.Prompt] = []
        num_bytes = 0
        for message in self._messages:
            size = message.ByteSize()
            if waiting and (len(waiting) == MAX_PROMPTS or num_bytes + size > MAX_BYTES):
                yield self._request(waiting)
                waiting, num_bytes = [], 0
            waiting.append(message)
            num_bytes += size
        if waiting:
            yield self._request(waiting)

    def _request(self, prompts: list[types_pb2.Prompt]) -> trunk_pb2.TokenizeRequest:
        return trunk_pb2.TokenizeRequest(prompts=prompts, without_special_tokens=not self._special_tokens)

    def counting(self) -> AbstractContextManager[None]:
        """The server counts a call's prompts from 0: in errors they are counted from the start of all."""
        return counted_from(len(self.ids), "prompts")

    def take(self, response: trunk_pb2.TokenizeResponse) -> None:
        """A call's answer."""
        self.ids += [list(each.ids) for each in response.sequences]
