"""Transcript formats and rule sets through a real server: what is written, continued, stopped, checked, and asked of rule heads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from polyhead.client import Arm, Client, Rule, ScoredItem, continue_from
from polyhead.client.errors import InvalidArgument, NotFound
from polyhead.client.local import LocalServer
from polyhead.client.wire.prompts import Continuation
from tests.e2e.support import FIRST_TOKEN, assert_blocks_returned, constant_policy, constant_value, fresh_salt, serving
from tests.e2e.tiny import BOS, EOS, byte_id

USER = [{"role": "user", "content": "How high is it?"}]
LETTERS = """
id: letters
version: 3
default_reply_role: b
roles:
  a: {opening: "~", followed_by: [b], prompt: "As a."}
  b: {opening: "^", followed_by: [a]}
  c: {opening: " Ye"}  # the tokenizer has " Ye" and " Yes" as tokens: a marker that its last token overshoots
"""
RULES = """
id: house-rules
version: 2
rules:
  - {id: short, text: "The assistant must be brief."}
  - {id: kind, text: "The assistant must be kind."}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("configurations")
    for name, content in (("letters", LETTERS), ("house-rules", RULES)):
        (folder / f"{name}.yaml").write_text(content, encoding="utf-8")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def server(tied_model: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    given = ["--formats", str(files["letters"]), "--rules", str(files["house-rules"])]
    with serving(tied_model, tmp_path_factory.mktemp("transcripts") / "store", *given) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Client]:
    with Client(server.address, timeout=60) as opened:
        policy = opened.push_head("hundred", constant_policy(opened, FIRST_TOKEN), kind="policy")
        value = opened.push_head("three", constant_value(opened, 3.0), kind="value")
        opened.activate({"hundred": policy, "three": value})
        yield opened
        assert_blocks_returned(opened)


def content_of(client: Client, reference: str) -> str:
    return next(each.content for each in client.configurations("transcript_format") if each.reference == reference)


def text_of(client: Client, token_ids: list[int]) -> str:
    return client.detokenize(token_ids, skip_special_tokens=True)


def given(client: Client, reply: str | list[int], **options: object) -> ScoredItem:
    """A reply that somebody else wrote, after one turn of the user's."""
    return client.score([(USER, reply)], heads=["policy", "three"], **{"format": "sparrow", **options})[0]  # type: ignore[arg-type]


# writing


def test_a_conversation_is_written_in_its_format(client: Client) -> None:
    token_ids = client.tokenize(USER, format="sparrow", role_prompt="Be brief.")
    assert token_ids[0] == BOS
    assert text_of(client, token_ids) == "Be brief.\n\nUser: How high is it?\n\nSparrow:"
    assert token_ids == client.tokenize("Be brief.\n\nUser: How high is it?\n\nSparrow:")
    sample = client.generate([USER], format="sparrow", role_prompt="Be brief.", max_new_tokens=1, ignore_eos=True)[0]
    assert (sample.prompt_token_ids, sample.format) == (token_ids, "sparrow@1")


def test_each_role_has_its_own_prompt_which_may_be_left_away(client: Client) -> None:
    agent, query = (text_of(client, client.tokenize(USER, format="sparrow@1", reply_role=role)) for role in ("agent", "search_query"))
    turns = "\n\nUser: How high is it?"
    assert agent.endswith(f"{turns}\n\nSparrow:")
    assert query.endswith(f"{turns}\n\nSearch Query:")
    prompts = {agent.partition("\n\n")[0], query.partition("\n\n")[0]}
    assert len(prompts) == 2
    assert all(" ".join(prompt.split()) in " ".join(content_of(client, "sparrow@1").split()) for prompt in prompts)
    assert text_of(client, client.tokenize(USER, format="sparrow", role_prompt="")) == f"{turns}\n\nSparrow:"


