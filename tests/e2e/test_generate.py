"""Generation, scoring and the trunk's calls as a worker makes them: what comes back means what the contract says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file

from polyhead.client import Arm, Client, continue_from
from polyhead.client.local import LocalServer
from polyhead.client.results.results import Sample
from polyhead.client.wire import generation_requests
from polyhead.server.text.tokenizer import Tokenizer
from polyhead.v1.generation_pb2 import GenerateResponse
from tests.e2e.support import FIRST_TOKEN, WIDTH, assert_blocks_returned, call, constant_policy, constant_value, serving
from tests.e2e.tiny import BOS, EOS, VOCAB, byte_id

HEADS = ["reference", "value", "preference", "rule"]
SEED = {"seed": 11, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tied_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with serving(tied_model, tmp_path_factory.mktemp("generate") / "store") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    """Beside the five first heads: `hundred` always gives one token, `eos` ends at once, `three` is a value of 3."""
    with Client(server.address, timeout=60) as opened:
        opened.activate(
            {
                "hundred": opened.push_head("hundred", constant_policy(opened, FIRST_TOKEN), kind="policy"),
                "eos": opened.push_head("eos", constant_policy(opened, EOS), kind="policy"),
                "three": opened.push_head("three", constant_value(opened, 3.0), kind="value"),
            }
        )
        yield opened
        assert_blocks_returned(opened)


def events_of(server: LocalServer, prompts: list[Any], **options: Any) -> list[GenerateResponse]:
    """The stream's messages as they are on the wire."""
    request = generation_requests.generate(prompts, **options)
    with grpc.insecure_channel(server.address) as channel:
        return [GenerateResponse.FromString(body) for body in call(channel, "GenerationService/Generate", request)]


def assert_whole(sample: Sample) -> None:
    """One log-prob of each kind, and one value, per token id."""
    count = len(sample.token_ids)
    assert count
    assert len(sample.logprobs) == len(sample.sampling_logprobs) == count
    assert [(span.start, span.end, span.version) for span in sample.spans] == [(0, count, sample.head_version)]
    for score in sample.scores.values():
        if score.kind == "policy":
            assert len(score.logprobs) == count
        if score.kind == "value":
            assert len(score.values) == count


def assert_same_draws(first: list[Sample], second: list[Sample]) -> None:
    assert [sample.token_ids for sample in first] == [sample.token_ids for sample in second]
    assert [sample.text for sample in first] == [sample.text for sample in second]


# prompts


