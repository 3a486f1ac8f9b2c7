"""Several processes with one history: what two and three of them do of one's work, and how an update reaches all.

Each process computes with one thread. Where there is no core for each of them and one for the client, they take it from one another:
the ratios are shown, and no goal is judged by them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from polyhead.client import Client, PolyheadError
from polyhead.client.bench.ours import Ours, moved, our_server, timed
from polyhead.client.bench.results import Check, Row, Series, at_least
from polyhead.client.bench.session import Contender, Session
from polyhead.client.bench.work import Work

COUNTS = (1, 2, 3)  # of processes
NUM_CALLS = 6  # that are open at once: the same number for each process
FLIP_TIMEOUT_S = 60.0
WANTED = 2.4  # times one process's throughput, of three


def fleet(session: Session) -> list[Row]:
    """A primary and two followers, each with one thread."""
    with contextlib.ExitStack() as running:
        servers: list[Ours] = []
        for _ in COUNTS:
            session.interrupt.check()
            session.progress(f"starting server {len(servers) + 1} of {len(COUNTS)}")
            follow = ["--follow", servers[0].server.address] if servers else []
            servers.append(running.enter_context(our_server(session.plan, session.plan.servers[0], "--threads", "1", *follow)))
        return [throughput(session, servers), *update(session, servers)]


def throughput(session: Session, servers: Sequence[Ours]) -> Row:
    """The same calls to the first, to two, and to all."""
    sizes = session.plan.sizes
    work, count = Work(servers[0].client.tokenize), max(NUM_CALLS, sizes.streams["P1"])

    def rate(num_servers: int) -> float:
        prompts = work.prompts(count, sizes.prompt_tokens)
        calls = [(servers[index % num_servers], prompts[index::NUM_CALLS]) for index in range(NUM_CALLS)]
        seconds, _ = timed(lambda: _together(calls, sizes.num_tokens))
        return count * sizes.num_tokens / seconds

    names = [f"{servers[0].name}, {num_servers} of {len(COUNTS)} processes" for num_servers in COUNTS]
    series = session.interleave([Contender(name, partial(rate, num_servers)) for name, num_servers in zip(names, COUNTS, strict=True)])
    ratios = [each.median / series[0].median for each in series]
    what = f"decode, {count} streams, one thread a process"
    note = f"over one process: {', '.join(f'{ratio:.2f}' for ratio in ratios[1:])}"
    check, more = judged(ratios[-1], os.cpu_count() or 1)
    return Row("fleet", what, "tokens/s", True, tuple(series), (check,), (note, *more), is_contest=False)


def judged(ratio: float, num_cores: int) -> tuple[Check, tuple[str, ...]]:
    """The goal, open where the cores cannot show it; and why."""
    goal = f"three processes do at least {WANTED} times what one does"
    if num_cores > len(COUNTS):
        return at_least(goal, ratio, WANTED), ()
    why = f"{num_cores} cores for {len(COUNTS)} processes and a client: they share them, so the ratio says nothing of more machines"
    return at_least(goal, None, WANTED), (why,)


def _together(calls: Sequence[tuple[Ours, list[list[int]]]], num_tokens: int) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:  # each call ends with its client's timeout
        for done in [pool.submit(server.decode, prompts, num_tokens) for server, prompts in calls]:
            done.result()


def update(session: Session, servers: Sequence[Ours]) -> list[Row]:
    """Heads that were pushed before are activated by all: from the first flip to the last, as callers of WatchHeads see them; and bytes."""
    primary, seeds = servers[0].client, itertools.count(500)
    first, stored = servers[0].first_weights("policy"), [_stored(servers)]
    whole: list[float] = []

    def spread() -> float:
        session.interrupt.check()
        version = primary.push_head("policy", moved(first, next(seeds)))
        number = primary.status().generation
        at: list[float] = []
        watchers = [threading.Thread(target=_note_flip, args=(server.client, number, at), daemon=True) for server in servers]
        for each in watchers:
            each.start()
        seconds, _ = timed(lambda: primary.activate({"policy": version}))
        whole.append(seconds)
        for each in watchers:
            each.join(FLIP_TIMEOUT_S)
        if len(at) < len(servers):
            raise PolyheadError(f"{len(servers) - len(at)} servers have not taken up the new head after {FLIP_TIMEOUT_S:g} s")
        stored.append(_stored(servers))
        return max(at) - min(at)

    [series] = session.interleave([Contender(servers[0].name, spread)])
    size = primary.heads("policy")[0].num_bytes
    per_swap = [after - before for before, after in itertools.pairwise(stored)]
    what = f"from the first flip to the last, {len(servers)} processes, a head of {size / 1e6:.0f} MB"
    note = f"activate, which loads it everywhere first: {statistics.median(whole):.3f} s"
    bytes_ = Series(servers[0].name, tuple(float(each) / 1e6 for each in per_swap))
    moved_note = f"{len(servers)} copies of {size / 1e6:.1f} MB: one push, and one pull by each follower"
    return [
        Row("fleet swap", what, "s", False, (series,), (), (note,), is_contest=False),
        Row("fleet bytes", "stored by all servers for one new head", "MB", False, (bytes_,), (), (moved_note,), is_contest=False),
    ]


def _note_flip(client: Client, number: int, at: list[float]) -> None:
    """When a generation after this one is active there."""
    with client.watch(after=number) as generations:
        next(generations)
        at.append(time.perf_counter())


def _stored(servers: Sequence[Ours]) -> int:
    """Bytes in all stores."""
    return sum(server.client.status().store_bytes for server in servers)
