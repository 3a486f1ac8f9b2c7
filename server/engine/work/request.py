"""What moves through the engine: requests, their samples, the sequences under them, and readings of a head along a sequence.

Plain data. Protobuf stops before this file, tensors live in cache.py, decisions in scheduler.py.
"""

from __future__ import annotations

import enum
import itertools
import math
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from polyhead.heads.format.errors import FailedPrecondition, PolyheadError
from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.work.live import ActiveSet, LiveHead, ServedHead

if TYPE_CHECKING:
    from polyhead.server.engine.work.block import Block, HeadBlock


class FinishReason(enum.Enum):
    """Why a sample ended."""

    EOS = "eos"
    STOP_ID = "stop_id"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    ABORTED = "aborted"
    FAILED = "failed"
    GIVEN = "given"  # the completion came with the request

    @property
    def is_terminated(self) -> bool:
        """Whether the sample ended by itself, so that nothing follows it and its bootstrap value is 0."""
        return self in (FinishReason.EOS, FinishReason.STOP_ID, FinishReason.STOP_STRING)


class OnSwap(enum.Enum):
    """What an activation does to a running request."""

    PIN = "pin"
    ABORT = "abort"
    FOLLOW = "follow"


class Priority(enum.IntEnum):
    """Who waits; the lower value is scheduled first."""

    INTERACTIVE = 0
    BATCH = 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn, every default filled in. Checked before it gets here."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    keep_stop: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    seed: int = 0

    @property
    def truncates(self) -> bool:
        """Whether some tokens get probability zero."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0


class Pooling(enum.Enum):
    """How the states of a prompt's tokens become one row."""

    MEAN = "mean"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Pool:
    """One row of trunk output for each prompt: at which layer, and how it is made."""

    layer: int  # layers below it: the split layer or the tap layer
    pooling: Pooling


class PromptScorer(Protocol):
    """Scores a prompt by its pooled row, after the engine is done with it. The engine knows no fit."""

    @property
    def reference(self) -> str:
        """The fit with its version: "helpful@2"."""

    @property
    def pool(self) -> Pool:
        """The row that it reads."""

    def score(self, row: np.ndarray) -> float:
        """How far a row lies from those of the fit."""


class Reader(Protocol):
    """Who takes what a request makes. What waits for it is counted; the engine never waits."""

    def has_room(self, num_begun: int, num_bytes: int) -> bool:
        """Whether so many bytes of states may be made before more is read, beside those begun."""

    def hold(self, num_bytes: int) -> None:
        """So many bytes wait from now on."""


class ReadAtOnce:
    """A reader that takes everything as it comes: within one process."""

    def has_room(self, num_begun: int, num_bytes: int) -> bool:
        return True

    def hold(self, num_bytes: int) -> None:
        pass


class TextStream(Protocol):
    """Turns a sample's ids into text as they come, and looks for stop strings. The engine knows no tokenizer."""

    text: str  # all text so far; cut at the stop string once one has matched
    matched_stop: str  # "" until one matches

    def push(self, token_id: int) -> str:
        """Take one more id and return the new text that is certain."""

    def finish(self) -> str:
        """Return the text that was held back."""


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """What the reply to a prompt must look like. The engine carries it and never reads it."""

    format: str = ""  # "sparrow@1"; "" for the chat template, which asks nothing of a reply
    ends: tuple[str, ...] = ()  # one of them ends a valid reply
    openings: tuple[str, ...] = ()  # none of them stands inside one
    stop_ids: frozenset[int] = frozenset()  # the chat template's own end of a turn, where it is no EOS of the model


@dataclass(frozen=True, slots=True)
class RuleQuestion:
    """One rule, ready to be asked after a dialogue."""

    rule_id: str
    suffix: tuple[int, ...]  # token ids of template and rule, after the dialogue


@dataclass(frozen=True, slots=True)
class RuleQuestions:
    """The rules of one request, worded for every template that a rule head may name."""

    rule_set: str  # "example-rules@1", "" for inline rules
    by_template: Mapping[str, tuple[RuleQuestion, ...]]


