"""Prometheus metrics: a registry of our own, numbers read from the engine when scraped, histograms fed by the servicers.

Label values come from bounded sets: methods, codes, and head names up to a limit. Never prompt text, tokens or ids of callers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_HEAD_LABELS = 64
MAX_SCORE_SERIES = 64  # versions come without end: the series that was begun first makes way
OTHER = "other"
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_SIGNS = ("positive", "negative")
_SCORE = (-10.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0)

# EngineSnapshot.counters -> (name without polyhead_ and _total, help)
_COUNTERS = {
    "prompt_tokens": ("prompt_tokens", "Prompt tokens of admitted requests"),
    "generated_tokens": ("generation_tokens", "Tokens drawn"),
    "cache_hit_tokens": ("prefix_cache_hits", "Prompt tokens whose trunk work was found in the cache"),
    "trunk_tokens": ("trunk_tokens", "Tokens that went through the trunk"),
    "head_tokens": ("head_tokens", "Tokens that went through a head, each head counted"),
    "head_forwards": ("head_forwards", "Forward passes through a head's layers; adapters on one base share a pass"),
    "rebuilt_tokens": ("rebuilt_tokens", "Head tokens that were computed again so that a running sample could follow a swap"),
    "steps": ("engine_steps", "Forward passes"),
    "swaps": ("engine_swaps", "Changes of the active set"),
    "requests": ("engine_requests", "Requests taken into the queue"),
    "rejected_requests": ("engine_rejected_requests", "Requests refused because the queue was full, or their deadline too near"),
    "late_requests": ("engine_late_requests", "Requests refused since they could not have been served before their deadline"),
    "expired_requests": ("engine_expired_requests", "Requests whose deadline passed before their first step"),
    "wasted_tokens": ("engine_wasted_tokens", "Tokens drawn for samples that were ended before they were whole"),
    "aborted_requests": ("engine_aborted_requests", "Requests ended early: cancelled, past their deadline, by a swap or a drain"),
    "failed_samples": ("engine_failed_samples", "Samples that ended because their numbers were not finite"),
    "scored_readings": ("engine_scored_readings", "Numbers read off by scoring heads"),
    "trunk_seconds_us": ("engine_trunk_seconds_us", "Microseconds spent in the trunk"),
    "head_seconds_us": ("engine_head_seconds_us", "Microseconds spent in heads"),
}


@dataclass(frozen=True, slots=True)
class SampleFacts:
    """What the histograms want to know of a finished sample."""

    first_token_s: float  # from arrival; negative: nothing was drawn
    inter_token_s: float  # mean over the sample; negative: fewer than two tokens
    policy: str  # "policy@7", the version that drew it; empty for a given completion
    scalars: tuple[Scalar, ...]  # preferences, and first values
    violations: tuple[float, ...]  # p_violate of each rule asked


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number that a head gave to a whole sample."""

    head: str
    version: int
    number: float


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the metrics show of memory, disk and the active set, besides the heads."""

    trunk_bytes: int
    resident_head_bytes: int
    head_budget_bytes: int
    generation: int
    is_damaged: bool
    num_damaged_files: int
    disk_free_bytes: int
    disk_size_bytes: int
    attention: str  # what computes it
    device: str  # of the trunk
    head_device: str
    cache_bytes: Mapping[str, int] = field(default_factory=dict)  # by device
    followers: Mapping[str, int] = field(default_factory=dict)  # of a primary, by state
    most_behind: int = 0  # generations that the last of its connected followers still lacks
    is_following: bool = True  # a follower has caught up, and is connected; a primary always


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """One active head, as the metrics show it."""

    name: str
    version: int
    kind: str
    digest: str
    is_precision_mismatched: bool


class EngineCollector(Collector):
    """Reads the sources at scrape time; before the engine is up there is nothing to read."""

    def __init__(self) -> None:
        self._snapshot: Callable[[], Any] | None = None
        self._heads: Callable[[], Iterable[HeadInfo]] | None = None
        self._facts: Callable[[], ServerFacts] | None = None

    def connect(self, snapshot: Callable[[], Any], heads: Callable[[], Iterable[HeadInfo]], facts: Callable[[], ServerFacts]) -> None:
        self._snapshot, self._heads, self._facts = snapshot, heads, facts

    def collect(self) -> Iterator[Metric]:
        if self._snapshot is None or self._heads is None or self._facts is None:
            return
        yield from _engine_metrics(self._snapshot())
        yield from _head_metrics(list(self._heads()))
        yield from _server_metrics(self._facts())


def _engine_metrics(now: Any) -> Iterator[Metric]:
    yield GaugeMetricFamily("polyhead_requests_running", "Requests that are running", value=now.num_running)
    yield GaugeMetricFamily("polyhead_requests_waiting", "Requests in the queue", value=now.num_waiting)
    yield GaugeMetricFamily("polyhead_kv_cache_blocks", "Trunk cache blocks", value=now.num_blocks)
    yield GaugeMetricFamily(
        "polyhead_kv_cache_cached_blocks", "Trunk cache blocks that no sequence uses, kept for later prompts", value=now.num_cached_blocks
    )
    yield GaugeMetricFamily(
        "polyhead_kv_cache_usage_ratio",
        "Share of the trunk cache blocks that sequences use",
        value=_ratio(now.num_used_blocks, now.num_blocks),
    )
    yield GaugeMetricFamily(
        "polyhead_head_cache_usage_ratio",
        "Share of the head cache blocks that are filled",
        value=_ratio(now.num_filled_head_blocks, now.num_head_blocks),
    )
    yield GaugeMetricFamily(
        "polyhead_last_swap_pause_seconds", "Seconds for which the last swap paused the engine", value=now.last_swap_pause_s
    )
    yield GaugeMetricFamily(
        "polyhead_longest_step_gap_seconds",
        "Longest time between the ends of two consecutive steps, over the last 30 to 60 seconds",
        value=now.longest_gap_s,
    )
    yield GaugeMetricFamily("polyhead_ranks", "Processes that share every layer of the model", value=max(1, len(now.ranks)))
    ranks = GaugeMetricFamily("polyhead_rank_memory_bytes", "Bytes that each of several ranks holds", labels=("rank", "device"))
    for row in now.ranks:
        ranks.add_metric((str(row.rank), row.device), row.num_bytes)
    yield ranks
    for key, value in sorted(now.counters.items()):
        name, text = _COUNTERS.get(key, (f"engine_{key}", "Counted by the engine"))
        yield CounterMetricFamily(f"polyhead_{name}", text, value=value)
    queries = now.counters.get("prompt_tokens", 0)
    yield CounterMetricFamily("polyhead_prefix_cache_queries", "Prompt tokens looked up in the cache", value=queries)


def _head_metrics(heads: list[HeadInfo]) -> Iterator[Metric]:
    info = GaugeMetricFamily("polyhead_head_info", "Active heads", labels=("head", "version", "kind", "sha"))
    mismatch = GaugeMetricFamily(
        "polyhead_head_precision_mismatch", "1: the head was trained on another precision of the trunk", labels=("head",)
    )
    for head in heads[:MAX_HEAD_LABELS]:
        info.add_metric((head.name, str(head.version), head.kind, head.digest[:12]), 1)
        mismatch.add_metric((head.name,), float(head.is_precision_mismatched))
    yield info
    yield mismatch


def _server_metrics(now: ServerFacts) -> Iterator[Metric]:
    texts = {
        "trunk_bytes": ("Bytes of the trunk's weights", now.trunk_bytes),
        "resident_head_bytes": ("Bytes of heads' weights in memory", now.resident_head_bytes),
        "head_memory_budget_bytes": ("Bytes that heads' weights may take", now.head_budget_bytes),
        "active_generation": ("Number of the active generation", now.generation),
        "active_set_damaged": ("1: the active set on disk cannot be served until it is repaired", float(now.is_damaged)),
        "store_damaged_files": ("Damaged files in the store that do not keep the active set from being served", now.num_damaged_files),
        "follower_lag_generations": ("Generations that the last of the connected followers still lacks", now.most_behind),
        "following": ("1: the server follows its primary, or is one itself; 0: it cannot follow it now", float(now.is_following)),
        "disk_free_bytes": ("Bytes free where the store is", now.disk_free_bytes),
        "disk_size_bytes": ("Bytes of the file system where the store is", now.disk_size_bytes),
    }
    for name, (text, value) in texts.items():
        yield GaugeMetricFamily(f"polyhead_{name}", text, value=value)
    followers = GaugeMetricFamily("polyhead_followers", "Servers that follow this one, by state", labels=("state",))
    for state, count in sorted(now.followers.items()):
        followers.add_metric((state,), count)
    yield followers
    info = GaugeMetricFamily("polyhead_attention_info", "Back end that computes attention, in the label; always 1", labels=("attention",))
    info.add_metric((now.attention,), 1)
    yield info
    devices = GaugeMetricFamily("polyhead_device_info", "Devices of trunk and heads, in the labels; always 1", labels=("trunk", "heads"))
    devices.add_metric((now.device, now.head_device), 1)
    yield devices
    caches = GaugeMetricFamily("polyhead_cache_bytes", "Bytes that caches of trunk and heads may take there", labels=("device",))
    for device, num_bytes in now.cache_bytes.items():
        caches.add_metric((device,), num_bytes)
    yield caches


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


class Metrics:
    """All of a server's metrics. The observers may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.engine = EngineCollector()
        self.registry.register(self.engine)
        self.started_at = time.monotonic()
        self._head_labels: set[str] = set()
        self._score_series: dict[tuple[str, str, str], None] = {}  # in the order of their first use
        self._lock = threading.Lock()
        registry = self.registry
        ProcessCollector(registry=registry)
        self.serving = Gauge(
            "polyhead_serving",
            "1 if the health service answers SERVING; 0 while the server starts, drains or cannot serve",
            registry=registry,
        )
        self.unread = Gauge("polyhead_unread_bytes", "Bytes of answers that callers have not read yet", registry=registry)
        self.request_seconds = Histogram(
            "polyhead_request_duration_seconds",
            "Duration of a call, from first to last byte",
            ("method", "code"),
            buckets=_SLOW,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "polyhead_time_to_first_token_seconds", "Time from a request's arrival to its first token", buckets=_SLOW, registry=registry
        )
        self.inter_token_seconds = Histogram(
            "polyhead_inter_token_latency_seconds", "Time between two tokens of one sample", buckets=_FAST, registry=registry
        )
        self.queue_seconds = Histogram(
            "polyhead_request_queue_seconds", "Time from a request's arrival until it is first scheduled", buckets=_SLOW, registry=registry
        )
        self.swap_seconds = Histogram(
            "polyhead_head_swap_seconds",
            "Duration of an activation, from the call until the engine serves the new set",
            buckets=_SLOW,
            registry=registry,
        )
        self.swaps = Counter("polyhead_head_swaps", "Activations by head and outcome", ("head", "outcome"), registry=registry)
        self.received = Counter(
            "polyhead_push_received_bytes", "Bytes of pushed heads: whole files, or deltas against a version", ("form",), registry=registry
        )
        for form in ("whole", "delta"):
            self.received.labels(form)
        self.score = Histogram(
            "polyhead_score",
            "Raw scalars of preference and value heads, by the policy version that drew the sample",
            ("head", "version", "policy"),
            buckets=_SCORE,
            registry=registry,
        )
        # A histogram with negative buckets has no _sum, and a sum that falls is no counter: a mean needs both halves, apart.
        self.score_magnitude = Counter(
            "polyhead_score_magnitude",
            "Sum of those scalars' absolute values: (positive - negative) / polyhead_score_count is their mean",
            ("head", "version", "policy", "sign"),
            registry=registry,
        )
        self.rule_answers = Counter(
            "polyhead_rule_answers", "Rule answers, by whether p_violate is above one half", ("violated",), registry=registry
        )
        for violated in ("true", "false"):
            self.rule_answers.labels(violated)

    def observe_call(self, method: str, code: str, seconds: float) -> None:
        """For the interceptor: `method` is a full name from our own handlers."""
        self.request_seconds.labels(method.removeprefix("/"), code).observe(seconds)

    def show_heads(self, names: Iterable[str]) -> None:
        """Create every counter of these heads at 0: one that first appears with a failure shows no increase."""
        for name in names:
            self._give_label(name)
            for outcome in ("ok", "failed"):
                self.swaps.labels(self.head_label(name), outcome)

    def observe_swap(self, heads: Iterable[str], outcome: str, seconds: float) -> None:
        """A change that failed may name anything: only names that have been active get a label of their own."""
        names = list(heads)
        if outcome == "ok":
            self.show_heads(names)
            self.swap_seconds.observe(seconds)
        for name in names:
            self.swaps.labels(self.head_label(name), outcome).inc()

    def observe_received(self, form: str, num_bytes: int) -> None:
        """For a push, once per chunk."""
        self.received.labels(form).inc(num_bytes)

    def observe_sample(self, facts: SampleFacts) -> None:
        """For the servicers, once per finished sample."""
        if facts.first_token_s >= 0:
            self.first_token_seconds.observe(facts.first_token_s)
        if facts.inter_token_s >= 0:
            self.inter_token_seconds.observe(facts.inter_token_s)
        for scalar in facts.scalars:
            self._give_label(scalar.head)  # it has a version: it was pushed
            self._observe_score((self.head_label(scalar.head), str(scalar.version), facts.policy), scalar.number)
        for p_violate in facts.violations:
            self.rule_answers.labels(str(p_violate > 0.5).lower()).inc()

    def _observe_score(self, series: tuple[str, str, str], number: float) -> None:
        with self._lock:
            if series not in self._score_series and len(self._score_series) >= MAX_SCORE_SERIES:
                oldest = next(iter(self._score_series))
                del self._score_series[oldest]
                self.score.remove(*oldest)
                for sign in _SIGNS:
                    self.score_magnitude.remove(*oldest, sign)
            self._score_series[series] = None
            self.score.labels(*series).observe(number)
            for sign, amount in zip(_SIGNS, (max(number, 0.0), max(-number, 0.0)), strict=True):
                self.score_magnitude.labels(*series, sign).inc(amount)

    def head_label(self, name: str) -> str:
        """The name itself for the first 64 that have served, else "other"."""
        return name if name in self._head_labels else OTHER

    def _give_label(self, name: str) -> None:
        """Names beyond MAX_HEAD_LABELS get none: trainers may make any number of them."""
        if len(self._head_labels) < MAX_HEAD_LABELS:
            self._head_labels.add(name)
