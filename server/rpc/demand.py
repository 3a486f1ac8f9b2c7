"""The least number of tokens that a call needs, from counts alone: before a text is tokenised or a sample is built.

A few hundred KiB can ask for thousands of samples of long prompts. A call that would be refused for it is refused before that work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.v1 import generation_pb2, scoring_pb2, types_pb2


def prompt_tokens(prompt: types_pb2.Prompt) -> int:
    """Tokens that a prompt has at least: its ids, where it was given as ids; a text has one."""
    match prompt.WhichOneof("source"):
        case "token_ids":
            return max(1, len(prompt.token_ids.ids))
        case "continue_from":
            return max(1, len(prompt.continue_from.prompt_token_ids) + len(prompt.continue_from.token_ids))
    return 1


def item_tokens(item: scoring_pb2.ScoreItem) -> int:
    """Tokens that a text to score has at least, prompt and completion together."""
    return prompt_tokens(item.prompt) + (len(item.token_ids.ids) if item.WhichOneof("completion") == "token_ids" else 1)


def generated_tokens(prompt_lengths: Iterable[int], arms: Sequence[tuple[generation_pb2.Arm, SamplingParams]], num_suffix: int = 0) -> int:
    """Most tokens that all samples of such prompts come to hold, each with so many more for its scores."""
    group_size = sum(max(1, arm.n) for arm, _ in arms)
    num_new = sum(max(1, arm.n) * params.max_new_tokens for arm, params in arms)
    return sum(group_size * (length + num_suffix) + num_new for length in prompt_lengths)


def check_least_length(num_tokens: int, max_context: int, field: str) -> None:
    """InvalidArgument for what is too long by its counts, so that it is not tokenised."""
    if num_tokens > max_context:
        raise InvalidArgument(
            f"prompt and reply together have {num_tokens} tokens or more; the context holds {max_context}", field=field
        )