def test_search_results_are_put_in_by_the_caller(client: Client) -> None:
    turns = [*USER, {"role": "search_query", "content": "height"}, {"role": "search_results", "content": "3 m"}]
    text = text_of(client, client.tokenize(turns, format="sparrow", role_prompt=""))
    assert text == "\n\nUser: How high is it?\n\nSearch Query: height\n\nSearch Results: 3 m\n\nSparrow:"
    with pytest.raises(InvalidArgument, match="never generated") as caught:
        client.generate([USER], format="sparrow", reply_role="search_results")
    assert caught.value.field == "prompts[0].reply_role"


def test_a_prefix_opens_the_reply(client: Client) -> None:
    token_ids = client.tokenize(USER, format="sparrow", assistant_prefix=" Well,")
    assert token_ids == [*client.tokenize(USER, format="sparrow"), *client.tokenize(" Well,", special_tokens=False)]
    with pytest.raises(InvalidArgument, match="choose it with reply_role") as caught:
        client.generate([USER], format="sparrow", assistant_prefix="\n\nSearch Query:")
    assert caught.value.field == "prompts[0].assistant_prefix"


# continuing


LONG_REPLY = " It is 3 metres high, more or less, and has been so for many years."


@pytest.mark.parametrize(
    ("reply", "end", "kept_of_end"),
    [
        (LONG_REPLY, "\n\nUser:", "\n\nUser:"),
        (LONG_REPLY + "\n\nUse", "", ""),  # cut off inside a marker: these letters are the reply's own
        (LONG_REPLY, "", ""),
        (LONG_REPLY, "</s>", ""),
        (LONG_REPLY, "\n\nUser:</s>", "\n\nUser:"),
        (LONG_REPLY, "\n\nSearch Query:", "\n\n"),
        ("", "</s>", ""),
    ],
)
def test_a_continued_transcript_reads_as_if_written_at_once(client: Client, reply: str, end: str, kept_of_end: str) -> None:
    """However the reply ended, by the next turn's opening, by another's, by an EOS or not at all: nothing stands there twice."""
    salt, following = fresh_salt(), [{"role": "user", "content": "And wide?"}]
    item = given(client, client.tokenize(reply + end, special_tokens=False), cache_salt=salt)
    prompt = continue_from(item, following)
    sample = client.generate([prompt], format="sparrow", cache_salt=salt, max_new_tokens=1, ignore_eos=True)[0]
    whole = client.tokenize([*USER, {"role": "agent", "content": reply}, *following], format="sparrow")
    assert text_of(client, sample.prompt_token_ids) == text_of(client, whole)
    assert EOS not in sample.prompt_token_ids
    kept = [*item.prompt_token_ids, *client.tokenize(reply + kept_of_end, special_tokens=False)]
    assert sample.prompt_token_ids[: len(kept)] == kept
    assert sample.num_cached_tokens >= len(kept) - 1


def test_sampled_ids_are_kept_where_another_tokenisation_exists(client: Client) -> None:
    """" Ye" as three tokens is what was sampled: written anew it would be one, and the cache would miss."""
    spelled = [client.tokenize(character, special_tokens=False)[0] for character in " Ye\n\nUser:"]
    item = given(client, spelled)
    sample = client.generate([continue_from(item, USER)], format="sparrow", max_new_tokens=1, ignore_eos=True)[0]
    assert sample.prompt_token_ids[: len(item.prompt_token_ids) + len(spelled)] == [*item.prompt_token_ids, *spelled]
    assert text_of(client, sample.prompt_token_ids).endswith(" Ye\n\nUser: How high is it?\n\nSparrow:")


def test_a_token_that_goes_past_the_marker_is_written_anew(client: Client) -> None:
    """" Yes" completes the marker " Ye" and brings an "s" that nobody said in the turn that it opens."""
    prompt, yes = client.tokenize("^"), client.tokenize(" Yes", special_tokens=False)
    sampled = [byte_id("x"), *yes]
    assert len(yes) == 1
    following = [{"role": "c", "content": "no"}]
    options = {"format": "letters", "max_new_tokens": 1, "ignore_eos": True}
    continued = client.generate([Continuation(prompt, sampled, tuple(following))], **options)[0]  # type: ignore[arg-type]
    assert text_of(client, continued.prompt_token_ids) == "^x Yeno^"
    assert continued.prompt_token_ids[: len(prompt) + 1] == [*prompt, byte_id("x")]


