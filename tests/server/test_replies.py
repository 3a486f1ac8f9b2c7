"""The check of a reply under a chat template: that it ended by itself; and its line breaks, without its stop string's."""

from __future__ import annotations

from typing import Any

import pytest

from polyhead.server.engine.sequence import FinishReason, Request, Sample, SamplingParams, Sequence
from polyhead.server.replies import ReplyCheck, check_reply
from polyhead.server.text import TextStream

STOP = "\n\nUser:"


def decode(ids: Any) -> str:
    return "".join(map(chr, ids))


def drawn(text: str, reason: FinishReason, **params: Any) -> Sample:
    sampling = SamplingParams(**params)
    request = Request("r", lambda *_: None, {}, {})
    stream = TextStream(decode, sampling.stop, sampling.keep_stop)
    sample = Sample(request, 0, 0, 0, [1], Sequence([1]), sampling, head_name="policy", text=stream)
    for character in text:
        sample.completion.append(ord(character))
        stream.push(ord(character))
    stream.finish()
    sample.finish_reason, sample.is_terminated = reason, reason.is_terminated
    return sample


def given(text: str, is_terminated: bool, stop: tuple[str, ...] = ()) -> Sample:
    request = Request("r", lambda *_: None, {}, {}, score_sampling=SamplingParams(stop=stop) if stop else None)
    sample = Sample(request, 0, 0, 0, [1], Sequence([1]), SamplingParams())
    sample.completion, sample.finish_reason, sample.is_terminated = list(map(ord, text)), FinishReason.GIVEN, is_terminated
    return sample


@pytest.mark.parametrize(
    ("reason", "reasons"),
    [
        (FinishReason.EOS, ()),
        (FinishReason.STOP_ID, ()),
        (FinishReason.STOP_STRING, ()),
        (FinishReason.LENGTH, ("not_terminated",)),
        (FinishReason.ABORTED, ("not_terminated",)),
        (FinishReason.FAILED, ("failed",)),
    ],
)
def test_a_reply_is_valid_if_it_ended_by_itself(reason: FinishReason, reasons: tuple[str, ...]) -> None:
    assert check_reply(drawn("a\nb", reason), decode) == ReplyCheck(not reasons, reasons, 1)


@pytest.mark.parametrize("keep_stop", [False, True])
def test_the_stop_strings_own_line_breaks_do_not_count(keep_stop: bool) -> None:
    sample = drawn(f"one\ntwo{STOP}", FinishReason.STOP_STRING, stop=(STOP,), keep_stop=keep_stop)
    assert check_reply(sample, decode).num_newlines == 1


def test_a_given_completion_is_cut_where_generation_would_have_cut_it() -> None:
    text = f"one\ntwo{STOP} and\nmore"
    assert check_reply(given(text, True, (STOP,)), decode) == ReplyCheck(True, (), 1)
    assert check_reply(given(text, True, ("more", "\n\n")), decode).num_newlines == 1
    assert check_reply(given(text, False), decode) == ReplyCheck(False, ("not_terminated",), 4)


def test_a_sample_whose_text_failed_has_no_line_breaks() -> None:
    sample = drawn("a\nb", FinishReason.FAILED)
    sample.text = None
    assert check_reply(sample, decode) == ReplyCheck(False, ("failed",), 0)
