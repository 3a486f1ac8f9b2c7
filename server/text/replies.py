"""Whether a reply is well formed, and why not: what `valid` means in an answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from polyhead.server.engine.work.request import Sample
from polyhead.server.engine.work.sampling import FinishReason
from polyhead.server.text.continuation import Decode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """What the reply to a prompt must look like."""

    format: str = ""  # "sparrow@1"; "" for the chat template, which sets no rule for a reply
    ends: tuple[str, ...] = ()  # one of them ends a valid reply
    openings: tuple[str, ...] = ()  # none of them stands inside one
    stop_ids: frozenset[int] = frozenset()  # the chat template's own end of a turn, where it is no EOS of the model


@dataclass(frozen=True, slots=True)
class ReplyCheck:
    """What is wrong with a reply, by name; nothing if it is valid.

    failed             its numbers were bad, or its text could not be read
    not_terminated     it did not end by itself
    wrong_end          it ended, but not with a marker that ends such a reply in its transcript format
    empty              there is nothing but white space before its end
    foreign_opening    the opening of a turn stands inside it

    The first two are for every reply, the others for one in a transcript format.
    """

    valid: bool
    reasons: tuple[str, ...]
    num_newlines: int  # without those of the marker that ends it


def check_reply(sample: Sample, form: ReplyForm, decode: Decode) -> ReplyCheck:
    """Check a finished sample's text, decoded from its ids."""
    if sample.finish_reason is FinishReason.FAILED:
        return _failed()
    try:
        text, marker = split_marker(sample.completion, (*form.openings, *_stops(sample)), decode)
    except Exception:
        logger.exception("the text of a reply could not be decoded")
        return _failed()
    reasons: tuple[str, ...] = () if sample.is_terminated else ("not_terminated",)
    if form.ends:
        reasons += _format_reasons(text, marker, form, is_terminated=sample.is_terminated)
    return ReplyCheck(not reasons, reasons, text.count("\n"))


def _stops(sample: Sample) -> tuple[str, ...]:
    """The stop string that ended a sample; for a given completion, those that it was drawn with."""
    if sample.is_given and sample.request.score_sampling is not None:
        return sample.request.score_sampling.stop
    return (sample.stop,) if sample.stop else ()


def is_ended(token_ids: list[int], form: ReplyForm, decode: Decode) -> bool:
    """Whether a given reply ends as its transcript format requires."""
    return bool(form.ends) and split_marker(token_ids, form.openings, decode)[1] in form.ends


def split_marker(token_ids: list[int], markers: Sequence[str], decode: Decode) -> tuple[str, str]:
    """(text before the marker that the last token completes, that marker); (text, "") if it completes none.

    The last token may hold text beyond the marker, which belongs to neither.
    """
    text, before = decode(token_ids), decode(token_ids[:-1]) if markers else ""
    completed = [(text.rfind(marker), marker) for marker in markers if text.count(marker) > before.count(marker)]
    if not completed:
        return text, ""
    start, marker = min(completed)
    return text[:start], marker


def _format_reasons(text: str, marker: str, form: ReplyForm, *, is_terminated: bool) -> tuple[str, ...]:
    found = {
        "wrong_end": (is_terminated or marker != "") and marker not in form.ends,
        "empty": not text.strip(),
        "foreign_opening": any(opening in text for opening in form.openings),
    }
    return tuple(reason for reason, is_so in found.items() if is_so)


def _failed() -> ReplyCheck:
    return ReplyCheck(False, ("failed",), 0)
