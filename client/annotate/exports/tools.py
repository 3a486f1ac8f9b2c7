"""Rows for other tools: Argilla, Label Studio, tinker-cookbook, and the files that OpenAI and Anthropic published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import quoteattr

from polyhead.client.annotate.exports.judgements import Judgement
from polyhead.client.annotate.exports.pairs import margin_of, pairs_of, ranks_of, reply, text_of, text_pairs_of, ties_of
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.storage.database import sha256

Rows = Iterator[dict[str, Any]]
VERDICTS = {4: "definitely-broken", 3: "probably-broken", 2: "unsure", 1: "probably-followed", 0: "definitely-followed"}
_LETTERS = "ABCDEFGHI"
_NAMES = {"user": "Human", "assistant": "Assistant"}


def tinker(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """tinker-cookbook's LabeledComparison. Which reply is A is drawn by a hash: the same in every export, and no hint."""
    if judgement.kind is Kind.EDIT:
        found = [(*pair, "A", "edit") for pair in text_pairs_of(judgement, left_out)]
    elif ranks_of(judgement):
        labelled = [(pairs_of, "A"), (ties_of, "Tie")]
        found = [
            (text_of(judgement, one), text_of(judgement, other), label, f"{one}{other}")
            for pairs, label in labelled
            for one, other in pairs(judgement)
        ]
    else:
        left_out["another kind"] += 1
        return
    for one, other, label, key in found:
        if sha256(f"{judgement.answer_id}{key}")[0] % 2:
            one, other, label = other, one, {"A": "B", "Tie": "Tie"}[label]
        comparison = {"prompt_conversation": judgement.messages, "completion_A": reply(one), "completion_B": reply(other)}
        yield {"comparison": comparison, "label": label}


