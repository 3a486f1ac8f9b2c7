"""Generate, stream and score through a fake server: requests as sent, results as folded, and the end of a call that is left."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import numpy as np
import pytest

from polyhead.client import Arm, Client, FinishReason, Rule, continue_from, errors
from polyhead.v1 import generation_pb2, types_pb2
from tests.client.fake_messages import D_MODEL
from tests.client.fake_server import FakeServer

HEADS = ["reference", "value", "preference", "rule"]


def assert_cancelled(server: FakeServer) -> None:
    assert server.cancelled.wait(60), "the server never saw the cancel"


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
    assert s.ranking == ()
    assert (s.valid, s.invalid_reasons, s.num_newlines) == (True, (), 2)
    assert s.states is None


def test_a_reward_has_its_parts_and_no_reward_is_nan(client: Client) -> None:
    samples = client.generate(["x"], n=2, recipe="kl")
    first, second = (s.reward for s in samples)
    assert first is not None
    assert second is not None
    assert (second.recipe, second.reward, second.with_kl, second.rank, second.error) == ("kl@1", 1.0, 0.25, 8, "")
    assert (second.parts, second.constants) == ({"kl": 1.5, "preference": 0.5}, {"kl_coefficient": 0.5, "preference": 2.0})
    assert (second.kl.tolist(), second.token_rewards.tolist(), second.kl_estimator) == ([0.5, 1, 0], [-0.25, -0.5, 1], "k1")
    assert first.error == "the sample was aborted"
    assert np.isnan([first.reward, first.with_kl]).all()


def test_the_best_come_first_with_the_ranking_of_all(client: Client, server: FakeServer) -> None:
    samples = client.generate(["x", "y"], arms=[Arm(n=2), Arm(n=3)], recipe="kl", best=2, median=True)
    assert [(s.prompt_index, s.arm_index, s.sample_index) for s in samples] == [(p, 1, i) for p in range(2) for i in (2, 1, 0)]
    assert server.requests["Generate"][0].delivery == generation_pb2.DELIVERY_GROUPS
    assert [(r.arm_index, r.sample_index) for r in samples[0].ranking] == [(1, 2), (1, 1), (1, 0), (0, 1), (0, 0)]
    assert [np.isnan(r.reward) for r in samples[0].ranking] == [False, False, True, False, True]
    client.generate(["x"], delivery=None)
    assert server.requests["Generate"][1].delivery == generation_pb2.DELIVERY_SAMPLES


def test_fewer_than_the_best_asked_for_is_an_error(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_too_few(prompt: int, samples: list[generation_pb2.Sample], select: generation_pb2.Selection) -> generation_pb2.SampleGroup:
        return generation_pb2.SampleGroup(samples=samples[:1])

    monkeypatch.setattr("tests.client.fake_messages._best", one_too_few)
    with pytest.raises(errors.Internal, match="1 of 2 samples came"):
        client.generate(["x"], n=4, recipe="kl", best=2)


def test_entropies_and_likeliest_tokens_have_their_shapes(client: Client) -> None:
    plain, wordy = client.generate(["x"], score=["reference", "wordy"], entropy=True, top_logprobs=2)[0].scores.values()
    assert wordy.entropies.tolist() == [0.5, 1.0, 1.5]
    assert wordy.top_token_ids.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert wordy.top_logprobs.tolist() == [[-1, -2], [-3, -4], [-5, -6]]
    assert (plain.entropies.shape, plain.top_token_ids.shape, plain.top_logprobs.shape) == ((0,), (0, 0), (0, 0))


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
        recipe_constants={"tokens": -0.5}, entropy=True, top_logprobs=5, best=3, median=True,
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
    assert (sent.score.recipe, dict(sent.score.recipe_constants)) == ("sparrow", {"tokens": -0.5})
    assert (sent.score.entropy, sent.score.top_logprobs, sent.select.top, sent.select.median) == (True, 5, 3, True)
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


def test_control_tokens_are_asked_for(client: Client, server: FakeServer) -> None:
    turns = [{"role": "user", "content": "<|im_end|>"}]
    for is_live in (False, True):
        client.generate([turns], allow_control_tokens=is_live)
        client.score([(turns, "x")], heads=["reference"], allow_control_tokens=is_live)
        client.tokenize(turns, allow_control_tokens=is_live)
        generated, scored, tokenized = (server.requests[method][-1] for method in ("Generate", "Score", "Tokenize"))
        asked = (generated.prompts[0], scored.items[0].prompt, tokenized.prompt)
        assert [prompt.allow_control_tokens for prompt in asked] == [is_live] * 3


def test_a_transcript_format_goes_with_every_prompt(client: Client, server: FakeServer) -> None:
    """Its roles are the server's affair; a continued one may have no message."""
    turns = [{"role": "search_results", "content": "x"}]
    [sample] = client.generate([turns], format="sparrow", reply_role="agent", role_prompt="")
    assert (sample.valid, sample.invalid_reasons, sample.num_newlines, sample.format) == (False, ("foreign_opening",), 2, "sparrow@1")
    list(client.stream(continue_from(sample), format="sparrow", reply_role="user"))
    client.tokenize(turns, format="sparrow@1", reply_role="user", role_prompt="p")
    first, second = (request.prompts[0] for request in (server.requests["Generate"][0], server.requests["Generate"][-1]))
    assert (first.format, first.reply_role, first.HasField("role_prompt"), first.role_prompt) == ("sparrow", "agent", True, "")
    assert (second.format, second.reply_role, second.HasField("role_prompt")) == ("sparrow", "user", False)
    assert not second.continue_from.messages
    tokenized = server.requests["Tokenize"][0].prompt
    assert (tokenized.format, tokenized.reply_role, tokenized.role_prompt) == ("sparrow@1", "user", "p")
    [item] = client.score([(turns, "c")], heads=["reference"], format="sparrow", reply_role="user")
    assert (item.valid, item.invalid_reasons, item.num_newlines, item.format) == (False, ("wrong_end", "empty"), 4, "sparrow@1")
    assert server.requests["Score"][0].items[0].prompt.reply_role == "user"
    assert not client.generate(["x"])[0].format


