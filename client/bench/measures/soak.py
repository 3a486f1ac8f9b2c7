"""Mixed load for minutes: rollouts, best of n, scores, broken-off streams, pushes, swaps, rollbacks. Is memory flat, and the pace kept?"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil

from polyhead.client import PolyheadError, Rule
from polyhead.client.bench.measures.experience import roll_out
from polyhead.client.bench.ours import Ours, moved, our_server
from polyhead.client.bench.results import Row, Series, at_least, at_most, times_better
from polyhead.client.bench.session import Contender, Session

MIB = 1 << 20
PUSH_EVERY_S = 8.0
SETTLING = 3  # parts of the run that do not count: versions that are kept come into memory
PARTS = 10  # at least, of one run; a minute each in a longer one
TURN_S = 20.0  # of the same load on the server that has run for so long, and on a new one
CACHE_BYTES = 384 << 20
QUICK_CACHE_BYTES = 32 << 20
CONTEXT = 1024
TOKENS_A_BLOCK = 16
FILLING_CALLS = 4  # that take a cache's worth of tokens together
GROWTH_LIMIT = 1.05
PACE_LIMIT = 0.9


@dataclass(frozen=True, slots=True)
class Part:
    """What was seen at the end of one part of the run."""

    rss_mib: float
    used_blocks: int
    tokens_per_second: float

    @property
    def line(self) -> str:
        return f"RSS {self.rss_mib:.0f} MiB, {self.used_blocks} blocks in use, {self.tokens_per_second:.1f} tokens/s"


class Soak:
    """Threads that use a server in different ways until they are told to end. A context manager, as often as one likes."""

    def __init__(self, session: Session, ours: Ours) -> None:
        self.ours = ours
        self.failures: list[str] = []
        self.num_calls = 0
        self._session = session
        self._client = ours.client
        self._is_over = threading.Event()
        self._seeds = itertools.count(1000)
        self._lock = threading.Lock()
        sizes = session.plan.sizes
        questions = ours.questions(session.work, sizes.num_rules, sizes.rule_tokens)
        self._rules = [Rule(key, text) for key, (text, _) in questions.items()]
        self._base = ours.first_weights("policy")
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Soak:
        self._is_over.clear()
        work = (self._roll_out, self._best_of_n, self._score, self._break_off, self._push)
        self._threads = [threading.Thread(target=self._repeat, args=(each,), daemon=True) for each in work]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(120.0)

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._is_over.is_set():
            try:
                work()
            except PolyheadError as error:
                with self._lock:
                    self.failures.append(f"{work.__name__.strip('_')}: {str(error).splitlines()[0]}")
            with self._lock:
                self.num_calls += 1

    def _prompts(self, count: int) -> list[list[int]]:
        with self._lock:
            return self._session.work.prompts(count, self._session.plan.sizes.prompt_tokens)

    def _roll_out(self) -> None:
        roll_out(self._client, self._prompts(4), self._rules, self._session.plan.sizes.num_tokens, next(self._seeds))

    def _best_of_n(self) -> None:
        self._client.generate(self._prompts(1), n=4, max_new_tokens=self._session.plan.sizes.num_tokens, recipe="preference", best=1)

    def _score(self) -> None:
        items = [(prompt[:-2], prompt[-2:]) for prompt in self._prompts(4)]
        self._client.score(items, heads=["policy", "reference", "value", "preference"])

    def _break_off(self) -> None:
        """A reader that goes away in the middle."""
        with self._client.stream(self._prompts(1)[0], max_new_tokens=200, ignore_eos=True, on_swap="follow") as stream:
            for number, _ in enumerate(stream):
                if number == 8:
                    return

    def _push(self) -> None:
        """A new policy every so often, and every third time back to the one before."""
        seed = next(self._seeds)
        self._client.update({"policy": moved(self._base, seed)})
        if seed % 3 == 0:
            self._client.rollback()
        self._is_over.wait(PUSH_EVERY_S)


def soak(session: Session) -> list[Row]:
    """On a server of its own; then on that one and a new one by turns: a host that slows, slows both."""
    plan = session.plan
    num_parts = max(PARTS, round(plan.soak_minutes))
    part_s = plan.soak_minutes * 60 / num_parts
    parts: list[Part] = []

    def pace(load: Soak) -> float:
        with load:
            return watch(session, load.ours, min(TURN_S, part_s)).tokens_per_second

    with full_server(session) as ours:
        load = Soak(session, ours)
        with load:
            for number in range(1, num_parts + 1):
                parts.append(watch(session, ours, part_s))
                session.progress(f"{number / num_parts * plan.soak_minutes:.1f} min: {parts[-1].line}, {len(load.failures)} failed")
        with full_server(session) as new:
            other = Soak(session, new)
            series = session.interleave([Contender(ours.name, lambda: pace(load)), Contender("a new server", lambda: pace(other))])
        end_used = wait_idle(ours)
    num_calls = load.num_calls + other.num_calls
    return [soak_row(parts, load.failures + other.failures, num_calls, end_used, plan.soak_minutes), pace_row(series, plan.soak_minutes)]


@contextlib.contextmanager
def full_server(session: Session) -> Iterator[Ours]:
    """With five roles, and a cache small enough to be filled at once: an empty one takes memory as it fills."""
    plan = session.plan
    cache_bytes = QUICK_CACHE_BYTES if plan.is_quick else CACHE_BYTES
    with our_server(plan, plan.servers[0], "--cache-bytes", str(cache_bytes), "--max-context", str(CONTEXT)) as ours:
        ours.make_roles_differ()
        fill_cache(session, ours)
        yield ours


def fill_cache(session: Session, ours: Ours) -> None:
    """Score new texts with several heads until every block of trunk and heads has held something, or no more are kept."""
    client, status = ours.client, ours.client.status()
    length, most_held = CONTEXT // 2, -1
    while (held := status.num_cached_blocks + status.num_filled_head_blocks) > most_held:
        most_held = held
        texts = session.work.prompts(-(-status.num_blocks * TOKENS_A_BLOCK // (FILLING_CALLS * length)), length)
        client.score([(text[:-1], text[-1:]) for text in texts], heads=["reference", "value", "preference"])
        status = client.status()


def soak_row(parts: list[Part], failures: list[str], num_calls: int, end_used: int, length: float) -> Row:
    """The last third's memory against what came first, once all that is kept is there."""
    settled = [each.rss_mib for each in parts[SETTLING:]]
    third = max(1, len(settled) // 3)
    first = statistics.median(settled[:third])
    growth = statistics.median(settled[-third:]) / first if first else math.nan
    checks = (
        at_most(f"flat memory, last third over first: {GROWTH_LIMIT}", growth, GROWTH_LIMIT),
        at_most("failed calls: 0", float(len(failures)), 0.0),
        at_most("blocks in use when all is over: 0", float(end_used), 0.0),
    )
    series = (Series("resident set of our server", tuple(each.rss_mib for each in parts)),)
    notes = (f"{num_calls} calls", *(each.line for each in parts), *failures[:3])
    return Row("soak", f"{length:g} minutes of mixed load", "MiB", False, series, checks, notes)


def pace_row(series: list[Series], length: float) -> Row:
    """The server that ran for so long, then a new one."""
    reached = times_better(series[0], series[1], is_rate=True)
    check = at_least(f"no slowdown, over a new server: {PACE_LIMIT}", reached, PACE_LIMIT)
    return Row("soak pace", f"mixed load after {length:g} minutes of it, and on a new server", "tokens/s", True, tuple(series), (check,))


def watch(session: Session, ours: Ours, seconds: float) -> Part:
    client = ours.client
    before, started_at = client.status().counters["generated_tokens"], time.monotonic()
    session.interrupt.sleep(seconds)
    after = client.status()
    drawn = after.counters["generated_tokens"] - before
    resident = psutil.Process(ours.server.process.pid).memory_info().rss
    return Part(resident / MIB, after.num_used_blocks, drawn / (time.monotonic() - started_at))


def wait_idle(ours: Ours) -> int:
    """Blocks in use once nothing runs any more, or after some seconds."""
    end_at = time.monotonic() + 30.0
    while (status := ours.client.status()).num_running and time.monotonic() < end_at:
        time.sleep(0.1)
    return status.num_used_blocks
