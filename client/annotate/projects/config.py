"""A project as its YAML file says: frozen dataclasses, defaults visible, unknown keys refused by line.

Knows nothing of the database and asks no server: whether a head exists is `polyhead annotate check`'s affair.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import Any

from polyhead.client.annotate.projects.yaml_reader import ConfigError, read_dataclass

MAX_SHOWN = 9  # a card a digit key
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
REASONS = ("wrong-fact", "off-topic", "unsafe", "too-long", "unclear", "unhelpful")  # their texts are in the catalogs
FLAGS_INSTRUCTGPT = (
    "fails_instruction", "inappropriate_assistant", "hallucination", "satisfies_constraint", "sexual_content", "violent_content",
    "encourages_harm", "denigrates_group", "harmful_advice", "expresses_opinion", "moral_judgment",
)  # fmt: skip  # formulas.md 1.2, InstructGPT appendix B

Words = dict[str, str]  # a text by locale, "en" always


class Kind(enum.StrEnum):
    """What is asked of a person."""

    CHOOSE = "choose"  # the best of K replies; the dialogue goes on with it
    RANK = "rank"
    COMPARE = "compare"  # two replies, on a scale
    RATE = "rate"  # every reply, 1 to 7, with flags
    PROBE = "probe"  # make the assistant break a rule
    RULECHECK = "rulecheck"  # did it break the rule?
    DEMONSTRATE = "demonstrate"  # write the reply
    EDIT = "edit"  # mend a reply

    @property
    def shows_candidates(self) -> bool:
        """Whether replies stand side by side."""
        return self in (Kind.CHOOSE, Kind.RANK, Kind.COMPARE, Kind.RATE)

    @property
    def is_writing(self) -> bool:
        """Whether the answer is a reply."""
        return self in (Kind.DEMONSTRATE, Kind.EDIT)


class Source(enum.StrEnum):
    LIVE = "live"  # replies are drawn now
    STORED = "stored"  # items bring them


class NewHeads(enum.StrEnum):
    LIVE = "live"
    PINNED = "pinned"


class Reveal(enum.StrEnum):
    """When a person sees replies that are drawn live."""

    TOGETHER = "together"  # all at once, when all are there
    LOCKSTEP = "lockstep"  # while they are written, every card at the pace of the slowest
    STREAM = "stream"  # while it is written: one reply alone


class UserSource(enum.StrEnum):
    """Who writes the user's messages."""

    ANNOTATOR = "annotator"
    ITEM = "item"  # an item brings the first one, and with `user_turns` all of them
    MODEL = "model"  # an item brings the first ones, a head writes those that follow


class AfterNone(enum.StrEnum):
    LEAST_BAD = "least_bad"  # which is the least bad? the dialogue goes on with it
    END = "end"


class Polarity(enum.StrEnum):
    BETTER = "better"
    WORSE = "worse"  # red teaming: the more harmful one is marked; exports turn it round. Not of `rate`, which asks how good each reply is


class Assignment(enum.StrEnum):
    """Which rule a person is to attack."""

    LEAST_COVERED = "least-covered"  # one with the fewest verdicts, at random among equals
    RANDOM = "random"


class Strength(enum.StrEnum):
    NOT_ASKED = ""
    HH8 = "hh8"  # 8 points, no middle
    STIENNON9 = "stiennon9"

    @property
    def num_points(self) -> int:
        return {"": 0, "hh8": 8, "stiennon9": 9}[self.value]


@dataclass(frozen=True)
class FixedArm:
    head: str
    n: int = 1


@dataclass(frozen=True)
class DrawnArm:
    head: str
    weight: float = 1.0


@dataclass(frozen=True)
class Arms:
    """Who replies: always the same heads, or `show` of them drawn anew for each turn, with replacement."""

    show: int = 4
    fixed: tuple[FixedArm, ...] = ()
    drawn: tuple[DrawnArm, ...] = ()


@dataclass(frozen=True)
class SamplingConfig:
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 400


@dataclass(frozen=True)
class PromptConfig:
    format: str = ""
    system: str = ""


@dataclass(frozen=True)
class Hidden:
    """Scores that are stored beside each reply and shown to nobody who judges."""

    heads: tuple[str, ...] = ()
    rule_set: str = ""
    recipe: str = ""
    ood: str = ""


@dataclass(frozen=True)
class DialogueConfig:
    min_turns: int = 1
    max_turns: int = 6
    user: UserSource = UserSource.ANNOTATOR
    user_head: str = "policy"  # of `user: model`: the head that writes the user's messages
    user_prompt: str = ""  # and what it is told; "": what polyhead tells it


