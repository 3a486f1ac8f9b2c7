"""Generate, stream and score through a fake server: requests as sent, results as folded, and the end of a call that is left."""

from __future__ import annotations

import copy
import gc

import numpy as np
import pytest

from polyhead.client import Arm, Client, FinishReason, Rule, continue_from, errors
from polyhead.v1 import generation_pb2, types_pb2
from tests.client.fake_server import D_MODEL, FakeServer

HEADS = ["reference", "value", "preference", "rule"]


def assert_cancelled(server: FakeServer) -> None:
    assert server.cancelled.wait(5), "the server never saw the cancel"


def test_generate_answers_in_prompt_arm_sample_order(client: Client) -> None:
    samples = client.generate([[1, 2], [3]], arms=[Arm("policy", 2), {"head": "policy@3", "n": 1, "temperature": 0.5}])
    assert [(s.prompt_index, s.arm_index, s.sample_index) for s in samples] == [
        (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0)
    ]  # fmt: skip


def test_sample_has_what_the_design_lists(client: Client) -> None:
    s = client.generate(["Why is the sky blue?"], score=HEADS, rules=["no-insults"], seed=7)[0]
    assert s.scores["reference"].logprobs.tolist() == [-1, -2, -3]
    assert s.scores["value"].values == pytest.approx([0.1, 0.2, 0.3])
    assert s.scores["preference"].value == 1.0
    assert s.scores["rule"].p_violate["no-insults"] == 0.25
    assert s.finish_reason is FinishReason.STOP_STRING
    assert s.finish_reason == "stop_string"
    assert (s.generation, s.head_version, s.spans[0].version, s.served.trunk_id) == (3, 7, 7, "ab" * 32)
    assert (s.spans[0].generation, s.spans[0].digest) == (3, "cd" * 32)
    assert s.sample_seed == 1 << 63
    assert s.logprobs.dtype == np.float32
    assert s.request_id == "made-by-server"
    assert s.reward is None
    assert s.states is None


def test_reading_a_number_of_another_kind_says_what_the_head_is(client: Client) -> None:
    s = client.generate(["x"], score=["value", "broken"])[0]
    with pytest.raises(AttributeError, match="'value' is a value head; it has no 'logprobs'"):
        _ = s.scores["value"].logprobs
    with pytest.raises(AttributeError, match="failed: not finite"):
        _ = s.scores["broken"].values
    assert copy.deepcopy(s).scores["value"].bootstrap_value == 0.5


def test_request_carries_every_argument(client: Client, server: FakeServer) -> None:
    client.generate(
        ["x"], n=4, head="policy@7", temperature=0.5, top_p=0.9, top_k=0, min_p=0.1, repetition_penalty=1.1, seed=7,
        max_new_tokens=64, stop="\n\nUser:", keep_stop=True, stop_token_ids=[5], ignore_eos=True,
        sample_seeds=[1, 2, 3, (1 << 64) - 1], score=["rule"], rule_set="example-rules@1", recipe="sparrow",
        rules=["no-insults", Rule("r", "Be kind."), {"id": "q", "text": "Be brief."}],
        on_swap="abort", delivery="groups", assistant_prefix="Sure", cache_salt="s", priority="interactive", request_id="r-1",
    )  # fmt: skip
    sent = server.requests["Generate"][0]
    sampling = sent.arms[0].sampling
    assert sampling.HasField("top_k")
    assert list(sampling.stop) == ["\n\nUser:"]
    assert sampling.sample_seeds[3] == (1 << 64) - 1
    assert (sent.arms[0].n, sent.arms[0].head, sent.request_id) == (4, "policy@7", "r-1")
    assert list(sent.score.rules.rule_ids) == ["no-insults"]
    assert [rule.id for rule in sent.score.rules.rules] == ["r", "q"]
    assert (sent.on_swap, sent.priority) == (types_pb2.ON_SWAP_ABORT, types_pb2.PRIORITY_INTERACTIVE)
    assert sent.delivery == generation_pb2.DELIVERY_GROUPS
    assert (sent.prompts[0].assistant_prefix, sent.prompts[0].cache_salt) == ("Sure", "s")


def test_left_out_parameters_are_not_sent(client: Client, server: FakeServer) -> None:
    client.generate(["x"])
    assert server.requests["Generate"][0].arms[0].sampling == types_pb2.Sampling()


def test_arm_overrides_the_calls_sampling(client: Client, server: FakeServer) -> None:
    client.generate(["x"], arms=[Arm("a", 1, {"temperature": 0.0}), Arm("b")], temperature=2.0, seed=1)
    first, second = (arm.sampling for arm in server.requests["Generate"][0].arms)
    assert (first.temperature, first.seed, second.temperature) == (0.0, 1, 2.0)


def test_prompt_forms(client: Client, server: FakeServer) -> None:
    sample = client.generate([np.array([504, 2365])])[0]
    turns = [{"role": "user", "content": "Hi"}]
    client.generate(["text", [1, 2], turns, continue_from(sample, turns)])
    prompts = server.requests["Generate"][1].prompts
    assert [prompt.WhichOneof("source") for prompt in prompts] == ["text", "token_ids", "chat", "continue_from"]
    assert list(server.requests["Generate"][0].prompts[0].token_ids.ids) == [504, 2365]
    assert list(prompts[3].continue_from.token_ids) == sample.token_ids