def test_the_same_prompt_as_text_ids_or_chat_gives_the_same_sample(client: Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hé?"}]
    for prompt in ("Hello there", messages):
        token_ids = client.tokenize(prompt)
        assert token_ids[0] == BOS
        named, plain = (client.generate([each], max_new_tokens=12, **SEED)[0] for each in (prompt, token_ids))
        assert named.prompt_token_ids == plain.prompt_token_ids == token_ids
        assert_same_draws([named], [plain])


def test_an_assistant_prefix_opens_the_reply(client: Client) -> None:
    messages = [{"role": "user", "content": "Say it."}]
    sample = client.generate([messages], assistant_prefix="Well,", max_new_tokens=2, **SEED)[0]
    assert sample.prompt_token_ids == client.tokenize(messages) + client.tokenize("Well,", special_tokens=False)
    assert sample.prompt_token_ids == client.tokenize(messages, assistant_prefix="Well,")


@pytest.mark.parametrize("head", ["policy", "eos"])
def test_a_continued_conversation_begins_with_the_exact_ids_of_before(client: Client, head: str) -> None:
    """Tokenising the sampled text again gives other ids for bytes that are no characters: the cache would miss, silently."""
    messages = [{"role": "user", "content": f"A long enough question for {head} to fill several blocks?"}]
    first = client.generate([messages], head=head, max_new_tokens=40, seed=3, ignore_eos=head == "policy")[0]
    second = client.generate([continue_from(first, [{"role": "user", "content": "And?"}])], max_new_tokens=4, **SEED)[0]
    before = first.prompt_token_ids + first.token_ids
    assert second.prompt_token_ids[: len(before)] == before
    assert second.num_cached_tokens >= len(before) - 1
    following = client.detokenize(second.prompt_token_ids[len(before) :])
    assert following == ("" if head == "eos" else "</s>") + "<|user|>And?</s><|assistant|>"


# arms, deliveries, draws


def test_arms_bring_candidates_of_several_heads_and_samplings_in_one_call(client: Client) -> None:
    arms = [Arm("policy", 2, {"temperature": 0.7}), Arm("hundred", 3), {"head": "policy@1", "temperature": 0.0, "max_new_tokens": 3}]
    samples = client.generate(["one", "two"], arms=arms, max_new_tokens=6, seed=5, ignore_eos=True)
    places = [(each.prompt_index, each.arm_index, each.sample_index) for each in samples]
    assert places == [(p, a, i) for p in range(2) for a, n in enumerate((2, 3, 1)) for i in range(n)]
    for sample in samples:
        assert_whole(sample)
        assert sample.head == ("policy", "hundred", "policy@1")[sample.arm_index]
        assert len(sample.token_ids) == (6, 6, 3)[sample.arm_index]
        if sample.head == "hundred":
            assert set(sample.token_ids) == {FIRST_TOKEN}
    assert len({tuple(sample.token_ids) for sample in samples if sample.arm_index == 0}) == 4
    assert len({sample.digest for sample in samples}) == 2
    assert len({sample.sample_seed for sample in samples}) == len(samples)


@pytest.mark.parametrize("delivery", ["tokens", "samples", "groups"])
def test_every_delivery_brings_the_same_samples(server: LocalServer, client: Client, delivery: str) -> None:
    """`accepted` is first; groups are complete and in id order, so that nothing shows which candidate was faster."""
    arms = [Arm("policy", 3, {"max_new_tokens": 9}), Arm("eos", 2, {"ignore_eos": False})]
    options: dict[str, Any] = {"arms": arms, "seed": 5, "ignore_eos": True, "max_new_tokens": 4}
    events = events_of(server, ["one", "two", "three"], delivery=delivery, score=["reference"], **options)
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds.count("accepted")) == ("accepted", 1)
    assert ("piece" in kinds) == (delivery == "tokens")
    if delivery == "groups":
        assert kinds[1:] == ["group"] * 3
        found = [list(event.group.samples) for event in events[1:]]
        for group in found:
            assert [(each.arm_index, each.sample_index) for each in group] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
        samples = [sample for group in found for sample in group]
    else:
        samples = [event.sample for event in events if event.WhichOneof("event") == "sample"]
    expected = client.generate(["one", "two", "three"], **options)
    got = {(each.prompt_index, each.arm_index, each.sample_index): list(each.token_ids) for each in samples}
    assert got == {(each.prompt_index, each.arm_index, each.sample_index): each.token_ids for each in expected}
    assert all(len(sample.scores) == 1 for sample in samples)
    if delivery == "tokens":
        pieces = [event.piece for event in events if event.WhichOneof("event") == "piece"]
        for sample in samples:
            place = (sample.prompt_index, sample.arm_index, sample.sample_index)
            own = [piece for piece in pieces if (piece.prompt_index, piece.arm_index, piece.sample_index) == place]
            assert [token for piece in own for token in piece.token_ids] == list(sample.token_ids)
            assert [number for piece in own for number in piece.logprobs] == list(sample.logprobs)
            assert "".join(piece.text for piece in own) == sample.text


def test_a_seed_repeats_its_draws_and_a_returned_sample_seed_replays_one(client: Client) -> None:
    first = client.generate(["again"], n=4, max_new_tokens=20, seed=9, ignore_eos=True)
    assert_same_draws(first, client.generate(["again"], n=4, max_new_tokens=20, seed=9, ignore_eos=True))
    unseeded = client.generate(["again"], n=3, max_new_tokens=20, ignore_eos=True)
    seeds = [sample.sample_seed for sample in reversed(unseeded)]
    replayed = client.generate(["again"], n=3, max_new_tokens=20, ignore_eos=True, sample_seeds=seeds)
    assert_same_draws(replayed, unseeded[::-1])
    assert [sample.sample_seed for sample in replayed] == seeds
    assert [sample.token_ids for sample in unseeded] != [sample.token_ids for sample in first[:3]]


def test_parameters_come_back_as_given_with_defaults_filled_in(client: Client) -> None:
    given = {"temperature": 0.5, "top_p": 0.75, "top_k": 9, "min_p": 0.125, "repetition_penalty": 1.25, "seed": 2**63, "max_new_tokens": 2}
    lists = {"stop": ["xyz"], "keep_stop": True, "stop_token_ids": [7, 8], "ignore_eos": True}
    used = client.generate(["x"], **given, **lists)[0].sampling
    assert {name: getattr(used, name) for name in given} == given
    assert (used.stop, used.keep_stop, used.stop_token_ids, used.ignore_eos) == (("xyz",), True, (7, 8), True)
    plain = client.generate(["x"], head="eos")[0].sampling
    assert (plain.temperature, plain.top_p, plain.top_k, plain.min_p, plain.repetition_penalty) == (1.0, 1.0, 0, 0.0, 1.0)
    assert (plain.max_new_tokens, plain.stop, plain.stop_token_ids, plain.ignore_eos) == (128, (), (), False)