def test_the_next_role_may_speak_without_a_message(client: Client) -> None:
    """Self-play: the marker that ended the reply is the opening of the turn to generate."""
    item = given(client, " Three metres.\n\nUser:")
    sample = client.generate([continue_from(item)], format="sparrow", reply_role="user", max_new_tokens=1, ignore_eos=True)[0]
    assert sample.prompt_token_ids == [*item.prompt_token_ids, *item.token_ids]
    assert sample.sampling.stop == ("\n\nSparrow:", "\n\nSearch Query:")
    with pytest.raises(InvalidArgument, match="no messages") as caught:
        client.generate([continue_from(item)], format="sparrow")
    assert caught.value.field == "prompts[0].continue_from.messages"


def test_a_reply_that_holds_another_turn_is_not_continued(client: Client) -> None:
    item = given(client, " Hi.\n\nSearch Query: x\n\nUser:")
    with pytest.raises(InvalidArgument, match="opens a turn") as caught:
        client.generate([continue_from(item, USER)], format="sparrow")
    assert caught.value.field == "prompts[0].continue_from.token_ids"


# ends and validity


def test_replies_end_and_are_valid_as_the_format_says(client: Client) -> None:
    """Random bytes after every prompt: some reach the marker, some hold another's opening, some come to their length."""
    prompts = [[{"role": "a", "content": f"Number {number}"}] for number in range(6)]
    samples = client.generate(prompts, format="letters", n=8, max_new_tokens=120, seed=4)
    seen: set[str] = set()
    for sample in samples:
        text = text_of(client, sample.token_ids)
        assert (sample.format, sample.sampling.stop) == ("letters@3", ("~",))
        is_ended = text.endswith("~")
        assert is_ended == (sample.finish_reason == "stop_string")
        assert sample.text == text.removesuffix("~")
        body = sample.text
        expected = {
            "not_terminated": sample.finish_reason == "length",
            "wrong_end": sample.finish_reason == "eos",
            "empty": not body.strip(),
            "foreign_opening": "^" in body or " Ye" in body,
        }
        assert sample.invalid_reasons == tuple(reason for reason, is_so in expected.items() if is_so)
        assert sample.valid == (not sample.invalid_reasons)
        assert sample.num_newlines == body.count("\n")
        seen |= set(sample.invalid_reasons or ["valid"])
    assert {"valid", "not_terminated", "wrong_end", "foreign_opening"} <= seen
    assert any(sample.num_newlines for sample in samples)


def test_a_stream_shows_no_marker(client: Client) -> None:
    """The format's ends are stop strings for pieces, too: "~" is text without a format, and never shown with one."""
    prompt, options = [{"role": "a", "content": "Number 1"}], {"max_new_tokens": 120, "seed": 4}
    samples = client.generate([prompt], format="letters", n=8, **options)  # type: ignore[arg-type]
    stopped = next(sample for sample in samples if sample.stop == "~")
    with client.stream(prompt, format="letters", sample_seeds=[stopped.sample_seed], max_new_tokens=120) as pieces:
        assert "".join(piece.text for piece in pieces) == stopped.text
    assert pieces.sample.token_ids == stopped.token_ids
    assert "~" in text_of(client, stopped.token_ids)


def test_a_stop_that_is_given_is_used_as_given(client: Client) -> None:
    """Formats belong to prompts and stops to arms: each sample gets what its own two say."""
    prompts, arms = ["one", [{"role": "user", "content": "two"}]], [Arm("hundred", 1), Arm("hundred", 1, {"stop": ["x", "y"]})]
    options = {"arms": arms, "max_new_tokens": 2, "ignore_eos": True}
    plain = client.generate(prompts, **options)  # type: ignore[arg-type]
    assert [sample.sampling.stop for sample in plain] == [(), ("x", "y"), (), ("x", "y")]
    assert [(sample.format, sample.invalid_reasons) for sample in plain] == [("", ("not_terminated",))] * 4
    formatted = client.generate(prompts, format="sparrow", **options)  # type: ignore[arg-type]
    assert [sample.sampling.stop for sample in formatted] == [("\n\nUser:",), ("x", "y")] * 2


