"""A request, its samples, and their readings: one head version's way along one token sequence. Plain data.

They refer to each other, so they stand in one file. Protobuf ends before it, tensors of the caches are in blocks/cache.py, and decisions
are in schedule/.
"""

from __future__ import annotations

import enum
import itertools
import math
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from polyhead.heads.format.kinds import HeadKind
from polyhead.server.engine.work.block import HeadBlock
from polyhead.server.engine.work.live import Lease, LiveHead, ServedHead
from polyhead.server.engine.work.pooling import PromptPooling
from polyhead.server.engine.work.questions import RuleQuestions
from polyhead.server.engine.work.reader import Event, ReadAtOnce, Reader
from polyhead.server.engine.work.sampling import Draws, FinishReason, SamplingParams, TextStream
from polyhead.server.engine.work.sequence import TokenSequence

SAMPLE_BYTES = 1000  # of a sample and its sequence in memory, beside their tokens
TOKEN_BYTES = 100  # of a drawn token: an id, two log-probs, text


class OnSwap(enum.Enum):
    """What an activation does to a running request."""

    PIN = "pin"
    ABORT = "abort"
    FOLLOW = "follow"


class Priority(enum.IntEnum):
    """The kind of caller; the lower value is scheduled first."""

    INTERACTIVE = 0
    BATCH = 1


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
    sequence: TokenSequence
    output: Output
    first: int  # first position whose output is wanted
    end: int  # one past the last position
    cursor: int = -1  # next position to run; -1 until it has started
    head_blocks: list[HeadBlock] = field(default_factory=list)
    num_reserved: int = 0  # head blocks promised to this reading and not yet taken
    next_slot: int = 0  # taken for its next head block before there is a block that it belongs to; 0: none
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
    """Which head version drew a run of a sample's tokens. It ends where the next one starts."""

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
    sequence: TokenSequence
    params: SamplingParams
    head_name: str = ""  # the sampling head as the caller named it; "" for a given completion
    head: ServedHead | None = None  # draws the next token
    generation: int = 0  # under which the sample took that head up
    seed: int = 0
    turn: int = 0  # its place among waiting samples, in tokens (turns.py)
    text: TextStream | None = None
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
    suffixes: list[TokenSequence] = field(default_factory=list)  # sequences of suffix readings
    done: list[Reading] = field(default_factory=list)
    states: Tensor | None = None  # (prompt + completion tokens, d_model), on the host
    pooled: np.ndarray | None = None  # (d_model,) float64: the prompt's row, with the request's `pooling`
    num_held: int = 0  # its bytes that count as unread; set when it is finished
    num_cached_tokens: int = 0
    num_head_tokens: int = 0  # that went through heads for it
    first_token_at: float = 0.0  # time.monotonic()
    last_token_at: float = 0.0

    @property
    def is_given(self) -> bool:
        return self.head_name == ""

    @property
    def num_trunk_tokens(self) -> int:
        """That went through the trunk for it, its questions' included."""
        return self.sequence.num_trunk_tokens + sum(suffix.num_trunk_tokens for suffix in self.suffixes)

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory until it is sent."""
        states = (self.states.nbytes if self.states is not None else 0) + (self.pooled.nbytes if self.pooled is not None else 0)
        rows = sum(reading.num_bytes for reading in self.done)
        return SAMPLE_BYTES + TOKEN_BYTES * len(self.completion) + 8 * len(self.sequence.tokens) + rows + states

    def let_go(self) -> None:
        """Drop its content: it was sent."""
        self.num_held = 0
        self.states = self.pooled = None
        self.completion, self.logprobs, self.sampling_logprobs, self.done = [], [], [], []

    @property
    def is_whole(self) -> bool:
        """Whether it was neither aborted nor failed."""
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
        """The highest token id of its sequence and of its rule questions."""
        questions = self.request.rules.by_template.values() if self.request.rules else ()
        suffixes = (question.suffix for template in questions for question in template)
        return max(max(tokens, default=0) for tokens in (self.sequence.tokens, *suffixes))

    @property
    def last_head(self) -> ServedHead | None:
        """The head that drew the last token, or that would have drawn the first."""
        return self.spans[-1].head if self.spans else self.head


_serial = itertools.count(1)


@dataclass(eq=False, repr=False, slots=True)
class Request:
    """One call's work. The engine thread owns everything below the line."""

    request_id: str
    deliver: Callable[[Request, list[Event]], None]  # takes a step's events, on the thread that the outbox's sink chooses
    head_kinds: Mapping[str, HeadKind]  # references to lease, sampling and scoring, and the kind that each had when the request was checked
    pinned: Mapping[str, ServedHead]  # those with an explicit version, resolved when the request was checked
    score_heads: tuple[str, ...] = ()
    rules: RuleQuestions | None = None
    score_sampling: SamplingParams | None = None  # Score: parameters for sampling_logprobs
    with_entropy: bool = False  # of policy-kind scoring heads
    num_top: int = 0  # likeliest tokens that policy-kind scoring heads name at each position
    named_generation: tuple[int, str] | None = None  # number and history id, by the caller: its versions are in `pinned`; None: any
    on_swap: OnSwap = OnSwap.PIN
    priority: Priority = Priority.BATCH
    principal: str = ""  # the caller whose share it counts against
    stream_tokens: bool = False
    return_states: bool = False
    holds_groups: bool = False  # nothing of a prompt is read before all its samples are finished
    states_layer: int = 0  # whose states are returned; 0: the boundary's
    pooling: PromptPooling | None = None  # also make one row of each prompt
    tag: object = None  # the servicer's own (rpc/tag.py); never read here
    deadline_at: float = math.inf  # time.monotonic(); ends the request
    due_at: float = math.inf  # the same if the caller gave one: admission plans with it. inf: no deadline
    reader: Reader = field(default_factory=ReadAtOnce)
    samples: list[Sample] = field(default_factory=list)
    num_least_tokens: int = 0  # of a request that has no samples yet: what it comes to by its counts
    draws: Draws | None = None  # the same: what it will draw
    # ---- engine thread
    serial: int = field(default_factory=lambda: next(_serial))
    submitted_at: float = field(default_factory=time.monotonic)
    queue_s: float = 0.0  # from its arrival to its lease
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
    def to_draw(self) -> Draws | None:
        """Samples that have not begun, all of them counted as the first; None if nothing is drawn."""
        if not self.samples or self.samples[0].is_given:
            return self.draws
        return Draws(len(self.samples), self.samples[0].params)

    @property
    def num_suffix_tokens(self) -> int:
        """Most tokens that scoring can add to a sample: its rule questions, for every head that answers them."""
        num_rule_heads = sum(kind is HeadKind.RULE for kind in self.head_kinds.values())
        templates = self.rules.by_template.values() if self.rules else ()
        return num_rule_heads * max((sum(len(question.suffix) for question in questions) for questions in templates), default=0)

    def hold(self, heads: Set[LiveHead]) -> None:
        """Keep these weights in memory for this request, and no others."""
        self.held = frozenset(heads)

    def let_go(self) -> None:
        """Break the reference circles of a request that is over: until the garbage collector runs, they would keep heads' weights in
        memory.
        """
        for sample in self.samples:
            sample.reading = sample.successor = None
            sample.todo, sample.done = [], []
        self.samples = []
