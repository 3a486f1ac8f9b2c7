"""How many bytes an answer takes at most, estimated before any work, and refused with the field's name if that is too much.

gRPC's own limit lies far above. The bounds protect other calls: protobuf writes a message while every thread of the process waits, the
engine's too, 10 to 20 ms for each MiB. So what is written in one piece is small. A Score's answer is written item by item, and its bound is
memory: an answer is held until it is read. Refused afterwards, its forward passes would have been for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.work.request import Request
from polyhead.server.engine.work.sampling import SamplingParams
from polyhead.server.rewards.compose import RewardPlan, Selection
from polyhead.server.rpc.tag import tag_of

MAX_REPLY_BYTES = 3_500_000  # of what is written in one piece: a sample, a prompt's group, the ids of a Tokenize, a listing
MAX_SCORE_BYTES = 64 << 20  # of a Score's answer
SAMPLE_BYTES = 530  # of a sample on the wire, beside its tokens and stops
HEAD_BYTES, RULE_BYTES, OOD_BYTES = 350, 32, 100  # of one head's answer, one rule's beside its id, an OOD score
REWARD_BYTES, CONSTANT_BYTES = 300, 24  # of one reward, and of one of its parts or constants beside the name
RANKED_BYTES = 16  # of a sample that is only ranked


def check_score_size(request: Request, plan: RewardPlan | None, lengths: Iterable[int]) -> None:
    """A Score's answer to items of so many tokens."""
    num_bytes = sum(num_sample_bytes(request, SamplingParams(), length, plan) for length in lengths)
    if num_bytes > MAX_SCORE_BYTES:
        problem = f"the answer would take up to {num_bytes} bytes, at most {MAX_SCORE_BYTES} are sent"
        raise InvalidArgument(f"{problem}\nhint: send fewer items at a time", field="items")


def check_group_size(plan: RewardPlan | None, selection: Selection | None, group_size: int, largest: int) -> None:
    """A prompt's group, of which `selection` returns a part, with samples of `largest` bytes."""
    num_returned = min(group_size, selection.most) if selection else group_size
    num_bytes = num_returned * largest + (group_size * RANKED_BYTES if plan else 0)
    if num_bytes > MAX_REPLY_BYTES:
        field, hint = ("select", "select fewer") if selection else ("delivery", "use DELIVERY_SAMPLES or fewer samples")
        problem = f"a prompt's group would take up to {num_bytes} bytes, at most {MAX_REPLY_BYTES} are sent in one message"
        raise InvalidArgument(f"{problem}\nhint: {hint}", field=field)


def check_sample_size(largest: int) -> None:
    """A sample of `largest` bytes, of which top log-probs are most."""
    if largest > MAX_REPLY_BYTES:
        problem = f"a sample would take up to {largest} bytes, at most {MAX_REPLY_BYTES} are sent in one message"
        raise InvalidArgument(f"{problem}\nhint: ask for fewer top log-probs, or fewer tokens", field="score.top_logprobs")


def num_sample_bytes(request: Request, params: SamplingParams, num_tokens: int, plan: RewardPlan | None) -> int:
    """Most bytes that a sample of so many tokens, its scores and its reward take on the wire; its text counts four bytes a token."""
    own_bytes = SAMPLE_BYTES + sum(4 + len(stop.encode()) for stop in params.stop) + 5 * len(params.stop_token_ids)
    questions = max(request.rules.by_template.values(), key=len, default=()) if request.rules else ()
    rule_bytes = sum(RULE_BYTES + len(question.rule_id) for question in questions)
    num_heads = len(request.score_heads)
    num_policies = sum(request.head_kinds[name] is HeadKind.POLICY for name in request.score_heads)
    token_bytes = 4 * (4 + 2 * num_heads) + 4 * num_policies * (request.with_entropy + 2 * request.num_top)
    added_bytes = (num_reward_bytes(plan, num_tokens) if plan else 0) + (OOD_BYTES if tag_of(request).ood else 0)
    return own_bytes + num_tokens * token_bytes + num_heads * (HEAD_BYTES + rule_bytes) + added_bytes


def num_reward_bytes(plan: RewardPlan, num_tokens: int) -> int:
    """Most bytes that a reward takes on the wire."""
    names = [*plan.constants, *(part.name for part in plan.recipe.parts)]
    num_per_token = 8 if plan.recipe.kl else 0
    return REWARD_BYTES + sum(CONSTANT_BYTES + len(name) for name in names) + num_per_token * num_tokens