def test_text_and_ids_are_taken_as_they_are_and_their_replies_are_checked(client: Client) -> None:
    marker = client.tokenize("~", special_tokens=False)
    for prompt in ("^", client.tokenize("^")):
        sample = client.generate([prompt], format="letters", head="hundred", stop_token_ids=[FIRST_TOKEN])[0]
        assert sample.prompt_token_ids == client.tokenize("^")
        assert (sample.terminated, sample.invalid_reasons) == (True, ("wrong_end",))
        item = client.score([(prompt, [byte_id("x"), *marker])], heads=["policy"], format="letters")[0]
        assert (item.valid, item.terminated, item.format) == (True, True, "letters@3")
        item = client.score([(prompt, [byte_id("x"), *marker])], heads=["policy"], format="letters", reply_role="a")[0]
        assert item.invalid_reasons == ("not_terminated", "wrong_end")


@pytest.mark.parametrize(
    ("reply", "terminated", "reasons", "num_newlines"),
    [
        (" Three\nmetres.\n\nUser:", None, (), 1),
        (" Three metres.\n\nUser:", False, ("not_terminated",), 0),
        (" Three metres.", None, ("not_terminated",), 0),
        (" Three metres.", True, ("wrong_end",), 0),
        (" Three metres.</s>", None, ("wrong_end",), 0),
        (" \n\nUser:", None, ("empty",), 0),
        (" So.\n\nSearch Query: x\n\nUser:", None, ("foreign_opening",), 2),
    ],
)
def test_given_replies_are_checked_alike(
    client: Client, reply: str, terminated: bool | None, reasons: tuple[str, ...], num_newlines: int
) -> None:
    item = given(client, reply, terminated=terminated)
    assert (item.invalid_reasons, item.valid, item.num_newlines, item.format) == (reasons, not reasons, num_newlines, "sparrow@1")
    assert (item.scores["three"].bootstrap_value == 0.0) == item.terminated == ("not_terminated" not in reasons)


def test_without_a_format_an_end_is_enough(client: Client) -> None:
    ended, unended = client.score([("p", " a\nb</s>"), ("p", " a\n\nUser:")], heads=["policy"])
    assert (ended.valid, ended.invalid_reasons, ended.num_newlines, ended.format) == (True, (), 1, "")
    assert (unended.valid, unended.invalid_reasons) == (False, ("not_terminated",))
    sample = client.generate([USER], head="hundred", stop_token_ids=[FIRST_TOKEN])[0]
    assert (sample.valid, sample.invalid_reasons, sample.format) == (True, (), "")


# rules and configurations


def test_rule_scores_equal_what_the_tokenised_questions_give(client: Client) -> None:
    """The rule head and the policy are one set of weights here, so the policy reads the same answers after the same ids."""
    [item] = client.score([(USER, " Three.\n\nUser:")], heads=["rule"], rule_set="example-rules", format="sparrow")
    questions = client.tokenize_rules(rule_set="example-rules", template=client.head("rule").manifest.template)
    scored = item.scores["rule"]
    assert (scored.rule_set, scored.template) == (questions.rule_set, questions.template) == ("example-rules@1", "example-rule-prompt@2")
    assert list(questions.token_ids) == list(scored.p_violate)
    assert len(questions.token_ids) == 23
    dialogue = item.prompt_token_ids + item.token_ids
    answers = [questions.violated_token_id, questions.followed_token_id]
    assert answers == [client.tokenize(text, special_tokens=False)[0] for text in (" Yes", " No")]
    for rule_id in ("no-stereotypes", "answer-the-question", "no-repetition"):
        asked = dialogue + questions.token_ids[rule_id]
        violated, followed = (
            np.exp(float(each.scores["policy"].logprobs[0])) for each in client.score([(asked, [id]) for id in answers], heads=["policy"])
        )
        assert scored.p_violate[rule_id] == pytest.approx(violated / (violated + followed), abs=1e-5)
        assert scored.p_follow[rule_id] == pytest.approx(followed / (violated + followed), abs=1e-5)
        assert scored.answer_mass[rule_id] == pytest.approx(violated + followed, rel=1e-4)