SAMPLE_BYTES = 1000  # of a sample and its sequence in memory, beside their tokens
TOKEN_BYTES = 100  # of a drawn token: an id, two log-probs, text


# Requests, samples, readings and blocks point at each other: one's text would hold all the others, again and again. So they have none.
@dataclass(eq=False, repr=False, slots=True)
class Sequence:
    """Tokens that go through the trunk, and the blocks that hold what comes out."""

    tokens: list[int]
    salt: str = ""
    num_wanted: int = 0  # tokens whose boundary states somebody needs
    blocks: list[Block] = field(default_factory=list)
    is_placed: bool = False
    num_computed: int = 0  # tokens whose boundary states exist
    num_cached: int = 0  # of those, found in the cache at placement
    num_reserved: int = 0  # blocks promised to this sequence and not yet taken

    @property
    def num_outstanding(self) -> int:
        return self.num_wanted - self.num_computed


class Output(enum.Enum):
    """What a reading takes from the head's output rows."""

    NEXT_TOKEN = "next_token"  # logits of the last token, for the sampler
    LOGPROBS = "logprobs"  # log-prob of the following token at each row
    SCALARS = "scalars"  # the score at each row
    ANSWERS = "answers"  # log-probs of two answer tokens at the last row


@dataclass(eq=False, repr=False, slots=True)
class Reading:
    """One head version's way along one sequence: which rows are asked for, and how far it has come."""

    sample: Sample
    head: ServedHead
    head_name: str  # as the caller named it
    sequence: Sequence
    output: Output
    first: int  # first position whose output is wanted
    end: int  # one past the last position
    cursor: int = -1  # next position to run; -1 until it has started
    head_blocks: list[HeadBlock] = field(default_factory=list)
    num_reserved: int = 0  # head blocks promised to this reading and not yet taken
    rule_id: str = ""
    values: list[np.ndarray] = field(default_factory=list)  # output rows so far, in order
    sampling_values: list[np.ndarray] = field(default_factory=list)
    entropies: list[np.ndarray] = field(default_factory=list)
    top: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # (rows, k) token ids and their log-probs
    error: str = ""

    @property
    def num_bytes(self) -> int:
        """Of the rows that were taken."""
        rows = [*self.values, *self.sampling_values, *self.entropies, *(array for pair in self.top for array in pair)]
        return sum(array.nbytes for array in rows)

    @property
    def is_started(self) -> bool:
        return self.cursor >= 0

    @property
    def is_done(self) -> bool:
        return self.cursor >= self.end


@dataclass(frozen=True, slots=True)
class Span:
    """Who drew a run of a sample's tokens. It ends where the next one starts."""

    start: int  # index of its first token within the sample
    head: ServedHead
    generation: int  # under which the sample took that head up


class Phase(enum.Enum):
    """Where a sample stands."""

    WAITING = "waiting"  # not in the pools yet
    GENERATING = "generating"
    SCORING = "scoring"
    DONE = "done"