# ends


def _with_ascii_run(client: Client) -> tuple[Sample, str]:
    """A sample, and two characters in the middle of it that stand there for the first time."""
    for seed in range(100):
        sample = client.generate(["stop me"], max_new_tokens=60, seed=seed, ignore_eos=True)[0]
        for start in range(10, len(sample.text) - 1):
            pair = sample.text[start : start + 2]
            if pair.isascii() and pair.isprintable() and sample.text.find(pair) == start:
                return sample, pair
    raise AssertionError("no seed gives a pair of printable characters")


def test_a_stop_string_is_stripped_or_kept_and_never_changes_ids(client: Client) -> None:
    whole, stop = _with_ascii_run(client)
    options: dict[str, Any] = {"max_new_tokens": 60, "sample_seeds": [whole.sample_seed], "ignore_eos": True, "stop": [stop, "never there"]}
    cut, kept = (client.generate(["stop me"], keep_stop=keep, score=HEADS[:2], **options)[0] for keep in (False, True))
    assert cut.token_ids == kept.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert (cut.text, kept.text) == (whole.text[: whole.text.find(stop)], whole.text[: whole.text.find(stop)] + stop)
    for sample in (cut, kept):
        assert_whole(sample)
        assert (sample.finish_reason, sample.stop, sample.terminated) == ("stop_string", stop, True)
    for keep in (False, True):
        with client.stream("stop me", keep_stop=keep, **options) as pieces:
            assert "".join(piece.text for piece in pieces) == (kept if keep else cut).text


def test_stop_ids_and_eos_end_a_sample_and_belong_to_it(client: Client) -> None:
    stopped = client.generate(["x"], head="hundred", stop_token_ids=[FIRST_TOKEN], score=["three", "reference"])[0]
    ended = client.generate(["x"], head="eos", score=["three", "reference"])[0]
    for sample, token, reason in ((stopped, FIRST_TOKEN, "stop_id"), (ended, EOS, "eos")):
        assert_whole(sample)
        assert (sample.token_ids, sample.finish_reason, sample.terminated) == ([token], reason, True)
        assert sample.scores["three"].bootstrap_value == 0.0
    unending = client.generate(["x"], head="eos", ignore_eos=True, max_new_tokens=5, score=["three"])[0]
    assert (unending.token_ids, unending.finish_reason, unending.terminated) == ([EOS] * 5, "length", False)
    assert unending.scores["three"].values == pytest.approx([3.0] * 5, abs=0.01)
    assert unending.scores["three"].bootstrap_value == pytest.approx(3.0, abs=0.01)


@pytest.mark.parametrize("seed", range(8))
def test_streamed_pieces_join_to_the_sample_and_to_its_ids_text(client: Client, seed: int) -> None:
    """Random bytes: characters of several tokens, halves of characters, and eight and more halves in a row."""
    with client.stream("Ünïcode", max_new_tokens=300, seed=seed, ignore_eos=True) as pieces:
        listed = list(pieces)
    sample = pieces.sample
    assert_whole(sample)
    assert any(ord(character) > 127 and character != "\ufffd" for character in sample.text)
    assert [token for piece in listed for token in piece.token_ids] == sample.token_ids
    assert [number for piece in listed for number in piece.logprobs] == list(sample.logprobs)
    assert "".join(piece.text for piece in listed) == sample.text
    assert sample.text == client.detokenize(sample.token_ids, skip_special_tokens=True)


def test_any_bytes_stream_to_the_text_of_their_ids(tied_model: Path) -> None:
    """After eight tokens without a whole character the text was flushed, and a character whose bytes it cut in two was lost."""
    tokenizer, generator = Tokenizer.load(tied_model), random.Random(0)
    for _ in range(200):
        token_ids = [generator.choice([generator.randrange(6, VOCAB), generator.randrange(100, VOCAB)]) for _ in range(60)]
        stream = tokenizer.stream((), keep_stop=False)
        pieces = [stream.push(token_id) for token_id in token_ids]
        assert "".join(pieces) + stream.finish() == stream.text == tokenizer.decode(token_ids)
    endless = tokenizer.stream((), keep_stop=False)  # bytes that never make a character are not held back for ever
    assert len("".join(endless.push(byte_id("\u0122")) for _ in range(200))) > 190


# identity, states, scores


