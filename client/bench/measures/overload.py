"""P12: calls with a deadline that arrive whether or not the server keeps up, at shares and multiples of what it can draw at most.

What counts is the goodput: tokens of replies that were whole in time. What was drawn for the others is wasted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import grpc

from polyhead.client.bench.ours import Ours
from polyhead.client.bench.plan import Sizes
from polyhead.client.bench.results import Row, Series, at_least, at_most
from polyhead.client.bench.session import Contender, Session
from polyhead.client.transport import Stubs
from polyhead.client.wire import generation_requests

SHARES = (0.5, 0.75, 1.0)  # of the most that it can draw: the best of these is the peak
OVERLOADS = (3.0, 10.0)
GOODPUT_GOAL = 0.9  # of the peak
WASTE_GOAL = 0.05  # of the tokens drawn
IDLE_TIMEOUT_S = 30.0
NUM_CHANNELS = 16  # as from so many workers: one connection bears 256 calls at a time
_OWN = [("grpc.use_local_subchannel_pool", 1)]


@dataclass(slots=True)
class Outcome:
    """What became of the calls of one load."""

    num_sent: int = 0
    num_refused: int = 0  # RESOURCE_EXHAUSTED
    num_late: int = 0  # DEADLINE_EXCEEDED
    num_failed: int = 0  # anything else
    met_at: list[float] = field(default_factory=list)  # when each whole reply had come, from the load's start
    refused_after: list[float] = field(default_factory=list)  # seconds until each refusal
    failures: list[str] = field(default_factory=list)

    def goodput(self, num_tokens: int, after_s: float, until_s: float) -> float:
        """Tokens a second of whole replies that came within the window; the ramp before it does not count."""
        return num_tokens * sum(after_s <= at < until_s for at in self.met_at) / (until_s - after_s)

    @property
    def line(self) -> str:
        slowest = f", the slowest refusal after {1000 * max(self.refused_after):.0f} ms" if self.refused_after else ""
        counts = f"{len(self.met_at)} whole, {self.num_refused} refused, {self.num_late} late, {self.num_failed} failed{slowest}"
        return "; ".join([f"{self.num_sent} calls: {counts}", *self.failures[:2]])


def overload(session: Session) -> list[Row]:
    """Every load by turns on one server; the most that it draws is measured first, by streams that wait for nothing."""
    sizes, ours = session.plan.sizes, session.ours
    most = _most_calls_a_second(session, ours)
    wasted: dict[str, list[float]] = {}
    notes: dict[str, str] = {}

    def measure(name: str, load: float) -> float:
        prompts = session.work.prompts(max(1, round(load * most * sizes.overload_s * 2)), sizes.prompt_tokens)
        before = ours.client.status().counters["generated_tokens"]
        outcome = asyncio.run(offer(ours.server.address, prompts, load * most, sizes))
        _wait_idle(ours)
        drawn = ours.client.status().counters["generated_tokens"] - before
        wasted.setdefault(name, []).append(1.0 - len(outcome.met_at) * sizes.overload_tokens / drawn if drawn else 0.0)
        notes[name] = f"{name}: {outcome.line}"
        session.progress(f"{notes[name]}; {wasted[name][-1]:.1%} of {drawn} drawn tokens wasted")
        return outcome.goodput(sizes.overload_tokens, min(sizes.overload_deadline_s, sizes.overload_s / 2), sizes.overload_s)

    loads = {f"{load:g}x": load for load in (*SHARES, *OVERLOADS)}
    series = session.interleave([Contender(name, partial(measure, name, load)) for name, load in loads.items()])
    kept = {name: Series(name, tuple(values[-session.plan.runs :])) for name, values in wasted.items()}  # the first round is warm-up
    return overload_rows(sizes, series, [kept[each.name] for each in series if each.name in kept], most, list(notes.values()))


def overload_rows(sizes: Sizes, goodputs: Sequence[Series], wasted: Sequence[Series], most: float, notes: Sequence[str]) -> list[Row]:
    """Series by load, in the order of SHARES and OVERLOADS."""
    peak = max((each.median for each in goodputs[: len(SHARES)] if each.values), default=0.0)
    checks = [
        at_least(f"{each.name}: at least {GOODPUT_GOAL:g} of the peak", each.median / peak if peak else None, GOODPUT_GOAL)
        for each in goodputs[len(SHARES) :]
    ]
    waste_checks = [
        at_most(f"{each.name}: at most {WASTE_GOAL:g} wasted", each.median, WASTE_GOAL) for each in wasted[len(SHARES) :]
    ]
    what = (
        f"goodput of calls for {sizes.overload_tokens} tokens within {sizes.overload_deadline_s:g} s, arriving at random; "
        f"1x is {most:.1f} calls/s, the most that {sizes.streams['P1']} streams draw"
    )
    return [
        Row("P12", what, "tokens/s", True, tuple(goodputs), tuple(checks), (f"peak: {peak:.1f} tokens/s", *notes), is_contest=False),
        Row("P12 wasted", "share of the drawn tokens that no whole reply in time had", "", False, tuple(wasted), tuple(waste_checks),
            is_contest=False),
    ]


def _most_calls_a_second(session: Session, ours: Ours) -> float:
    """As many streams as P1 has, each for one call's tokens, and the next ones when all are done."""
    sizes = session.plan.sizes
    streams = sizes.streams["P1"]
    seconds = [ours.decode(session.work.prompts(streams, sizes.prompt_tokens), sizes.overload_tokens) for _ in range(4)]
    return streams / statistics.median(seconds[1:])


