"""P5, P6 and P11: scoring with many heads and rules, against whole forward passes."""

from __future__ import annotations

from functools import partial

from polyhead.client import Rule, Sample, ScoredItem
from polyhead.client.bench.ours import Ours, timed
from polyhead.client.bench.results import Row, at_least, at_most, beats
from polyhead.client.bench.session import TRANSFORMERS, Contender, Session

NUM_HEADS = 4  # P5
SLACK = 0.03  # P11: beside the head's share of layers


def fresh_samples(session: Session) -> list[Sample]:
    """Just drawn, so their boundary states are kept."""
    sizes = session.plan.sizes
    prompts = session.work.prompts(sizes.batch_prompts, sizes.prompt_tokens)
    return session.ours.client.generate(prompts, temperature=1.0, max_new_tokens=sizes.num_tokens, ignore_eos=True)


def four_heads(session: Session) -> list[Row]:
    """P5: four value heads, where no output projection counts, and four policy heads, where it does."""
    without = four(session, "value", "scalars", "hidden states and scalars only")
    reached = without.times_better(without.others[0]) if without.others else None
    check = at_least("at least 4.5x four unsplit models (limit 5)", reached, 4.5)
    with_output = four(session, "policy", "logprobs", "log-probs: output projections included")
    return [
        Row("P5", without.what, "s", False, without.series, (check,)),
        Row("P5 output", with_output.what, "s", False, with_output.series),
    ]


def four(session: Session, kind: str, reads: str, what: str) -> Row:
    sizes = session.plan.sizes
    heads = more_heads(session.ours, kind, NUM_HEADS)

    def ours() -> float:
        samples = fresh_samples(session)
        items = [(sample.prompt_token_ids, sample.token_ids) for sample in samples]
        seconds, scored = timed(lambda: session.ours.client.score(items, heads=heads, terminated=True))
        assert all_scored(scored, heads)
        return seconds

    def theirs() -> float:
        texts = [[*sample.prompt_token_ids, *sample.token_ids] for sample in fresh_samples(session)]
        passes = [{"reads": reads, "num_last": sizes.num_tokens}] * NUM_HEADS
        return float(session.ask(TRANSFORMERS, {"do": "passes", "texts": texts, "passes": passes})["seconds"])

    contenders = [Contender(session.ours.name, ours)]
    if TRANSFORMERS.peer in session.plan.peers:
        contenders.append(Contender("transformers, four passes f32", theirs))
    title = f"{NUM_HEADS} heads on {sizes.batch_prompts} samples just drawn, {what}"
    return Row("P5", title, "s", False, tuple(session.interleave(contenders)))


def more_heads(ours: Ours, kind: str, count: int) -> list[str]:
    """Names of so many heads of this kind with weights of their own, pushed once."""
    names = [f"{kind}-{number}" for number in range(1, count + 1)]
    missing = [name for name in names if name not in ours.client.status().active]
    if missing:
        ours.activate_different(dict.fromkeys(missing, kind), first_seed=200 + len(names) - len(missing))
    return names


def all_scored(scored: list[ScoredItem], heads: list[str]) -> bool:
    return all(
        not item.error and set(item.scores) == set(heads) and not any(score.error for score in item.scores.values()) for item in scored
    )