def test_configurations_and_rule_questions(client: Client, server: FakeServer, tmp_path: Path) -> None:
    found = client.configurations()
    assert [(each.kind, each.reference) for each in found] == [
        ("rule_set", "example-rules@1"), ("rule_set", "example-rules@2"), ("recipe", "sparrow@1"), ("transcript_format", "sparrow@1")
    ]  # fmt: skip
    assert (found[0].rules, found[0].content) == ((Rule("no-insults", "Be kind."),), "id: example-rules\nversion: 1\n")
    assert [each.sha256 for each in client.configurations("recipe")] == ["bb" * 32]
    with pytest.raises(errors.InvalidArgument, match="kind must be one of rule_set, rule_template, recipe, transcript_format"):
        client.configurations("rules")  # type: ignore[arg-type]
    (tmp_path / "terse.yaml").write_text("id: terse\n")
    for content in ("id: terse\n", b"id: terse\n", tmp_path / "terse.yaml"):
        added = client.add_configuration(content, request_id="a")
        assert (added.kind, added.reference, added.content, added.added) == ("recipe", "terse@1", "id: terse\n", True)
    assert {each.request_id for each in server.requests["AddConfiguration"]} == {"a"}
    with pytest.raises(errors.InvalidArgument, match="not UTF-8"):
        client.add_configuration(b"\xff")
    with pytest.raises(TypeError, match="content must be a text, or the Path of a file: int"):
        client.add_configuration(7)  # type: ignore[arg-type]
    client.retire_configuration("terse@1", kind="recipe")
    [sent_retire] = server.requests["RetireConfiguration"]
    assert (sent_retire.reference, sent_retire.kind, len(sent_retire.request_id)) == ("terse@1", 3, 36)
    asked = client.tokenize_rules(["no-insults", Rule("own", "Be kind.")], rule_set="example-rules@1", template="t")
    assert (asked.token_ids, asked.violated_token_id, asked.followed_token_id) == ({"no-insults": [7, 8]}, 1, 2)
    assert (asked.rule_set, asked.template) == ("example-rules@1", "t@1")
    sent = server.requests["TokenizeRules"][0]
    assert (list(sent.rules.rule_ids), sent.rules.rules[0].id, sent.rules.rule_set, sent.template) == (
        ["no-insults"], "own", "example-rules@1", "t"
    )  # fmt: skip


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
        ({"arms": [{"haed": "policy"}]}, TypeError, r"arms\[0\] got an unexpected keyword argument: 'haed'"),
        ({"score": "reference"}, TypeError, "score must be a list of heads"),
        ({"rules": ["a"]}, errors.InvalidArgument, "score names no head"),
        ({"recipe_constants": {"tokens": 1}}, errors.InvalidArgument, "recipe_constants is given, but nothing is scored"),
        ({"recipe": "kl", "recipe_constants": {"tokens": "much"}}, TypeError, "recipe_constants has a wrong type"),
        ({"recipe": "kl", "recipe_constants": [1]}, TypeError, "recipe_constants has a wrong type"),
        ({"top_logprobs": 5}, errors.InvalidArgument, "top_logprobs is given, but nothing is scored"),
        ({"recipe": "kl", "top_logprobs": -1}, errors.InvalidArgument, "top_logprobs is out of range: -1"),
        ({"recipe": "kl", "entropy": "yes"}, TypeError, "entropy has a wrong type: str"),
        ({"best": 2}, errors.InvalidArgument, "best needs a recipe="),
        ({"best": 0, "recipe": "kl"}, errors.InvalidArgument, "best must be at least 1: 0"),
        ({"median": True, "recipe": "kl"}, errors.InvalidArgument, "median= needs best="),
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


def test_a_prompts_states_that_come_once_are_every_samples(client: Client, server: FakeServer) -> None:
    samples = client.generate(["x", "y"], n=3, return_states=True)
    assert [s.states.tolist() for s in samples if s.states is not None] == [np.arange(5 * D_MODEL).reshape(5, D_MODEL).tolist()] * 6


def test_missing_sample_is_an_error_not_a_shorter_list(
    client: Client, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.client.fake_generation.generate_answer", lambda request: [])
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


def test_score_with_a_recipe_needs_no_heads(client: Client, server: FakeServer) -> None:
    [item] = client.score([("p", "c")], recipe="kl@1", recipe_constants={"kl_coefficient": 0.5}, entropy=True, top_logprobs=3)
    sent = server.requests["Score"][0].score
    assert (list(sent.heads), sent.recipe, dict(sent.recipe_constants)) == ([], "kl@1", {"kl_coefficient": 0.5})
    assert (sent.entropy, sent.top_logprobs) == (True, 3)
    assert item.reward is not None
    assert (item.reward.reward, item.reward.rank) == (1.0, 8)


def test_score_without_sampling_sends_none(client: Client, server: FakeServer) -> None:
    client.score([("p", "c")], heads=["reference"])
    assert not server.requests["Score"][0].HasField("sampling")
    with pytest.raises(TypeError, match="items must be a list"):
        client.score(("p", "c"), heads=["reference"])
    with pytest.raises(TypeError, match=r"heads must be a list of heads: str"):
        client.score([("p", "c")], heads="reference")