@pytest.mark.parametrize(
    ("prompts", "kind", "message"),
    [
        ("one", TypeError, r"prompts must be a list of prompts: str\nhint: write \[prompt\]"),
        ([1, 2], TypeError, "one list of token ids"),
        ([{"role": "user", "content": "Hi"}], TypeError, "one conversation"),
        ([3.5], TypeError, r"prompts\[0\] must be a str, a list"),
        ([[1, 2.5]], TypeError, r"prompts\[0\].*holds a float"),
        ([["a"]], TypeError, r"prompts\[0\].*holds a str"),
        ([[True]], TypeError, r"prompts\[0\].*holds a bool"),
        ([[{"role": "user"}]], TypeError, r"prompts\[0\]\[0\] must be a message with exactly"),
        ([[{"role": "judge", "content": "Hi"}]], errors.InvalidArgument, r"prompts\[0\]\[0\]\['role'\] must be one of"),
        ([[]], errors.InvalidArgument, r"prompts\[0\] is empty"),
        ([], errors.InvalidArgument, "prompts is empty"),
        ([[-1]], errors.InvalidArgument, "no token id: -1"),
    ],
)
def test_wrong_prompts_are_refused_by_name(client: Client, prompts: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        client.generate(prompts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"temprature": 1}, TypeError, "unexpected keyword argument: 'temprature'"),
        ({"seed": -1}, errors.InvalidArgument, "seed is out of range: -1"),
        ({"temperature": "hot"}, TypeError, "temperature has a wrong type: str"),
        ({"n": 0}, errors.InvalidArgument, "n must be at least 1: 0"),
        ({"n": 2, "arms": [Arm()]}, errors.InvalidArgument, "arms= stands in place of"),
        ({"arms": [{"haed": "policy"}]}, TypeError, r"arms\[0\] has an unexpected keyword argument: 'haed'"),
        ({"score": "reference"}, TypeError, "score must be a list of heads"),
        ({"rules": ["a"]}, errors.InvalidArgument, "score names no head"),
        ({"on_swap": "ignore"}, errors.InvalidArgument, "on_swap must be one of pin, abort, follow: 'ignore'"),
    ],
)
def test_wrong_options_are_refused_by_name(
    client: Client, options: dict[str, object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        client.generate(["x"], **options)  # type: ignore[arg-type]


def test_stream_gives_pieces_then_the_sample(client: Client) -> None:
    pieces = client.stream("Tell me a joke.", max_new_tokens=40)
    with pytest.raises(errors.FailedPrecondition, match="has not ended"):
        _ = pieces.sample
    assert "".join(piece.text for piece in pieces) == "ab"
    assert pieces.sample.token_ids == [1, 2, 3]


def test_states_come_with_their_sample(client: Client) -> None:
    samples = client.generate(["x"], n=2, return_states=True)
    assert [s.states.shape for s in samples if s.states is not None] == [(5, D_MODEL)] * 2
    assert samples[0].states is not None
    assert samples[0].states[4, 3] == 19


def test_missing_sample_is_an_error_not_a_shorter_list(
    client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.client.fake_server._generate_answer", lambda request: [])
    with pytest.raises(errors.Internal, match="0 of 2 samples came"):
        client.generate(["x"], n=2)


def test_break_cancels(client: Client, server: FakeServer) -> None:
    """A call dropped without cancel() is never collected on grpcio 1.85 (#43462): it would run on until the channel closes."""
    server.endless = True
    for _ in client.samples(["x"], n=8):
        break
    assert_cancelled(server)


def test_exception_in_the_loop_cancels(client: Client, server: FakeServer) -> None:
    server.endless = True
    with pytest.raises(KeyError):
        _fail_on_first(client)
    assert_cancelled(server)


def _fail_on_first(client: Client) -> None:
    for _ in client.stream("x"):
        raise KeyError


def test_close_and_garbage_cancel(client: Client, server: FakeServer) -> None:
    server.endless = True
    pieces = client.stream("x")
    next(pieces)
    pieces.close()
    assert_cancelled(server)
    server.cancelled.clear()
    pieces = client.stream("x")
    next(pieces)
    del pieces
    gc.collect()
    assert_cancelled(server)


def test_deadline_is_one_error(client: Client, server: FakeServer) -> None:
    server.endless = True
    with pytest.raises(errors.DeadlineExceeded, match=server.target):
        list(client.samples(["x"], timeout=0.3))


def test_score_takes_pairs_and_samples(client: Client, server: FakeServer) -> None:
    sample = client.generate(["x"])[0]
    items = client.score([("p", "c"), ([1], [2]), sample], heads=["reference"], temperature=0.5, terminated=[None, False, None])
    sent = server.requests["Score"][0]
    assert [item.WhichOneof("completion") for item in sent.items] == ["text", "token_ids", "token_ids"]
    assert [item.HasField("terminated") for item in sent.items] == [False, True, True]
    assert sent.items[2].terminated
    assert sent.sampling.temperature == 0.5
    assert items[0].scores["reference"].version == 1
    assert (items[0].generation, items[0].request_id) == (3, "score-1")


def test_score_without_sampling_sends_none(client: Client, server: FakeServer) -> None:
    client.score([("p", "c")], heads=["reference"])
    assert not server.requests["Score"][0].HasField("sampling")
    with pytest.raises(TypeError, match="items must be a list"):
        client.score(("p", "c"), heads=["reference"])
    with pytest.raises(TypeError, match=r"heads must be a list of heads: str"):
        client.score([("p", "c")], heads="reference")