def test_an_answer_names_all_that_it_was_computed_with(client: Client) -> None:
    sample = client.generate(["who"], max_new_tokens=4, score=HEADS, rules=["no-insults"], request_id="my-own-id", **SEED)[0]
    trunk, status = client.trunk(), client.status()
    assert sample.request_id == "my-own-id"
    assert (sample.served.trunk_id, sample.served.precision) == (trunk.trunk_id, "float32")
    assert sample.served.tokenizer_sha256 == trunk.tokenizer_sha256 != ""
    assert sample.served.generation == status.generation
    assert sample.served.head_versions == {name: status.active[name] for name in ("policy", *HEADS)}
    assert sample.digest == client.head(f"policy@{sample.head_version}").digest
    for name in HEADS:
        assert sample.scores[name].digest == client.head(f"{name}@{sample.scores[name].version}").digest


def test_encode_gives_the_states_that_a_sample_came_from(client: Client) -> None:
    sample = client.generate(["states"], max_new_tokens=20, return_states=True, **SEED)[0]
    text = sample.prompt_token_ids + sample.token_ids
    assert sample.states is not None
    assert sample.states.shape == (len(text), WIDTH)
    single, *both = client.encode(text), *client.encode([text, text[:7]])
    for states in (single, both[0]):
        np.testing.assert_allclose(states, sample.states, atol=1e-5)
    np.testing.assert_allclose(both[1], sample.states[:7], atol=1e-5)


def test_sampled_log_probs_equal_those_of_score(client: Client) -> None:
    """For the raw distribution and for the one drawn from, whether the completion goes as ids or as a sample."""
    shape: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.2}
    sample = client.generate(["compare"], max_new_tokens=24, score=["reference"], **shape, **SEED)[0]
    np.testing.assert_allclose(sample.scores["reference"].logprobs, sample.logprobs, atol=1e-4)
    for item in (sample, (sample.prompt_token_ids, sample.token_ids)):
        scored = client.score([item], heads=["policy"], **shape)[0]
        assert (scored.prompt_token_ids, scored.token_ids) == (sample.prompt_token_ids, sample.token_ids)
        np.testing.assert_allclose(scored.scores["policy"].logprobs, sample.logprobs, atol=1e-4)
        np.testing.assert_allclose(scored.scores["policy"].sampling_logprobs, sample.sampling_logprobs, atol=1e-4)


def test_score_of_texts_and_ids_with_and_without_an_end(client: Client) -> None:
    text = client.tokenize(" good", special_tokens=False)
    items = [("a prompt", " good"), (client.tokenize("a prompt"), text), ("a prompt", [*text, EOS])]
    heads = ["three", "policy", "preference", "rule"]
    for terminated, ends in ((None, [False, False, True]), (True, [True] * 3), ([False, None, False], [False] * 3)):
        scored = client.score(items, heads=heads, rules=["no-insults", "stay-on-topic"], terminated=terminated)
        assert [item.terminated for item in scored] == ends
        assert [item.token_ids for item in scored] == [text, text, [*text, EOS]]
        for item, is_ended in zip(scored, ends, strict=True):
            assert list(item.scores) == heads
            assert item.scores["three"].bootstrap_value == pytest.approx(0.0 if is_ended else 3.0, abs=0.01)
            assert len(item.scores["policy"].logprobs) == len(item.scores["three"].values) == len(item.token_ids)
            assert list(item.scores["rule"].p_violate) == ["no-insults", "stay-on-topic"]
            for rule, probability in item.scores["rule"].p_violate.items():
                assert probability + item.scores["rule"].p_follow[rule] == pytest.approx(1.0)
        np.testing.assert_allclose(scored[0].scores["policy"].logprobs, scored[1].scores["policy"].logprobs, atol=1e-5)


def test_tokens_and_texts_go_round(client: Client) -> None:
    for text in ("Hello", " Yes No", "naïve 👩\u200d👧 ok", "a\nb\tc"):
        token_ids = client.tokenize(text, special_tokens=False)
        assert client.detokenize(token_ids) == text
        assert client.tokenize(text) == [BOS, *token_ids]
    assert client.tokenize("A", special_tokens=False) == [byte_id("A")]
    assert client.detokenize([BOS, byte_id("A"), EOS], skip_special_tokens=True) == "A"


def test_the_frozen_output_matrix_is_the_checkpoints(client: Client, tied_model: Path) -> None:
    rows = client.output_embedding()
    assert rows.shape == (VOCAB, WIDTH)
    np.testing.assert_array_equal(rows, load_file(tied_model / "model.safetensors")["model.embed_tokens.weight"])