@dataclass(frozen=True)
class AnswerConfig:
    strength: Strength = Strength.NOT_ASKED
    tie: bool = True
    none: bool = True
    after_none: AfterNone = AfterNone.LEAST_BAD
    polarity: Polarity = Polarity.BETTER
    reasons: tuple[str, ...] = ()
    reason_texts: dict[str, Words] = field(default_factory=dict)  # of reasons that the catalogs lack
    flags: tuple[str, ...] = ()  # of `rate`: names, or instructgpt11
    flag_texts: dict[str, Words] = field(default_factory=dict)
    then_rank: bool = False  # of `rate`: when all replies are rated, they are put in order, too
    comment: bool = True


@dataclass(frozen=True)
class RulesConfig:
    rule_set: str = ""
    assign: Assignment = Assignment.LEAST_COVERED
    attempts: int = 5


@dataclass(frozen=True)
class QueueConfig:
    overlap: int = 1
    replay_share: float = 0.0
    lease_min: int = 30
    gold_every: int = 0  # 0: never
    gold_warn: float = 0.7  # share of known answers below which a person is shown some that differ, before the next item. 0: nobody is
    gold_limit: float = 0.5  # share of known answers that a person must meet; below it the person waits for the team. 0: nobody does
    gold_after: int = 10  # so many known answers before anybody is paused, half of them before a warning; the newest 20 count
    training: int = 0  # training items before all others
    daily_cap_min: int = 240  # active minutes of a person's day, over all projects; sensitive projects: 120 at most
    break_after_min: int = 45  # active minutes, then a break of five; sensitive projects: 25 at most


@dataclass(frozen=True)
class TextConfig:
    min_chars: int = 2
    max_chars: int = 8000
    languages: tuple[str, ...] = ()  # a person must read one of these; empty: anybody may work