@dataclass(eq=False, repr=False, slots=True)
class Sample:
    """One prompt and one completion, drawn or given, with everything known about it."""

    request: Request
    prompt_index: int
    arm_index: int
    sample_index: int
    prompt: list[int]
    sequence: Sequence
    params: SamplingParams
    head_name: str = ""  # the sampling head as the caller named it; "" for a given completion
    head: ServedHead | None = None  # draws the next token
    generation: int = 0  # under which the sample took that head up
    seed: int = 0
    turn: int = 0  # its place among those that wait, in tokens (turns.py)
    text: TextStream | None = None
    form: ReplyForm = ReplyForm()
    completion: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    sampling_logprobs: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)  # which head drew which token
    phase: Phase = Phase.WAITING
    finish_reason: FinishReason | None = None
    is_terminated: bool = False
    stop: str = ""
    error: str = ""
    reading: Reading | None = None  # of the sampling head
    successor: Reading | None = None  # of the version that is to take over, while it reads the text so far
    todo: list[Reading] = field(default_factory=list)  # scoring not finished
    suffixes: list[Sequence] = field(default_factory=list)  # sequences of suffix readings
    done: list[Reading] = field(default_factory=list)
    states: Tensor | None = None  # (prompt + completion tokens, d_model), on the host
    pooled: np.ndarray | None = None  # (d_model,) float64: the prompt's row, with the request's `pool`
    ood_score: float | None = None  # made of `pooled` at the door
    num_held: int = 0  # bytes that wait with it to be read; set when it is finished
    num_cached_tokens: int = 0
    first_token_at: float = 0.0  # time.monotonic()
    last_token_at: float = 0.0

    @property
    def is_given(self) -> bool:
        return self.head_name == ""

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory until it is sent."""
        states = (self.states.nbytes if self.states is not None else 0) + (self.pooled.nbytes if self.pooled is not None else 0)
        rows = sum(reading.num_bytes for reading in self.done)
        return SAMPLE_BYTES + TOKEN_BYTES * len(self.completion) + 8 * len(self.sequence.tokens) + rows + states

    def let_go(self) -> None:
        """It was sent: nobody asks for its content any more."""
        self.num_held = 0
        self.states = self.pooled = None
        self.completion, self.logprobs, self.sampling_logprobs, self.done = [], [], [], []

    @property
    def is_whole(self) -> bool:
        """Whether it came to its end and was scored."""
        return self.finish_reason not in (FinishReason.ABORTED, FinishReason.FAILED)

    @property
    def num_tokens(self) -> int:
        """Prompt and completion together."""
        return len(self.prompt) + len(self.completion)

    @property
    def most_tokens(self) -> int:
        """Tokens that prompt and completion can come to have."""
        return self.num_tokens if self.is_given else len(self.prompt) + self.params.max_new_tokens

    @property
    def highest_id(self) -> int:
        """The highest token id that it begins with or will be asked with."""
        questions = self.request.rules.by_template.values() if self.request.rules else ()
        suffixes = (question.suffix for template in questions for question in template)
        return max(max(tokens, default=0) for tokens in (self.sequence.tokens, *suffixes))

    @property
    def last_head(self) -> ServedHead | None:
        """The head that drew the last token, or that would have drawn the first."""
        return self.spans[-1].head if self.spans else self.head


@dataclass(frozen=True, eq=False, slots=True)
class Lease:
    """The generation a request took at first scheduling, for all its heads and samples."""

    generation: int
    heads: Mapping[str, ServedHead]  # by the caller's reference

    @property
    def live_heads(self) -> set[LiveHead]:
        return {head.live for head in self.heads.values()}


class Event:
    """Something a request's reader wants to know."""


@dataclass(frozen=True, slots=True)
class Accepted(Event):
    """The request has its lease."""

    lease: Lease
    waited_s: float  # since it was submitted


@dataclass(frozen=True, slots=True)
class Drawn(Event):
    """One token of one sample."""

    sample: Sample
    offset: int
    token_id: int
    logprob: float
    sampling_logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class Finished(Event):
    """A sample is complete, scores included."""

    sample: Sample
    tail: str  # text held back until now


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """Nothing follows. `error` is None unless the request as a whole failed."""

    error: PolyheadError | None


_serial = itertools.count(1)


