"""How large an answer may become is counted before any work, with whatever a recipe and distributions add to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.manifest import HeadManifest
from polyhead.server.engine.work.live import LiveHead, ServedHead
from polyhead.server.rewards.compose import Reward
from polyhead.server.rewards.recipes import RecipeBook
from polyhead.server.rpc.messages import generation_requests, reply_sizes, scoring_requests
from polyhead.server.rpc.messages.recipes import plan_reward, reward_of
from polyhead.server.rpc.messages.reply_sizes import num_reward_bytes
from polyhead.server.rpc.request_context import RequestContext
from polyhead.v1.generation_pb2 import DELIVERY_GROUPS, DELIVERY_SAMPLES, Arm, GenerateRequest, Selection
from polyhead.v1.scoring_pb2 import ScoreItem, ScoreRequest
from polyhead.v1.types_pb2 import Prompt, Sampling, ScoringSpec, TokenIds

KINDS = {"policy": HeadKind.POLICY, "reference": HeadKind.POLICY, "preference": HeadKind.PREFERENCE, "value": HeadKind.VALUE}


def resolve(reference: str, field: str) -> ServedHead:
    kind = KINDS[reference.partition("@")[0]]
    manifest = HeadManifest(kind, "0" * 64, 2, 4, OutputKind.OWN if kind.has_logits else OutputKind.SCORE)
    return ServedHead(reference, 1, manifest, cast(LiveHead, None))


@pytest.fixture
def context() -> RequestContext:
    tokenizer: Any = SimpleNamespace(
        stream=lambda *_: None, decode=lambda ids: "", check_ids=lambda ids, field: ids, decode_after=lambda before: lambda ids: ""
    )
    return RequestContext(tokenizer, cast(Any, None), cast(Any, None), RecipeBook(), 50_000, 100_000, frozenset(), resolve, cast(Any, None))


def generate(num_tokens: int, n: int = 1, **fields: Any) -> GenerateRequest:
    arm = Arm(n=n, sampling=Sampling(max_new_tokens=num_tokens))
    return GenerateRequest(**{"prompts": [Prompt(token_ids=TokenIds(ids=[5]))], "arms": [arm], "delivery": DELIVERY_SAMPLES, **fields})


def refused(context: RequestContext, request: GenerateRequest) -> str:
    with pytest.raises(InvalidArgument) as caught:
        generation_requests.generate_request(request, context, "r")
    return caught.value.field


def test_a_sample_with_too_many_log_probs_is_refused(context: RequestContext) -> None:
    """20 of them are 160 bytes a token: 3.5 MB at some 19,000 tokens of one policy head."""
    many = ScoringSpec(heads=["reference"], top_logprobs=20)
    assert refused(context, generate(30_000, score=many)) == "score.top_logprobs"
    generation_requests.generate_request(generate(15_000, score=many), context, "r")
    generation_requests.generate_request(generate(30_000, score=ScoringSpec(heads=["reference"])), context, "r")


@pytest.mark.parametrize(
    "spec",
    [
        ScoringSpec(heads=["reference", "policy"], top_logprobs=3),
        ScoringSpec(heads=["reference", "preference"], entropy=True),
        ScoringSpec(heads=["reference", "preference"], recipe="kl"),
    ],
)
def test_groups_and_scores_count_what_is_added_at_each_token(
    context: RequestContext, spec: ScoringSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the answer fits one message, with it not."""
    plain = ScoringSpec(heads=spec.heads)
    fields = {"num_tokens": 3_300, "n": 32, "delivery": DELIVERY_GROUPS}
    generation_requests.generate_request(generate(**fields, score=plain), context, "r")
    assert refused(context, generate(**fields, score=spec)) == "delivery"
    monkeypatch.setattr(reply_sizes, "MAX_SCORE_BYTES", reply_sizes.MAX_REPLY_BYTES)
    items = [ScoreItem(prompt=Prompt(token_ids=TokenIds(ids=[5])), token_ids=TokenIds(ids=[6] * 3_300)) for _ in range(32)]
    scoring_requests.score_request(ScoreRequest(items=items, score=plain), context, "r")
    with pytest.raises(InvalidArgument) as caught:
        scoring_requests.score_request(ScoreRequest(items=items, score=spec), context, "r")
    assert caught.value.field == "items"


def test_a_selected_group_counts_what_is_returned(context: RequestContext) -> None:
    score = ScoringSpec(recipe="kl")
    fields: dict[str, Any] = {"num_tokens": 10_000, "n": 64, "score": score, "delivery": DELIVERY_GROUPS}
    assert refused(context, generate(**fields)) == "delivery"
    work = generation_requests.generate_request(generate(**fields, select=Selection(top=1, median=True)), context, "r")
    assert work.by_group
    assert refused(context, generate(**fields, select=Selection(top=63))) == "select"


def test_a_reward_is_counted_at_least_as_large_as_it_is(context: RequestContext) -> None:
    plan = plan_reward(ScoringSpec(recipe="kl"), context, is_given=False)
    assert plan is not None
    reward = Reward({"preference": 1.0, "kl": 2.0}, 1.0, 2.0, 1.0, *([1.0] * 500 for _ in range(2)))  # type: ignore[list-item]
    message = reward_of(plan, reward, 63)
    assert message is not None
    assert 500 * 8 < len(message.SerializeToString()) <= num_reward_bytes(plan, 500)