async def offer(address: str, prompts: Sequence[Sequence[int]], rate: float, sizes: Sizes, seed: int = 1) -> Outcome:
    """One load: calls that arrive at random, `rate` a second on average, none of them tried again."""
    outcome = Outcome()
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(grpc.aio.insecure_channel(address, _OWN)) for _ in range(NUM_CHANNELS)]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        stubs = itertools.cycle([Stubs(channel) for channel in channels])
        started_at = time.monotonic()
        calls: list[asyncio.Task[None]] = []
        for stub, prompt, due in zip(stubs, prompts, arrivals(rate, sizes.overload_s, seed), strict=False):
            await asyncio.sleep(max(0.0, started_at + due - time.monotonic()))
            calls.append(asyncio.create_task(_call(stub, prompt, sizes, started_at, outcome)))
        await asyncio.gather(*calls)
    return outcome


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """When calls arrive, in seconds: a Poisson process."""
    chance, at, times = random.Random(seed), 0.0, []
    while (at := at + chance.expovariate(rate)) < seconds:
        times.append(at)
    return times


async def _call(stubs: Stubs, prompt: Sequence[int], sizes: Sizes, started_at: float, outcome: Outcome) -> None:
    """One sample, sent when it is whole; it never ends before its last token. The client's own retries would be more load."""
    message = generation_requests.generate([list(prompt)], max_new_tokens=sizes.overload_tokens, ignore_eos=True, delivery="samples")
    outcome.num_sent += 1
    sent_at, num_tokens = time.monotonic(), 0
    try:
        async for answer in stubs.generation.Generate(message, timeout=sizes.overload_deadline_s):
            num_tokens += len(answer.sample.token_ids)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            outcome.num_refused += 1
            outcome.refused_after.append(time.monotonic() - sent_at)
        elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            outcome.num_late += 1
        else:
            outcome.num_failed += 1
            outcome.failures.append(f"{error.code().name}: {error.details()}")
        return
    if num_tokens == sizes.overload_tokens:
        outcome.met_at.append(time.monotonic() - started_at)
    else:
        outcome.num_late += 1


def _wait_idle(ours: Ours) -> None:
    """Until what was broken off has been given up."""
    end_at = time.monotonic() + IDLE_TIMEOUT_S
    while (status := ours.client.status()).num_running + status.num_waiting and time.monotonic() < end_at:
        time.sleep(0.05)
