"""What is wrong with a reply, by name; newlines; and where a token crosses the marker that ends it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from polyhead.server.engine.work.request import Request, Sample
from polyhead.server.engine.work.sampling import FinishReason, SamplingParams
from polyhead.server.engine.work.sequence import TokenSequence
from polyhead.server.text.replies import ReplyForm, check_reply, is_ended, split_marker

USER, AGENT, QUERY = "\n\nUser:", "\n\nSparrow:", "\n\nSearch Query:"
AGENT_FORM = ReplyForm("sparrow@1", (USER,), (USER, AGENT, QUERY))
PLAIN_FORM = ReplyForm()


class Pieces:
    """A tokenizer whose tokens are any texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def ids(self, *pieces: str) -> list[int]:
        self.texts += pieces
        return list(range(len(self.texts) - len(pieces), len(self.texts)))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.texts[token] for token in ids)


def letters(text: str) -> list[str]:
    return list(text)


def reply(
    pieces: list[str], reason: FinishReason = FinishReason.STOP_STRING, stop: str = ""
) -> tuple[Sample, Pieces]:
    coder = Pieces()
    sample = Sample(Request("r", lambda *_: None, {}, {}), 0, 0, 0, [1], TokenSequence([1]), SamplingParams())
    sample.completion, sample.finish_reason, sample.is_terminated, sample.stop = coder.ids(*pieces), reason, reason.is_terminated, stop
    return sample, coder


@pytest.mark.parametrize(
    ("pieces", "reason", "reasons", "num_newlines"),
    [
        (letters(" Hi.\nBye." + USER), FinishReason.STOP_STRING, (), 1),
        ([" Hi", ".\n\n", "User", ":\n and more"], FinishReason.STOP_STRING, (), 0),  # tokens that cross both ends of the marker
        (letters(" Hi.\n" + USER), FinishReason.STOP_STRING, (), 1),
        (letters(" Hi."), FinishReason.LENGTH, ("not_terminated",), 0),
        (letters(" Hi.\n\nUse"), FinishReason.LENGTH, ("not_terminated",), 2),
        (letters(" Hi."), FinishReason.EOS, ("wrong_end",), 0),
        ([*letters(" Hi." + USER), "<eos>"], FinishReason.EOS, ("wrong_end", "foreign_opening"), 2),
        (letters(" Hi." + AGENT), FinishReason.STOP_STRING, ("wrong_end",), 0),
        (letters(" \n" + USER), FinishReason.STOP_STRING, ("empty",), 1),
        (letters(USER), FinishReason.STOP_STRING, ("empty",), 0),
        (letters(" Hi." + QUERY + " x" + USER), FinishReason.STOP_STRING, ("foreign_opening",), 2),
        (letters(" Hi." + USER + " x" + USER), FinishReason.STOP_STRING, ("foreign_opening",), 2),
        (letters(AGENT), FinishReason.LENGTH, ("not_terminated", "wrong_end", "empty"), 0),
        (letters(" Hi." + USER), FinishReason.ABORTED, ("not_terminated",), 0),
        (letters(" Hi." + USER), FinishReason.FAILED, ("failed",), 0),
        ([], FinishReason.ABORTED, ("not_terminated", "empty"), 0),
    ],
)
def test_reasons_and_newlines(pieces: list[str], reason: FinishReason, reasons: tuple[str, ...], num_newlines: int) -> None:
    sample, coder = reply(pieces, reason=reason)
    check = check_reply(sample, AGENT_FORM, coder.decode)
    assert (check.reasons, check.num_newlines, check.valid) == (reasons, num_newlines, not reasons)


@pytest.mark.parametrize(
    ("text", "reason", "stop", "reasons", "num_newlines"),
    [
        (" Hi.\n", FinishReason.EOS, "", (), 1),
        ("", FinishReason.EOS, "", (), 0),
        (f" Hi.{AGENT} x\n{USER}", FinishReason.STOP_STRING, USER, (), 3),  # newlines of the stop string are not the reply's
        (" Hi.", FinishReason.LENGTH, "", ("not_terminated",), 0),
        (" Hi.", FinishReason.FAILED, "", ("failed",), 0),
    ],
)
def test_the_chat_template_asks_for_an_end_alone(
    text: str, reason: FinishReason, stop: str, reasons: tuple[str, ...], num_newlines: int
) -> None:
    sample, coder = reply(letters(text), reason, stop)
    check = check_reply(sample, PLAIN_FORM, coder.decode)
    assert (check.reasons, check.num_newlines, check.valid) == (reasons, num_newlines, not reasons)


def test_a_stop_string_of_the_callers_is_a_marker_too() -> None:
    """Its newlines are not counted; it is no end of the format's."""
    sample, coder = reply(letters(" Hi.\n."), stop="\n.")
    check = check_reply(sample, AGENT_FORM, coder.decode)
    assert (check.reasons, check.num_newlines) == (("wrong_end",), 0)


def test_a_tokenizer_that_fails_makes_one_reply_invalid() -> None:
    sample, _ = reply([" Hi."])

    def broken(ids: Sequence[int]) -> str:
        raise ValueError

    assert check_reply(sample, AGENT_FORM, broken).reasons == ("failed",)


def test_a_given_reply_ends_with_one_of_its_ends_or_not() -> None:
    coder = Pieces()
    assert is_ended(coder.ids(*letters(" Hi." + USER)), AGENT_FORM, coder.decode)
    assert not is_ended(coder.ids(*letters(" Hi." + QUERY)), AGENT_FORM, coder.decode)
    assert not is_ended(coder.ids(*letters(" Hi." + USER + "x")), AGENT_FORM, coder.decode)
    assert not is_ended(coder.ids(*letters(" Hi." + USER)), PLAIN_FORM, coder.decode)


def test_the_earliest_of_two_markers_counts() -> None:
    coder = Pieces()
    assert split_marker(coder.ids(" Hi", USER + AGENT), (AGENT, USER), coder.decode) == (" Hi", USER)
