"""A score tree: candidates of one prompt, rules after each. Every token of it goes through the trunk once and through each head once,
whether the tree comes in one request or in several, together or one after another. Exact counts, by counter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from polyhead.server.engine.schedule.scheduler import SchedulerLimits
from polyhead.server.engine.work.live import ActiveSet, LiveHead, ServedHead
from polyhead.server.engine.work.request import Request
from tests.server.engine.harness import Bench, scores

PROMPT, REPLY, QUESTION = 37, 9, 23  # tokens: texts part inside a block of 16
NUM_REPLIES, NUM_RULES = 4, 5
TREE = PROMPT + NUM_REPLIES * (REPLY + NUM_RULES * QUESTION)


@dataclass(frozen=True)
class Work:
    trunk: int
    head: int
    steps: int


def work(bench: Bench, *requests: Request) -> Work:
    """What these requests took, sent at once."""
    before = bench.engine.counters.as_dict()
    bench.run(*requests)
    after = bench.engine.counters.as_dict()
    bench.assert_blocks_returned()
    return Work(*(after[name] - before[name] for name in ("trunk_tokens", "head_tokens", "steps")))


def questions(num_common: int = 0, count: int = NUM_RULES) -> dict[str, tuple[int, ...]]:
    """Of QUESTION tokens: first the template's opening, which all have in common, then each one's own."""
    own = QUESTION - num_common
    return {f"r{i}": (*range(8, 8 + num_common), *(8 + (i + j) % 80 for j in range(own))) for i in range(count)}


def reply(bench: Bench, index: int, **fields: Any) -> Request:
    return bench.given(bench.prompt(PROMPT), [8 + index, *bench.prompt(REPLY - 1, index)], **fields)


def replies(bench: Bench, **fields: Any) -> list[Request]:
    return [reply(bench, index, **fields) for index in range(NUM_REPLIES)]


def merged(requests: list[Request]) -> Request:
    """One request with the samples of all."""
    first, *others = requests
    for other in others:
        for sample in other.samples:
            sample.request = first
            first.samples.append(sample)
    return first


def add_head(bench: Bench, name: str, live: LiveHead, like: str = "rule") -> None:
    """One more head, active beside the others."""
    active = bench.engine.active
    head = ServedHead(name, 1, active.heads[like].manifest, live)
    bench.engine.activate(ActiveSet(active.generation + 1, {**active.heads, name: head}))
    bench.engine._empty_inbox()


def changed(bench: Bench, digest: str) -> LiveHead:
    return bench.policy(digest, lambda tensors: tensors["model.norm.weight"].mul_(1.5))


def test_one_request(bench: Bench) -> None:
    done = work(bench, merged(replies(bench, score=("rule",), rules=questions())))
    assert (done.trunk, done.head) == (TREE, TREE)
    assert done.steps <= 5, "the prompt and a reply; the other replies, rules of the first; rules"


def test_several_requests_at_once(bench: Bench) -> None:
    done = work(bench, *replies(bench, score=("rule",), rules=questions()))
    assert (done.trunk, done.head) == (TREE, TREE)
    assert done.steps <= 5


def test_one_request_for_each_rule_at_once(bench: Bench) -> None:
    requests = [reply(bench, 0, score=("rule",), rules={rule: text}) for rule, text in questions().items()]
    done = work(bench, *requests)
    assert (done.trunk, done.head) == (PROMPT + REPLY + NUM_RULES * QUESTION,) * 2


def test_one_request_after_another(bench: Bench) -> None:
    """Each adds what is new: the first reply brings the prompt, the others themselves, a second round nothing but its asked rows."""
    first = work(bench, reply(bench, 0, score=("rule",), rules=questions()))
    assert (first.trunk, first.head) == (PROMPT + REPLY + NUM_RULES * QUESTION,) * 2
    for index in range(1, NUM_REPLIES):
        more = work(bench, reply(bench, index, score=("rule",), rules=questions()))
        assert (more.trunk, more.head) == (REPLY + NUM_RULES * QUESTION,) * 2
    again = work(bench, reply(bench, 2, score=("rule",), rules=questions()))
    assert (again.trunk, again.head) == (0, NUM_RULES), "an answer's row is asked again, its keys are there"


@pytest.mark.parametrize("num_common", [1, 7, 16, 22])
def test_questions_with_a_common_opening(bench: Bench, num_common: int) -> None:
    """The opening goes through trunk and head once after each dialogue, wherever it ends in a block."""
    done = work(bench, *replies(bench, score=("rule",), rules=questions(num_common)))
    saved = NUM_REPLIES * (NUM_RULES - 1) * num_common
    assert (done.trunk, done.head) == (TREE - saved, TREE - saved)


def test_two_rule_heads(bench: Bench) -> None:
    """One trunk pass serves both; each has keys of its own, even for the last tokens of a text that parts inside a block."""
    add_head(bench, "other rule", changed(bench, "c"))
    one = work(bench, *replies(bench, score=("rule", "other rule"), rules=questions()))
    assert (one.trunk, one.head) == (TREE, 2 * TREE)


def test_two_rule_heads_of_one_digest(bench: Bench) -> None:
    """A copied head asks for its own rows: one token an answer."""
    add_head(bench, "copy", bench.engine.active.heads["rule"].live)
    done = work(bench, reply(bench, 0, score=("rule", "copy"), rules=questions()))
    tree = PROMPT + REPLY + NUM_RULES * QUESTION
    assert (done.trunk, done.head) == (tree, tree + NUM_RULES)


def test_a_new_head_after_a_cached_tree(bench: Bench) -> None:
    bench.run(*replies(bench, score=("rule",), rules=questions()))
    add_head(bench, "other rule", changed(bench, "c"))
    done = work(bench, *replies(bench, score=("other rule",), rules=questions()))
    assert (done.trunk, done.head) == (0, TREE)


def test_every_kind_on_candidates(bench: Bench) -> None:
    """Reference and value of four replies: the prompt once for each of the two, and no head reads where nothing is asked."""
    done = work(bench, merged(replies(bench, score=("reference", "value"))))
    values, logprobs = PROMPT + NUM_REPLIES * REPLY, PROMPT + NUM_REPLIES * (REPLY - 1)
    asked_again = NUM_REPLIES - 1  # where a reply's first token is foretold: its row is asked for by each, its keys are there
    assert (done.trunk, done.head) == (values, values + logprobs + 2 * asked_again)


def test_drawn_candidates_scored_by_another_head(bench: Bench) -> None:
    """The drawing head's prompt is shared, and so is the scoring head's."""
    add_head(bench, "frozen", changed(bench, "c"), like="reference")
    request = bench.sampled(bench.prompt(PROMPT), n=NUM_REPLIES, score=("frozen",))
    done = work(bench, request)
    drawn = PROMPT + NUM_REPLIES * 7
    assert done.trunk == drawn
    assert PROMPT + NUM_REPLIES * 7 + NUM_REPLIES - 1 + PROMPT <= done.head <= 2 * (drawn + NUM_REPLIES - 1), "candidates may begin alike"


def test_23_rules_after_a_cached_dialogue_take_two_steps(bench: Bench) -> None:
    """Not one step a rule. The first to come reads the head's part of the dialogue, all others wait for that one step alone."""
    dialogue = bench.prompt(101)
    bench.run(bench.given(dialogue, bench.prompt(8), score=("rule",), rules={"x": (7,)}))
    done = work(bench, bench.given(dialogue, bench.prompt(8), score=("rule",), rules=questions(count=23)))
    assert (done.trunk, done.head) == (23 * QUESTION, 23 * QUESTION)
    assert done.steps == 2, "529 tokens in chunks of 512"