@dataclass(frozen=True)
class ProjectConfig:
    """One version of a project. Never changed once it is used: a new version is stored beside it."""

    slug: str
    kind: Kind
    title: Words = field(default_factory=dict)
    guidelines: Words = field(default_factory=dict)
    source: Source = Source.LIVE
    reveal: Reveal = Reveal.TOGETHER
    arms: Arms = field(default_factory=Arms)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    new_heads: NewHeads = NewHeads.LIVE
    hidden: Hidden = field(default_factory=Hidden)
    dialogue: DialogueConfig = field(default_factory=DialogueConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    rules: RulesConfig = field(default_factory=RulesConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)
    text: TextConfig = field(default_factory=TextConfig)
    sensitive: bool = False  # pages warn before the work, caps and breaks are tighter
    allow_admin_work: bool = False
    leak_words: tuple[str, ...] = ()

    @property
    def is_live(self) -> bool:
        """Whether replies are drawn for it."""
        return self.source is Source.LIVE and self.kind is not Kind.DEMONSTRATE

    @property
    def is_free(self) -> bool:
        """Whether people begin conversations of their own: no item brings them, and there is no end of them."""
        return self.is_live and self.dialogue.user is UserSource.ANNOTATOR

    @property
    def num_shown(self) -> int:
        """Replies of one turn."""
        return sum(arm.n for arm in self.arms.fixed) or self.arms.show

    @property
    def head_names(self) -> tuple[str, ...]:
        """As the file writes them: "policy", "policy@7"."""
        arms: tuple[FixedArm | DrawnArm, ...] = (*self.arms.fixed, *self.arms.drawn)
        user = (self.dialogue.user_head,) if self.dialogue.user is UserSource.MODEL else ()
        return tuple(dict.fromkeys((*(arm.head for arm in arms), *user)))

    @property
    def flag_names(self) -> tuple[str, ...]:
        return tuple(name for flag in self.answer.flags for name in (FLAGS_INSTRUCTGPT if flag == "instructgpt11" else (flag,)))

    def words(self, texts: Words, locale: str) -> str:
        """A text in this language, or in English, or in the first there is."""
        return texts.get(locale) or texts.get("en") or next(iter(texts.values()), "")


def read_project(text: str, file: str = "the project") -> ProjectConfig:
    """A project from YAML. ConfigError names the line, the key and what would be right."""
    config, line_of = read_dataclass(ProjectConfig, text, file)
    for path, problem in _problems(config):
        raise ConfigError(f"{file}, line {line_of(path)}: {'.'.join(path)}: {problem}")
    return config


def from_json(value: dict[str, Any]) -> ProjectConfig:
    """A stored version; it was checked when it was stored."""
    import json

    return read_dataclass(ProjectConfig, json.dumps(value), "a stored project")[0]


def _problems(config: ProjectConfig) -> Any:
    """(path of keys, what is wrong there)"""
    if not _SLUG.fullmatch(config.slug):
        yield ("slug",), f"must be 1 to 40 of a-z, 0-9 and -: {config.slug!r}"
    if config.source is Source.LIVE and config.kind in (Kind.RULECHECK, Kind.EDIT):
        yield ("source",), f"{config.kind.value} judges what is stored: write source: stored, and import items"
    if config.reveal is not Reveal.TOGETHER and config.source is Source.STORED:
        yield ("reveal",), f"{config.reveal.value} is for replies that are drawn live; these are stored"
    elif config.reveal is Reveal.STREAM and config.num_shown != 1:
        yield ("reveal",), f"stream is for one reply at a time, and these arms make {config.num_shown}: write reveal: lockstep"
    yield from _arm_problems(config)
    yield from _user_problems(config)
    yield from _number_problems(config)
    unknown = [name for name in config.answer.reasons if name not in REASONS and name not in config.answer.reason_texts]
    if unknown:
        yield ("answer", "reasons"), f"no text for {unknown[0]!r}: known are {', '.join(REASONS)}; give others in reason_texts"
    bare = [name for name in config.flag_names if name not in FLAGS_INSTRUCTGPT and name not in config.answer.flag_texts]
    if bare:
        yield ("answer", "flags"), f"no text for {bare[0]!r}: give it in flag_texts"
    if config.answer.then_rank and config.kind is not Kind.RATE:
        yield ("answer", "then_rank"), f"ranks follow ratings, and this is {config.kind.value}: write kind: rate, or kind: rank alone"
    if config.kind is Kind.RATE and config.answer.polarity is Polarity.WORSE:
        yield ("answer", "polarity"), "ratings ask how good a reply is, 7 is excellent: write polarity: better, or kind: rank"
    if config.kind is Kind.COMPARE and config.answer.strength is Strength.NOT_ASKED:
        yield ("answer",), "compare needs a scale: strength: hh8 or stiennon9"
    if config.kind in (Kind.PROBE, Kind.RULECHECK) and not config.rules.rule_set:
        yield ("rules",), f"{config.kind.value} needs rules: rules: {{rule_set: example-rules@1}}"


def _arm_problems(config: ProjectConfig) -> Any:
    draws, arms = config.is_live, config.arms
    if draws and bool(arms.fixed) == bool(arms.drawn):
        yield ("arms",), "give either fixed: [{head: policy, n: 2}, ...] or drawn: [{head: policy, weight: 1}, ...]"
        return
    if any(arm.n < 1 for arm in arms.fixed) or any(arm.weight <= 0 for arm in arms.drawn):
        yield ("arms",), "n and weight must be above 0"
    least, most = {Kind.COMPARE: (2, 2), Kind.PROBE: (1, 1)}.get(config.kind, (2, MAX_SHOWN))
    if draws and not least <= config.num_shown <= most:
        wanted = f"{least}" if least == most else f"{least} to {most}"
        yield ("arms",), f"{config.kind.value} shows {wanted} replies, and these arms make {config.num_shown}"


def _user_problems(config: ProjectConfig) -> Any:
    dialogue = config.dialogue
    if dialogue.user is not UserSource.MODEL:
        return
    if config.source is Source.STORED or not config.kind.shows_candidates:
        yield ("dialogue", "user"), "a head writes the user's messages where replies are live and judged turn by turn, not here"
    if not dialogue.user_head:
        yield ("dialogue", "user_head"), "names the head that writes the user's messages, as in user_head: policy"


def _number_problems(config: ProjectConfig) -> Any:
    bounds: dict[tuple[str, str], tuple[float, float]] = {
        ("sampling", "max_new_tokens"): (1, 100_000), ("sampling", "temperature"): (0, 100), ("sampling", "top_p"): (1e-9, 1),
        ("dialogue", "min_turns"): (1, 50), ("dialogue", "max_turns"): (1, 50), ("rules", "attempts"): (1, 50),
        ("queue", "overlap"): (1, 100), ("queue", "replay_share"): (0, 1), ("queue", "lease_min"): (1, 240),
        ("queue", "gold_every"): (0, 1000), ("queue", "training"): (0, 100),
        ("queue", "gold_warn"): (0, 1), ("queue", "gold_limit"): (0, 1), ("queue", "gold_after"): (1, 20),
        ("queue", "daily_cap_min"): (1, 1440), ("queue", "break_after_min"): (1, 1440), ("text", "min_chars"): (1, 10_000),
        ("text", "max_chars"): (1, 60_000),
    }  # fmt: skip
    for (part, name), (least, most) in bounds.items():
        value = getattr(getattr(config, part), name)
        if not least <= value <= most:
            yield (part, name), f"must lie between {least:g} and {most:g}: {value:g}"
    if config.dialogue.min_turns > config.dialogue.max_turns:
        yield ("dialogue", "min_turns"), f"is above max_turns: {config.dialogue.min_turns}"
