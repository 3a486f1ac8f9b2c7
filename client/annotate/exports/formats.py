"""Rows of each file format. A row has no null values: a key that says nothing is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from polyhead.client.annotate.exports import tools
from polyhead.client.annotate.exports.judgements import Judgement
from polyhead.client.annotate.exports.options import SHAPED, Shape, Ties
from polyhead.client.annotate.exports.pairs import margin_of, pairs_with_texts_of, ranks_of, reply, text_of, text_pairs_of, ties_of
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.replies.candidates import unpack_ids

Row = dict[str, Any]
Rows = Iterator[Row]
AS_USUAL = Shape()


def trl_preference(judgement: Judgement, left_out: Counter[str], shape: Shape = AS_USUAL) -> Rows:
    """TRL's preference format, conversational: what RewardTrainer and DPOTrainer read. `margin` where a scale was asked; with ties as
    rows of margin 0 every row has one."""
    margin, has_ties = margin_of(judgement), shape.ties is Ties.MARGIN0
    tied = [pair for pair in ties_of(judgement) if _differ(judgement, *pair)] if has_ties else []
    for better, other in text_pairs_of(judgement, left_out, says_more=bool(tied)):
        row = {"prompt": judgement.messages, "chosen": reply(better), "rejected": reply(other)}
        yield row if margin is None and not has_ties else {**row, "margin": 1.0 if margin is None else margin}
    for one, other in sorted(sorted(pair) for pair in tied):  # by id: neither comes first because of its place
        first, second = reply(text_of(judgement, one)), reply(text_of(judgement, other))
        yield {"prompt": judgement.messages, "chosen": first, "rejected": second, "margin": 0.0}


def trl_unpaired(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """TRL's unpaired preference, for KTO: replies marked best are good, and those of a turn where none is good are bad."""
    body = judgement.body
    if judgement.kind is not Kind.CHOOSE:
        left_out["another kind"] += 1
        return
    marked = {body["choice"], *body["tied"]}
    for key in judgement.candidates:
        is_good = not body["none_good"] and (key in marked) == (judgement.polarity == "better")
        yield {"prompt": judgement.messages, "completion": reply(text_of(judgement, key)), "label": is_good}