def rules(session: Session) -> list[Row]:
    """P6: many rules after one dialogue, seen before or not."""
    sizes = session.plan.sizes
    client = session.ours.client
    questions = session.ours.questions(session.work, sizes.dialogue_rules, sizes.dialogue_rule_tokens)
    asked = [Rule(key, text) for key, (text, _) in questions.items()]
    work: dict[str, dict[str, int]] = {}

    def ours(is_cached: bool) -> float:
        [dialogue] = session.work.prompts(1, sizes.dialogue_tokens)
        if is_cached:
            client.encode([dialogue])  # its boundary states, and no head's keys
        before = client.status().counters
        seconds, [item] = timed(lambda: client.score([(dialogue[:-1], dialogue[-1:])], heads=["rule"], rules=asked, terminated=True))
        assert len(item.scores["rule"].p_violate) == len(asked), item.error
        after = client.status().counters
        work["cached" if is_cached else "cold"] = {name: after[name] - before[name] for name in ("trunk_tokens", "head_tokens")}
        return seconds

    def theirs() -> float:
        [dialogue] = session.work.prompts(1, sizes.dialogue_tokens)
        texts = [[*dialogue, *ids] for _, ids in questions.values()]
        return float(
            session.ask(TRANSFORMERS, {"do": "passes", "texts": texts, "passes": [{"reads": "answers", "num_last": 1}]})["seconds"]
        )

    contenders = [
        Contender(f"{session.ours.name}, cached", partial(ours, True)),
        Contender(f"{session.ours.name}, cold", partial(ours, False)),
    ]
    if TRANSFORMERS.peer in session.plan.peers:
        contenders.append(Contender("transformers, full forwards f32", theirs))
    cached, cold, *rivals = session.interleave(contenders)
    what = f"{len(asked)} rules of {sizes.dialogue_rule_tokens} tokens on one dialogue of {sizes.dialogue_tokens} tokens"
    notes = {key: (f"trunk tokens {counts['trunk_tokens']}, head tokens {counts['head_tokens']}",) for key, counts in work.items()}
    return [
        Row(
            "P6",
            f"{what}, cached",
            "s",
            False,
            (cached, *rivals),
            (beats("at least 10x batched full forwards (limit 12.2)", cached, rivals, False, 10.0),),
            notes.get("cached", ()),
        ),
        Row(
            "P6 cold",
            f"{what}, cold",
            "s",
            False,
            (cold, *rivals),
            (beats("at least 7.5x batched full forwards (limit 8.7)", cold, rivals, False, 7.5),),
            notes.get("cold", ()),
        ),
    ]


def one_more_head(session: Session) -> list[Row]:
    """P11: a scoring batch of new texts with one head and with five, and the memory of a head."""
    sizes, ours = session.plan.sizes, session.ours
    before = ours.client.status()
    heads = ["value", *more_heads(ours, "value", NUM_HEADS)]
    after = ours.client.status()
    num_new = len(after.active) - len(before.active)

    def score(names: list[str]) -> float:
        texts = session.work.prompts(sizes.batch_prompts, sizes.text_tokens)
        items = [(text[:-1], text[-1:]) for text in texts]
        seconds, scored = timed(lambda: ours.client.score(items, heads=names, terminated=True))
        assert all_scored(scored, names)
        return seconds

    contenders = [Contender(f"{len(names)} heads", partial(score, names)) for names in (heads, heads[:1])]
    several, one = session.interleave(contenders)
    trunk = ours.client.trunk()
    share = (trunk.num_layers - trunk.split_layer) / trunk.num_layers
    goal = f"at most the head's share of layers + {SLACK:.0%}: {share + SLACK:.2f}"
    added = (several.median - one.median) / NUM_HEADS / one.median
    size = head_bytes(ours) / after.model_bytes
    texts = f"{sizes.batch_prompts} new texts of {sizes.text_tokens} tokens"
    note = f"{num_new} heads were new; one is {head_bytes(ours) >> 20} MiB of {after.model_bytes >> 20} MiB"
    return [
        Row(
            "P11",
            f"scoring {texts}: one more head's share of the time",
            "s",
            False,
            (several, one),
            (at_most(f"time: {goal}", added, share + SLACK),),
        ),
        Row(
            "P11 memory",
            "one more head's share of one model's weights",
            "",
            False,
            (),
            (at_most(f"memory: {goal}", size, share + SLACK),),
            (note,),
        ),
    ]


def head_bytes(ours: Ours) -> int:
    """Of the value head in memory."""
    status = ours.client.status()
    reference = f"value@{status.active['value']}"
    return next(head.num_bytes for head in status.resident_heads if reference in head.references)
