"""Bounds on what one request may ask for: exactly at the bound it is taken, and what is taken fits where the bound says it does.

That one more is refused with the field's name, and before any work, is tests/e2e/test_bad_input.py's affair.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from polyhead.client.transport import MAX_RECEIVE_BYTES
from polyhead.heads.format.errors import InvalidArgument
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.format.precision import Precision
from polyhead.server.engine.schedule.leases import take_lease
from polyhead.server.engine.schedule.scorer import plan_readings
from polyhead.server.engine.work.live import ActiveSet, LiveHead, ServedHead
from polyhead.server.engine.work.request import Output, Request, Sample
from polyhead.server.engine.work.sampling import FinishReason
from polyhead.server.ood.fits import TrunkLayers
from polyhead.server.rewards.recipes import RecipeBook
from polyhead.server.rewards.rules import RuleBook
from polyhead.server.rpc.listen import SERVER_OPTIONS
from polyhead.server.rpc.messages import answers, generation_requests, reply_sizes, request_parts, scoring_requests
from polyhead.server.rpc.messages.sampling import MAX_STOP_BYTES, MAX_STOP_IDS, MAX_STOPS
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.rpc.services.trunk import MAX_SEQUENCES, MAX_TOKENIZE_BYTES, TrunkServicer
from polyhead.server.text.continuation import Decode
from polyhead.server.text.replies import ReplyCheck
from polyhead.server.text.transcripts import TranscriptBook
from polyhead.v1 import generation_pb2, scoring_pb2, trunk_pb2
from polyhead.v1.generation_pb2 import Arm, GenerateRequest
from polyhead.v1.types_pb2 import Prompt, RuleSelection, Sampling, ScoringSpec, TokenIds
from tests.server.rewards.test_rules import Words

VALID = ReplyCheck(True, (), 1 << 20)
VOCAB = 1 << 28  # ids of four bytes, the longest that any tokenizer has
CONTEXT = 1024
LONGEST = VOCAB - 1
HEADS = {f"{kind.value}{index}".ljust(64, "-") + "@134217728": kind for kind in HeadKind for index in range(16)}  # the longest names
TEMPLATE, RULE_SET = ("t".ljust(64, "-") + "@134217728", "r".ljust(64, "-") + "@134217728")
NOTHING: Any = None


class Text:
    """A sample's text of four bytes a token."""

    def __init__(self, num_tokens: int) -> None:
        self.text = "word" * num_tokens


class Tokenizer(Words):
    def decode(self, ids: Sequence[int]) -> str:
        return "word" * len(ids)

    def decode_after(self, before: list[int]) -> Decode:
        return self.decode

    def check_ids(self, ids: list[int], field: str) -> list[int]:
        return ids

    def stop_id(self, stop: str) -> None:
        return None

    def control_token_in(self, text: str) -> str:
        return ""

    def stream(self, stops: tuple[str, ...], keep_stop: bool, before: list[int]) -> Text:
        return Text(0)


def resolve(name: str, field: str) -> ServedHead:
    kind = HEADS.get(name, HeadKind.POLICY)
    output = OutputKind.OWN if kind.has_logits else OutputKind.SCORE
    manifest = HeadManifest(kind, "0" * 64, 2, 4, output, bias=0.1, violated_token_id=3, followed_token_id=4, template=TEMPLATE)
    return ServedHead(name, 1 << 27, manifest, LiveHead("f" * 64, NOTHING, 0))


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RequestContext:
    tokenizer, folder = cast(Any, Tokenizer()), tmp_path_factory.mktemp("rules")
    question = {"template": "{dialogue} so {rule} then", "answers": {"violated": "Yes", "followed": "No"}}
    rules = [{"id": f"rule{index}".ljust(64, "-"), "text": "be kind"} for index in range(23)]
    for name, content in ((RULE_SET, {"rules": rules}), (TEMPLATE, question)):
        (folder / f"{name[:5]}.yaml").write_text(json.dumps({"id": name[:64], "version": 1 << 27, **content}))
    rules, formats = RuleBook(tokenizer, sorted(folder.iterdir())), cast(TranscriptBook, NOTHING)
    return RequestContext(tokenizer, rules, formats, RecipeBook(), VOCAB, CONTEXT, frozenset({2}), resolve, NOTHING)


def ids(count: int) -> TokenIds:
    return TokenIds(ids=[LONGEST] * count)


def prompt(count: int) -> Prompt:
    return Prompt(token_ids=ids(count))