@dataclass(eq=False, repr=False, slots=True)
class Request:
    """One call's work. The engine thread owns everything below the line."""

    request_id: str
    deliver: Callable[[Request, list[Event]], None]  # takes a step's events; where it runs is the engine's sink's affair
    head_kinds: Mapping[str, HeadKind]  # references to lease, sampling and scoring, and the kind that each had at the door
    pinned: Mapping[str, ServedHead]  # those with an explicit version, resolved at the door
    score_heads: tuple[str, ...] = ()
    rules: RuleQuestions | None = None
    score_sampling: SamplingParams | None = None  # Score: parameters for sampling_logprobs
    with_entropy: bool = False  # of policy-kind scoring heads
    num_top: int = 0  # likeliest tokens that policy-kind scoring heads name at each position
    on_swap: OnSwap = OnSwap.PIN
    priority: Priority = Priority.BATCH
    principal: str = ""  # for whom it counts
    stream_tokens: bool = False
    return_states: bool = False
    holds_groups: bool = False  # nothing of a prompt is read before all its samples are finished
    states_layer: int = 0  # whose states are returned; 0: the boundary's
    pool: Pool | None = None  # also make one row of each prompt
    ood: PromptScorer | None = None  # what becomes of that row
    deadline_at: float = math.inf  # time.monotonic(); ends the request
    due_at: float = math.inf  # the same if the caller gave it: what admission plans with. inf: he waits as long as it takes
    reader: Reader = field(default_factory=ReadAtOnce)
    samples: list[Sample] = field(default_factory=list)
    num_least_tokens: int = 0  # of a request that has no samples yet: what it comes to by its counts
    # ---- engine thread
    serial: int = field(default_factory=lambda: next(_serial))
    submitted_at: float = field(default_factory=time.monotonic)
    lease: Lease | None = None
    sampling_lease: Lease | None = None  # what samples start to be drawn with: the lease, or with FOLLOW what was activated since
    held: frozenset[LiveHead] = frozenset()  # weights that must stay; replaced as a whole, since other threads read it
    is_ended: bool = False
    num_open: int = 0  # samples not done
    num_state_bytes: int = 0  # of one token's state, with `return_states`
    num_admitted_tokens: int = 0  # what the queue counts for it
    num_waiting: int = 0  # samples that have not been started
    num_prefill_tokens: int = 0  # that the cache did not have when the request came in; 0 without `due_at`, and once it has begun

    @property
    def num_tokens(self) -> int:
        """Most tokens this request can ever hold: what admission counts."""
        if not self.samples:
            return self.num_least_tokens
        return sum(sample.most_tokens for sample in self.samples) + len(self.samples) * self.num_suffix_tokens

    @property
    def num_suffix_tokens(self) -> int:
        """Most tokens that scoring can add to a sample: its rule questions, for every head that answers them."""
        num_rule_heads = sum(kind is HeadKind.RULE for kind in self.head_kinds.values())
        templates = self.rules.by_template.values() if self.rules else ()
        return num_rule_heads * max((sum(len(question.suffix) for question in questions) for questions in templates), default=0)

    def take_lease(self, active: ActiveSet) -> Lease:
        """Resolve every head at once. FailedPrecondition if a name has gone, or has changed its kind, since the request came in."""
        heads = {name: self._resolve(name, kind, active) for name, kind in self.head_kinds.items()}
        self.lease = self.sampling_lease = Lease(active.generation, heads)
        self.hold(self.lease.live_heads)
        return self.lease

    def hold(self, heads: Set[LiveHead]) -> None:
        """These weights must stay in memory for this request, and no others."""
        for live in heads - self.held:
            live.num_leases += 1
        for live in self.held - heads:
            live.num_leases -= 1
        self.held = frozenset(heads)

    def let_go(self) -> None:
        """Untie what refers to each other, once neither the engine nor a reader wants it: left to the garbage collector, heads' weights
        would stay in memory until it comes by.
        """
        for sample in self.samples:
            sample.reading = sample.successor = None
            sample.todo, sample.done = [], []
        self.samples = []

    def _resolve(self, name: str, kind: HeadKind, active: ActiveSet) -> ServedHead:
        head = self.pinned.get(name) or active.heads.get(name)
        if head is None or head.manifest.kind is not kind:
            raise FailedPrecondition(f"generation {active.generation} has no {kind.value} head of this name any more: {name!r}")
        if kind is HeadKind.RULE and (self.rules is None or head.manifest.template not in self.rules.by_template):
            raise FailedPrecondition(f"{head.reference} uses a template that the server does not have: {head.manifest.template!r}")
        if kind is HeadKind.RULE and not head.manifest.has_answers:
            raise FailedPrecondition(f"{head.reference} has no answer tokens: its template was not served when it was made")
        return head
