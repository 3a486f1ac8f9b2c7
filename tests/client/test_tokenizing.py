"""Many prompts a call: how a list is cut, and how an error counts its prompts."""

from __future__ import annotations

import pytest

from polyhead.client.errors import FieldViolation, InvalidArgument
from polyhead.client.tokenizing import MAX_BYTES, MAX_PROMPTS, TokenizePlan
from polyhead.v1 import trunk_pb2, types_pb2


def sizes(prompts: list[str]) -> list[int]:
    return [len(request.prompts) for request in TokenizePlan(prompts, True, {}).requests()]


def test_lists_are_cut_by_number_and_by_bytes() -> None:
    assert sizes([]) == []
    assert sizes(["x"] * (2 * MAX_PROMPTS + 1)) == [MAX_PROMPTS, MAX_PROMPTS, 1]
    half = "x" * (MAX_BYTES // 2)
    assert sizes([half, half, "x"]) == [1, 2]
    assert sizes(["x", "y" * (2 * MAX_BYTES), "z"]) == [1, 1, 1], "alone: the server says what is wrong with it"


def test_ids_keep_their_order_and_errors_count_from_the_first_prompt() -> None:
    plan = TokenizePlan(["a", "b", "c"], False, {})
    [request] = plan.requests()
    assert request.without_special_tokens
    plan.take(trunk_pb2.TokenizeResponse(sequences=[types_pb2.TokenIds(ids=[1, 2]), types_pb2.TokenIds(ids=[3])]))
    assert plan.ids == [[1, 2], [3]]
    with pytest.raises(InvalidArgument) as caught, plan.counting():
        raise InvalidArgument("empty", field="prompts[0].text", violations=[FieldViolation("prompts[0].text", "empty")])
    assert caught.value.field == "prompts[2].text"
    assert [each.field for each in caught.value.violations] == ["prompts[2].text"]


def test_one_text_is_no_list() -> None:
    with pytest.raises(TypeError, match="tokenize"):
        TokenizePlan("Why?", True, {})
