"""Rows of each file format. A row has no null values: a key that says nothing is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from polyhead.client.annotate.config import Kind
from polyhead.client.annotate.exports import tools
from polyhead.client.annotate.exports.judgements import Judgement
from polyhead.client.annotate.exports.pairs import margin_of, pairs_of, ranks_of, reply

Row = dict[str, Any]
Rows = Iterator[Row]


def trl_preference(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """TRL's preference format, conversational: what RewardTrainer and DPOTrainer read. `margin` where a scale was asked."""
    margin = margin_of(judgement)
    for better, other in _pairs(judgement, left_out):
        row = {"prompt": judgement.messages, "chosen": reply(_text(judgement, better)), "rejected": reply(_text(judgement, other))}
        yield row if margin is None else {**row, "margin": margin}


def trl_unpaired(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """TRL's unpaired preference, for KTO: replies marked best are good, and those of a turn where none is good are bad."""
    body = judgement.body
    if judgement.kind is not Kind.CHOOSE:
        left_out["another kind"] += 1
        return
    marked = {body["choice"], *body["tied"]}
    for key in judgement.candidates:
        is_good = not body["none_good"] and (key in marked) == (judgement.polarity == "better")
        yield {"prompt": judgement.messages, "completion": reply(_text(judgement, key)), "label": is_good}


def sft(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """Replies to imitate, as `polyhead train sft` reads them: written ones, mended ones, and chosen ones that are good."""
    if judgement.kind in (Kind.DEMONSTRATE, Kind.EDIT):
        yield {"messages": judgement.messages, "completion": judgement.body["text"]}
    elif judgement.kind is Kind.CHOOSE and judgement.polarity == "better" and judgement.body["choice"]:
        yield {"messages": judgement.messages, "completion": _text(judgement, judgement.body["choice"])}
    else:
        left_out["no reply to imitate"] += 1


def trl_sft(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """The same as TRL's SFTTrainer reads it: whole conversations."""
    for row in sft(judgement, left_out):
        yield {"messages": [*row["messages"], *reply(row["completion"])]}


def polyhead_pairs(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """`polyhead train preference --data`: a row a pair. `group_id` is shared by the pairs of one answer."""
    for better, other in _pairs(judgement, left_out):
        yield {
            "messages": judgement.messages, "chosen": _text(judgement, better), "rejected": _text(judgement, other),
            "group_id": judgement.answer_id,
        }  # fmt: skip


def polyhead_ranks(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """`polyhead train preference --data`: a row an answer, with all its replies and their ranks."""
    ranks = ranks_of(judgement)
    if len(set(ranks.values())) < 2:
        left_out["tie" if ranks else "another kind"] += 1
        return
    replies = [_text(judgement, key) for key in ranks]
    yield {"messages": judgement.messages, "replies": replies, "ranks": list(ranks.values()), "group_id": judgement.answer_id}


def rules(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """`polyhead train rule --data`: judgements of one rule. Unsure ones say nothing, and are left out."""
    if judgement.kind not in (Kind.PROBE, Kind.RULECHECK) or judgement.rule is None:
        left_out["another kind"] += 1
        return
    verdict = judgement.body["verdict"]
    if verdict == 2:
        left_out["unsure"] += 1
        return
    common = {"rule": judgement.rule["id"], "label": tools.VERDICTS[verdict], "rating": verdict, "probed": judgement.kind is Kind.PROBE}
    if judgement.kind is Kind.RULECHECK:
        *messages, last = judgement.messages
        yield {"messages": messages, "completion": last["content"], **common}
        return
    if judgement.turns:  # the verdict is about the conversation, and so about its last reply and what led to it
        last_turn = judgement.turns[-1]
        yield {"messages": last_turn["messages"], "completion": last_turn["reply"], **common}


def hh(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """Anthropic's HH files: whole transcripts that differ in the last reply. A text that holds an opening would read as a turn."""
    texts = [*(message["content"] for message in judgement.messages), *(row.text for row in judgement.candidates.values())]
    if any("\n\nHuman:" in text or "\n\nAssistant:" in text for text in texts):
        left_out["holds a turn's opening"] += 1
        return
    names = {"user": "Human", "assistant": "Assistant"}
    start = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in judgement.messages if m["role"] in names)
    for better, other in _pairs(judgement, left_out):
        yield {
            "chosen": f"{start}\n\nAssistant: {_text(judgement, better)}",
            "rejected": f"{start}\n\nAssistant: {_text(judgement, other)}",
        }


FORMATS: dict[str, Callable[[Judgement, Counter[str]], Rows]] = {
    "trl-preference": trl_preference,
    "trl-unpaired": trl_unpaired,
    "trl-sft": trl_sft,
    "polyhead-pairs": polyhead_pairs,
    "polyhead-ranks": polyhead_ranks,
    "polyhead-sft": sft,
    "rules": rules,
    "hh": hh,
    "hh-redteam": tools.hh_redteam,
    "tinker": tools.tinker,
    "summarize": tools.summarize,
    "argilla": tools.argilla,
    "label-studio": tools.label_studio,
}


def _pairs(judgement: Judgement, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """Pairs of different texts that say something."""
    if not ranks_of(judgement):
        left_out["another kind"] += 1
        return
    found = [(one, other) for one, other in pairs_of(judgement) if _text(judgement, one) and _text(judgement, other)]
    if not found:
        left_out["tie"] += 1
    yield from found


def _text(judgement: Judgement, key: str) -> str:
    return str(judgement.candidates[key].text)
