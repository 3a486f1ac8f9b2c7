"""Fits of out-of-distribution scores: the messages of one upload, built and checked before anything is sent. Makes no calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from polyhead.client.wire.prompts import Prompt, prompt_list, prompt_message
from polyhead.client.wire.request_fields import enum_number, new_request_id
from polyhead.client.wire.text_check import names_bad_text
from polyhead.client.wire.trunk_requests import layer_number
from polyhead.v1 import trunk_pb2, types_pb2

__all__ = ["FitUpload", "plan_fit"]

MAX_MESSAGE_PROMPTS = 256
MAX_MESSAGE_BYTES = 3 << 20  # the server takes 4 MiB


@dataclass(frozen=True, slots=True)
class FitUpload:
    """A fit that is ready to go."""

    header: trunk_pb2.FitOodHeader
    prompts: list[types_pb2.Prompt]

    def messages(self) -> Iterator[trunk_pb2.FitOodRequest]:
        """The header, then the prompts, as many in a message as it holds. May be called again for a retry."""
        yield trunk_pb2.FitOodRequest(header=self.header)
        part: list[types_pb2.Prompt] = []
        num_bytes = 0
        for prompt in self.prompts:
            size = prompt.ByteSize()
            if part and (len(part) == MAX_MESSAGE_PROMPTS or num_bytes + size > MAX_MESSAGE_BYTES):
                yield trunk_pb2.FitOodRequest(prompts=trunk_pb2.FitOodPrompts(prompts=part))
                part, num_bytes = [], 0
            part.append(prompt)
            num_bytes += size
        if part:
            yield trunk_pb2.FitOodRequest(prompts=trunk_pb2.FitOodPrompts(prompts=part))


@names_bad_text
def plan_fit(
    name: str, prompts: Sequence[Prompt], layer: int, pooling: str | None, shrinkage: float | None, request_id: str
) -> FitUpload:
    """Raises TypeError or InvalidArgument, naming the argument."""
    listed = [prompt_message(prompt, f"prompts[{i}]") for i, prompt in enumerate(prompt_list(prompts))]
    header = trunk_pb2.FitOodHeader(
        name=name,
        layer=layer_number(layer),
        pooling=cast(Any, enum_number(trunk_pb2.Pooling, pooling, "pooling")),
        shrinkage=shrinkage,
        request_id=request_id or new_request_id(),
        num_prompts=len(listed),
    )
    return FitUpload(header, listed)