def finish(request: Request) -> None:
    """As if the engine had: every head has answered for every position that it reads."""
    take_lease(request, ActiveSet(1))
    for sample in request.samples:
        if not sample.is_given:
            count = sample.params.max_new_tokens
            sample.completion = [LONGEST] * count
            sample.sequence.tokens.extend(sample.completion)
            sample.logprobs, sample.sampling_logprobs, sample.text = [-1.5] * count, [-0.5] * count, cast(Any, Text(count))
            sample.sequence.tokens += sample.completion
            sample.finish_reason, sample.head = FinishReason.STOP_STRING, resolve(sample.head_name, "")
            sample.stop = sample.params.stop[0] if sample.params.stop else ""
        sample.done = plan_readings(sample, frozenset())
        for reading in sample.done:
            num_rows = 2 if reading.output is Output.ANSWERS else reading.end - reading.first
            reading.values = [np.full(num_rows, -1.5, np.float32)]
            reading.sampling_values = [np.full(num_rows, -0.5, np.float32)] if request.score_sampling else []


def reply_bytes(sample: Sample) -> int:
    """As the context counts a sample."""
    return reply_sizes.num_sample_bytes(sample.request, sample.params, sample.most_tokens, None)


def score_request(num_items: int, num_tokens: int, heads: list[str], rules: RuleSelection | None = None) -> scoring_pb2.ScoreRequest:
    item = scoring_pb2.ScoreItem(prompt=prompt(1), token_ids=ids(num_tokens - 1))
    return scoring_pb2.ScoreRequest(items=[item] * num_items, score=ScoringSpec(heads=heads, rules=rules), sampling=Sampling(top_p=0.9))


def some(kind: HeadKind, count: int) -> list[str]:
    return [name for name, its_kind in HEADS.items() if its_kind is kind][:count]


ALL = [name for kind in HeadKind for name in some(kind, 4)]
EVERY_RULE, ONE_RULE = RuleSelection(rule_set=RULE_SET), RuleSelection(rule_set=RULE_SET, rule_ids=["rule0".ljust(64, "-")])


