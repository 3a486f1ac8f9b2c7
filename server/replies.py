"""Whether a reply is well formed, and how many lines it has. Knows no rewards and no messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from polyhead.server.engine.sequence import FinishReason, Sample

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class ReplyCheck:
    """What a check found."""

    valid: bool
    reasons: tuple[str, ...]  # why it is not valid
    num_newlines: int  # without those of the marker that ends the reply


def check_reply(sample: Sample, decode: Decode) -> ReplyCheck:
    """Check a finished sample or a given completion. A chat template asks for one thing: that the reply ended by itself."""
    text = _given_text(sample, decode) if sample.is_given else _drawn_text(sample)
    reasons = () if sample.is_terminated else ("failed",) if sample.finish_reason is FinishReason.FAILED else ("not_terminated",)
    return ReplyCheck(not reasons, reasons, text.count("\n"))


def _drawn_text(sample: Sample) -> str:
    """The sample's text without its stop string."""
    if sample.text is None:
        return ""
    return sample.text.text.removesuffix(sample.text.matched_stop) if sample.params.keep_stop else sample.text.text


def _given_text(sample: Sample, decode: Decode) -> str:
    """The completion's text, cut where generation with the request's stop strings would have cut it."""
    text = decode(sample.completion)
    stops = sample.request.score_sampling.stop if sample.request.score_sampling else ()
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
