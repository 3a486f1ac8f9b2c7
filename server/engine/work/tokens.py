"""One more token of a sample: it is recorded, becomes text, and may be the last. Knows no other sample and no head."""

from __future__ import annotations

import logging

from polyhead.server.engine.work.request import Sample, Span
from polyhead.server.engine.work.sampling import FinishReason

logger = logging.getLogger(__name__)


def add_token(sample: Sample, token_id: int, logprob: float, sampling_logprob: float, now: float) -> str:
    """Record a drawn token, the head that drew it, and when. Returns the text that no later token can change."""
    assert sample.head is not None
    if not sample.spans or sample.spans[-1].head is not sample.head:
        sample.spans.append(Span(len(sample.completion), sample.head, sample.generation))
    sample.completion.append(token_id)
    sample.sequence.tokens.append(token_id)
    sample.logprobs.append(logprob)
    sample.sampling_logprobs.append(sampling_logprob)
    sample.last_token_at = now
    sample.first_token_at = sample.first_token_at or sample.last_token_at
    return _text_of(sample, token_id)


def _text_of(sample: Sample, token_id: int) -> str:
    """New text of a sample. A tokenizer that fails on it ends this sample and no other."""
    try:
        return sample.text.push(token_id) if sample.text else ""
    except Exception:
        logger.exception("a sample's text failed")
        sample.error = "the sample's text could not be made: see the server's log"
        sample.text = None
        return ""


def finish_reason(sample: Sample, token_id: int, eos_ids: frozenset[int]) -> FinishReason | None:
    """Why the sample ends with this token, its last one; None if it goes on."""
    params = sample.params
    if token_id in params.stop_token_ids:
        return FinishReason.STOP_ID
    if token_id in eos_ids and not params.ignore_eos:
        return FinishReason.EOS
    if sample.text is not None and sample.text.matched_stop:
        return FinishReason.STOP_STRING
    return FinishReason.LENGTH if len(sample.completion) >= params.max_new_tokens else None


def tail(sample: Sample) -> str:
    """Text that was held back; "" if the tokenizer fails, so that the sample ends all the same."""
    try:
        return sample.text.finish() if sample.text else ""
    except Exception:
        logger.exception("a sample's text could not be finished")
        return ""