@pytest.mark.parametrize(
    ("num_tokens", "heads", "rules"),
    [
        (1000, some(HeadKind.POLICY, 1), None),
        (1000, some(HeadKind.POLICY, 16), None),
        (2, some(HeadKind.PREFERENCE, 16), None),
        (2, some(HeadKind.RULE, 16), ONE_RULE),
        (2, some(HeadKind.RULE, 16), EVERY_RULE),
        (2, ALL, EVERY_RULE),
        (500, ALL, EVERY_RULE),
    ],
)
def test_the_largest_answer_of_score_fits_one_message(
    context: RequestContext, num_tokens: int, heads: list[str], rules: RuleSelection | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted before any work by an estimate: it must never be too low, for short items with many rules neither."""
    monkeypatch.setattr(reply_sizes, "MAX_SCORE_BYTES", most := reply_sizes.MAX_REPLY_BYTES)  # else each case makes 64 MiB
    probe = scoring_requests.score_request(score_request(1, num_tokens, heads, rules), context, "r").request.samples[0]
    largest = min(most // reply_bytes(probe), request_parts.MAX_PROMPTS)
    request = scoring_requests.score_request(score_request(largest, num_tokens, heads, rules), context, "r" * 128).request
    finish(request)
    items = [answers.scored_item(sample, VALID, None) for sample in request.samples]
    answer = scoring_pb2.ScoreResponse(items=items, request_id="r" * 128)
    assert len(answer.items) == largest > 5
    assert answer.ByteSize() <= most
    if largest < request_parts.MAX_PROMPTS:
        with pytest.raises(InvalidArgument) as caught:
            scoring_requests.score_request(score_request(largest + 1, num_tokens, heads, rules), context, "r")
        assert caught.value.field == "items"


def test_what_a_request_may_come_to_is_below_the_limits_of_the_wire() -> None:
    sent = dict(SERVER_OPTIONS)["grpc.max_send_message_length"]
    assert reply_sizes.MAX_REPLY_BYTES < reply_sizes.MAX_SCORE_BYTES < sent == MAX_RECEIVE_BYTES


def group_request(num_samples: int, max_new_tokens: int, heads: list[str], rules: RuleSelection | None) -> GenerateRequest:
    stops, stop_ids = ["é" * (MAX_STOP_BYTES // 2)] * MAX_STOPS, range(VOCAB - MAX_STOP_IDS, VOCAB)
    sampling = Sampling(max_new_tokens=max_new_tokens, stop=stops, stop_token_ids=stop_ids)
    arms = [Arm(n=min(64, num_samples - first), head=some(HeadKind.POLICY, 1)[0], sampling=sampling) for first in range(0, num_samples, 64)]
    score = ScoringSpec(heads=heads, rules=rules)
    return GenerateRequest(prompts=[prompt(10)] * 2, arms=arms, score=score, delivery=generation_pb2.DELIVERY_GROUPS)


@pytest.mark.parametrize("max_new_tokens", [1, 500])
@pytest.mark.parametrize(("heads", "rules"), [([], None), (some(HeadKind.VALUE, 2), None), (ALL, EVERY_RULE)])
def test_the_largest_group_fits_one_message(
    context: RequestContext, max_new_tokens: int, heads: list[str], rules: RuleSelection | None
) -> None:
    """What a sample repeats of its request was not counted: 1024 short ones with 16 stop strings each came to 4 MiB."""
    probe = generation_requests.generate_request(group_request(1, max_new_tokens, heads, rules), context, "r").request.samples[0]
    largest = min(reply_sizes.MAX_REPLY_BYTES // reply_bytes(probe), generation_requests.MAX_ARMS * generation_requests.MAX_SAMPLES_PER_ARM)
    request = generation_requests.generate_request(group_request(largest, max_new_tokens, heads, rules), context, "r").request
    finish(request)
    samples = [answers.sample_message(sample, VALID, None) for sample in request.samples if sample.prompt_index == 0]
    answer = generation_pb2.GenerateResponse(group=generation_pb2.SampleGroup(samples=samples))
    assert len(samples) == largest > 5
    assert answer.ByteSize() <= reply_sizes.MAX_REPLY_BYTES
    if largest < generation_requests.MAX_ARMS * generation_requests.MAX_SAMPLES_PER_ARM:
        with pytest.raises(InvalidArgument) as caught:
            generation_requests.generate_request(group_request(largest + 1, max_new_tokens, heads, rules), context, "r")
        assert caught.value.field == "delivery"


def test_states_are_returned_for_exactly_so_many_tokens(context: RequestContext) -> None:
    def request(max_new_tokens: int) -> GenerateRequest:
        arms = [Arm(n=64, sampling=Sampling(max_new_tokens=254))] * 15 + [Arm(n=64, sampling=Sampling(max_new_tokens=max_new_tokens))]
        return GenerateRequest(prompts=[prompt(2)], arms=arms, return_states=True)

    assert generation_requests.generate_request(request(254), context, "r").request.num_tokens == generation_requests.MAX_STATES_TOKENS
    with pytest.raises(InvalidArgument) as caught:
        generation_requests.generate_request(request(255), context, "r")
    assert caught.value.field == "return_states"
    without = request(255)
    without.return_states = False
    assert generation_requests.generate_request(without, context, "r").request.num_tokens > generation_requests.MAX_STATES_TOKENS


def test_encode_takes_exactly_so_many_tokens(context: RequestContext) -> None:
    spec = SimpleNamespace(vocab_size=VOCAB, d_model=8)
    ood = SimpleNamespace(layers=TrunkLayers("0" * 64, Precision.FLOAT32, 2, 0))
    services = SimpleNamespace(spec=spec, ood=ood, max_context=CONTEXT)
    runner = SimpleNamespace(
        services=services, check_room=context.check_room, request_id=str, context=lambda: contextlib.nullcontext(context)
    )
    servicer = TrunkServicer(cast(Any, runner))
    full = [ids(CONTEXT)] * (generation_requests.MAX_STATES_TOKENS // CONTEXT)
    exact = servicer._encode_work(trunk_pb2.EncodeRequest(sequences=full, request_id="r"))
    assert exact.num_tokens == generation_requests.MAX_STATES_TOKENS
    with pytest.raises(InvalidArgument) as caught:
        servicer._encode_work(trunk_pb2.EncodeRequest(sequences=[*full, ids(1)], request_id="r"))
    assert caught.value.field == "sequences"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"prompts": [Prompt(text="x")] * (MAX_SEQUENCES + 1)}, "prompts"),
        ({"prompts": [Prompt(text="x" * (MAX_TOKENIZE_BYTES // 2))] * 3}, "prompts"),
        ({"prompts": [Prompt(text="x")], "prompt": Prompt(text="x")}, "prompts"),
        ({"prompts": [Prompt(text="x"), prompt(2)], "without_special_tokens": True}, "without_special_tokens"),
    ],
)
async def test_several_prompts_are_bounded_before_any_is_tokenised(given: dict[str, Any], field: str) -> None:
    """There is no tokenizer here, and no worker."""
    services = SimpleNamespace(spec=SimpleNamespace(d_model=8), ood=None)
    servicer = TrunkServicer(cast(Any, SimpleNamespace(services=services)))
    with pytest.raises(InvalidArgument) as caught:
        await servicer.Tokenize(trunk_pb2.TokenizeRequest(**given), cast(Any, None))
    assert caught.value.field == field
