"""What a role may ask for in one request, and what it does not get: without a server, message by message."""

from __future__ import annotations

import pytest

from polyhead.server.rpc import caps
from polyhead.server.rpc.auth import CAPS, Caller, Role
from polyhead.server.rpc.errors import PermissionDenied
from polyhead.v1 import generation_pb2, scoring_pb2, types_pb2

ANNOTATOR = Caller(Role.ANNOTATOR, "pages", "", CAPS[Role.ANNOTATOR])
PROMPT = types_pb2.Prompt(text="x")
ARM = generation_pb2.Arm
BEYOND = [
    {"arms": [ARM(n=9), ARM(n=8)]},
    {"prompts": [PROMPT] * 17},
    {"arms": [ARM(sampling=types_pb2.Sampling(max_new_tokens=2049))]},
    {"return_states": True},
    {"priority": types_pb2.PRIORITY_BATCH},
]


@pytest.mark.parametrize("fields", BEYOND)
def test_more_than_the_role_may_ask_for_is_refused(fields: dict[str, object]) -> None:
    message = generation_pb2.GenerateRequest(**{"prompts": [PROMPT], **fields})  # type: ignore[arg-type]
    with pytest.raises(PermissionDenied, match="the role annotator"):
        caps.check_generate(ANNOTATOR, message)
    caps.check_generate(Caller(Role.WORKER), message)


def test_as_much_as_the_role_may_ask_for_passes() -> None:
    arms = [ARM(n=16, sampling=types_pb2.Sampling(max_new_tokens=2048))]
    message = generation_pb2.GenerateRequest(prompts=[PROMPT], arms=arms, priority=types_pb2.PRIORITY_INTERACTIVE)
    caps.check_generate(ANNOTATOR, message)
    caps.check_score(ANNOTATOR, scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem()] * 16))
    with pytest.raises(PermissionDenied, match="16 items"):
        caps.check_score(ANNOTATOR, scoring_pb2.ScoreRequest(items=[scoring_pb2.ScoreItem()] * 17))


def test_log_probs_are_left_empty_and_the_rest_stays() -> None:
    """In pieces, samples and groups, of policy scores and of a reward's terms; a reward that is not there does not appear."""
    score = types_pb2.HeadScore(head="reference", policy=types_pb2.PolicyScore(logprobs=[1.0]))
    sample = generation_pb2.Sample(token_ids=[3], logprobs=[1.0], sampling_logprobs=[1.0], scores=[score], sample_seed=7)
    sample.reward.kl.append(1.0)
    plain = generation_pb2.Sample(token_ids=[3], logprobs=[1.0])
    for event in (
        generation_pb2.GenerateResponse(piece=generation_pb2.Piece(token_ids=[3], logprobs=[1.0], sampling_logprobs=[1.0])),
        generation_pb2.GenerateResponse(sample=sample),
        generation_pb2.GenerateResponse(group=generation_pb2.SampleGroup(samples=[sample, plain])),
    ):
        worker = generation_pb2.GenerateResponse.FromString(event.SerializeToString())
        assert "logprobs" in str(caps.without_logprobs(Caller(Role.WORKER), worker))
        shown = caps.without_logprobs(ANNOTATOR, event)
        assert "logprobs" not in str(shown)
        assert "kl" not in str(shown)
        assert "token_ids: 3" in str(shown)
    assert not caps.without_logprobs(ANNOTATOR, generation_pb2.GenerateResponse(sample=plain)).sample.HasField("reward")