def test_questions_share_all_that_stands_before_the_rule(client: Client) -> None:
    short, kind = client.tokenize_rules(["short", "kind"], rule_set="house-rules").token_ids.values()
    start = client.tokenize("\n\n===\nRead the conversation above.", special_tokens=False)
    assert short[: len(start)] == start
    text = client.detokenize(short)
    assert text.endswith("\nRule: The assistant must be brief.\nAnswer:")
    num_shared = len(client.tokenize(text.partition(" The assistant must")[0], special_tokens=False))
    assert short[:num_shared] == kind[:num_shared]


def test_rules_are_chosen_by_id_version_and_text(client: Client) -> None:
    some = client.tokenize_rules(["kind", Rule("own", "Be nice.")], rule_set="house-rules@2")
    assert (list(some.token_ids), some.rule_set) == (["kind", "own"], "house-rules@2")
    assert client.tokenize_rules(["no-insults"]).rule_set == "example-rules@1"
    assert client.tokenize_rules([{"id": "own", "text": "Be nice."}]).rule_set == ""
    with pytest.raises(NotFound, match="no rule 'short'"):
        client.tokenize_rules(["short"])
    with pytest.raises(NotFound, match="no such rule set"):
        client.tokenize_rules(rule_set="house-rules@1")
    with pytest.raises(NotFound, match="no such rule template"):
        client.tokenize_rules(["no-insults"], template="nothing")
    with pytest.raises(InvalidArgument, match="no rules"):
        client.tokenize_rules()


def test_256_rules_in_one_request(client: Client) -> None:
    rules = [Rule(f"rule-{number}", f"{number}.") for number in range(256)]
    [item] = client.score([(USER, " Three.")], heads=["rule"], rules=rules, format="sparrow", role_prompt="")
    scored = item.scores["rule"]
    assert list(scored.p_violate) == [rule.id for rule in rules]
    assert all(scored.p_violate[rule.id] + scored.p_follow[rule.id] == pytest.approx(1.0) for rule in rules)
    with pytest.raises(InvalidArgument, match="too many rules: 257") as caught:
        client.score([(USER, " Three.")], heads=["rule"], rules=[*rules, Rule("more", "x")])
    assert caught.value.field == "score.rules"


def test_configurations_are_the_files(client: Client, files: dict[str, Path]) -> None:
    found = client.configurations()
    assert [each.reference for each in found] == [
        "example-rules@1", "house-rules@2", "example-rule-prompt@1", "example-rule-prompt@2", "example-rule-prompt-zh@1",
        "kl@1", "preference@1", "rerank@1", "rlhf@1", "sparrow@1", "sparrow-kl@1",
        "letters@3", "sparrow@1",
    ]  # fmt: skip
    for each in found:
        assert each.sha256 == hashlib.sha256(each.content.encode()).hexdigest()
    own = {each.reference.partition("@")[0]: each for each in found}
    for name, path in files.items():
        assert own[name].content == path.read_text(encoding="utf-8")
    assert own["house-rules"].rules == (Rule("short", "The assistant must be brief."), Rule("kind", "The assistant must be kind."))
    assert len(own["example-rules"].rules) == 23
    assert own["letters"].rules == ()
    assert [each.reference for each in found if each.set_aside] == ["example-rule-prompt-zh@1"]  # its answers are no tokens here
    assert [each.reference for each in client.configurations("transcript_format")] == ["letters@3", "sparrow@1"]


def test_a_bad_format_file_stops_the_start_with_its_reason(tied_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(LETTERS.replace('"^"', '"~"'), encoding="utf-8")
    with (
        pytest.raises(Exception, match="stands inside the opening of") as caught,
        serving(tied_model, tmp_path / "store", "--formats", str(path)),
    ):
        pass
    assert "exit status 2" in str(caught.value)