def summarize(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """OpenAI's summarize_from_feedback comparisons: two replies as they were shown, which one was chosen, and how surely (1 to 9)."""
    pairs = list(pairs_of(judgement))
    if not pairs:
        left_out["tie" if ranks_of(judgement) else "another kind"] += 1
        return
    place = list(judgement.candidates).index
    margin = margin_of(judgement)
    for better, other in pairs:
        shown = sorted((better, other), key=place)
        row = {
            "info": {"id": judgement.about["item"], "post": _dialogue(judgement.messages)},
            "summaries": [{"text": text_of(judgement, key), "policy": _policy(judgement, key)} for key in shown],
            "choice": shown.index(better), "worker": judgement.about["annotator"], "batch": f"round {judgement.about['round']}",
        }  # fmt: skip
        yield row if margin is None else {**row, "extra": {"confidence": 1 + round(8 * margin)}}


def hh_redteam(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """Anthropic's red-team attempts: a transcript, what was tried, and how well it worked, 0 to 4."""
    if judgement.kind is not Kind.PROBE or not judgement.turns:
        left_out["another kind"] += 1
        return
    last = judgement.turns[-1]
    messages = [*last["messages"], *reply(last["reply"])]
    if any("\n\nHuman:" in message["content"] or "\n\nAssistant:" in message["content"] for message in messages):
        left_out["holds a turn's opening"] += 1
        return
    yield {
        "transcript": "".join(f"\n\n{_NAMES[m['role']]}: {m['content']}" for m in messages if m["role"] in _NAMES),
        "rating": judgement.body["verdict"], "task_description": judgement.rule["text"] if judgement.rule else "",
        "red_team_member_id": judgement.about["annotator"], "tags": judgement.body["reasons"],
    }  # fmt: skip


def argilla(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """Records for `dataset.records.log`: an id, a key a field, and a response a question as "QUESTION.response". Argilla takes such
    keys for responses if its `mapping` has them: {"QUESTION.response": "QUESTION.response"}."""
    fields = {"prompt": _shown(judgement), **{f"reply_{_LETTERS[i]}": t for i, t in enumerate(_texts(judgement))}}
    yield {"id": judgement.answer_id, **fields, **{f"{name}.response": value for name, value in _said(judgement).items()}}


def label_studio(judgement: Judgement, left_out: Counter[str]) -> Rows:
    """Tasks with an annotation each; `labelling_config` is the interface that they belong to."""
    texts = {f"reply_{_LETTERS[i]}": text for i, text in enumerate(_texts(judgement))}
    data = {"dialogue": _shown(judgement), **texts}
    result = [_result(judgement, name, value) for name, value in _said(judgement).items() if value != "tie"]  # Pairwise has no tie
    yield {"data": data, "annotations": [{"result": result, "unique_id": judgement.answer_id}]}


def labelling_config(kind: Kind, num_replies: int, values: dict[str, list[str]]) -> str:
    """Label Studio's interface for a kind of task. `values`: the choices of each question."""
    texts = ['<Text name="dialogue" value="$dialogue"/>']
    texts += [f'<Text name="reply_{letter}" value="$reply_{letter}"/>' for letter in _LETTERS[:num_replies]]
    if kind is Kind.COMPARE:
        controls = ['<Pairwise name="best" toName="reply_A,reply_B"/>']
    elif kind in (Kind.DEMONSTRATE, Kind.EDIT):
        controls = ['<TextArea name="text" toName="dialogue"/>']
    elif kind in (Kind.RANK, Kind.RATE):
        controls = [f'<Number name={quoteattr(name)} toName="reply_{name[-1]}" min="1"/>' for name in values]
    else:
        controls = [
            f'<Choices name="{name}" toName="dialogue">{"".join(f"<Choice value={quoteattr(each)}/>" for each in choices)}</Choices>'
            for name, choices in values.items()
        ]
    return "\n".join(["<View>", *(f"  {line}" for line in [*texts, *controls]), "</View>"])


def interface(found: list[Judgement]) -> str:
    """The interface that fits all of these."""
    values: dict[str, list[str]] = {}
    for judgement in found:
        for name, value in _said(judgement).items():
            known = values.setdefault(name, [])
            known += [str(value)] if str(value) not in known else []
    kind = found[0].kind if found else Kind.CHOOSE
    most = max((len(judgement.candidates) for judgement in found), default=0)
    return labelling_config(kind, most, {name: sorted(each) for name, each in sorted(values.items())})


def _said(judgement: Judgement) -> dict[str, Any]:
    """Question -> answer, replies by their letters. Of ranks 1 is the best; a mark for the most harmful reply answers `worst`."""
    body, letters = judgement.body, dict(zip(judgement.candidates, _LETTERS, strict=False))
    if judgement.kind is Kind.CHOOSE:
        marked = sorted(letters[key] for key in {body["choice"], *body["tied"]} - {None})
        question, none = ("worst", "none is good") if judgement.polarity == "worse" else ("best", "none")
        said: dict[str, Any] = {question: none if body["none_good"] else " = ".join(marked)}
    elif judgement.kind is Kind.RANK:
        said = {f"rank_{letters[key]}": rank for key, rank in ranks_of(judgement).items()}
    elif judgement.kind is Kind.RATE:
        said = {f"overall_{letters[key]}": rating["overall"] for key, rating in body["ratings"].items()}
        said |= {f"rank_{letters[key]}": rank for key, rank in ranks_of(judgement).items() if body.get("ranks")}
    elif judgement.kind is Kind.COMPARE:
        pairs = list(pairs_of(judgement))
        said = {"best": letters[pairs[0][0]] if pairs else "tie"}
    elif judgement.kind in (Kind.PROBE, Kind.RULECHECK):
        said = {"verdict": VERDICTS[body["verdict"]]}
    else:
        said = {"text": body["text"]}
    return dict(sorted(said.items()))


def _result(judgement: Judgement, name: str, value: Any) -> dict[str, Any]:
    if judgement.kind is Kind.COMPARE:
        selected = {"A": "left", "B": "right"}[value]
        return {"type": "pairwise", "from_name": name, "to_name": "reply_A", "value": {"selected": selected}}  # one of the two it compares
    if judgement.kind in (Kind.DEMONSTRATE, Kind.EDIT):
        return {"type": "textarea", "from_name": name, "to_name": "dialogue", "value": {"text": [value]}}
    if judgement.kind in (Kind.RANK, Kind.RATE):
        return {"type": "number", "from_name": name, "to_name": f"reply_{name[-1]}", "value": {"number": value}}
    return {"type": "choices", "from_name": name, "to_name": "dialogue", "value": {"choices": [str(value)]}}


def _texts(judgement: Judgement) -> list[str]:
    return [str(row.text) for row in judgement.candidates.values()]


def _policy(judgement: Judgement, key: str) -> str:
    row = judgement.candidates[key]
    return f"{row.head_name}@{row.head_version}" if row.head_version is not None else "imported"


def _shown(judgement: Judgement) -> str:
    """The conversation, and below it what was shown as evidence: in one text, so that every record has the same fields."""
    cards = [("Source", card) for card in judgement.evidence]
    for letter, row in zip(_LETTERS, judgement.candidates.values(), strict=False):
        cards += [(f"Source of reply {letter}", card) for card in row.json("evidence") or []]
    return "\n\n".join([_dialogue(judgement.messages), *(_card(name, card) for name, card in cards)])


def _card(name: str, card: dict[str, str]) -> str:
    head = " ".join(each for each in (card.get("title", ""), f"<{card['url']}>" if "url" in card else "") if each)
    return "\n".join(each for each in (f"{name}: {head}".rstrip(" "), card.get("snippet", "")) if each)


def _dialogue(messages: list[dict[str, str]]) -> str:
    return "\n\n".join(f"{_NAMES.get(message['role'], 'System')}: {message['content']}" for message in messages)