def test_a_tree_in_small_chunks(llama_folder: Any) -> None:
    """Chunks end anywhere; nothing is computed twice for it."""
    bench = Bench.open(llama_folder, split_layer=2, scheduler=SchedulerLimits(chunk_tokens=11, min_chunk_tokens=1))
    done = work(bench, *replies(bench, score=("rule", "value"), rules=questions(7)))
    dialogues = PROMPT + NUM_REPLIES * REPLY
    tree = dialogues + NUM_REPLIES * (7 + NUM_RULES * (QUESTION - 7))
    assert (done.trunk, done.head) == (tree, tree + dialogues + NUM_REPLIES - 1)


def test_a_tree_answers_what_each_path_answers_alone(bench: Bench, llama_folder: Any) -> None:
    """Copied keys are the right ones: against an engine that sees one path and nothing else."""
    requests = replies(bench, score=("rule",), rules=questions(7))
    bench.run(*requests)
    for index, request in list(enumerate(requests))[::2]:
        (answers,) = (result.result for result in scores(request.samples[0]).values())
        for rule, text in questions(7).items():
            alone = Bench.open(llama_folder, split_layer=2)
            single = reply(alone, index, score=("rule",), rules={rule: text})
            alone.run(single)
            (expected,) = scores(single.samples[0])["rule"].result  # type: ignore[misc]
            found = next(answer for answer in answers if answer.rule_id == rule)  # type: ignore[union-attr]
            assert found.p_violate == pytest.approx(expected.p_violate, abs=1e-5)
            assert found.answer_mass == pytest.approx(expected.answer_mass, rel=1e-4)


def test_a_chunk_made_small_for_decoding_does_not_outlast_it(bench: Bench) -> None:
    """Heads kept the chunk that decoding had left, and trailed behind the trunk for as many steps."""
    bench.engine.scheduler._chunk = 32
    done = work(bench, bench.given(bench.prompt(180), bench.prompt(20), score=("reference",)))
    assert done.steps == 1