def sft(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """Replies to imitate, as `polyhead train sft` reads them: written ones, mended ones, and chosen ones that are good."""
    if judgement.kind in (Kind.DEMONSTRATE, Kind.EDIT):
        yield {"messages": judgement.messages, "completion": judgement.body["text"]}
    elif judgement.kind is Kind.CHOOSE and judgement.polarity == "better" and judgement.body["choice"]:
        yield {"messages": judgement.messages, "completion": text_of(judgement, judgement.body["choice"])}
    else:
        left_out["no reply to imitate"] += 1


def trl_sft(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """The same as TRL's SFTTrainer reads it: whole conversations."""
    for row in sft(judgement, left_out):
        yield {"messages": [*row["messages"], *reply(row["completion"])]}


def polyhead_pairs(judgement: Judgement, left_out: Counter[str], shape: Shape = AS_USUAL) -> Rows:
    """`polyhead train preference --data`: a row a pair. `group_id` is shared by the pairs of one answer."""
    if shape.has_ids and not _has_ids(judgement):
        left_out["no token ids"] += 1
        return
    if judgement.kind is Kind.EDIT:
        for better, other in text_pairs_of(judgement, left_out):
            yield {"messages": judgement.messages, "chosen": better, "rejected": other, "group_id": judgement.answer_id}
        return
    found = list(pairs_with_texts_of(judgement, left_out))
    if shape.has_ids:
        same = [pair for pair in found if len({tuple(_prompt_ids(judgement, key)) for key in pair}) == 1]
        left_out.update({"different prompts": 1} if len(same) < len(found) else {})
        found = same
    for better, other in found:
        row = {
            "messages": judgement.messages, "chosen": text_of(judgement, better), "rejected": text_of(judgement, other),
            "group_id": judgement.answer_id,
        }  # fmt: skip
        ids = {"chosen_ids": _ids(judgement, better), "rejected_ids": _ids(judgement, other)} if shape.has_ids else {}
        yield {**row, **ids, **({"prompt_ids": _prompt_ids(judgement, better)} if shape.has_ids else {})}


def polyhead_ranks(judgement: Judgement, left_out: Counter[str], shape: Shape = AS_USUAL) -> Rows:
    """`polyhead train preference --data`: a row an answer, with all its replies and their ranks."""
    ranks = ranks_of(judgement)
    if len(set(ranks.values())) < 2:
        left_out["tie" if ranks else "another kind"] += 1
        return
    if shape.has_ids and not _has_ids(judgement):
        left_out["no token ids"] += 1
        return
    prompts = [_prompt_ids(judgement, key) for key in ranks] if shape.has_ids else []
    if any(prompt != prompts[0] for prompt in prompts):
        left_out["different prompts"] += 1
        return
    row = {"messages": judgement.messages, "replies": [text_of(judgement, key) for key in ranks], "ranks": list(ranks.values())}
    ids = {"prompt_ids": prompts[0], "replies_ids": [_ids(judgement, key) for key in ranks]} if shape.has_ids else {}
    yield {**row, "group_id": judgement.answer_id, **ids}


def rules(judgement: Judgement, left_out: Counter[str], shape: Shape = AS_USUAL) -> Rows:
    """`polyhead train rule --data`: judgements of one rule. Unsure ones say nothing, and are left out unless they are asked for."""
    if judgement.kind not in (Kind.PROBE, Kind.RULECHECK) or judgement.rule is None:
        left_out["another kind"] += 1
        return
    verdict = judgement.body["verdict"]
    if verdict == 2 and not shape.keep_unsure:
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
    pairs = list(text_pairs_of(judgement, left_out))
    shown = [*(message["content"] for message in judgement.messages), *(row.text for row in judgement.candidates.values())]
    if pairs and any("\n\nHuman:" in text or "\n\nAssistant:" in text for text in [*shown, *(better for better, _ in pairs)]):
        left_out["holds a turn's opening"] += 1
        return
    names = {"user": "Human", "assistant": "Assistant"}
    start = "".join(f"\n\n{names[m['role']]}: {m['content']}" for m in judgement.messages if m["role"] in names)
    for better, other in pairs:
        yield {"chosen": f"{start}\n\nAssistant: {better}", "rejected": f"{start}\n\nAssistant: {other}"}


FORMATS: dict[str, Callable[..., Rows]] = {  # (judgement, counter of what is left out); those of SHAPED take a shape, too
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


def rows_of(format_name: str, judgement: Judgement, left_out: Counter[str], shape: Shape) -> Rows:
    """One judgement's rows; what makes none is counted by its reason."""
    is_shaped = any(format_name in names for names in SHAPED.values())
    return FORMATS[format_name](judgement, left_out, shape) if is_shaped else FORMATS[format_name](judgement, left_out)


def _differ(judgement: Judgement, one: str, other: str) -> bool:
    """Whether two replies are two texts, neither of them empty."""
    texts = {text_of(judgement, one), text_of(judgement, other)}
    return len(texts) == 2 and "" not in texts


def _has_ids(judgement: Judgement) -> bool:
    """Imported, written and mended replies have none, nor have those of a person whose words were erased."""
    return judgement.kind is not Kind.EDIT and all(
        row.token_ids is not None and row.prompt_token_ids is not None for row in judgement.candidates.values()
    )


def _ids(judgement: Judgement, key: str) -> list[int]:
    return unpack_ids(judgement.candidates[key].token_ids)


def _prompt_ids(judgement: Judgement, key: str) -> list[int]:
    """Replies of a turn answer one prompt, unless some of them have read evidence."""
    return unpack_ids(judgement.candidates[key].prompt_token_ids)
